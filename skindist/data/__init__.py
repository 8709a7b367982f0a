"""From a folder of images to batches of pixels.

It stands on the ground (downloads, errors, files, machine, randomness, recipe, wording); all later layers may import
it. Open prepare.py first: a survey (scan, metadata, labels and duplicates in turn), then the split. Pixels are
resizing.py and store.py, batches loading.py.
"""
