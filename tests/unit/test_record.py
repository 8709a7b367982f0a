"""metrics.jsonl: a resumed run logs again what came after its checkpoint, and nothing twice."""

from pathlib import Path

import pytest

from skindist.run.record import read, rewind

EVENTS = [
    '{"train/loss": 0.7, "epoch": 0.5, "global_step": 2}\n',
    '{"train/loss": 0.6, "epoch": 1.0, "global_step": 4}\n',
    '{"val/loss": 0.6, "epoch": 1, "global_step": 4}\n',
    '{"train/loss": 0.5, "epoch": 1.5, "global_step": 6}\n',
]


@pytest.mark.parametrize(
    ("global_step", "epoch", "kept"),
    [(0, 0, 0), (3, 0, 1), (4, 0, 2), (4, 1, 3), (5, 1, 3), (6, 1, 4)],
)
def test_what_came_after_a_checkpoint_is_dropped(tmp_path: Path, global_step: int, epoch: int, kept: int) -> None:
    """After step 4 an epoch is trained; it may be that its evaluation was logged, but not saved."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(EVENTS))
    rewind(path, global_step, epoch)
    assert path.read_text() == "".join(EVENTS[:kept])


@pytest.mark.parametrize("damage", ["null\n", "{\n", "\0\0\n", "\n"])
def test_a_damaged_line_is_named_by_readers_and_dropped_by_a_resumed_run(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join([*EVENTS[:2], damage, *EVENTS[2:]]))
    with pytest.raises(ValueError, match="line 3 is damaged"):
        read(path)
    rewind(path, 100, 9)
    assert path.read_text() == "".join(EVENTS)


def test_half_a_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(EVENTS) + EVENTS[0][:20])
    rewind(path, 100, 9)
    assert path.read_text() == "".join(EVENTS)
    rewind(tmp_path / "absent.jsonl", 0, 0)
    assert not (tmp_path / "absent.jsonl").exists()
