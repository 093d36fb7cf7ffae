"""Whose image each row is: subjects where they are told apart, runs of files where not."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepssim_scan.calibration.groups import Groups, groups_of

RUN = 16  # files


def store(subjects, *, known):
    """Play a store whose rows show these subjects, "" where nobody is told."""
    records = [SimpleNamespace(subject=each, subject_known=known) for each in subjects]
    return SimpleNamespace(embedded=lambda: iter(records))


NAMES = st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=40)


@given(NAMES)
def test_rows_have_one_number_when_they_show_one_subject(subjects):
    """Of subjects that are known; a row without one is a subject of its own."""
    subjects = ["a", "b", *subjects]
    groups = groups_of(store(subjects, known=True))
    assert groups.origin == "known"
    for row, subject in enumerate(subjects):
        same = [other for other, name in enumerate(subjects) if name == subject]
        assert groups.beside(row).tolist() == (same if subject else [row])
    assert len(groups) == len(set(subjects) - {""}) + subjects.count("")


@pytest.mark.parametrize(
    ("count", "known", "origin"),
    [(1, True, "runs"), (2, True, "known"), (19, False, "runs"), (20, False, "guessed")],
)
def test_guessed_subjects_count_from_20_on_and_known_ones_from_two_on(count, known, origin):
    subjects = [f"s{number % count}" for number in range(3 * count)]
    assert groups_of(store(subjects, known=known)).origin == origin


def test_rows_without_a_subject_do_not_make_subjects_known():
    assert groups_of(store([""] * 50, known=True)).origin == "runs"


@given(st.integers(1, 100))
def test_where_nobody_is_told_apart_the_files_around_a_row_are_left_out(rows):
    groups = groups_of(store([""] * rows, known=False))
    length = RUN if rows >= 4 * RUN else max(1, rows // 4)
    assert groups.number.tolist() == [row // length for row in range(rows)]
    assert rows < 4 or len(groups) >= 4  # so that a match has others beside it
    for row in range(rows):
        near = [other for other in range(rows) if abs(other - row) <= RUN]
        assert groups.beside(row).tolist() == near
        assert set(np.flatnonzero(groups.number == groups.number[row])) <= set(near)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(0, 70), st.integers(0, 9))
def test_a_draw_is_of_as_many_groups_as_there_are(numbers, most, seed):
    groups = Groups(np.array(numbers), subjects=True, known=True)
    rows = groups.some(most, np.random.default_rng(seed))
    assert len(rows) == min(most, len(numbers))
    assert rows.tolist() == sorted(set(rows.tolist()))
    taken = Counter(numbers[row] for row in rows)
    for number, count in Counter(numbers).items():  # none gives two more than another could give
        assert taken[number] >= min(count, max(taken.values(), default=0) - 1)
