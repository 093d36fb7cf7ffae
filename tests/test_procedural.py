"""The procedural images: each family draws what its name says, again for the same seed."""

import numpy as np
import pytest
import torch

from deepssim_scan.training import procedural
from deepssim_scan.training.procedural import FAMILIES, band_limited, nested_ellipses, pink_noise


def one(family, seed, side=64):
    return family(torch.Generator().manual_seed(seed), 1, side)[0].numpy()


def _drawn(family, *seed, side=48):
    return one(FAMILIES[family], *seed, side=side)


def _spectrum(image):
    """Frequencies in cycles an image, and the power there, without the mean and one half."""
    side = len(image)
    power = np.abs(np.fft.fft2(image - image.mean())) ** 2
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(side) * side] * 2, indexing="ij"))
    return frequency.ravel()[1:], power.ravel()[1:]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", [16, 48, 33])
def test_images_lie_in_the_unit_range_and_show_something(family, side):
    for seed in range(10):
        image = _drawn(family, seed, side=side)
        assert image.shape == (side, side)
        assert image.dtype == np.float32
        assert image.min() >= 0
        assert image.max() <= 1
        assert image.std() > 0.02


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_gives_its_image_and_no_other(family):
    images = [_drawn(family, seed) for seed in range(12)]
    for seed, image in enumerate(images):
        assert np.array_equal(image, _drawn(family, seed))
    assert len(np.unique(np.stack(images), axis=0)) == len(images)


@pytest.mark.parametrize("family", ["dead-leaves", "pink-noise", "band-limited"])
def test_about_half_of_the_images_have_a_background(family):
    framed = []
    for seed in range(60):
        image = _drawn(family, seed)
        corners = image[[0, 0, -1, -1], [0, -1, 0, -1]]
        framed.append((corners == 0).all() and image[24, 24] > 0.1)
    assert 15 < sum(framed) < 45


def test_ellipses_are_nested_in_a_shell_on_black():
    for seed in range(20):
        image = one(nested_ellipses, seed)
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        background = np.median(border)
        assert (np.abs(border - background) < 1e-6).mean() > 0.5
        assert 0.2 < (np.abs(image - background) > 1e-6).mean() < 0.8


def test_dead_leaves_are_flat_with_sharp_edges(monkeypatch):
    monkeypatch.setattr(procedural, "_framed", lambda rng, images: images)
    for seed in range(10):
        steps = np.abs(np.diff(_drawn("dead-leaves", seed, side=96), axis=1))
        assert (steps == 0).mean() > 0.5
        assert steps.max() > 0.2


def test_pink_noise_falls_with_frequency_by_its_power_law():
    slopes = []
    for seed in range(30):
        frequency, power = _spectrum(one(pink_noise, seed))
        chosen = (frequency >= 1.5) & (frequency <= 32)
        amplitude = np.log(power[chosen]) / 2
        slopes.append(np.polyfit(np.log(frequency[chosen]), amplitude, 1)[0])
    assert -2.2 < min(slopes) < -1.7
    assert -1.1 < max(slopes) < -0.6


def test_band_limited_textures_hold_their_energy_in_few_frequencies(monkeypatch):
    monkeypatch.setattr(procedural, "_framed", lambda rng, images: images)
    centres = []
    for seed in range(30):
        frequency, power = _spectrum(one(band_limited, seed))
        share = power / power.sum()
        strongest = np.sort(share)[::-1]
        assert strongest[: len(share) // 4].sum() > 0.98  # white noise: 0.60
        assert share[frequency > 64 / 6 * 1.8].sum() < 0.01
        centres.append((share * frequency).sum())
    assert max(centres) > 2 * min(centres)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_drawn_together_are_all_different(family):
    images = FAMILIES[family](torch.Generator().manual_seed(1), 16, 32)
    assert images.shape == (16, 32, 32)
    assert len(images.unique(dim=0)) == 16
