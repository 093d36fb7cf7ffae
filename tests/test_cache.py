"""What an earlier report has of the same images is found by all that it depends on."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_parts import assert_same, drawn

from deepssim_scan.errors import Damaged
from deepssim_scan.index.rescore import Matches
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.matching.cache import EvidenceCache, PartFiles
from deepssim_scan.matching.identity import Context
from deepssim_scan.matching.looked import Looked, read_looked, write_looked
from deepssim_scan.matching.parts import Part, write_part

DIMENSION = 5


def digests(rng, count):
    """Digests of random bytes, many of which end with zeros, as NumPy drops them."""
    values = rng.integers(0, 256, (count, 32), np.uint8)
    values[::2, 29:] = 0
    return np.frombuffer(values.tobytes(), "S32")


def looked(seed, count, views=4):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, views, DIMENSION)).astype(np.float32)
    rows[rng.random((count, views)) < 0.5] = np.nan
    rows[:, 0] = np.nan
    return Looked(digests(rng, count), digests(rng, count), rows)


def test_embeddings_are_read_when_they_are_asked_for(tmp_path, monkeypatch):
    ((files, _, seen),) = parts(tmp_path, [3], 3)

    def unread(*_):
        raise AssertionError("an embedding was read")

    with monkeypatch.context() as patched:
        patched.setattr("deepssim_scan.matching.cache.read_looked", unread)
        cache = EvidenceCache([files], DIMENSION)
    assert np.array_equal(cache.views(seen.images), seen.views, equal_nan=True)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 9), st.integers(1, 4), st.integers(0, 99))
def test_what_is_written_is_read(tmp_path_factory, count, views, seed):
    path, made = tmp_path_factory.mktemp("looked") / "0.parquet", looked(seed, count, views)
    write_looked(path, made)
    found = read_looked(path, DIMENSION)
    assert found.images.tolist() == made.images.tolist()
    assert found.candidates.tolist() == made.candidates.tolist()
    np.testing.assert_array_equal(found.views[:, :views], made.views)
    assert np.isnan(found.views[:, views:]).all()


def test_embeddings_of_another_dimension_are_refused(tmp_path):
    write_looked(tmp_path / "0.parquet", looked(0, 3))
    with pytest.raises(Damaged, match="cannot be read"):
        read_looked(tmp_path / "0.parquet", DIMENSION + 1)


def parts(folder, sizes, count):
    made = []
    for number, size in enumerate(sizes):
        files = PartFiles(folder / f"{number}.parquet", folder / f"{number}.images.parquet")
        part, seen = drawn(size, count + 1, number), looked(number, size)
        write_part(files.evidence, part)
        write_looked(files.looked, seen)
        made.append((files, part, seen))
    return made


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 5), max_size=4), st.randoms(use_true_random=False))
def test_each_image_is_found_and_no_other(tmp_path_factory, sizes, random):
    made = parts(tmp_path_factory.mktemp("parts"), sizes, 3)
    cache = EvidenceCache([files for files, _, _ in made], DIMENSION)
    known = [
        (seen, part.evidence, row) for _, part, seen in made for row in range(len(seen.images))
    ]
    order = [*range(len(known)), None, None]
    random.shuffle(order)
    others = digests(np.random.default_rng(1000), 2)
    images, candidates = (
        np.array(
            [
                others[0] if at is None else getattr(known[at][0], name)[known[at][2]]
                for at in order
            ],
            "S32",
        )
        for name in ("images", "candidates")
    )
    views, (there, evidence) = cache.views(images), cache.evidence(candidates, 3)
    for number, at in enumerate(order):
        if at is None:
            assert np.isnan(views[number]).all() and not there[number]
            continue
        seen, found, row = known[at]
        np.testing.assert_array_equal(views[number], seen.views[row])
        whole = found.part(slice(row, row + 1), 3)
        assert there[number] == (not whole.missing.any())
        mine = evidence.part(slice(number, number + 1), 3)
        assert_same(*(Part(_nothing(), each) for each in (mine, whole)))


def _nothing():
    return Matches(
        np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32), np.zeros((1, 1), np.int8)
    )


def record(number, frame=""):
    return ImageRecord(f"{number}.png", "", frame, 1, 9, 9, f"{number:064x}", "L", "")


IMAGES = [record(1), record(2)]
TRAINING = {row: record(100 + row) for row in range(6)}
CANDIDATES = Matches(
    np.array([[0, 1, 2], [3, 4, 5]]), np.ones((2, 3), np.float32), np.zeros((2, 3), np.int8)
)
SUBJECTS = np.array([0, 0, 1, 2, 3, 4])
CONTEXT = Context({"a": 1}, {"b": 2})


def of(images=IMAGES, candidates=CANDIDATES, training=TRAINING, subjects=SUBJECTS, context=CONTEXT):
    whose = subjects[candidates.rows]
    return context.of_candidates(images, candidates, training, whose).tolist()


def test_all_that_evidence_depends_on_makes_another_digest():
    first, second = of()
    assert first != second
    rows, views = CANDIDATES.rows.copy(), CANDIDATES.views.copy()
    rows[0, :2] = 1, 0
    views[0, 1] = 1
    for other in (
        of(images=[replace(IMAGES[0], sha256="f" * 64), IMAGES[1]]),
        of(images=[replace(IMAGES[0], frame="slice=1"), IMAGES[1]]),
        of(candidates=replace(CANDIDATES, rows=rows)),
        of(candidates=replace(CANDIDATES, views=views)),
        of(training=TRAINING | {1: replace(TRAINING[1], sha256="e" * 64)}),
        of(subjects=np.array([0, 1, 1, 2, 3, 4])),
    ):
        assert other[0] != first and other[1] == second
    assert not {*of(context=Context({"a": 1}, {"b": 3}))} & {first, second}


def test_names_and_numbers_of_subjects_make_no_difference():
    renamed = [replace(each, path="other.png", mtime_ns=5) for each in IMAGES]
    assert of(images=renamed, subjects=SUBJECTS + 7) == of()
    assert of(context=Context({"a": 5}, {"b": 2})) == of()
    images = CONTEXT.of_images(IMAGES)
    assert CONTEXT.of_images(renamed).tolist() == images.tolist()
    assert Context({"a": 5}, {"b": 2}).of_images(IMAGES).tolist() != images.tolist()
