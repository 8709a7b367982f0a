"""Where the curves go beside the run's own record: Weights & Biases (wandb_sink, and its service) and other trackers.

Nothing here may stop a run, or make it wait for long. Open wandb_sink.py first: what is sent, and what is done when
the service fails. The record of a run is in the room `run`; `training/tracker.py` brings all of them together.
"""
