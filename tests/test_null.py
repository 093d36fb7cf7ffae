"""The null against order statistics, scipy's distributions, hand computation and simulation."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import trapezoid

from deepssim_scan.calibration.null import NullDistribution
from deepssim_scan.calibration.rates import clopper_pearson
from deepssim_scan.calibration.tail import Tail, fit_predictive
from deepssim_scan.errors import Damaged, InputError

FILE = Path("null.json")
VALUES = st.floats(-100, 100, width=32)
SMALL = st.lists(st.tuples(VALUES, st.integers(0, 9)), min_size=1, max_size=40)


def draw(random, distribution, n, per_subject=5, alike=0.5):
    """Statistics (n,) of a distribution, in subjects whose images are correlated."""
    subjects = np.arange(n) // per_subject
    normal = np.sqrt(alike) * random.normal(size=subjects[-1] + 1)[subjects]
    normal += np.sqrt(1 - alike) * random.normal(size=n)
    return distribution.isf(stats.norm.sf(normal)), subjects


def made(n=1000, seed=0, distribution=stats.logistic, **options):
    return NullDistribution.of(*draw(np.random.default_rng(seed), distribution, n, **options), 0)


def untailed(statistics, subjects=None):
    statistics = np.asarray(statistics, float)
    numbers = np.arange(len(statistics)) if subjects is None else np.asarray(subjects)
    order = np.argsort(statistics, kind="stable")
    return NullDistribution(statistics[order], numbers[order], None)


def test_no_torch_is_loaded():
    code = "import sys, deepssim_scan.calibration.null; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_tail_the_p_value_is_the_rank():
    null = NullDistribution.of(np.array([3.0, 1.0, 2.0, 4.0]), np.arange(4), 0)
    assert null.tail is None
    assert null.smallest_rate == 1 / 5
    found = null.p_values(np.array([0.9, 1, 2, 2.5, 4, 9, np.inf]))
    assert found == pytest.approx([1, 0.8, 0.6, 0.5, 0.2, 0.2, 0.2])
    assert [null.threshold(rate) for rate in (0.2, 0.5, 0.6, 0.9)] == pytest.approx([4, 2.5, 2, 1])


def test_equal_statistics_all_count_as_at_least_as_large():
    null = untailed([1, 2, 2, 2])
    assert null.p_values(np.array([1.0, 2.0, 2.01])) == pytest.approx([4 / 5, 3 / 5, 1 / 5])
    assert null.threshold(0.3) == 2


def test_the_tail_needs_twenty_exceedances():
    assert made(199).tail is None
    null = made(201)
    assert null.tail is not None
    assert null.tail.share == 21 / 202
    assert null.smallest_rate == 1 / 402


def test_the_tail_needs_more_than_one_subject():
    assert NullDistribution.of(np.arange(300.0), np.zeros(300, int), 0).tail is None


def test_where_the_test_rejects_the_tail_it_starts_higher():
    random = np.random.default_rng(0)
    parts = (
        random.uniform(0, 1, 900),
        random.uniform(1, 1.001, 50),
        1.001 + random.exponential(50, 50),
    )
    null = NullDistribution.of(np.concatenate(parts), np.arange(1000), 0)
    assert null.tail is not None
    assert null.tail.share == 51 / 1001
    assert null.tail.goodness >= 0.01


def test_where_no_tail_fits_there_is_none():
    random = np.random.default_rng(0)
    parts = random.uniform(0, 1, 1920), random.uniform(50, 51, 40), random.uniform(100, 101, 40)
    null = NullDistribution.of(np.concatenate(parts), np.arange(2000), 0)
    assert null.tail is None
    assert null.smallest_rate == 1 / 2001
    assert null.p_values(np.array([1e9])) == 1 / 2001


def test_rates_in_the_tail_are_those_of_the_pareto_distribution():
    tail = Tail(threshold=2.0, share=0.1, shape=0.25, scale=0.5, goodness=1.0)
    x = np.array([2.0, 2.5, 7.0])
    expected = 0.1 * (1 + 0.25 * (x - 2) / 0.5) ** -4
    assert tail.rates(x) == pytest.approx(expected)
    assert [tail.statistic(rate) for rate in expected] == pytest.approx(x)


@pytest.mark.parametrize("count", [20, 100])
def test_the_fitted_tail_is_the_mean_over_shapes_and_scales(count):
    """The predictive tail by scipy's densities, integrated on another grid."""
    excess = np.random.default_rng(count).exponential(3.0, count)
    shapes, scales = np.linspace(-0.5, 0.5, 101), np.exp(np.linspace(-2, 2, 201)) * excess.mean()
    grid = [each.ravel() for each in np.meshgrid(shapes, scales, indexing="ij")]
    logs = sum(stats.genpareto.logpdf(each, grid[0], scale=grid[1]) for each in excess)
    weights = np.exp(logs - logs.max()) * stats.norm.pdf(grid[0], -0.1, 0.2)

    def mean(values):
        table = (values * weights).reshape(101, 201)
        return trapezoid(trapezoid(table, np.log(scales), axis=1), shapes)

    smallest = 0.5 / count
    shape, scale = fit_predictive(excess, smallest)
    for share in (0.1, smallest):
        t = stats.genpareto.isf(share, shape, scale=scale)
        expected = mean(stats.genpareto.sf(t, grid[0], scale=grid[1])) / mean(1.0)
        assert expected == pytest.approx(share, rel=0.02)


