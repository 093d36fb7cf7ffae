"""Whose image each row is: subjects where they are told apart, runs of files where not."""

import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_index import unit

from deepssim_scan.calibration.groups import Groups, groups_of
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.store.manifest import StoreManifest
from deepssim_scan.store.store import Store
from deepssim_scan.store.writer import StoreWriter

RUN = 16  # files


def groups(subjects, *, known):
    """Tell apart the subjects of a store whose rows show these, "" where nobody is told."""
    facts = ("", "", 1, 1, 1, "", "L")
    records = [
        ImageRecord(f"{row}.png", *facts, subject, subject_known=known)
        for row, subject in enumerate(subjects)
    ]
    with tempfile.TemporaryDirectory() as folder:
        with StoreWriter(Path(folder) / "store", StoreManifest("ab" * 32, 8)) as writer:
            writer.add(records, unit(len(records)))
            writer.finish(len(records))
        with Store.open(Path(folder) / "store") as store:
            return groups_of(store)


NAMES = st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(NAMES)
def test_rows_have_one_number_when_they_show_one_subject(subjects):
    """Of subjects that are known; a row without one may show anyone, and lies beside all."""
    subjects = ["a", "b", *subjects]
    found = groups(subjects, known=True)
    nameless = [row for row, name in enumerate(subjects) if not name]
    assert found.origin == ("known" if 2 * len(nameless) < len(subjects) else "runs")
    if found.origin == "known":
        for row, subject in enumerate(subjects):
            same = [other for other, name in enumerate(subjects) if name == subject]
            assert found.beside(row).tolist() == sorted({*same, *nameless})
        assert len(found) == len(set(subjects) - {""}) + len(nameless)
        assert sorted(np.flatnonzero(found.certain)) == sorted(
            set(range(len(subjects))) - {*nameless}
        )


def test_one_image_of_nobody_known_does_not_make_the_known_subjects_unknown():
    """A blank cell of a manifest: all 60 images of a person are left out beside each other."""
    found = groups([*np.repeat([f"s{number}" for number in range(12)], 60), ""], known=True)
    assert found.origin == "known"
    assert found.beside(0).tolist() == [*range(60), 720]
    assert found.unseen(SimpleNamespace(embedded=list), ()).tolist() == [*range(720)]


def test_images_directly_in_the_folder_are_not_each_a_person():
    """Beside 20 folders of one image lie 1,000 images in none."""
    found = groups([*(f"s{number}" for number in range(20)), *[""] * 1000], known=False)
    assert found.origin == "runs"
    assert len(found.beside(500)) == 2 * RUN + 1


@pytest.mark.parametrize(
    ("count", "known", "origin"),
    [(1, True, "runs"), (2, True, "known"), (19, False, "runs"), (20, False, "guessed")],
)
def test_guessed_subjects_count_from_20_on_and_known_ones_from_two_on(count, known, origin):
    subjects = [f"s{number % count}" for number in range(3 * count)]
    assert groups(subjects, known=known).origin == origin


def test_rows_without_a_subject_do_not_make_subjects_known():
    assert groups([""] * 50, known=True).origin == "runs"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 100))
def test_where_nobody_is_told_apart_the_files_around_a_row_are_left_out(rows):
    found = groups([""] * rows, known=False)
    length = RUN if rows >= 4 * RUN else max(1, rows // 4)
    assert found.number.tolist() == [row // length for row in range(rows)]
    assert rows < 4 or len(found) >= 4  # so that a match has others beside it
    for row in range(rows):
        near = [other for other in range(rows) if abs(other - row) <= RUN]
        assert found.beside(row).tolist() == near
        assert set(np.flatnonzero(found.number == found.number[row])) <= set(near)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(0, 70), st.integers(0, 9))
def test_a_draw_is_of_as_many_groups_as_there_are(numbers, most, seed):
    drawn = Groups(
        np.array(numbers), subjects=True, known=True, certain=np.ones(len(numbers), bool)
    )
    rows = drawn.some(most, np.random.default_rng(seed))
    assert len(rows) == min(most, len(numbers))
    assert rows.tolist() == sorted(set(rows.tolist()))
    taken = Counter(numbers[row] for row in rows)
    for number, count in Counter(numbers).items():  # none gives two more than another could give
        assert taken[number] >= min(count, max(taken.values(), default=0) - 1)
