"""Items in columns are the items that were given; tuples, lists and `sorted` are the oracles."""

import os
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepssim_scan.ingest.archives import MemberLocation
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.listing import list_images
from deepssim_scan.ingest.listing.item import Item
from deepssim_scan.ingest.listing.items import Items, in_order, merged
from deepssim_scan.ingest.rejection import Rejection

NAMES = st.binary(max_size=6).map(os.fsdecode)
NUMBERS = st.integers(0, 1 << 70)
LOCATIONS = st.builds(
    MemberLocation, NUMBERS, NUMBERS, NUMBERS, st.booleans(), st.none() | st.integers(0, 2**32 - 1)
)
ITEMS = st.builds(
    Item,
    NAMES,
    NAMES,
    NUMBERS,
    st.integers(-(1 << 70), 1 << 70),
    st.none() | LOCATIONS,
    st.sampled_from(["", "a", "b", "\udcff"]),
    st.none() | st.just(Rejection("damaged", "why")),
)


@given(st.lists(ITEMS, max_size=8), st.slices(8), st.integers(-9, 9))
def test_they_are_what_was_given(given_items, some, number):
    items = Items(iter(given_items))
    assert [*items] == given_items
    assert len(items) == len(given_items)
    assert [*items[some]] == given_items[some]
    try:
        expected = given_items[number]
    except IndexError:
        with pytest.raises(IndexError):
            items[number]
    else:
        assert items[number] == expected


@given(st.lists(ITEMS, max_size=4), st.lists(ITEMS, max_size=4))
def test_they_are_equal_when_all_of_them_are(ours, theirs):
    assert (Items(ours) == Items(theirs)) is (ours == theirs)
    assert Items(ours) != ours


@given(st.lists(ITEMS, max_size=8), st.lists(ITEMS, max_size=8))
def test_in_order_they_are_sorted_by_the_bytes_of_path_and_member(some, others):
    def key(item):
        return os.fsencode(item.path), os.fsencode(item.member)

    assert [*in_order(some)] == sorted(some, key=key)
    both = [*sorted(some, key=key), *sorted(others, key=key)]
    assert [*merged(in_order(some), in_order(others))] == sorted(both, key=key)


PARTS = st.text("a./-0é\n", min_size=1, max_size=7).filter(
    lambda path: all(part.strip(".") and part[0] != "." for part in path.split("/"))
)


@settings(deadline=None, max_examples=150)
@given(st.sets(PARTS, min_size=1, max_size=8))
def test_a_walk_gives_files_in_the_order_of_their_paths(paths):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / f"{path}.png").write_bytes(b"")
            (folder / f"{path}.zarr").mkdir(exist_ok=True)  # rejected, and not walked
        found = [item.path for item in list_images(folder, run=RunContext("cpu", workers=0)).files]
        there = {f"{path}{suffix}" for path in paths for suffix in (".png", ".zarr")}
        assert found == sorted(there, key=os.fsencode)


def test_they_take_less_than_half_of_what_objects_take():
    def taken(kind):
        tracemalloc.start()
        kept = kind(
            Item(f"{at // 1000:06d}/{at:06d}-synthetic.png", "", 10**4 + at, 10**18 + at)
            for at in range(20_000)
        )
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(kept) == 20_000
        return size

    assert 2 * taken(Items) < taken(tuple)
