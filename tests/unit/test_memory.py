"""Running out of memory: what is said, and how the largest micro-batch is found."""

import pytest
import torch

from skindist.distributed import group
from skindist.errors import OutOfMemory, TrainingError
from skindist.training.memory import advised, is_out_of_memory, largest_that_fits


def room_for(most: int, tried: list[int]) -> object:
    def attempt(images: int) -> None:
        tried.append(images)
        if images > most:
            raise torch.OutOfMemoryError(f"no room for {images}")

    return attempt


@pytest.mark.parametrize(
    ("room", "expected"), [(100, [24]), (23, [24, 12]), (5, [24, 12, 6, 3]), (1, [24, 12, 6, 3, 2, 1])]
)
def test_the_largest_half_of_a_half_that_fits(room: int, expected: list[int]) -> None:
    tried: list[int] = []
    assert largest_that_fits(group.join_group(), 24, room_for(room, tried)) == expected[-1]  # type: ignore[arg-type]
    assert tried == expected


def test_where_not_even_one_fits_the_image_is_too_large() -> None:
    with pytest.raises(TrainingError, match=r"with one image at a time: lower --data\.image_size"):
        largest_that_fits(group.join_group(), 4, room_for(0, []))  # type: ignore[arg-type]


def test_the_advice_names_the_setting() -> None:
    with (
        pytest.raises(OutOfMemory, match=r"with 16 images at a time: choose a smaller --train\.micro"),
        advised(16),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(ValueError, match="something else"), advised(16):
        raise ValueError("something else")


def test_a_real_refusal_of_the_machine_is_recognised() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
