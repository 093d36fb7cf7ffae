"""Which views are looked at: a table of scores; and what stands for those that are not."""

import numpy as np
import pytest

from deepssim_scan.encoder.views import LATER, TTA_VIEWS
from deepssim_scan.matching.views import NEVER, Views

SCORES = np.array([0.1, 0.5, 0.7, 0.9], np.float32)


def test_every_view_but_the_first_is_looked_at_later_once():
    assert sorted(view for views in LATER for view in views) == [*range(1, len(TTA_VIEWS))]
    assert [TTA_VIEWS[view][1] for views in LATER for view in views] == [False, True, True]


@pytest.mark.parametrize(
    ("enough", "turned", "inverted"),
    [
        ((0.6, 0.8), [1, 1, 0, 0], [1, 1, 1, 0]),
        ((-1.0, 0.5), [0, 0, 0, 0], [1, 0, 0, 0]),
        ((NEVER, NEVER), [1, 1, 1, 1], [1, 1, 1, 1]),
    ],
)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_an_image_is_looked_at_in_views_for_which_its_score_is_not_enough(
    count, enough, turned, inverted
):
    asked = Views(count, enough).asked(SCORES)
    wanted = np.array([[0, 0, 0, 0], turned, inverted, inverted], bool).T
    assert (asked == wanted[:, :count]).all()


def test_rows_are_those_of_the_views_and_else_the_first():
    """An image that is gone is told, and has no row that is not a number."""
    rng = np.random.default_rng(0)
    first, every = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 8), (4, 4, 8)))
    given = []

    def embed(numbers, asked):
        given.append((numbers.tolist(), asked.tolist()))
        found = np.where(asked[..., None], every[numbers], np.nan)
        return np.where((numbers == 1)[:, None, None], np.nan, found).astype(np.float32)

    rows, unseen = Views(4, (0.6, 0.8)).complete(first, SCORES, embed)
    assert given == [([0, 1, 2], [[False] + [True] * 3] * 2 + [[False, False, True, True]])]
    assert unseen.tolist() == [False, True, False, False]
    assert (rows[0] == [first[0], *every[0, 1:]]).all()
    assert (rows[1] == first[1]).all()
    assert (rows[2] == [first[2], first[2], *every[2, 2:]]).all()
    assert (rows[3] == first[3]).all()
