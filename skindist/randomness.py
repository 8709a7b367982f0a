"""Randomness is a function, not a state: every random choice is drawn from a seed derived from what it belongs to.

Nothing depends on how many numbers were drawn before, so there is no generator state to save, a resumed run repeats
the uninterrupted one, loader workers cannot repeat each other, and 1, 2 or 8 processes see the same images.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a seed is for: the first part of its key, so that two purposes never share numbers."""

    SPLIT = 1  # (label)
    ORDER = 2  # (epoch)
    AUGMENTATION = 3  # (epoch, sample id)
    DROPOUT = 4  # (global step, accumulation step, rank)
    INITIAL_WEIGHTS = 5
    BOOTSTRAP = 6
    HALVES = 7  # (label)
    STRESS = 8  # (disturbance, image's bytes)


def derived_seed(seed: int, stream: Stream, *key: int) -> int:
    """A 64-bit seed that is a pure function of the run's seed, the purpose and the key."""
    return int(np.random.SeedSequence([seed, stream, *key]).generate_state(1, np.uint64)[0])


def generator(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """A numpy generator that is a pure function of the run's seed, the purpose and the key."""
    return np.random.default_rng([seed, stream, *key])
