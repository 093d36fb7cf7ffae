"""The features of candidates against a loop in numpy; the statistic is linear in them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepssim_scan.errors import InputError
from deepssim_scan.imaging.names import NAMES
from deepssim_scan.matching.statistic import FEATURES, Statistic, features


def drawn(seed, queries, depth, missing):
    """Candidates' scores, correlations, measures and subjects; of a share some is missing.

    Of half of them nothing is known but the score, of the others all but the measures.
    """
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-1, 1, (queries, depth)).astype(np.float32)
    measures = rng.uniform(-1, 1, (queries, depth, len(NAMES))).astype(np.float32)
    measures[rng.random((queries, depth)) < 0.2] = 1  # the same image
    correlation = rng.uniform(-1, 1, (queries, depth)).astype(np.float32)
    left_out = rng.random((queries, depth)) < missing
    measures[left_out] = np.nan
    correlation[left_out & (rng.random((queries, depth)) < 0.5)] = np.nan
    return scores, correlation, measures, rng.integers(0, 3, (queries, depth))


def one_by_one(scores, correlation, measures, subjects):
    """The features of the candidates of one image."""
    every = []
    for score, alike, values in zip(scores, correlation, measures, strict=True):
        known = np.array([np.nan if np.isnan(alike) else score, alike, *values], np.float64)
        every.append(np.arctanh(np.clip(known, -0.999, 0.999)))
    rows = []
    for mine, values in enumerate(every):
        margins = []
        for column, value in enumerate(values):
            others = [
                each[column]
                for each, subject in zip(every, subjects, strict=True)
                if subject != subjects[mine] and not np.isnan(each[column])
            ]
            margins.append(value - np.mean(others) if others else 0 * value)
        rows.append([*values, *margins])
    return rows


@settings(deadline=None)
@given(
    st.integers(0, 999), st.integers(1, 4), st.integers(1, 9), st.sampled_from([0.0, 0.3, 0.8, 1.0])
)
def test_features_are_those_of_a_loop(seed, queries, depth, missing):
    candidates = drawn(seed, queries, depth, missing)
    found = features(*candidates)
    wanted = [one_by_one(*each) for each in zip(*candidates, strict=True)]
    assert found.shape == (queries, depth, len(FEATURES))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


def test_features_are_named_in_their_order():
    """Of two subjects with one candidate each, of which all is told apart by value."""
    scores = np.array([[0.5, 0.1]], np.float32)
    measures = np.array([[np.linspace(0.1, 0.9, 6), np.zeros(6)]], np.float32)
    correlation = np.array([[0.7, 0.2]], np.float32)
    found = features(scores, correlation, measures, np.array([[0, 1]]))
    first = dict(zip(FEATURES, found[0, 0], strict=True))
    assert np.tanh(first["score"]) == pytest.approx(0.5)
    assert np.tanh(first["correlation"]) == pytest.approx(0.7)
    assert first["correlation_margin"] == pytest.approx(np.arctanh(0.7) - np.arctanh(0.2))
    assert np.tanh(first["ssim_1"]) == pytest.approx(0.1)
    assert np.tanh(first["lcn_3"]) == pytest.approx(0.9)
    assert first["score_margin"] == pytest.approx(np.arctanh(0.5) - np.arctanh(0.1))
    assert first["lcn_3_margin"] == pytest.approx(np.arctanh(0.9))


def test_a_second_copy_of_the_same_subject_costs_no_margin():
    scores = np.array([[0.9, 0.9, 0.1]], np.float32)
    measures = np.repeat(scores[..., None], 6, -1)
    same = features(scores, scores, measures, np.array([[0, 0, 1]]))[0, :, 8:]
    others = features(scores, scores, measures, np.array([[0, 2, 1]]))[0, :, 8:]
    assert (same[:2] > others[:2]).all()
    assert (same[0] == same[1]).all()


def test_features_of_one_image_do_not_depend_on_the_others():
    every = drawn(1, 6, 5, 0.3)
    together = features(*every)
    for query in range(6):
        alone = features(*(each[query : query + 1] for each in every))
        np.testing.assert_array_equal(alone[0], together[query])


@given(st.integers(0, 999))
def test_the_statistic_is_linear(seed):
    rng = np.random.default_rng(seed)
    weights, constant = rng.normal(size=len(FEATURES)), rng.normal()
    found = Statistic(tuple(weights.tolist()), constant)
    one, other = rng.normal(size=(2, 3, 4, len(FEATURES)))
    np.testing.assert_allclose(found.of(one), (one * weights).sum(-1) + constant)
    share = rng.random()
    mixed = found.of(share * one + (1 - share) * other)
    np.testing.assert_allclose(mixed, share * found.of(one) + (1 - share) * found.of(other))


def test_without_evidence_there_is_no_statistic():
    candidates = drawn(0, 5, 8, 0.4)
    found = Statistic((0.0,) * len(FEATURES), 1.0).of(features(*candidates))
    missing = np.isnan(candidates[2]).any(-1)
    assert (np.isnan(found) == missing).all()
    assert 0 < missing.sum() < missing.size


def test_another_number_of_weights_is_refused():
    with pytest.raises(InputError, match="weights must be those of 16 features, found 15"):
        Statistic((1.0,) * 15, 0.0)
