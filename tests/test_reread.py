"""Images of a store, found and decoded again: the same pixels, or none."""

import shutil

import numpy as np
import pytest
from image_bytes import NOISE, STACK, nifti, npy, png

from deepssim_scan.ingest import pipeline
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.config.selection import Selection
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.listing import list_images
from deepssim_scan.ingest.pipeline import decode_images
from deepssim_scan.store.manifest import StoreManifest
from deepssim_scan.store.reread import Reader, ingest_of, listing_of
from deepssim_scan.store.store import Store
from deepssim_scan.store.writer import StoreWriter

HERE = RunContext("cpu", workers=0)
RULE = Standardisation(size=16)


def decoded(folder, ingest):
    listing = list_images(folder, ingest.selection, HERE)
    items = decode_images(listing, RULE, ingest, HERE)
    return len(listing.files), [image for item in items for image in item]


def stored(folder, place, ingest=IngestConfig()):
    """Write a store of the images of a folder, with some row for each."""
    count, images = decoded(folder, ingest)
    usable = sum(image.pixels is not None for image in images)
    rows = np.eye(usable, dtype=np.float32)
    manifest = StoreManifest("ab" * 32, usable, source=ingest.source(folder))
    with StoreWriter(place, manifest) as writer:
        writer.add([image.record for image in images], rows)
        writer.finish(count)
    return Store.open(place)


@pytest.fixture
def folder(tmp_path):
    """Four images, a volume of three slices, and a file that is none."""
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    for number in range(4):
        (root / f"sub/{number}.png").write_bytes(png(np.roll(NOISE, number), 8, 0))
    (root / "volume.npy").write_bytes(npy(STACK))
    (root / "bad.png").write_bytes(b"no image")
    return root


def pixels_of(store, rows, images=None):
    reader = Reader(store, listing_of(store, HERE, images), RULE, HERE)
    return dict(reader.pixels(rows))


@pytest.mark.parametrize("rows", [[], [0], [6, 0, 3], range(7)])
def test_the_pixels_of_rows_are_those_that_were_embedded(folder, tmp_path, rows):
    _, images = decoded(folder, IngestConfig())
    expected = [image.pixels for image in images if image.pixels is not None]
    with stored(folder, tmp_path / "store") as store:
        found = pixels_of(store, rows)
    assert found.keys() == set(rows)
    for row, pixels in found.items():
        np.testing.assert_array_equal(pixels, expected[row])


@pytest.mark.parametrize("workers", [0, 1])
def test_only_the_wanted_slices_of_a_volume_are_standardised(
    folder, tmp_path, monkeypatch, workers
):
    made, exact = [], pipeline.standardise
    monkeypatch.setattr(pipeline, "standardise", lambda *given: made.append(given) or exact(*given))
    with stored(folder, tmp_path / "store") as store:
        volume = [
            row
            for row, record in enumerate(store.records_at(range(7)))
            if record.path == "volume.npy"
        ]
        listing, run = listing_of(store, HERE), RunContext("cpu", workers=workers)
        made.clear()
        found = dict(Reader(store, listing, RULE, run).pixels([volume[1], 0]))
        assert len(made) == (2 if workers == 0 else 0)  # with workers, they do
        every = pixels_of(store, range(7))
    assert found.keys() == {volume[1], 0}
    for row, pixels in found.items():
        np.testing.assert_array_equal(pixels, every[row])


def test_rows_whose_file_is_gone_changed_or_damaged_are_left_out(folder, tmp_path):
    with stored(folder, tmp_path / "store") as store:
        names = store.paths()
        (folder / "sub/0.png").unlink()
        (folder / "sub/1.png").write_bytes(png(NOISE[::-1], 8, 0))
        (folder / "sub/2.png").write_bytes(b"")
        (folder / "volume.npy").write_bytes(npy(STACK[:, ::-1]))
        assert [names[row] for row in pixels_of(store, range(7))] == ["sub/3.png"]


def test_the_images_may_have_moved(folder, tmp_path):
    with stored(folder, tmp_path / "store") as store:
        moved = shutil.move(folder, tmp_path / "moved")
        assert pixels_of(store, range(7), moved).keys() == set(range(7))


def test_the_images_are_read_as_they_were(folder, tmp_path):
    """Every option that a store records is the one that it was made with."""
    (folder / "deep.nii").write_bytes(nifti(STACK * 3.0))
    ingest = IngestConfig(
        Selection(("**/*.nii", "**/*.npy"), exclude=("sub/**",)),
        ReadOptions(
            axis=1, slices="2:4", window="100,90", max_pixels=999, subject_key=b"a secret of bytes"
        ),
        subject_regex="(deep)",
    )
    with stored(folder, tmp_path / "store", ingest) as store:
        again = ingest_of(store)
        assert again.selection == ingest.selection
        assert again.subject_regex == ingest.subject_regex
        assert again.read_options.subject_key == b""
        _, images = decoded(folder, ingest)
        found = pixels_of(store, range(store.rows))
    assert len(found) == len(images) == 4
    for image, pixels in zip(images, found.values(), strict=True):
        np.testing.assert_array_equal(pixels, image.pixels)


def test_a_manifest_is_read_again(folder, tmp_path):
    (tmp_path / "list.csv").write_text("path\nsub/2.png\n")
    ingest = IngestConfig(Selection(manifest=tmp_path / "list.csv"))
    with stored(folder, tmp_path / "store", ingest) as store:
        assert [item.path for item in listing_of(store, HERE).files] == ["sub/2.png"]
