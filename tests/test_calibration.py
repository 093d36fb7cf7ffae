"""Assessments and thresholds, on encoders of which it is known what they see."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import brute_force_mae, drawn_pairs, unit_rows
from torch import nn

from deepssim_scan.calibration.assess import assess, score_mae
from deepssim_scan.calibration.thresholds import ScoredPairs, choose_thresholds, fit_thresholds
from deepssim_scan.encoder.network import embed
from deepssim_scan.encoder.tta import embed_tta
from deepssim_scan.imaging.augment import other_subject, simulate_copy
from deepssim_scan.imaging.registration import SIDE, register
from deepssim_scan.imaging.warp import restandardise
from deepssim_scan.matching.decision import VERDICTS, judge

DUPLICATE = VERDICTS.index("duplicate")


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


# What an encoder is worth.


def test_the_mae_is_that_of_a_brute_force_over_all_pairs(dataset, tiny, make_encoder):
    """With scikit-image's SSIM; skipping windows costs less than 0.01."""
    encoder, batches = make_encoder(tiny), list(drawn_pairs(dataset.validation, 3))
    for network, embedding in (
        (encoder, lambda images: embed(encoder, images)),
        (_Blind(), lambda images: np.ones((len(images), 3))),
        (_Pixels(), lambda images: images),
    ):
        wanted = brute_force_mae(embedding, batches)
        assert score_mae(network, dataset.validation, 3) == pytest.approx(wanted, abs=0.01)


def test_the_seed_chooses_the_pairs(dataset):
    first, again, other = (score_mae(_Pixels(), dataset.validation, seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_an_encoder_that_sees_nothing_finds_nothing(dataset):
    found = assess(_Blind(), dataset.validation, 0)
    assert found.recall_at_1 == pytest.approx(1 / 36)  # the first is as good a match as any
    assert found.tpr_at_1_fpr == 0


def test_an_assessment_counts_copies_above_the_non_members(dataset):
    """Counted again one image at a time, of the same draws."""
    found = assess(_Pixels(), dataset.validation, 0)
    generator = torch.Generator().manual_seed(0)
    members = dataset.validation.some(512, generator)
    gallery = unit_rows(members)
    best = {}
    for name, images in (
        ("copies", simulate_copy(members, generator)[0]),
        ("others", other_subject(members, generator)),
    ):
        views = embed_tta(_Pixels(), images).double().numpy()
        best[name] = [np.max([view @ gallery.T for view in each], axis=0) for each in views]
    hits = [scores.argmax() == source for source, scores in enumerate(best["copies"])]
    bound = np.quantile([scores.max() for scores in best["others"]], 0.99)
    above = [scores.max() > bound for scores in best["copies"]]
    assert found.recall_at_1 == pytest.approx(np.mean(hits))
    assert found.tpr_at_1_fpr == pytest.approx(np.mean(above))
    assert 0.3 < np.mean(hits) < 1


# Thresholds of given scores and SSIM.


def _pairs(seed, count, candidates, *, high):
    """Scores and SSIM that go along with each other, around `high`, the best candidate first."""
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.normal(high, 0.15, (count, candidates)).clip(-1, 0.99))[:, ::-1]
    ssim = (scores + rng.normal(0, 0.1, scores.shape)).clip(-1, 0.99)
    return ScoredPairs(*(torch.tensor(each.copy()).float() for each in (scores, ssim)))


def _passing(pairs, score, ssim):
    """Count queries of which a candidate is above both."""
    return int(((pairs.scores > score) & (pairs.ssim > ssim)).any(1).sum())


@settings(deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 400),
    st.integers(2, 400),
    st.integers(1, 6),
    st.floats(0.0, 0.9),
    st.floats(0.0, 0.9),
)
def test_fitted_thresholds_do_what_they_promise(seed, copies, others, candidates, high, low):
    positives = _pairs(seed, copies, 1, high=high)
    negatives = _pairs(seed + 1, others, candidates, high=low)
    found = choose_thresholds(positives, negatives)
    assert _passing(negatives, found.duplicate, found.ssim) <= 0.005 * others
    assert _passing(negatives, -2, found.high_ssim) <= 0.005 * others
    assert _passing(negatives, found.duplicate, -2) <= 0.01 * others + 1
    assert found.ssim >= 0.8
    verdicts = judge(negatives.scores.numpy(), found, negatives.ssim.numpy())
    assert (verdicts == DUPLICATE).any(1).sum() <= 2 * 0.005 * others
    below = int((positives.scores[:, 0] < found.similar - 1e-6).sum())
    assert below <= 0.005 * copies + 1 or found.similar == found.duplicate


