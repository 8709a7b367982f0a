"""The two ways in which a run ends early on purpose: each is shown as one message, never as a traceback."""


class UserError(Exception):
    """A user's mistake: the message says what is wrong, where, and what to do. Exit status 2."""


class TrainingError(Exception):
    """Training cannot go on, through no mistake in the input (a loss that is not finite). Exit status 1."""
