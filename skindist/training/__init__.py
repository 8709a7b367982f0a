"""One run: the story (trainer), the loop (engine), and what they stand on."""
