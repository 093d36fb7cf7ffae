"""Bounds of rates, against scipy's interval, sums of the binomial distribution, and simulation."""

from math import comb

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.special import betainc
from scipy.stats import binom, binomtest

from deepssim_scan.calibration.rates import (
    binomial_quantile,
    clopper_pearson,
    false_discovery,
    most_copies,
)

RUNS, JUDGED, PLANTED, NULL = 400, 20_000, 200, 2_000
RATE, RECALL = 0.002, 0.8


def at_most(count, total, rate):
    """The probability of at most `count` of `total`, summed."""
    return sum(comb(total, k) * rate**k * (1 - rate) ** (total - k) for k in range(count + 1))


@pytest.mark.parametrize(("count", "total"), [(0, 7), (1, 7), (7, 7), (3, 400), (399, 400)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_is_scipys_exact_one(count, total, confidence):
    expected = binomtest(count, total).proportion_ci(confidence, method="exact")
    assert clopper_pearson(count, total, confidence) == pytest.approx(tuple(expected), abs=1e-12)


def test_counts_may_be_fractions():
    low, high = clopper_pearson(1.5, 20.25)
    assert betainc(1.5, 19.75, low) == pytest.approx(0.025)
    assert betainc(2.5, 18.75, high) == pytest.approx(0.975)


@given(st.floats(1e-4, 0.9999), st.integers(0, 300), st.floats(0, 1))
@example(0.5, 7, 0.5)
def test_the_quantile_is_scipys_but_for_rounding_where_the_share_is_a_probability(
    share, count, rate
):
    low, high = binom.ppf([share * (1 - 1e-9), share * (1 + 1e-9)], count, rate)
    assert max(low, 0) <= binomial_quantile(share, count, rate) <= high


def test_of_nothing_nothing_is_known():
    assert clopper_pearson(0, 0) == (0, 1)


@given(st.integers(0, 50), st.integers(1, 50), st.floats(0.5, 0.99))
def test_the_interval_holds_what_was_seen(count, more, confidence):
    total = count + more
    low, high = clopper_pearson(count, total, confidence)
    assert 0 <= low <= count / total <= high <= 1
    assert clopper_pearson(count + 1, total, confidence) > (low, high)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (clopper_pearson, (3, 2)),
        (clopper_pearson, (-1, 2)),
        (clopper_pearson, (1, 2, 1.0)),
        (clopper_pearson, (float("nan"), 2)),
        (false_discovery, (3, 2, 0.1, 0.1)),
        (false_discovery, (1, 2, -0.1, 0.1)),
        (false_discovery, (1, 2, 0.1, 1.1)),
        (most_copies, (3, 2, 1, 2)),
        (most_copies, (1, 2, 3, 2)),
    ],
)
def test_impossible_counts_and_rates_are_refused(function, arguments):
    with pytest.raises(ValueError, match=r"must be in"):
        function(*arguments)


def test_false_discovery_by_hand():
    found = false_discovery(12, 40, 0.05, 0.1)
    most = next(k for k in range(41) if at_most(k, 40, 0.1) >= 0.975)
    assert (found.expected_false_alarms, found.rate) == (2.0, pytest.approx(2 / 12))
    assert found.upper == pytest.approx(most / 12)


def test_where_nothing_is_flagged_nothing_is_flagged_in_error():
    found = false_discovery(0, 1000, 0.01, 0.02)
    assert (found.expected_false_alarms, found.rate, found.upper) == (10.0, 0.0, 0.0)


@given(st.integers(1, 200), st.integers(0, 2000), st.floats(0, 0.1), st.floats(0, 0.1))
def test_false_discovery_stays_a_share_and_falls_with_the_flagged(flagged, more, rate, further):
    judged = flagged + more + 1
    one, other = (
        false_discovery(count, judged, rate, rate + further) for count in (flagged, flagged + 1)
    )
    assert 0 <= other.rate <= one.rate <= 1
    assert 0 <= other.upper <= one.upper <= 1


@pytest.mark.parametrize(("flagged", "found", "planted"), [(0, 9, 10), (3, 9, 10), (5, 4, 10)])
def test_most_copies_is_the_greatest_plausible_number(flagged, found, planted):
    recall = clopper_pearson(found, planted)[0]
    plausible = [c for c in range(61) if c < flagged or at_most(flagged, c, recall) >= 0.025]
    assert most_copies(flagged, 60, found, planted) == max(plausible) / 60


def test_without_a_canary_found_every_image_may_be_a_copy():
    assert most_copies(0, 100, 0, 50) == 1
    assert most_copies(0, 100, 0, 0) == 1
    assert most_copies(0, 0, 3, 5) == 0


@given(st.integers(0, 100), st.integers(1, 300), st.integers(0, 30), st.integers(1, 30))
def test_most_copies_rises_with_the_flagged_and_falls_with_the_found(flagged, more, found, lost):
    judged, planted = flagged + more, found + lost
    bound = most_copies(flagged, judged, found, planted)
    assert flagged / judged <= bound <= most_copies(flagged + 1, judged, found, planted) <= 1
    assert most_copies(flagged, judged, found + 1, planted) <= bound


@pytest.mark.parametrize("share", [0.01, 0.001, 0.0])
def test_the_bounds_hold_in_95_of_100_simulated_runs(share):
    """20,000 images judged, after a null of 2,000 non-members and 200 canaries."""
    random = np.random.default_rng(1)
    copies = round(share * JUDGED)
    in_error = random.binomial(JUDGED - copies, RATE, RUNS)
    flagged = (random.binomial(copies, RECALL, RUNS) + in_error).tolist()
    reached = random.binomial(NULL, RATE, RUNS).tolist()
    found = random.binomial(PLANTED, RECALL, RUNS).tolist()
    upper = [clopper_pearson(count, NULL, 0.95)[1] for count in reached]  # one side: 97.5 %
    bounds = np.array(
        [
            (
                false_discovery(flags, JUDGED, RATE, high).upper,
                most_copies(flags, JUDGED, canaries, PLANTED),
            )
            for flags, high, canaries in zip(flagged, upper, found, strict=True)
        ]
    )
    assert (in_error / flagged <= bounds[:, 0]).mean() >= 0.95
    assert (share <= bounds[:, 1]).mean() >= 0.95
    all_flagged_are_copies = np.mean(flagged) / RECALL / JUDGED
    assert bounds[:, 1].mean() < 1.5 * all_flagged_are_copies


def test_the_bound_of_copies_is_no_wider_than_it_must_be():
    """Without false alarms it misses the truth in some runs, but in no more than 5 of 100."""
    random = np.random.default_rng(2)
    copies, wide = 200, 20_000
    flagged = random.binomial(copies, RECALL, RUNS).tolist()
    bounds = np.array([most_copies(count, JUDGED, round(RECALL * wide), wide) for count in flagged])
    missed = (bounds < copies / JUDGED).mean()
    assert 0.0 < missed <= 0.05
