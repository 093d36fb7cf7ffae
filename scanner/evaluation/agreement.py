"""How far the scores of a metric agree with labels, with intervals over subjects.

    labels, scores, predicted labels (P,), groups (P,) -> figures by name

A duplicate is what has to be found: AUC and true positives are of duplicates against all others.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.errors import DependencyMissing, InputError
from deepssim_scan.evaluation.labelled import LABELS
from deepssim_scan.matching.decision import Bounds

Labels = NDArray[np.int64]
"""Indices in LABELS: (P,)."""

FALSE_POSITIVES = 0.001, 0.01
DRAWS = 500
_DUPLICATE = LABELS.index("duplicate")
_CUTS = 200  # thresholds that are tried


def fitted(labels: Labels, scores: NDArray[np.float64]) -> Bounds:
    """Return the two thresholds with the highest macro F1, the middle of the best gaps.

    Raises InputError where the labels are of one kind.
    """
    if (kinds := len(set(labels.tolist()))) < 2:
        raise InputError(
            f"thresholds are fitted on the pairs of half of the training subjects: {len(labels):,} "
            f"pairs of {kinds} kinds of label, where two kinds are needed. Label more pairs."
        )
    cuts = _cuts(scores)
    below = np.array([[(scores[labels == each] <= cut).sum() for cut in cuts] for each in range(3)])
    total = np.bincount(labels, minlength=3)
    low, high = np.triu_indices(len(cuts))
    middle = below[:, high] - below[:, low]
    predicted = [below[:, low], middle, total[:, None] - below[:, high]]
    f1 = np.zeros(len(low))
    for label in range(3):
        hits = predicted[label][label]
        every = predicted[label].sum(0) + total[label]
        f1 += np.divide(2 * hits, every, out=np.zeros(len(low)), where=every > 0)
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    chosen = best[len(best) // 2]
    return Bounds(float(cuts[low[chosen]]), float(cuts[high[chosen]]))


def _cuts(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return thresholds between neighbouring scores, evenly spread over the pairs."""
    values = np.unique(scores)
    middles = (values[1:] + values[:-1]) / 2
    every = np.concatenate([[values[0] - 1e-6], middles, [values[-1] + 1e-6]])
    chosen: NDArray[np.float64] = every[
        np.unique(np.linspace(0, len(every) - 1, _CUTS).round().astype(int))
    ]
    return chosen


def figures(
    labels: Labels, scores: NDArray[np.float64], predicted: Labels | None, groups: Labels
) -> dict[str, Any]:
    """Return all figures of a metric; those of predicted labels only where there are any.

    `groups` (P,) says whom the training images show. Intervals are of 95 %, of draws of the groups.
    Raises DependencyMissing without scikit-learn.
    """
    told: dict[str, Any] = {"pairs": len(labels), "by_label": _counts(labels)}
    of_scores = {"auc": auc} | {
        f"true_positives_at_{rate:g}": _true_positives_at(rate) for rate in FALSE_POSITIVES
    }
    told |= _with_intervals(of_scores, (labels, scores), groups)
    told["silhouette"] = silhouette(labels, scores)
    if predicted is not None:
        told |= _with_intervals({"macro_f1": macro_f1}, (labels, predicted), groups)
        told |= _of_predicted(labels, predicted)
    return told


def _counts(labels: Labels) -> dict[str, int]:
    return dict(zip(LABELS, np.bincount(labels, minlength=3).tolist(), strict=True))


def _with_intervals(
    figure: dict[str, Callable[..., float | None]], columns: tuple[Any, ...], groups: Labels
) -> dict[str, Any]:
    """Return each figure, and its interval over draws of whole groups."""
    rng, by_group = np.random.default_rng(0), _by_group(groups)
    drawn: dict[str, list[float]] = {name: [] for name in figure}
    for _ in range(DRAWS):
        chosen = rng.integers(len(by_group), size=len(by_group))
        rows = np.concatenate([by_group[each] for each in chosen])
        for name, of in figure.items():
            value = of(*(column[rows] for column in columns))
            if value is not None:
                drawn[name].append(value)
    told: dict[str, Any] = {}
    for name, of in figure.items():
        told[name] = of(*columns)
        known = told[name] is not None and drawn[name]
        told[f"{name}_95"] = np.quantile(drawn[name], [0.025, 0.975]).tolist() if known else None
    return told


def _by_group(groups: Labels) -> list[NDArray[np.int64]]:
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)


def auc(labels: Labels, scores: NDArray[np.float64]) -> float | None:
    """Return the chance that a duplicate scores above another pair; None without both."""
    copies = labels == _DUPLICATE
    if copies.all() or not copies.any():
        return None
    return float(sklearn_metrics().roc_auc_score(copies, scores))


def true_positives(labels: Labels, scores: NDArray[np.float64], rate: float) -> float | None:
    """Return the share of duplicates above the score that a share `rate` of the others passes."""
    copies = labels == _DUPLICATE
    if copies.all() or not copies.any():
        return None
    bound = np.quantile(scores[~copies], 1 - rate, method="higher")
    return float((scores[copies] > bound).mean())


def _true_positives_at(rate: float) -> Callable[..., float | None]:
    return lambda labels, scores: true_positives(labels, scores, rate)


def silhouette(labels: Labels, scores: NDArray[np.float64]) -> float | None:
    """Return how far the scores of the labels lie apart, -1 to 1; None for one label."""
    if not 2 <= len(set(labels.tolist())) < len(labels):
        return None
    return float(sklearn_metrics().silhouette_score(scores[:, None], labels))


def macro_f1(labels: Labels, predicted: Labels) -> float:
    """Return the mean of the F1 of the labels that there are."""
    return _f1(labels, predicted, "macro")


def _f1(labels: Labels, predicted: Labels, average: str) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a label that a draw has none of
        there = np.unique(labels)
        return float(sklearn_metrics().f1_score(labels, predicted, labels=there, average=average))


def _of_predicted(labels: Labels, predicted: Labels) -> dict[str, Any]:
    found = sklearn_metrics().precision_recall_fscore_support(
        labels, predicted, labels=range(3), zero_division=0
    )
    by_label = {
        name: {"precision": float(p), "recall": float(r), "f1": float(f)}
        for name, p, r, f in zip(LABELS, *found[:3], strict=True)
    }
    confusion = sklearn_metrics().confusion_matrix(labels, predicted, labels=range(3))
    return {
        "weighted_f1": _f1(labels, predicted, "weighted"),
        "labels": by_label,
        "confusion": confusion.tolist(),
    }


def sklearn_metrics() -> Any:
    """Return scikit-learn's metrics; DependencyMissing without it."""
    try:
        from sklearn import metrics
    except ImportError as error:
        raise DependencyMissing(
            "scikit-learn, which computes the figures, is not installed. "
            "Install the extra: pip install 'deepssim-scan[cpu,evaluate]'"
        ) from error
    return metrics
