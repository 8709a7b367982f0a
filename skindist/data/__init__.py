"""From a folder of images to batches of pixels."""
