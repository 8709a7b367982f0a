"""The saved model: written and read (saved_model, description, sources), used on files (predict, seeing, table), judged
on other images (evaluation), explained (explain), exported as one file for other programs (graph, export), sent to the
Hub (push).

A run saves its model through this room. `skindist evaluate` predicts with the loop of the room `prediction`. Open
predict.py and evaluation.py first.
"""