@pytest.mark.parametrize("seed", range(4))
def test_no_other_pair_of_thresholds_finds_more_copies_and_keeps_non_members_out(seed):
    positives, negatives = _pairs(seed, 300, 1, high=0.9), _pairs(seed + 50, 199, 3, high=0.4)
    found = choose_thresholds(positives, negatives)
    grid = np.linspace(found.duplicate - 0.3, 0.999, 100)
    least = float(np.quantile(negatives.scores[:, 0], 0.99))
    best = max(
        _passing(positives, score, ssim)
        for score in grid[grid >= least]
        for ssim in np.linspace(0.8, 0.999, 100)
        if _passing(negatives, score, ssim) == 0
    )
    assert best > 60
    assert _passing(positives, found.duplicate, found.ssim) >= 0.95 * best


def test_thresholds_leave_room_on_both_sides_where_copies_and_non_members_are_far_apart():
    positives = ScoredPairs(torch.full((100, 1), 0.98), torch.full((100, 1), 0.97))
    negatives = ScoredPairs(torch.full((100, 3), 0.6), torch.full((100, 3), 0.3))
    found = choose_thresholds(positives, negatives)
    assert 0.7 < found.duplicate < 0.9
    assert found.ssim == 0.8


# Thresholds of an encoder.


@pytest.fixture(scope="module")
def fitted(dataset):
    """The thresholds of an encoder that embeds pixels."""
    return fit_thresholds(_Pixels(), dataset.training, dataset.validation, 0)


def test_an_encoder_that_sees_nothing_is_given_a_threshold_next_to_one(dataset):
    found = fit_thresholds(_Blind(), dataset.training, dataset.validation, 0)
    assert (found.similar, found.duplicate) == (0.999, 0.999)
    assert found.ssim >= 0.8


def test_all_but_a_few_non_members_stay_under_the_thresholds(dataset, fitted):
    """Held-out images, and other subjects of another draw, against all that was trained on."""
    pixels = dataset.training.pixels.float()
    gallery = unit_rows(pixels)
    unseen = dataset.validation.pixels.float()
    deformed = other_subject(pixels, torch.Generator().manual_seed(77))
    for others in (unseen, deformed):
        best = (unit_rows(others) @ gallery.T).max(1)
        assert (best > fitted.duplicate).mean() < 0.03
    assert fitted.duplicate < 0.999


def _large(images):
    sized = nn.functional.interpolate(images[:, None], (SIDE, SIDE), mode="bilinear")
    return restandardise(sized[:, 0])


def test_no_held_out_image_is_a_duplicate_and_many_copies_are(dataset, fitted):
    """As a query would judge them, with five candidates each, registered."""
    pixels = dataset.training.pixels.float()
    copies = simulate_copy(pixels, torch.Generator().manual_seed(5))[0]
    flagged = {}
    for name, queries in (("unseen", dataset.validation.pixels.float()), ("copies", copies)):
        views = embed_tta(_Pixels(), queries).numpy()
        scores = (views @ unit_rows(pixels).T.astype(np.float32)).max(1)
        rows = np.argsort(-scores, 1)[:, :5]
        pairs = queries.repeat_interleave(5, 0), pixels[rows.ravel()]
        ssim = register(*map(_large, pairs)).ssim.view(-1, 5).numpy()
        verdicts = judge(np.take_along_axis(scores, rows, 1), fitted, ssim)
        flagged[name] = (verdicts == DUPLICATE).any(1).mean()
    assert flagged["unseen"] <= 1 / 36
    assert flagged["copies"] > flagged["unseen"] + 0.3


def test_the_same_seed_gives_the_same_thresholds(dataset, fitted):
    assert fit_thresholds(_Pixels(), dataset.training, dataset.validation, 0) == fitted
