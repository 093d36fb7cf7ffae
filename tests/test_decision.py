"""Scores and statistics to verdicts, one pair at a time and all at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deepssim_scan.errors import InputError
from deepssim_scan.matching.decision import (
    LEAST_FOREGROUND,
    REFERENCE,
    VERDICTS,
    Bounds,
    judge,
    strongest_first,
)

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
    codes = REFERENCE.judge(np.array([[score]], dtype=np.float32))
    assert codes.dtype == np.int8
    assert VERDICTS[codes[0, 0]] == verdict


@pytest.mark.parametrize("shape", [(), (0,), (3,), (0, 5), (2, 3, 4)])
def test_any_shape(shape):
    codes = REFERENCE.judge(np.full(shape, 0.7, np.float32))
    assert codes.shape == shape
    assert (codes == VERDICTS.index("similar")).all()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@given(st.lists(SCORES, min_size=2), SCORES, SCORES)
def test_each_value_equals_the_rule_and_more_is_never_less(kind, values, one, other):
    bounds = Bounds(min(one, other), max(one, other))
    values = np.sort(np.array(values, kind))
    codes = bounds.judge(values)
    expected = [
        "duplicate"
        if value > kind(bounds.duplicate)
        else "similar"
        if value > kind(bounds.similar)
        else "different"
        for value in values
    ]
    assert [VERDICTS[code] for code in codes] == expected
    assert (np.diff(codes) >= 0).all()


def test_equal_bounds_leave_nothing_similar():
    codes = Bounds(0.5, 0.5).judge(np.array([0.5, _after(np.float32(0.5))], np.float32))
    assert [VERDICTS[code] for code in codes] == ["different", "duplicate"]


@pytest.mark.parametrize("bounds", [(0.9, 0.8), (float("nan"), 0.5), (0.5, float("nan"))])
def test_impossible_bounds_are_refused(bounds):
    with pytest.raises(InputError, match=r"similar \(.*\) must be <= duplicate"):
        Bounds(*bounds)


def test_row_18_a_value_that_is_not_a_number_is_no_verdict():
    scores = np.array([[0.9, np.nan], [0.1, np.nan]], dtype=np.float32)
    with pytest.raises(ValueError, match="2 values are NaN"):
        REFERENCE.judge(scores)
    nothing = np.full((2, 2), np.nan)
    with pytest.raises(ValueError, match="2 values are NaN"):
        judge(scores, nothing, np.isnan(nothing), nothing.astype(np.float32), REFERENCE)


# The calibrated rule.


@given(st.data())
def test_a_pair_is_judged_by_its_statistic_or_else_by_its_score(data):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=5))
    none = st.just(float("nan"))
    scores = data.draw(hnp.arrays(np.float32, shape, elements=SCORES))
    statistics = data.draw(
        hnp.arrays(np.float64, shape, elements=none | st.sampled_from([-9.0, 1.0, 1.5, 2.0, 9.0]))
    )
    shares = none | st.sampled_from([0.0, 0.01, LEAST_FOREGROUND, 0.5, 1.0])
    foreground = data.draw(
        hnp.arrays(np.float32, shape, elements=shares.map(lambda x: float(np.float32(x))))
    )
    missing = data.draw(hnp.arrays(np.bool_, shape)) & np.isnan(statistics)
    codes = judge(scores, statistics, missing, foreground, Bounds(1.0, 2.0))
    assert codes.shape == shape
    assert codes.dtype == np.int8
    for index in np.ndindex(shape):
        score, statistic, share = scores[index], statistics[index], foreground[index]
        if share < np.float32(LEAST_FOREGROUND):
            wanted = "undecidable"
        elif np.isnan(statistic) and not missing[index]:
            wanted = "different"
        elif missing[index]:
            low, high = score > SIMILAR, score > DUPLICATE
            wanted = "duplicate" if high else "similar" if low else "different"
        else:
            low, high = statistic > 1, statistic > 2
            wanted = "duplicate" if high else "similar" if low else "different"
        assert VERDICTS[codes[index]] == wanted


@given(st.data())
def test_the_order_is_that_of_a_plain_sort(data):
    """Duplicates, similar, undecidable, different; then by statistic, by score, as they were."""
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=6))
    verdicts = data.draw(hnp.arrays(np.int8, shape, elements=st.integers(0, 3)))
    values = st.sampled_from([-1.0, 0.25, 0.5, 1.0])
    scores = data.draw(hnp.arrays(np.float32, shape, elements=values))
    elements = values | st.just(float("nan"))
    statistics = data.draw(hnp.arrays(np.float64, shape, elements=elements))
    strength = ["different", "undecidable", "similar", "duplicate"]
    found = strongest_first(verdicts, statistics, scores)
    assert found.shape == shape
    for row in range(shape[0]):
        wanted = sorted(
            range(shape[1]),
            key=lambda k: (
                -strength.index(VERDICTS[verdicts[row, k]]),
                -np.nan_to_num(statistics[row, k], nan=-99),
                -scores[row, k],
            ),
        )
        assert found[row].tolist() == wanted
