"""The evidence of a shard: written and read back the same, and damage noticed."""

from dataclasses import fields

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepssim_scan.errors import Damaged
from deepssim_scan.imaging.names import NAMES
from deepssim_scan.index.rescore import Matches
from deepssim_scan.matching.evidence import Evidence
from deepssim_scan.matching.parts import Part, read_part, write_part


def drawn(queries, depth, seed=0):
    """Evidence of random numbers, of which a third is missing."""
    rng = np.random.default_rng(seed)
    found, there = Evidence.none((queries, depth)), rng.random((queries, depth)) > 1 / 3
    for field in fields(Evidence):
        values = getattr(found, field.name)
        values[there] = 100 * rng.normal(size=values[there].shape)
    matches = Matches(
        rng.integers(0, 1 << 40, there.shape),
        rng.normal(size=there.shape).astype(np.float32),
        rng.integers(0, 4, there.shape).astype(np.int8),
    )
    return Part(matches, found)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 99))
def test_what_is_written_is_read(tmp_path_factory, queries, depth, seed):
    path, part = tmp_path_factory.mktemp("parts") / "0.parquet", drawn(queries, depth, seed)
    write_part(path, part)
    assert_same(part, read_part(path, queries))


def assert_same(part, found):
    for made, read in ((part.candidates, found.candidates), (part.evidence, found.evidence)):
        for name in type(made).__slots__:
            before, after = getattr(made, name), getattr(read, name)
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)


def test_unverified_pairs_are_counted_among_the_first_alone():
    part = drawn(50, 6)
    missing = [[np.isnan(value).any() for value in row] for row in part.evidence.measures]
    for count in range(1, 7):
        assert part.unverified(count) == sum(sum(row[:count]) for row in missing)


def test_every_altered_byte_is_noticed_or_changes_nothing(tmp_path):
    path, part = tmp_path / "0.parquet", drawn(4, 3)
    write_part(path, part)
    data = path.read_bytes()
    for position in range(0, len(data), 17):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        try:
            found = read_part(path, 4)
        except Damaged:
            continue
        assert_same(part, found)


def test_a_part_of_another_number_of_images_is_refused(tmp_path):
    write_part(tmp_path / "0.parquet", drawn(4, 3))
    with pytest.raises(Damaged, match="12 pairs are not those of 5 images"):
        read_part(tmp_path / "0.parquet", 5)


def test_the_columns_are_named_after_what_they_hold(tmp_path):
    part = drawn(5, 3)
    write_part(tmp_path / "0.parquet", part)
    table = pq.read_table(tmp_path / "0.parquet")
    assert table["view"].to_numpy().tolist() == part.candidates.views.ravel().tolist()
    for column, name in enumerate(NAMES):
        np.testing.assert_array_equal(table[name], part.evidence.measures[..., column].ravel())
    for field in fields(Evidence):
        if field.name != "measures":
            values = getattr(part.evidence, field.name).ravel()
            np.testing.assert_array_equal(table[field.name], values)


def test_evidence_is_put_where_it_is_of_and_reordered_as_numpy_does():
    whole, later = Evidence.none((6, 4)), drawn(2, 3, seed=1).evidence
    whole.put(slice(3, 5), later)
    order = np.random.default_rng(0).permuted(np.tile(np.arange(4), (6, 1)), axis=1)[:, :3]
    moved = whole.reordered(order)
    nothing = Evidence.none((6, 4))
    for field in fields(Evidence):
        values, put = getattr(whole, field.name), getattr(later, field.name)
        np.testing.assert_array_equal(values[3:5, :3], put)
        kept = np.ones((6, 4), bool)
        kept[3:5, :3] = False
        np.testing.assert_array_equal(values[kept], getattr(nothing, field.name)[kept])
        wanted = [values[row, columns] for row, columns in enumerate(order)]
        np.testing.assert_array_equal(getattr(moved, field.name), wanted)
    assert nothing.missing.all()
    assert (whole.missing == np.isnan(whole.measures).any(-1)).all()
