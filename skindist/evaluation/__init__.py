"""How good a classifier is: metrics, and the intervals that say how far to trust them.

It knows labels and probabilities, no network and no process; training and report may import it. Open metrics.py first.
"""