def test_the_tail_is_fitted_without_regard_to_the_unit():
    excess = np.random.default_rng(0).exponential(1.0, 50)
    shape, scale = fit_predictive(excess, 0.01)
    assert fit_predictive(excess * 1e4, 0.01) == pytest.approx((shape, scale * 1e4))


@pytest.mark.parametrize(
    ("distribution", "alike"), [(stats.norm, 0.5), (stats.logistic, 0.5), (stats.gumbel_r, 0.0)]
)
def test_new_non_members_are_flagged_at_the_rate_asked(distribution, alike):
    random = np.random.default_rng(7)
    rates = (0.1, 0.01, 0.001)
    flagged = [
        [distribution.sf(null.threshold(rate)) / rate for rate in rates]
        for null in (
            NullDistribution.of(*draw(random, distribution, 1000, 5, alike), 0) for _ in range(40)
        )
        if null.tail is not None
    ]
    assert len(flagged) >= 20
    common, rare, rarest = np.mean(flagged, axis=0)
    assert 0.9 < common < 1.1
    assert 0.8 < rare < 1.25
    assert 0.6 < rarest < 1.6


def test_the_smallest_p_value_is_a_tenth_of_a_statistic():
    null = made(distribution=stats.beta(5, 2))
    assert null.tail is not None
    assert null.tail.shape < 0
    assert null.p_values(np.array([1e3, np.inf])) == pytest.approx([1e-4, 1e-4])


def test_the_tail_joins_the_ranks():
    null = made()
    assert null.tail is not None
    u = null.tail.threshold
    below, at, above = null.p_values(np.array([np.nextafter(u, -9), u, np.nextafter(u, 9)]))
    assert (below, above) == pytest.approx((at, at))


@pytest.mark.parametrize("rate", [0.0004, 0.0, -1.0, 1.0, float("nan")])
def test_a_rate_that_is_not_supported_is_refused(rate):
    with pytest.raises(InputError, match="false-alarm rate"):
        made().threshold(rate)


def test_the_refusal_says_what_is_supported_and_what_to_do():
    with pytest.raises(InputError) as error:
        made().threshold(0.0001)
    assert str(error.value) == (
        "A false-alarm rate of 0.0001 was asked for; the null of 1000 non-members supports 0.0005 "
        "at least. Ask for that, or hold out more people."
    )


@pytest.mark.parametrize("statistics", [[], [1.0, np.nan], [np.inf]])
def test_a_null_of_nothing_or_of_no_numbers_is_refused(statistics):
    with pytest.raises(InputError, match="statistics"):
        NullDistribution.of(np.array(statistics), np.arange(len(statistics)), 0)


def test_a_statistic_that_is_nan_has_no_p_value():
    with pytest.raises(ValueError, match="NaN"):
        made().p_values(np.array([np.nan]))


@given(SMALL, st.lists(VALUES, min_size=2, max_size=20))
def test_p_values_fall_and_the_order_of_the_null_does_not_matter(null, x):
    values, subjects = map(np.array, zip(*null, strict=True))
    one = NullDistribution.of(values, subjects, 0)
    other = NullDistribution.of(values[::-1], subjects[::-1], 0)
    found = one.p_values(np.sort(x))
    assert (np.diff(found) <= 0).all()
    assert (found > 0).all()
    assert (found <= 1).all()
    assert one.as_json() == other.as_json()


