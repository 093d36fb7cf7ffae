"""Candidates against a brute-force choice among all rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepssim_scan.index.rescore import Matches
from deepssim_scan.matching import candidates
from deepssim_scan.matching.candidates import NEAR, Shown, propose


class Search:
    """Scores of each image with every row and view, of which the best are given.

    `images` (N,) numbers the images of the rows: those of one number are the same.
    """

    def __init__(self, scores, images=None):
        self.scores, self.rows, self.asked, self.held = scores, scores.shape[2], [], []
        self.images = np.arange(self.rows) if images is None else images

    def vectors_at(self, rows):
        found = np.random.default_rng(0).normal(size=(self.rows, 64))[self.images[rows]]
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    def search_views(self, views, k):
        self.asked.append(k)
        self.held.append(views.shape[0] * views.shape[1] * k)
        every = self.scores[views[:, 0, 0].astype(int)]
        best, view = every.max(1), every.argmax(1).astype(np.int8)
        rows = np.broadcast_to(np.arange(self.rows), best.shape)
        order = np.lexsort((rows, -best), axis=-1)[:, :k]
        return Matches(*(np.take_along_axis(each, order, 1) for each in (rows, best, view)))


def proposed(search, views, count, subjects, left_out=None):
    return propose(Shown(search, subjects), views, count, left_out)


def merged(order, subjects, images):
    """Whom each row shows: those who share the image of the first are its subject."""
    sharing = {subjects[row] for row in order if images[row] == images[order[0]]}
    return [subjects[order[0]] if subjects[row] in sharing else subjects[row] for row in order]


def chosen(best, count, room, subjects, left_out, images=None):
    """The rows of one image, by score: those within the cap of whom they show, then any."""
    order = [row for row in np.lexsort((np.arange(len(best)), -best)) if row not in left_out]
    whose = merged(order, subjects, np.arange(len(best)) if images is None else images)
    before = [whose[:n].count(each) for n, each in enumerate(whose)]
    late = [n >= max(1, count - 3) for n in before]
    first = sorted(range(len(order)), key=lambda n: (late[n], n))[:room]
    return [order[n] for n in sorted(first)]


@st.composite
def cases(draw):
    """Scores that tie, subjects of few or many rows, rows left out of some images.

    Some rows are the same image, which is the best match everywhere.
    """
    rows, queries = draw(st.integers(1, 90)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    scores = np.round(rng.uniform(-1, 1, (queries, draw(st.integers(1, 3)), rows)), 1)
    subjects = rng.integers(0, draw(st.sampled_from([1, 2, 5, 90])), rows)
    if draw(st.booleans()):  # one subject is the best match everywhere
        scores[:, :, subjects == subjects[0]] += 2
    left_out = None
    if draw(st.booleans()):
        sizes = rng.integers(0, rows + 1, queries)
        left_out = [np.sort(rng.choice(rows, size, replace=False)) for size in sizes]
    images = np.arange(rows)
    if draw(st.booleans()):
        same = rng.choice(rows, rng.integers(1, rows + 1), replace=False)
        images[same] = same[0]
        scores[:, :, same] = 5
    return scores.astype(np.float32), draw(st.integers(1, 12)), subjects, left_out, images


def numbered(queries):
    return np.arange(queries, dtype=np.float32)[:, None, None]


@settings(max_examples=200, deadline=None)
@given(cases())
def test_candidates_are_those_of_a_choice_among_all_rows(case):
    """There are fewer of all images only where one of them has no more rows."""
    scores, count, subjects, left_out, images = case
    search = Search(scores, images)
    found = proposed(search, numbered(len(scores)), count, subjects, left_out)
    barred = [set(each.tolist()) for each in left_out or [np.empty(0)] * len(scores)]
    room = min(count, *(len(subjects) - len(each) for each in barred))
    assert found.rows.shape == found.scores.shape == found.views.shape == (len(scores), room)
    for query, each in enumerate(scores):
        best, rows = each.max(0), found.rows[query].tolist()
        assert rows == chosen(best, count, room, subjects, barred[query], images)
        assert found.scores[query].tolist() == best[rows].tolist()
        assert found.views[query].tolist() == each.argmax(0)[rows].tolist()


@given(cases())
def test_no_row_that_is_left_out_is_proposed_and_none_twice(case):
    scores, count, subjects, left_out, images = case
    search = Search(scores, images)
    found = proposed(search, numbered(len(scores)), count, subjects, left_out)
    for query, rows in enumerate(found.rows.tolist()):
        assert len(set(rows)) == len(rows)
        if left_out:
            assert not set(rows) & set(left_out[query].tolist())


@pytest.mark.parametrize("count", [1, 2, 4, 5, 8, 12])
def test_the_best_subject_leaves_room_for_three_candidates_of_others(count):
    """The best 60 rows are all of one subject: the search goes as deep as the others are."""
    best = np.linspace(1, -1, 100, dtype=np.float32)[None, None]
    subjects = np.where(np.arange(100) < 60, 0, np.arange(100))
    found = proposed(Search(best), numbered(1), count, subjects)
    assert (subjects[found.rows] == 0).sum() == max(1, count - 3)
    assert found.rows.shape == (1, count)


def test_where_there_is_one_subject_alone_all_candidates_are_of_it():
    best = np.linspace(1, -1, 30, dtype=np.float32)[None, None]
    found = proposed(Search(best), numbered(1), 8, np.zeros(30, np.int64))
    assert found.rows.tolist() == [list(range(8))]


def test_candidates_of_an_image_do_not_depend_on_the_others():
    rng = np.random.default_rng(0)
    scores = rng.uniform(-1, 1, (5, 2, 80)).astype(np.float32)
    subjects = rng.integers(0, 3, 80)
    scores[3, :, subjects == 0] += 2  # of this image alone, the search goes deeper
    together = proposed(Search(scores), numbered(5), 8, subjects)
    for query in range(5):
        alone = proposed(Search(scores[query : query + 1]), numbered(1), 8, subjects)
        assert alone.rows.tolist() == together.rows[query : query + 1].tolist()


def test_the_search_is_no_deeper_than_it_must_be():
    rng = np.random.default_rng(0)
    scores = rng.uniform(-1, 1, (3, 1, 5000)).astype(np.float32)
    search = Search(scores)
    proposed(search, numbered(3), 8, np.arange(5000))
    assert max(search.asked) < 100


def test_what_is_held_at_a_time_does_not_grow_with_a_subject(monkeypatch):
    """One image of a subject of 900 made all images of a shard be searched as deep, together."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(-1, 1, (40, 2, 1000)).astype(np.float32)
    subjects = np.where(np.arange(1000) < 900, 0, np.arange(1000))
    scores[:3, :, subjects == 0] += 2
    scores[3:, :, subjects != 0] += 2
    wanted = proposed(Search(scores), numbered(40), 8, subjects)
    monkeypatch.setattr(candidates, "_AT_ONCE", 2000)
    search = Search(scores)
    found = proposed(search, numbered(40), 8, subjects)
    assert max(search.held) <= 2000
    deepest = [held for held, k in zip(search.held, search.asked, strict=True) if k == 1000]
    assert sum(deepest) == 3 * 1000
    assert found.rows.tolist() == wanted.rows.tolist()
    for query in (0, 39):
        best = scores[query].max(0)
        assert found.rows[query].tolist() == chosen(best, 8, 8, subjects, set())


