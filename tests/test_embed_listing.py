"""A listing to a store: its bytes do not depend on interruptions or blocks."""

import contextlib
import itertools
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import TINY
from PIL import Image

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.architecture import REFERENCE
from deepssim_scan.encoder.network import Encoder
from deepssim_scan.errors import InputError
from deepssim_scan.imaging.thumbnails import SIDE
from deepssim_scan.ingest import pipeline
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.config.selection import Selection
from deepssim_scan.ingest.listing import list_images
from deepssim_scan.progress import SILENT, Silent
from deepssim_scan.store import embed_listing as module
from deepssim_scan.store.config import EmbedConfig
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.manifest import StoreManifest
from deepssim_scan.store.store import Store
from deepssim_scan.store.writer import StoreWriter

CONFIG = EmbedConfig(shard_rows=8)
HERE = RunContext("cpu", workers=0)


class Killed(Exception):
    """What stops a run in these tests."""


class StopAt(Silent):
    """Stops a run when so many files are done."""

    def __init__(self, count):
        self.count = count

    def __call__(self, stage, done, total, note=""):
        if done == self.count:
            raise Killed


def embed(listing, folder, loaded, progress=SILENT):
    Embedder(loaded, config=CONFIG, run=replace(HERE, progress=progress)).embed(listing, folder)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "e.safetensors"
    checkpoint.save(path, Encoder(TINY), {})
    return checkpoint.load(path)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of one file, so that a run can be stopped after each."""
    monkeypatch.setattr(module, "chunks", partial(pipeline.chunks, most=1))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Ten images, three that are none, and two volumes of seven slices, one slice blank."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(10):
        samples = rng.integers(0, 256, (40, 40), np.uint8)
        Image.fromarray(samples).save(folder / f"{number:02d}.png")
    for name in ("00b.png", "04b.png", "99.png"):
        (folder / name).touch()
    for name in ("03b.npy", "07b.npy"):
        volume = rng.normal(size=(7, 40, 40)).astype(np.float32)
        volume[2] = 1
        np.save(folder / name, volume)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_row_30_a_run_stopped_anywhere_goes_on_to_the_same_bytes(loaded, images, tmp_path):
    """Stopped after each item in turn, and after two, the second perhaps done already."""
    listing = list_images(images)
    embed(listing, tmp_path / "whole", loaded)
    with Store.open(tmp_path / "whole") as store:
        assert store.footer.items == 15
        assert store.listed == 27
        assert (store.rows, store.rejected_count, store.blank_count) == (22, 3, 2)
    whole = contents(tmp_path / "whole")
    for number, stops in enumerate([*itertools.product(range(1, 16)), (3, 9), (9, 14), (12, 12)]):
        store = tmp_path / str(number)
        for stop in stops:
            with contextlib.suppress(Killed):
                embed(listing, store, loaded, StopAt(stop))
            assert not (store / "store.json").exists()
        embed(listing, store, loaded)
        assert contents(store) == whole


def test_what_is_done_is_not_decoded_again(loaded, images, tmp_path, monkeypatch):
    listing = list_images(images)
    seen = []
    exact = Embedder.embed_items

    def noting(embedder, folder, blocks):
        blocks = [*blocks]
        seen.append([item for block in blocks for item in block])
        return exact(embedder, folder, blocks)

    monkeypatch.setattr(Embedder, "embed_items", noting)

    with pytest.raises(Killed):
        embed(listing, tmp_path / "s", loaded, StopAt(12))
    embed(listing, tmp_path / "s", loaded)
    embed(listing, tmp_path / "s", loaded)  # finished: nothing is read
    assert seen[0] == list(listing.files)
    # Two shards of 8: items 0 to 7 gave 5 + 6 rows, and the 16th is in the second volume.
    assert next(item.path for item in seen[1]) == "07b.npy"
    assert len(seen) == 2


def test_an_unfinished_store_of_other_files_is_started_anew(loaded, images, tmp_path):
    listing = list_images(images)
    store = tmp_path / "s"
    source = Embedder(loaded, config=CONFIG, run=HERE).source(images)
    shape = TINY.dimension, CONFIG.shard_rows
    manifest = StoreManifest(loaded.fingerprint, *shape, source=source, thumbnail=SIDE)
    ((records, made),) = Embedder(loaded, run=HERE).embed_items(images, [listing.files[:1]])
    others = [replace(records[0], path=f"other-{number}.png") for number in range(8)]
    with StoreWriter(store, manifest) as writer:
        writer.add(others, *(np.repeat(x, 8, 0) for x in (made.embeddings, made.thumbnails)))
    embed(listing, store, loaded)
    embed(listing, tmp_path / "whole", loaded)
    assert contents(store) == contents(tmp_path / "whole")


@pytest.mark.parametrize("change", ["other bytes", "another length", "gone"])
def test_a_volume_that_changed_after_a_part_of_it_was_embedded(loaded, tmp_path, change):
    """With the size and time that it had: the parts of two files are not put together."""
    folder, store = tmp_path / "images", tmp_path / "s"
    folder.mkdir()
    volumes = np.random.default_rng(0).normal(size=(2, 12, 40, 40)).astype(np.float32)
    path = folder / "v.npy"
    np.save(path, volumes[0])
    np.save(folder / "w.npy", volumes[0][:4])
    listing = list_images(folder)

    with pytest.raises(Killed):
        embed(listing, store, loaded, StopAt(1))
    time = path.stat()
    if change == "gone":
        path.unlink()
    else:
        np.save(path, volumes[1] if change == "other bytes" else volumes[1][:5])
        os.utime(path, ns=(time.st_atime_ns, time.st_mtime_ns))
        listing = list_images(folder)
    embed(listing, store, loaded)
    embed(listing, tmp_path / "whole", loaded)
    assert contents(store) == contents(tmp_path / "whole")


def test_a_time_that_sqlite_cannot_count_to(loaded, images, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    os.utime(folder / "00.png", (1e11, 1e11))  # the year 5138
    embed(list_images(folder), tmp_path / "s", loaded)
    with Store.open(tmp_path / "s") as store:
        assert next(store.embedded()).mtime_ns == 2**63 - 1


def test_an_image_smaller_than_the_encoder_can_take_is_rejected_and_the_others_go_on(tmp_path):
    shape = replace(REFERENCE, depths=(1, 1, 1, 1), widths=(8,) * 4, dimension=4)
    for side in (31, 32):
        pixels = np.random.default_rng(side).integers(0, 256, (side, 40), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{side}.png")
    checkpoint.save(tmp_path / "e.safetensors", Encoder(shape), {})
    embedder = Embedder(checkpoint.load(tmp_path / "e.safetensors"), run=HERE)
    files = list_images(tmp_path, Selection(("*.png",))).files
    (((small, _), rows),) = embedder.embed_items(tmp_path, [files])
    assert (small.path, small.reason) == ("31.png", "too-small")
    assert small.detail == "40x31 pixels; this encoder needs 32 a side"
    assert rows.embeddings.shape == (1, 4)


def test_a_subject_key_leaves_a_mark_and_no_more(tmp_path):
    def source(key):
        return IngestConfig(read_options=ReadOptions(subject_key=key)).source(tmp_path)

    key = b"a secret of many bytes"
    assert key.decode() not in repr(source(key))
    assert source(key)["subject_key"] != source(key + b"!")["subject_key"]
    assert source(b"")["subject_key"] is None


def test_options_out_of_range_are_refused():
    with pytest.raises(InputError, match="shard_rows must be >= 1, found 0"):
        EmbedConfig(shard_rows=0)
