"""A listing to a store: in batches that do not depend on interruptions, nor results on memory."""

import contextlib
import itertools
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import TINY
from PIL import Image

from deepssim_scan import checkpoint, embed
from deepssim_scan.checkpoint import Thresholds
from deepssim_scan.embed import EmbedConfig, embed_listing
from deepssim_scan.embeddings import Store, StoreManifest, StoreWriter
from deepssim_scan.encoder import REFERENCE, Encoder
from deepssim_scan.errors import InputError
from deepssim_scan.listing import list_images

CONFIG = EmbedConfig(device="cpu", workers=0, shard_rows=8, batch=3)


class Killed(Exception):
    """What stops a run in these tests."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "e.safetensors"
    checkpoint.save(path, Encoder(TINY), Thresholds(0.6, 0.999), {})
    return checkpoint.load(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Ten images, three that are none, and two volumes of seven slices, one slice constant."""
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
    embed_listing(listing, tmp_path / "whole", loaded, CONFIG)
    with Store.open(tmp_path / "whole") as store:
        assert (store.seal.items, store.listed, store.rows, store.rejected_count) == (15, 27, 22, 5)
    whole = contents(tmp_path / "whole")
    for number, stops in enumerate([*itertools.product(range(1, 16)), (3, 9), (9, 14), (12, 12)]):
        place = tmp_path / str(number)
        for stop in stops:

            def stopping(stage, done, total, stop=stop):
                if done == stop:
                    raise Killed

            with contextlib.suppress(Killed):
                embed_listing(listing, place, loaded, CONFIG, report=stopping)
            assert not (place / "store.json").exists()
        embed_listing(listing, place, loaded, CONFIG)
        assert contents(place) == whole


def test_what_is_done_is_not_decoded_again(loaded, images, tmp_path, monkeypatch):
    listing = list_images(images)
    seen = []
    exact = embed.decode_images
    monkeypatch.setattr(
        embed,
        "decode_images",
        lambda left, *a, **k: seen.append(left.files) or exact(left, *a, **k),
    )

    def stopping(stage, done, total):
        if done == 12:
            raise Killed

    with pytest.raises(Killed):
        embed_listing(listing, tmp_path / "s", loaded, CONFIG, report=stopping)
    embed_listing(listing, tmp_path / "s", loaded, CONFIG)
    embed_listing(listing, tmp_path / "s", loaded, CONFIG)  # finished: nothing is read
    assert seen[0] == listing.files
    # Two shards of 8: items 0 to 7 gave 5 + 6 rows, and the 16th is in the second volume.
    assert next(item.path for item in seen[1]) == "07b.npy"
    assert len(seen) == 2


def test_an_unfinished_store_of_other_files_is_started_anew(loaded, images, tmp_path):
    listing = list_images(images)
    place = tmp_path / "s"
    manifest = StoreManifest(
        loaded.fingerprint, TINY.dimension, CONFIG.shard_rows, source=CONFIG.source(images)
    )
    first = next(iter(embed.decode_images(listing, TINY.standardisation, workers=0)))[0]
    entries, rows = embed.embed_decoded(loaded.encoder, [first])
    others = [replace(entries[0], path=f"other-{number}.png") for number in range(8)]
    with StoreWriter(place, manifest) as writer:
        writer.add(others, np.repeat(rows, 8, axis=0))
    embed_listing(listing, place, loaded, CONFIG)
    embed_listing(listing, tmp_path / "whole", loaded, CONFIG)
    assert contents(place) == contents(tmp_path / "whole")


