"""One run: the story (trainer), the loop (engine), what learns in it (learner), and what they stand on.

It may import every other room; only the command line and a user's own script import it. Open trainer.py first: `fit`
tells a run from its config to its results in one page; then engine.py, from which another loop can be written.
"""
