"""How good a classifier is: metrics, and the intervals that say how far to trust them."""
