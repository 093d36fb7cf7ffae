"""How much the scores of a synthetic set moved from one night to the next.

matches.parquet -> how many images have their best score in each bin -> the two nights' difference
"""

from collections.abc import Iterable, Sequence

import numpy as np

BINS = 200
"""Bins of the best score of an image, a cosine similarity from -1 to 1."""


def binned(scores: Iterable[float]) -> list[int]:
    """Count scores by bins of 0.01."""
    counts, _ = np.histogram(np.fromiter(scores, np.float64), BINS, (-1, 1))
    return [int(count) for count in counts]


def drift(last: Sequence[int], now: Sequence[int]) -> float | None:
    """Return the largest difference of the shares of images below a score; None without images.

    It is the statistic of Kolmogorov and Smirnov, at the edges of the bins.
    """
    if not sum(last) or not sum(now):
        return None
    shares = [np.cumsum(counts) / np.sum(counts) for counts in (last, now)]
    return float(np.abs(shares[0] - shares[1]).max())