@pytest.mark.parametrize("change", ["other bytes", "another length", "gone"])
def test_a_volume_that_changed_after_a_part_of_it_was_embedded(loaded, tmp_path, change):
    """With the size and time that it had: the parts of two files are not put together."""
    folder, place = tmp_path / "images", tmp_path / "s"
    folder.mkdir()
    volumes = np.random.default_rng(0).normal(size=(2, 12, 40, 40)).astype(np.float32)
    path = folder / "v.npy"
    np.save(path, volumes[0])
    np.save(folder / "w.npy", volumes[0][:4])
    listing = list_images(folder)

    def stopping(stage, done, total):
        if done == 1:
            raise Killed

    with pytest.raises(Killed):
        embed_listing(listing, place, loaded, CONFIG, report=stopping)
    time = path.stat()
    if change == "gone":
        path.unlink()
    else:
        np.save(path, volumes[1] if change == "other bytes" else volumes[1][:5])
        os.utime(path, ns=(time.st_atime_ns, time.st_mtime_ns))
        listing = list_images(folder)
    embed_listing(listing, place, loaded, CONFIG)
    embed_listing(listing, tmp_path / "whole", loaded, CONFIG)
    assert contents(place) == contents(tmp_path / "whole")


def test_a_time_that_sqlite_cannot_count_to(loaded, images, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    os.utime(folder / "00.png", (1e11, 1e11))  # the year 5138
    embed_listing(list_images(folder), tmp_path / "s", loaded, CONFIG)
    with Store.open(tmp_path / "s") as store:
        assert next(store.embedded()).mtime_ns == 2**63 - 1


@pytest.mark.parametrize("room", [0, 1, 2, 5])
def test_row_36_a_gpu_without_room_gives_the_same_embeddings(monkeypatch, loaded, images, room):
    """A device that takes `room` images at a time, played by one that counts."""
    decoded = [
        image
        for item in embed.decode_images(list_images(images), TINY.standardisation, workers=0)
        for image in item
    ]
    entries, rows = embed.embed_decoded(loaded.encoder, decoded)
    exact, sizes = embed.embed_views, []
    on_cpu = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(embed, "device_of", lambda encoder: torch.device("meta"))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: self)
    monkeypatch.setattr(type(loaded.encoder), "cpu", lambda self: on_cpu.append(True))

    def small(encoder, pixels, views):
        sizes.append(len(pixels))
        if len(pixels) > room and not on_cpu:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return exact(encoder, pixels, views)

    monkeypatch.setattr(embed, "embed_views", small)
    found_entries, found = embed.embed_decoded(loaded.encoder, decoded)
    assert found_entries == entries
    assert np.abs(found - rows).max() < 1e-6
    assert bool(on_cpu) == (room == 0)
    assert sizes[0] == len(rows)


def test_an_image_smaller_than_the_encoder_can_take_is_rejected_and_the_others_go_on(tmp_path):
    shape = replace(REFERENCE, depths=(1, 1, 1, 1), widths=(8,) * 4, dimension=4)
    for side in (31, 32):
        pixels = np.random.default_rng(side).integers(0, 256, (side, 40), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{side}.png")
    decoded = [
        image
        for item in embed.decode_images(list_images(tmp_path), shape.standardisation, workers=0)
        for image in item
    ]
    (small, _), rows = embed.embed_decoded(Encoder(shape).eval(), decoded)
    assert (small.path, small.reason) == ("31.png", "too-small")
    assert small.detail == "40x31 pixels; this encoder needs 32 a side"
    assert rows.shape == (1, 4)


def test_row_36_a_cpu_without_memory_is_an_error(monkeypatch, loaded, images):
    def none(*_):
        raise torch.OutOfMemoryError("no memory")

    item = next(iter(embed.decode_images(list_images(images), TINY.standardisation, workers=0)))
    monkeypatch.setattr(embed, "embed_views", none)
    with pytest.raises(torch.OutOfMemoryError):
        embed.embed_decoded(loaded.encoder, item)


def test_a_subject_key_leaves_a_mark_and_no_more(tmp_path):
    from deepssim_scan.decode import Reading

    key = b"a secret of many bytes"
    source = EmbedConfig(reading=Reading(subject_key=key)).source(tmp_path)
    other = EmbedConfig(reading=Reading(subject_key=key + b"!")).source(tmp_path)
    assert key.decode() not in repr(source)
    assert source["subject_key"] != other["subject_key"]
    assert EmbedConfig().source(tmp_path)["subject_key"] is None


@pytest.mark.parametrize("name", ["batch", "shard_rows"])
def test_options_out_of_range_are_refused(name):
    with pytest.raises(InputError, match=f"{name} must be >= 1, found 0"):
        EmbedConfig(**{name: 0})
