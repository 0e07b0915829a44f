"""A network sees what its publisher showed it, in the order asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from headstart.base.artifacts.card import Frame, Preprocessing
from headstart.models.backbones import architecture
from headstart.models.preprocessing import INTERPOLATIONS, Normalise, View, batches

Picture = NDArray[np.uint8]


sides = st.integers(200, 500)


@given(sides, sides, st.integers(0, 99), st.sampled_from(["resnet18", "inception_v3", "efficientnet_b0"]))
@settings(max_examples=30)
def test_the_view_is_torchvisions_own_preset_even_in_noise(height: int, width: int, seed: int, name: str) -> None:
    view = architecture(name).view
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preset.mean, preset.std))
    expected = (preset(Image.fromarray(picture)) * std + mean) * 255
    found = torch.from_numpy(view(picture).copy()).permute(2, 0, 1).float()
    assert (found - expected).abs().max() < 2.01  # where Pillow and torch round on two sides of a half
    assert (found - expected).abs().mean() < 0.1


def test_normalising_is_the_presets_arithmetic() -> None:
    view = View(32, 1.0, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    levels = torch.arange(256, dtype=torch.uint8).repeat(12).view(1, 3, 32, 32)
    expected = torchvision.transforms.Normalize(view.mean, view.std)(levels.float() / 255)
    found = Normalise(view)(levels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(1, 64), st.floats(0.3, 1), st.sampled_from(sorted(INTERPOLATIONS))
)
@settings(max_examples=60)
def test_any_picture_becomes_the_size_asked_for_and_a_plain_one_stays_plain(
    height: int, width: int, size: int, crop: float, interpolation: str
) -> None:
    view = View(size, crop, interpolation, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    seen = view(np.full((height, width, 3), 77, np.uint8))
    assert seen.shape == (size, size, 3)
    assert (seen == 77).all()


@pytest.mark.parametrize("frame", ["squeeze", "pad"])
@pytest.mark.parametrize(("height", "width"), [(40, 200), (200, 40), (30, 30), (1, 900), (900, 1)])
def test_squeezed_and_padded_views_show_both_ends_of_a_picture_and_the_centre_does_not(
    frame: Frame, height: int, width: int
) -> None:
    picture = np.zeros((height, width, 3), np.uint8)
    end = max(1, max(height, width) // 10)
    along = (slice(None), slice(0, end)) if width > height else (slice(0, end), slice(None))
    picture[along], picture[tuple(slice(-s.stop, None) if s.stop else s for s in along)] = (255, 0, 0), (0, 0, 255)
    view = replace(View(60, 1.0, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), frame=frame)
    seen = view(picture)
    assert seen.shape == (60, 60, 3)
    for colour in ((255, 0, 0), (0, 0, 255)):
        assert (np.abs(seen.astype(int) - colour).max(axis=2) < 60).any()
    if height != width:
        assert not replace(view, frame="centre")(picture).any()
    filled = (seen == 128).all(axis=2)
    assert filled.mean() == pytest.approx(
        0 if frame == "squeeze" else 1 - min(height, width) / max(height, width), abs=0.03
    )


def test_a_padded_view_is_pillows_of_the_whole_picture_in_the_middle() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 180, 3), dtype=np.uint8)
    view = View(64, 0.875, "bicubic", (0.2, 0.4, 0.6), (0.2, 0.2, 0.2), "pad")
    seen = view(picture)
    expected = np.asarray(Image.fromarray(picture).resize((64, 32), Image.Resampling.BICUBIC))
    assert np.abs(seen[16:48].astype(int) - expected).max() <= 2
    assert (seen[:16] == (51, 102, 153)).all()
    assert (seen[48:] == (51, 102, 153)).all()
    squeezed = replace(view, frame="squeeze")(picture)
    expected = np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling.BICUBIC))
    assert np.abs(squeezed.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("frame", ["centre", "squeeze", "pad"])
def test_the_view_survives_its_card(frame: Frame) -> None:
    view = View(299, 0.875, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), frame)
    assert View.of(view.stored()) == view
    assert View.of(Preprocessing.model_validate_json(view.stored().model_dump_json(), strict=True)) == view


@given(st.lists(st.integers(0, 39), max_size=40), st.integers(1, 9))
@settings(max_examples=40)
def test_batches_come_in_the_order_of_the_rows(rows: list[int], size: int) -> None:
    view = View(4, 1.0, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    pictures = [np.full((5, 7, 3), level, np.uint8) for level in range(40)]
    chunks, levels = [], []
    for chunk, batch in batches(view, pictures, rows, size):
        assert batch.shape == (len(chunk), 3, 4, 4)
        chunks.append(list(chunk))
        levels += batch[:, 0, 0, 0].int().tolist()
    assert levels == rows
    assert [row for chunk in chunks for row in chunk] == rows
    assert all(len(chunk) == size for chunk in chunks[:-1])


def test_a_picture_that_fails_ahead_of_its_turn_fails_the_loop_and_does_not_hang() -> None:
    class Broken:
        def __getitem__(self, row: int) -> Picture:
            if row == 3:
                raise OSError("gone")
            return np.zeros((4, 4, 3), np.uint8)

    view = View(4, 1.0, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    seen: list[object] = []
    loop: Callable[[], None] = lambda: seen.extend(c for c, _ in batches(view, Broken(), range(6), 2))  # noqa: E731
    with pytest.raises(OSError, match="gone"):
        loop()
    assert len(seen) == 1


@pytest.mark.parametrize("upright", [False, True])
def test_of_a_long_strip_the_middle_is_seen_and_the_rest_takes_no_memory(upright: bool) -> None:
    strip = np.zeros((2, 1_000_000, 3), np.uint8)  # resized whole, 384 MB
    strip[:, 499_900:500_100] = 200
    view = View(32, 0.875, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    seen = view(strip.transpose(1, 0, 2) if upright else strip)
    assert (seen == 200).all()
