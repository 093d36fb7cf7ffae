"""Assessments and thresholds, on encoders of which it is known what they see."""

import numpy as np
import pytest
import torch
from torch import nn

from deepssim_scan import assess as module
from deepssim_scan.assess import assess, fit_thresholds, score_error
from deepssim_scan.augment import other_subject


class _Blind(nn.Module):
    """Gives every image one embedding."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return nn.functional.normalize(images.new_ones(len(images), 3))


class _Pixels(_Blind):
    """Gives an image its own pixels: near for what is near, whatever augmentation does to it."""

    def forward(self, images):
        return nn.functional.normalize(images.flatten(1))


@pytest.mark.parametrize("seed", range(2))
def test_fitted_thresholds_are_in_order(seed, images, tiny, make_encoder):
    for encoder in (make_encoder(tiny, seed), _Blind(), _Pixels()):
        found = fit_thresholds(encoder, images, seed)
        assert -1 <= found.similar <= found.duplicate < 1
        assert found == fit_thresholds(encoder, images, seed)


def test_an_encoder_that_sees_nothing_is_given_a_threshold_next_to_one(images):
    found = fit_thresholds(_Blind(), images, 0)
    assert (found.similar, found.duplicate) == (0.999, 0.999)
    assert found.ssim >= 0.8


def test_all_but_a_few_strangers_stay_under_the_threshold(images):
    found = fit_thresholds(_Pixels(), images, 0)
    pixels = images.training.pixels.float()
    known = nn.functional.normalize(pixels.flatten(1))
    unseen = images.validation.pixels.float()
    deformed = other_subject(pixels, torch.Generator().manual_seed(77))
    for strangers in (unseen, deformed):
        best = (nn.functional.normalize(strangers.flatten(1)) @ known.T).amax(1)
        assert (best > found.duplicate).float().mean() < 0.03
    assert found.duplicate < 0.999


def test_an_evaluation_repeats_itself_and_a_blind_encoder_errs(images, tiny, make_encoder):
    encoder = make_encoder(tiny)
    first = score_error(encoder, images.validation, 3)
    assert score_error(encoder, images.validation, 3) == first
    assert score_error(encoder, images.validation, 4) != first
    # It says 1 of every pair; ten even bins of SSIM would make its error one half.
    assert 0.3 < score_error(_Blind(), images.validation, 3) < 0.7


def test_an_assessment_tells_encoders_that_see_from_one_that_does_not(images):
    blind, seeing = (assess(encoder, images.validation, 0) for encoder in (_Blind(), _Pixels()))
    assert blind.right == pytest.approx(1 / 36)  # the first is as good a match as any
    assert blind.apart == 0
    assert seeing.right > 0.3
    assert seeing.error < blind.error
    assert assess(_Pixels(), images.validation, 0) == seeing


def test_both_thresholds_are_the_best_pair_that_keeps_strangers_out():
    """Against every pair of thresholds there is."""
    generator = torch.Generator().manual_seed(4)
    copies = 0.6 + 0.4 * torch.rand(200, generator=generator)
    alike = 0.75 + 0.25 * torch.rand(200, generator=generator)
    strangers = 0.9 * torch.rand(300, 3, generator=generator)
    likeness = 0.93 - 0.15 * strangers + 0.03 * torch.randn(300, 3, generator=generator)
    least = 0.62
    score, ssim = module._both(copies, alike, strangers, likeness, least)
    assert score >= least

    def passing(score, ssim):
        return int(((strangers > score) & (likeness > ssim)).any(1).sum())

    def found(score, ssim):
        return int(((copies > score) & (alike > ssim)).sum())

    assert passing(score, ssim) <= 1  # five in a thousand of 300, rounded down
    grid = np.linspace(0.62, 0.99, 75)
    best = max(
        found(each, other)
        for each in grid
        for other in np.linspace(0.8, 0.99, 100)
        if passing(each, other) == 0
    )
    assert found(score, ssim) >= 0.95 * best


def test_thresholds_leave_room_on_both_sides_where_copies_and_strangers_are_far_apart():
    copies, alike = torch.full((100,), 0.98), torch.full((100,), 0.97)
    strangers, likeness = torch.full((100, 3), 0.6), torch.full((100, 3), 0.3)
    score, ssim = module._both(copies, alike, strangers, likeness, 0.7)
    assert 0.8 < score < 0.9
    assert ssim == 0.8


def test_next_to_no_stranger_of_the_audit_is_a_duplicate_for_certain(images, monkeypatch):
    """The threshold is above the strongest pair of these few strangers, not above the copies."""
    registered = []

    def alike(synthetic, training):
        registered.append(torch.rand(len(synthetic), generator=torch.Generator().manual_seed(0)))
        return 0.9 * registered[-1]

    monkeypatch.setattr(module, "_verified", alike)
    found = fit_thresholds(_Pixels(), images, 0)
    copies, strangers = (0.9 * each for each in registered)
    assert len(strangers) > len(copies)
    assert strangers.max() <= found.certain <= strangers.max() + 0.0011
