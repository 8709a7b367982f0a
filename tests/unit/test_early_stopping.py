"""The tracker, by hand: when it improves, when it stops, what it remembers."""

import json
import math

import pytest

from skindist.early_stopping import EarlyStopping


def feed(tracker: EarlyStopping, values: list[float]) -> list[bool]:
    return [tracker.update(value, epoch) for epoch, value in enumerate(values, start=1)]


def test_stops_after_patience_epochs_without_improvement() -> None:
    tracker = EarlyStopping(patience=2, min_delta=0.001)
    assert feed(tracker, [0.6, 0.5]) == [True, True]
    assert not tracker.update(0.55, 3)
    assert not tracker.should_stop
    assert not tracker.update(0.52, 4)
    assert tracker.should_stop
    assert (tracker.best, tracker.best_epoch) == (0.5, 2)


def test_an_improvement_resets_patience() -> None:
    tracker = EarlyStopping(patience=2)
    assert feed(tracker, [0.6, 0.7, 0.5, 0.6]) == [True, False, True, False]
    assert not tracker.should_stop


def test_a_change_of_exactly_min_delta_is_no_improvement() -> None:
    assert feed(EarlyStopping(min_delta=0.25), [1.0, 0.75, 0.5]) == [True, False, True]


def test_small_steps_count_once_they_add_up() -> None:
    assert feed(EarlyStopping(min_delta=0.001, patience=9), [0.5, 0.4995, 0.4985]) == [True, False, True]


def test_epochs_before_the_first_one_do_not_count() -> None:
    tracker = EarlyStopping(patience=2, first_epoch=4)
    assert feed(tracker, [0.5, 0.6, 0.7, 0.8, 0.9]) == [False, False, False, True, False]
    assert (tracker.should_stop, tracker.epochs_without_improvement) == (False, 1)
    tracker.update(0.8, 6)
    assert (tracker.should_stop, tracker.best, tracker.best_epoch) == (True, 0.8, 4)


def test_mode_max() -> None:
    tracker = EarlyStopping(patience=1, min_delta=0.01, mode="max")
    assert feed(tracker, [0.8, 0.9, 0.905]) == [True, True, False]
    assert (tracker.best, tracker.should_stop) == (0.9, True)


def test_infinity_is_worse_than_everything_and_nan_is_refused() -> None:
    tracker = EarlyStopping(patience=5)
    assert feed(tracker, [math.inf, 0.7, math.inf]) == [True, True, False]
    with pytest.raises(ValueError, match="epoch 4 is NaN"):
        tracker.update(math.nan, 4)


def test_state_survives_json() -> None:
    tracker = EarlyStopping(patience=2)
    feed(tracker, [0.5, 0.6])
    restored = EarlyStopping(patience=7)
    restored.load_state_dict(json.loads(json.dumps(tracker.state_dict())))
    assert restored == tracker
    restored.update(0.6, 3)
    assert restored.should_stop


def test_an_incomplete_state_is_refused() -> None:
    with pytest.raises(KeyError, match="best"):
        EarlyStopping().load_state_dict({"patience": 2, "min_delta": 0.001, "mode": "min", "first_epoch": 1})
