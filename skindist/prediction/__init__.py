"""Predict the images of a split, on all processes, and tell what came of it: what a training's evaluation and test and
`skindist evaluate` share. Nothing here learns. Open evaluate.py first.
"""