@settings(max_examples=30)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(100, 600),
    st.sampled_from([0, 1, 8]),
    st.floats(0, 1),
    st.sampled_from([stats.norm, stats.t(2), stats.beta(5, 2)]),
)
def test_thresholds_and_p_values_agree(seed, n, digits, place, distribution):
    """Also where many statistics are equal, because they were rounded to few digits."""
    values, subjects = draw(np.random.default_rng(seed), distribution, n)
    null = NullDistribution.of(np.round(values, digits), subjects, seed)
    rate = null.smallest_rate ** (1 - 0.999 * place)
    threshold = null.threshold(rate)
    just_above, just_below = threshold + 1e-9, threshold - 1e-6
    assert null.p_values(np.array([just_above])) <= rate * (1 + 1e-6)
    assert null.p_values(np.array([just_below])) >= rate * (1 - 1e-6) or rate > n / (n + 1)
    x = np.linspace(values.min() - 1, values.max() + 5, 200)
    assert (np.diff(null.p_values(x)) <= 0).all()


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 400))
def test_json_gives_the_same_null(seed, n):
    null = NullDistribution.of(*draw(np.random.default_rng(seed), stats.norm, n), seed)
    again = NullDistribution.from_json(json.loads(json.dumps(null.as_json())), FILE)
    assert again.as_json() == null.as_json()
    assert (again.statistics.dtype, again.subjects.dtype) == (np.float64, np.int64)
    x = np.linspace(-5, 5, 50)
    assert (again.p_values(x) == null.p_values(x)).all()


@pytest.mark.parametrize(
    "change",
    [
        {"statistics": None},
        {"statistics": ["a"]},
        {"statistics": []},
        {"statistics": [2.0, 1.0], "subjects": [0, 1]},
        {"subjects": [0]},
        {"tail": {}},
        {"tail": []},
        {"tail": {"threshold": 1.0, "share": 2.0, "shape": 0.0, "scale": 1.0, "goodness": 1.0}},
        {"tail": {"threshold": 1.0, "share": 0.1, "shape": 0.0, "scale": "1", "goodness": 1.0}},
    ],
)
def test_what_is_not_a_null_is_damaged(change):
    with pytest.raises(Damaged, match=r"null\.json"):
        NullDistribution.from_json(made(200).as_json() | change, FILE)
    with pytest.raises(Damaged, match=r"null\.json"):
        NullDistribution.from_json({}, FILE)


def test_with_one_image_a_subject_the_bound_is_the_exact_one():
    values = np.random.default_rng(0).normal(size=300)
    null = untailed(values)
    threshold = np.sort(values)[-12]
    expected = stats.binomtest(12, 300).proportion_ci(0.9, method="exact").high
    assert null.upper_bound(threshold) == pytest.approx(expected)
    assert null.upper_bound(threshold, 0.975) == pytest.approx(clopper_pearson(12, 300)[1])


def test_equal_images_of_a_subject_count_as_one():
    values = np.random.default_rng(0).normal(size=200)
    null = untailed(np.repeat(values, 5), np.repeat(np.arange(200), 5))
    assert null.effective_size(np.sort(values)[-10]) == 200


def test_the_effective_size_by_hand():
    """The variance of a mean between subjects over that of independent images."""
    reached = {0: [1, 1, 1, 1], 1: [1, 1, 0, 0, 0], 2: [1, 1, 1, 1, 0, 0, 1], 3: [0] * 6}
    images = [(share, name) for name, shares in reached.items() for share in shares]
    n, share = len(images), sum(each for each, _ in images) / len(images)
    between = sum((sum(each) - share * len(each)) ** 2 for each in reached.values())
    design = (between * 4 / 3 / n**2) / (share * (1 - share) / n)
    null = untailed(*zip(*images, strict=True))
    assert 4 < n / design < n
    assert null.effective_size(1.0) == pytest.approx(n / design)


def test_few_above_a_threshold_take_the_design_effect_of_the_90_quantile():
    null = made(500)
    quantile = np.quantile(null.statistics, 0.9, method="higher")
    size = null.effective_size(quantile)
    assert 100 < size < 500
    assert null.effective_size(null.statistics[-3]) == size
    assert null.effective_size(-1e9) == size
    assert null.upper_bound(1e9) == pytest.approx(1 - 0.05 ** (1 / size))


def test_nulls_of_one_subject_or_of_one_value_count_subjects():
    assert untailed(np.arange(30.0), np.zeros(30, int)).effective_size(10.0) == 1
    assert untailed(np.zeros(30), np.arange(30) % 6).effective_size(0.0) == 6


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("rate", [0.05, 0.005])
def test_the_upper_bound_holds_in_95_of_100_nulls(alike, rate):
    random = np.random.default_rng(3)
    threshold = stats.norm.isf(rate)
    bounds = np.array(
        [
            untailed(*draw(random, stats.norm, 600, 6, alike)).upper_bound(threshold)
            for _ in range(400)
        ]
    )
    assert (bounds >= rate).mean() >= 0.93  # 95 % less two standard errors of 400 runs
    assert np.median(bounds) < 6 * rate


@settings(deadline=None)
@given(st.integers(20, 3000))
def test_the_smallest_rate_that_a_refusal_names_is_supported(count):
    null = NullDistribution(np.arange(count, dtype=float), np.arange(count), None)
    with pytest.raises(InputError) as error:
        null.threshold(1e-9)
    null.threshold(float(str(error.value).split("supports ")[1].split(" ")[0]))
