"""Views of pixels: what is drawn, cut, mirrored and coloured."""

import pytest
import torch
from torchvision.transforms import v2

from skindist.data.transforms import View, central_square, crop, draw_view, normalizer

CPU = torch.device("cpu")


def pixels(height: int, width: int) -> torch.Tensor:
    """(H, W, 3): red counts rows, green columns."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, torch.zeros(height, width)], dim=2).to(torch.uint8)


def view(box: tuple[int, int, int, int], mirrored: bool = False, upside_down: bool = False) -> View:
    return View(*box, mirrored, upside_down, (1, 1, 1), (0, 0, 0))


def test_a_crop_is_cut_where_the_view_says() -> None:
    image = crop(pixels(20, 30), view((4, 7, 10, 10)), 10)
    assert image.shape == (10, 10, 3)
    assert image[:, 0, 0].tolist() == list(range(4, 14))
    assert image[0, :, 1].tolist() == list(range(7, 17))


def test_flips() -> None:
    plain = crop(pixels(20, 30), view((4, 7, 10, 10)), 10)
    assert torch.equal(crop(pixels(20, 30), view((4, 7, 10, 10), mirrored=True), 10), plain.flip(1))
    assert torch.equal(crop(pixels(20, 30), view((4, 7, 10, 10), upside_down=True), 10), plain.flip(0))


def test_a_crop_is_resized_as_torchvision_does() -> None:
    image = torch.randint(0, 255, (40, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = v2.functional.resized_crop(image.permute(2, 0, 1), 3, 5, 30, 36, [24, 24], antialias=True)
    assert torch.equal(crop(image, view((3, 5, 30, 36)), 24), expected.permute(1, 2, 0))


@pytest.mark.parametrize(("height", "width"), [(224, 224), (224, 336), (300, 224), (32, 320)])
def test_views_stay_inside_and_keep_the_area(height: int, width: int) -> None:
    views = [draw_view(height, width, seed=0, epoch=0, sample_id=index) for index in range(400)]
    square = min(height, width) ** 2
    for one in views:
        assert 0 <= one.top <= height - one.height
        assert 0 <= one.left <= width - one.width
        assert 0.98 / 1.1 <= one.width / one.height <= 1.1 * 1.02
        assert 0.66 * square <= one.height * one.width <= 1.01 * square
    assert 0.4 < sum(one.mirrored for one in views) / 400 < 0.6
    assert 0.4 < sum(one.upside_down for one in views) / 400 < 0.6
    assert sum(one.height * one.width for one in views) / 400 == pytest.approx(0.84 * square, rel=0.02)
    gains, offsets = [gain for one in views for gain in one.gain], [offset for one in views for offset in one.offset]
    assert sum(gains) / 1200 == pytest.approx(1, abs=0.01)
    assert 0.9**2 * 0.95 < min(gains) < 0.9
    assert 1.1 < max(gains) < 1.1**2 * 1.05
    assert max(map(abs, offsets)) < 0.05 * 1.1 * 1.05


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
    assert 0.9 <= contrasts[0] <= 1.1
    assert len({round(half, 6) for half in at_half}) == 3