def test_no_images_have_no_candidates():
    search = Search(np.zeros((0, 1, 20), np.float32))
    assert proposed(search, numbered(0), 8, np.arange(20)).rows.shape == (0, 8)


def unit(*angles):
    return np.array([[np.cos(each), np.sin(each)] for each in angles], np.float32)


class Known:
    """An index with these rows."""

    def __init__(self, rows):
        self.rows = rows

    def vectors_at(self, rows):
        return self.rows[rows]


NARROW, WIDE = np.arccos(NEAR) * 0.99, np.arccos(NEAR) * 1.01


def test_subjects_who_share_nearly_the_same_image_are_one():
    """Row 1 is nearly row 0, and of subject 7, of whom row 3 is, too; row 2 is not near enough."""
    shown = Shown(Known(unit(0, NARROW, WIDE, 1, 2)), np.array([5, 7, 8, 7, 9]))
    assert shown.of(np.array([[0, 1, 2, 3, 4]])).tolist() == [[5, 5, 8, 5, 9]]
    # As seen from row 2, row 1 is near, and row 0 is not.
    assert shown.of(np.array([[2, 1, 0, 3, 4]])).tolist() == [[8, 8, 5, 8, 9]]


def test_who_is_barred_is_no_one_to_be_near():
    shown = Shown(Known(unit(0, NARROW, WIDE, 1, 2)), np.array([5, 7, 8, 7, 9]))
    rows, barred = np.array([[0, 1, 2, 3, 4]]), np.array([[True, False, False, False, False]])
    assert shown.of(rows, barred).tolist() == [[5, 7, 7, 7, 9]]


def test_what_is_listed_alone_does_not_change_whom_the_others_show():
    """Row 1 is nearly row 0, and of the subject of row 3. A larger `--top-k` lists it as well."""
    shown = Shown(Known(unit(0, NARROW, WIDE, 1, 2)), np.array([5, 7, 8, 7, 9]))
    rows = np.array([[0, 3, 4, 2, 1], [4, 0, 2, 3, 1]])
    for count in range(1, 6):
        verified = shown.of(rows[:, :count])
        for listed in range(count, 6):
            found = shown.of_verified(rows[:, :listed], count)
            assert found[:, :count].tolist() == verified.tolist()
    assert shown.of(rows)[0, 1] != shown.of_verified(rows, 3)[0, 1] == 7


def test_images_are_told_apart_each_by_itself():
    shown = Shown(Known(unit(0, NARROW, WIDE, 1, 2)), np.array([5, 7, 8, 7, 9]))
    rows = np.array([[4, 3, 1], [0, 1, 3]])
    assert shown.of(rows).tolist() == [[9, 7, 7], [5, 5, 5]]
    assert shown.of(rows[:, :0]).shape == (2, 0)
