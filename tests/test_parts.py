"""The evidence of a shard: written and read back the same, and damage noticed."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepssim_scan.errors import Damaged
from deepssim_scan.index.rescore import Matches
from deepssim_scan.matching.evidence import Evidence
from deepssim_scan.matching.parts import Part, read_part, write_part


def drawn(queries, depth, seed=0):
    """Evidence of random numbers, of which a third is missing."""
    rng = np.random.default_rng(seed)
    shape = queries, depth
    missing = rng.random(shape) < 1 / 3
    values = {f.name: rng.normal(size=shape).astype(np.float32) for f in fields(Evidence)}
    values = {name: np.where(missing, np.nan, each) for name, each in values.items()}
    values["flip"] = np.where(missing, -1, rng.integers(0, 4, shape)).astype(np.int8)
    rows = rng.integers(0, 1 << 40, shape)
    return Part(Matches(rows, rng.normal(size=shape).astype(np.float32)), Evidence(**values))


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
    missing = [[np.isnan(value) for value in row] for row in part.evidence.ssim.tolist()]
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
