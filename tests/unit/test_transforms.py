"""Views of pixels: what is drawn, cut, mirrored and coloured."""

import math

import pytest
import torch
from torch.nn.functional import affine_grid, grid_sample
from torchvision.transforms import v2

from skindist.data.transforms import Matrix, central_square, draw_view, normalizer, warp

CPU = torch.device("cpu")


def pixels(height: int, width: int) -> torch.Tensor:
    """(H, W, 3): red counts rows, green columns."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, torch.zeros(height, width)], dim=2).to(torch.uint8)


def box(top: int, left: int, height: int, width: int, of: torch.Tensor) -> Matrix:
    """The matrix of a box of pixels as it stands."""
    rows, columns, _ = of.shape
    x, y = (2 * left + width) / columns - 1, (2 * top + height) / rows - 1
    return (width / columns, 0.0, x), (0.0, height / rows, y)


def test_a_view_is_cut_where_its_matrix_says() -> None:
    image = pixels(20, 30)
    seen = warp(image, box(4, 7, 10, 10, image), 10)
    assert seen.shape == (10, 10, 3)
    assert seen[:, 0, 0].tolist() == list(range(4, 14))
    assert seen[0, :, 1].tolist() == list(range(7, 17))


def test_a_quarter_turn_and_a_mirror() -> None:
    image = pixels(10, 10)
    assert torch.equal(warp(image, ((0, -1, 0), (1, 0, 0)), 10), image.rot90(1, (0, 1)))
    assert torch.equal(warp(image, ((-1, 0, 0), (0, 1, 0)), 10), image.flip(1))


def test_beyond_the_border_is_a_mirror() -> None:
    image = pixels(4, 4)
    seen = warp(image, ((2, 0, 0), (0, 1, 0)), 8)[:, :, 1]  # twice the width: two pixels more on either side
    assert seen[0].tolist() == [1, 0, 0, 1, 2, 3, 3, 2]


@pytest.mark.parametrize(("height", "width", "size"), [(40, 57, 32), (61, 48, 48), (33, 33, 33)])
def test_pixels_are_those_of_torchs_affine_grid(height: int, width: int, size: int) -> None:
    image = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for sample in range(20):
        matrix = draw_view(height, width, 0, 0, sample).matrix
        grid = affine_grid(torch.tensor([matrix]), [1, 3, size, size], align_corners=False)
        planes = image.permute(2, 0, 1)[None].float()
        seen = grid_sample(planes, grid, padding_mode="reflection", align_corners=False)[0]
        unlike = warp(image, matrix, size).int() - (seen + 0.5).to(torch.uint8).permute(1, 2, 0)
        assert unlike.abs().max() <= 1, "bit for bit the same, but where a CPU's matrix product rounds once, not twice"
        assert unlike.count_nonzero() < unlike.numel() / 1000


def test_an_image_as_it_stands_stays_as_it_is() -> None:
    image = torch.randint(0, 256, (24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(warp(image, ((1, 0, 0), (0, 1, 0)), 24), image)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (224, 336), (300, 224), (32, 320)])
def test_views_stay_inside_and_keep_the_area(height: int, width: int) -> None:
    views = [draw_view(height, width, seed=0, epoch=0, sample_id=index) for index in range(400)]
    areas, mirrored, quarters = [], 0, set()
    for one in views:
        (a, b, x), (c, d, _) = one.matrix
        determinant = (a * d - b * c) * height * width / min(height, width) ** 2  # in pixels: the box's share
        areas.append(abs(determinant))
        mirrored += determinant < 0
        quarters.add((a > 0, c > 0))
        along, across = math.hypot(a * width, c * height), abs(determinant) ** 0.5 * min(height, width)
        assert 1 / 1.26 < (along / across) ** 2 < 1.26
        assert abs(x) <= max(0, 1 - along / width) + 1e-9
    assert min(areas) >= 0.4 - 1e-9
    assert max(areas) <= 1 + 1e-9
    assert sum(areas) / 400 == pytest.approx(0.7, rel=0.03)
    assert 160 < mirrored < 240
    assert len(quarters) == 4
    gains, offsets = [gain for one in views for gain in one.gain], [offset for one in views for offset in one.offset]
    assert sum(gains) / 1200 == pytest.approx(1, abs=0.03)
    assert 0.7**2 * 0.9 < min(gains) < 0.7
    assert 1.3 < max(gains) < 1.3**2 * 1.1
    assert max(map(abs, offsets)) < 0.15 * 1.3 * 1.1


@pytest.mark.parametrize(("height", "width"), [(10, 15), (10, 16), (17, 10), (10, 10)])
def test_the_middle_is_torchvisions(height: int, width: int) -> None:
    image = pixels(height, width)
    assert torch.equal(central_square(image, 10), v2.CenterCrop(10)(image.permute(2, 0, 1)).permute(1, 2, 0))


def test_normalizer_by_hand() -> None:
    images_BCHW = torch.tensor([[0, 255, 51], [255, 0, 51]], dtype=torch.uint8).view(2, 3, 1, 1)
    colours_B2C = torch.tensor([[[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], [[0.5, 2.0, 1.0], [0.1, 0.2, 0.0]]])
    result = normalizer((0.5, 0.4, 0.1), (0.5, 0.2, 0.1), CPU)(images_BCHW, colours_B2C)
    assert result.dtype == torch.float32
    assert result[0].flatten().tolist() == pytest.approx([-1.0, 3.0, 1.0], abs=1e-5)
    # (1 * 0.5 + 0.1 - 0.5) / 0.5, (0 * 2 + 0.2 - 0.4) / 0.2, (0.2 * 1 + 0 - 0.1) / 0.1
    assert result[1].flatten().tolist() == pytest.approx([0.2, -1.0, 1.0], abs=1e-5)


def test_contrast_turns_about_mid_grey() -> None:
    """With brightness b, contrast c, tint t: ((x - 0.5) c + 0.5) b t has the gain b t c, the offset b t (1 - c) / 2."""
    one = draw_view(50, 50, seed=3, epoch=1, sample_id=2)
    at_half = [0.5 * gain + offset for gain, offset in zip(one.gain, one.offset, strict=True)]  # b t / 2
    contrasts = [gain / (2 * half) for gain, half in zip(one.gain, at_half, strict=True)]
    assert contrasts == pytest.approx(contrasts[:1] * 3)
    assert 0.7 <= contrasts[0] <= 1.3
    assert len({round(half, 6) for half in at_half}) == 3
