"""The plots of a report: what is flagged is drawn where the page says that it is."""

import numpy as np
import pytest

from deepssim_scan.calibration.rule import ReferenceRule
from deepssim_scan.matching.decision import Bounds
from deepssim_scan.reporting.distributions import Distributions

SIMILAR, DUPLICATE = 0.6, 0.85


@pytest.mark.parametrize("others", [(0.1, 0.5), (0.3, 0.9)])
def test_few_flagged_images_among_many_are_right_of_the_bound(others):
    """Two of 3,002 images were flagged, and were drawn to the left of the line of duplicates."""
    scores = np.random.default_rng(0).uniform(*others, 3000)
    found = of([*scores[scores < DUPLICATE], 0.97, 0.99])
    assert right_of(found, DUPLICATE) == 2
    assert sum(found.synthetic) == 2 + (scores < DUPLICATE).sum()


def test_few_different_images_among_copies_are_left_of_the_bound():
    scores = np.random.default_rng(0).uniform(0.95, 1, 3000)
    found = of([0.2, 0.3, *scores])
    assert sum(found.synthetic) - right_of(found, SIMILAR) == 2


def test_where_all_is_equal_there_are_bins():
    found = Distributions.of([0.5], ReferenceRule(Bounds(0.5, 0.5)))
    assert sum(found.synthetic) == 1
    assert np.all(np.diff(found.edges) > 0)


def of(scores):
    return Distributions.of(scores, ReferenceRule(Bounds(SIMILAR, DUPLICATE)))


def right_of(found, bound):
    """How many images are in bins of which the middle is right of a bound."""
    middles = np.convolve(found.edges, (0.5, 0.5), "valid")
    return np.array(found.synthetic)[middles > bound].sum()
