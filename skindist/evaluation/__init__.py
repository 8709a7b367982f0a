"""How good a classifier is: metrics, their intervals, and the judgement made of them.

It knows predictions and what is known of images, no network and no process; training and report may import it. Open
judgement.py first.
"""
