"""Assessments and thresholds, on encoders of which it is known what they see."""

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


def test_no_threshold_lets_more_than_one_stranger_in_a_thousand_pass():
    """Against counting, for many strangers and for few."""
    for count in (1, 300, 1024, 5000):
        strongest = torch.rand(count, generator=torch.Generator().manual_seed(count)) * 0.9
        bound = module._passed_by_few(strongest)
        assert (strongest > bound).sum() <= count // 1000
        assert (strongest > bound - 0.0011).sum() > (count - 1) // 1000
    assert module._passed_by_few(torch.ones(5)) == 0.999


def test_the_threshold_of_ssim_is_of_the_pairs_that_an_audit_registers(images, monkeypatch):
    """Of strangers that only their best match is proposed for, the others do not count."""
    asked = []

    def alike(synthetic, training):
        asked.append(len(synthetic))
        return torch.linspace(0, 0.9, len(synthetic))

    monkeypatch.setattr(module, "_verified", alike)
    assert fit_thresholds(_Pixels(), images, 0).ssim == 0.9
    monkeypatch.setattr(module, "_MISSED", 1)  # `similar` is above what any stranger scores
    assert fit_thresholds(_Pixels(), images, 0).ssim == 0.9
    strangers = asked[0] // 5
    assert asked[0] == 5 * strangers
    assert strangers <= asked[1] < 2 * strangers
