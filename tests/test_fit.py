"""The fit of the decision statistic, against a general minimiser on the same loss."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from deepssim_scan.calibration.fit import FOLDS, cross_fitted, fit
from deepssim_scan.matching.statistic import FEATURES

RIDGE = 0.1
WIDTH = len(FEATURES)


def sample(seed, negatives=60, candidates=4, positives=40, shift=0.8):
    """Features of negatives (N, n, 14) and of positives (P, 14), which overlap."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(WIDTH, WIDTH)) * rng.uniform(0.1, 3, WIDTH)
    first = rng.normal(size=(negatives, candidates, WIDTH)) @ mixing
    second = (rng.normal(size=(positives, WIDTH)) + shift * rng.random(WIDTH)) @ mixing
    return first, second


def reference(negatives, positives):
    """Minimise the weighted logistic loss with a ridge, by BFGS, over standardised features."""
    every = np.concatenate([negatives, positives])
    sign = np.repeat([1.0, -1.0], [len(negatives), len(positives)])
    sizes = [len(negatives), len(positives)]
    share = np.repeat(0.5 / np.array(sizes), sizes)
    standard = (every - every.mean(0)) / (every.std(0) + 1e-6)

    def loss(weights):
        margin = sign * (standard @ weights[:-1] + weights[-1])
        ridge = RIDGE / 2 * (weights[:-1] ** 2).sum()
        slope = len(every) * share * sign * expit(margin)
        gradient = np.append(slope @ standard + RIDGE * weights[:-1], slope.sum())
        return len(every) * share @ np.logaddexp(0, margin) + ridge, gradient

    found = minimize(loss, np.zeros(WIDTH + 1), jac=True, method="BFGS", options={"gtol": 1e-7})
    return lambda features: (
        (features - every.mean(0)) / (every.std(0) + 1e-6) @ found.x[:-1] + found.x[-1]
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sizes", [(60, 40), (300, 25), (20, 200)])
def test_the_fit_is_the_minimum_of_the_loss(seed, sizes):
    """With one candidate each, nothing is to be chosen."""
    negatives, positives = sample(seed, sizes[0], 1, sizes[1])
    found, wanted = fit(negatives, positives), reference(negatives[:, 0], positives)
    others = np.concatenate([negatives[:, 0], positives, *sample(seed + 1, candidates=1)[0]])
    assert found.of(others) == pytest.approx(wanted(others), abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_of_every_negative_the_strongest_candidate_counts(seed):
    """The best by score at first, then twice the one that the last fit finds the strongest."""
    negatives, positives = sample(seed)
    best = negatives[..., 0].argmax(1)
    for _ in range(3):
        wanted = reference(negatives[np.arange(len(best)), best], positives)
        first, best = best, wanted(negatives).argmax(1)
    assert (first != negatives[..., 0].argmax(1)).any()
    assert fit(negatives, positives).of(negatives) == pytest.approx(wanted(negatives), abs=1e-3)


def test_either_side_has_the_same_weight_however_many_there_are():
    negatives, positives = sample(3, candidates=1)
    once, thrice = fit(negatives, positives), fit(negatives, np.tile(positives, (3, 1)))
    statistic = once.of(np.concatenate([negatives[:, 0], positives]))
    assert expit(statistic[:60]).mean() == pytest.approx(1 - expit(statistic[60:]).mean(), abs=1e-6)
    assert np.corrcoef(once.weights, thrice.weights)[0, 1] > 0.95


def test_features_that_never_vary_and_sides_far_apart_give_finite_weights():
    negatives, positives = sample(0)
    negatives[..., 5] = positives[:, 5] = 0.3
    positives[:, 0] += 1000
    found = fit(negatives, positives)
    assert np.isfinite(found.weights).all()
    assert found.of(positives).min() > found.of(negatives).max()


def test_no_group_is_judged_by_a_fit_that_has_seen_it():
    """Whatever the features of a group are changed to, its own judgements stay; others change."""
    negatives, positives = sample(1)
    group = np.arange(60) % 12
    of_positives = np.arange(40) % 12
    judge = cross_fitted(negatives, positives, (group, of_positives))
    for chosen in range(FOLDS):
        changed, moved = negatives.copy(), positives.copy()
        changed[group % FOLDS == chosen] += 5
        moved[of_positives % FOLDS == chosen] -= 5
        other = cross_fitted(changed, moved, (group, of_positives))
        same = np.isclose(judge(negatives, group), other(negatives, group)).all(1)
        assert (same == (group % FOLDS == chosen)).all()


def test_a_group_is_judged_by_the_fit_to_the_other_folds():
    negatives, positives = sample(2)
    groups = np.arange(60) // 3, np.arange(40) // 2
    judged = cross_fitted(negatives, positives, groups)(positives[:, None], groups[1])
    for fold in range(FOLDS):
        alone = fit(negatives[groups[0] % FOLDS != fold], positives[groups[1] % FOLDS != fold])
        inside = groups[1] % FOLDS == fold
        assert judged[inside, 0] == pytest.approx(alone.of(positives[inside]))
