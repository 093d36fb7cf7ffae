"""Scores to labels, as the reference's code compares them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepssim_scan.encoder.thresholds import Thresholds
from deepssim_scan.matching.decision import VERDICTS, judge

SIMILAR, DUPLICATE = np.float32(0.60), np.float32(0.85)
SCORES = st.floats(-1, 1, width=32)


def _after(score):
    return np.nextafter(score, np.float32(2))


def _before(score):
    return np.nextafter(score, np.float32(-2))


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (-1, "different"),
        (0, "different"),
        (_before(SIMILAR), "different"),
        (SIMILAR, "different"),
        (_after(SIMILAR), "similar"),
        (_before(DUPLICATE), "similar"),
        (DUPLICATE, "similar"),
        (_after(DUPLICATE), "duplicate"),
        (1, "duplicate"),
    ],
)
def test_the_references_boundaries(score, verdict):
    """Source: arXiv:2509.16582's code: score <= 0.60 different, > 0.85 duplicate, else similar."""
    codes = judge(np.array([[score]], dtype=np.float32), Thresholds())
    assert codes.dtype == np.int8
    assert VERDICTS[codes[0, 0]] == verdict


@pytest.mark.parametrize("shape", [(), (0,), (3,), (0, 5), (2, 3, 4)])
def test_any_shape(shape):
    codes = judge(np.full(shape, 0.7, np.float32), Thresholds())
    assert codes.shape == shape
    assert (codes == VERDICTS.index("similar")).all()


@given(st.lists(SCORES, min_size=2), SCORES, SCORES)
def test_each_score_equals_the_rule_and_more_score_is_never_less(scores, one, other):
    thresholds = Thresholds(min(one, other), max(one, other))
    scores = np.sort(np.array(scores, np.float32))
    codes = judge(scores, thresholds)
    expected = [
        "duplicate"
        if score > np.float32(thresholds.duplicate)
        else "similar"
        if score > np.float32(thresholds.similar)
        else "different"
        for score in scores
    ]
    assert [VERDICTS[code] for code in codes] == expected
    assert (np.diff(codes) >= 0).all()


def test_equal_thresholds_leave_nothing_similar():
    codes = judge(np.array([0.5, _after(np.float32(0.5))], np.float32), Thresholds(0.5, 0.5))
    assert [VERDICTS[code] for code in codes] == ["different", "duplicate"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_row_18_a_score_that_is_not_finite_is_no_verdict(value):
    scores = np.array([[0.9, value], [0.1, value]], dtype=np.float32)
    with pytest.raises(ValueError, match="2 scores are not finite"):
        judge(scores, Thresholds())


@given(SCORES, st.one_of(st.just(float("nan")), SCORES))
def test_a_registered_pair_is_a_duplicate_with_both_or_with_a_high_ssim(score, ssim):
    thresholds = Thresholds(0.3, 0.8, ssim=0.5, high_ssim=0.9)
    pair = (np.array([[value]], np.float32) for value in (score, ssim))
    verdict = VERDICTS[judge(next(pair), thresholds, next(pair))[0, 0]]
    both = score > np.float32(0.8) and (np.isnan(ssim) or ssim > np.float32(0.5))
    if both or ssim > np.float32(0.9):
        assert verdict == "duplicate"
    else:
        assert verdict == ("similar" if score > np.float32(0.3) else "different")
