"""The saved model: written, read again, and put to use on other images."""
