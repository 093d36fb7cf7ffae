"""The decision statistic, fitted to non-members and planted copies: logistic regression.

    features of negatives (N, n, 16), of positives (P, 16) -> Statistic

No image is judged by a fit that has seen its person: `cross_fitted` leaves a fifth of the groups
out at a time.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from deepssim_scan.matching.statistic import Statistic

_RIDGE = 0.1  # of the weights of standardised features
_ROUNDS = 3  # of choosing the strongest candidate of each negative, and fitting again
_STEPS, _ENOUGH = 5000, {"ftol": 1e-15, "gtol": 1e-8}  # of the minimisation
FOLDS = 5
"""So many fits, each without the groups of one of so many folds; two must hold groups."""

Array = NDArray[np.float64]


def fit(negatives: Array, positives: Array) -> Statistic:
    """Fit the statistic.

    negatives (N, n, 16) are the candidates of non-members, of which the strongest of each counts;
    positives (P, 16) are planted copies with their sources. Both sides have the same weight.
    """
    registered = np.isfinite(negatives).all(-1)
    strongest = _strongest(negatives, np.where(registered, negatives[..., 0], np.nan))
    for _ in range(_ROUNDS):
        statistic = _logistic(strongest, positives)
        strongest = _strongest(negatives, statistic.of(negatives))
    return statistic


def _strongest(negatives: Array, values: Array) -> Array:
    """Return the features (N, 16) of the candidate of each image with the greatest value (N, n)."""
    best = np.where(np.isnan(values), -np.inf, values).argmax(1)
    strongest: Array = negatives[np.arange(len(negatives)), best]
    return strongest


def cross_fitted(
    negatives: Array, positives: Array, groups: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> Callable[[Array, NDArray[np.int64]], Array]:
    """Return a function that judges features (M, n, 16) by the fit without their groups (M,).

    `groups` are those of the negatives (N,) and of the positives (P,). The result of the function
    is the statistic of each pair (M, n), NaN for those that were not registered.
    """
    fold_of_negative, fold_of_positive = (each % FOLDS for each in groups)
    fits = [
        fit(negatives[fold_of_negative != fold], positives[fold_of_positive != fold])
        for fold in range(FOLDS)
    ]

    def judge(features: Array, group: NDArray[np.int64]) -> Array:
        every = np.stack([each.of(features) for each in fits])
        judged: Array = every[group % FOLDS, np.arange(len(features))]
        return judged

    return judge


def _logistic(negatives: Array, positives: Array) -> Statistic:
    """Fit a logistic regression with a ridge.

    Both sides can be told apart as a rule. Newton's steps then do not settle, and fits to parts of
    the same images would have other scales.
    """
    features = np.concatenate([negatives, positives])
    label = np.repeat([0.0, 1.0], [len(negatives), len(positives)])
    share = np.where(label == 1, 0.5 / len(positives), 0.5 / len(negatives)) * len(label)
    centre, spread = features.mean(0), features.std(0) + 1e-6
    design = np.column_stack([(features - centre) / spread, np.ones(len(features))])
    ridge = np.diag([_RIDGE] * features.shape[1] + [0.0])
    side = 2 * label - 1

    def loss(weights: Array) -> tuple[float, Array]:
        margin = side * (design @ weights)
        slope = -side * share * expit(-margin)
        value = share @ np.logaddexp(0, -margin) + weights @ ridge @ weights / 2
        return float(value), design.T @ slope + ridge @ weights

    start, until = np.zeros(design.shape[1]), {"maxiter": _STEPS, "maxfun": _STEPS} | _ENOUGH
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=until)
    weights = found.x
    raw = weights[:-1] / spread
    return Statistic(tuple(raw.tolist()), float(weights[-1] - raw @ centre))
