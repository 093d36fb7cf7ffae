"""Embeds the images of a listing into a store; goes on where an interrupted run stopped.

    listing -> blocks of items -> records and embeddings -> store

Blocks are cut by the listing alone. So a run that goes on after an interruption computes the same
blocks as one that was not interrupted, and its embeddings are the same to the bit.
"""

import shutil
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby, islice, tee
from pathlib import Path
from socket import gethostname
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.encoder.checkpoint import Checkpoint
from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.errors import InputError, InputMissing, StoreMismatch
from deepssim_scan.execution.answer import Answer
from deepssim_scan.execution.executor import sliced
from deepssim_scan.imaging.thumbnails import SIDE, thumbnails
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.listing import Item, Listing
from deepssim_scan.ingest.packing import plain, record_of
from deepssim_scan.ingest.pipeline import CHUNK, Decoding, chunks, decoded
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.ingest.record import Decoded, ImageRecord
from deepssim_scan.ingest.rejection import Rejection
from deepssim_scan.progress import Collected, Progress
from deepssim_scan.storage.layout import STORE_MANIFEST
from deepssim_scan.store.array import Made, Vectors, first_not_unit
from deepssim_scan.store.config import EmbedConfig
from deepssim_scan.store.manifest import StoreManifest
from deepssim_scan.store.reread import Held, Source
from deepssim_scan.store.store import Store
from deepssim_scan.store.unchanged import Unchanged
from deepssim_scan.store.writer import StoreWriter

Embedded = tuple[list[ImageRecord], Made]
"""A record per image, and a row per record without a reason."""

_TOGETHER = 1024  # blocks of which what changed is embedded together
_NO_EMBEDDING = Rejection("embedding", "its embedding is zero or not finite")


@dataclass(frozen=True, slots=True)
class Embedder:
    """What embeds listings: an encoder, how files are read, and the means of the run."""

    loaded: Checkpoint
    ingest: IngestConfig = field(default_factory=IngestConfig)
    config: EmbedConfig = field(default_factory=EmbedConfig)
    run: RunContext = field(default_factory=RunContext)

    def source(self, folder: Path) -> dict[str, Any]:
        """Return what a store records of where its images are and how they became rows."""
        return self.ingest.source(folder) | {"device": self.run.device_of_blocks}

    def embed(
        self,
        listing: Listing,
        folder: Path,
        stage: str = "images",
        before: Unchanged | None = None,
    ) -> None:
        """Embed every image of a listing into a finished store at `folder`.

        Images that did not change since they were embedded into the store of `before`, by the same
        encoder and in the same way, are taken from there, which gives the same bytes.

        Goes on with what an interrupted run of the same embedder left there. Raises InputError when
        not one image could be embedded.
        """
        if not (folder / STORE_MANIFEST).is_file():
            try:
                self._write_store(listing, folder, stage, before)
            except StoreMismatch:  # what was left is of other files: it is of no use
                shutil.rmtree(folder)
                self._write_store(listing, folder, stage, before)
        _require_rows(listing.folder, folder)

    def embed_items(
        self, folder: Path, blocks: Iterable[Sequence[Item]]
    ) -> Generator[Embedded, None, None]:
        """Embed the images of some items of a folder, a block at a time."""
        rule, run = self.loaded.architecture.standardisation, self.run
        tasks = (
            Decoding(folder, tuple(items), rule, self.ingest, run.isolation) for items in blocks
        )
        with closing(run.map(partial(_embed_files, self._network), tasks)) as answers:
            for answer in answers:
                made = Made(answer.arrays["rows"], answer.arrays["thumbnails"])
                yield [record_of(values) for values in answer.records], made

    def embed_pixels(self, images: Sequence[Pixels]) -> Vectors:
        """Embed standardised images (H, W): (N, D)."""
        asked = np.zeros((len(images), len(TTA_VIEWS)), bool)
        asked[:, 0] = True
        return self.embed_views(lambda part: Held(images[part]), asked)[:, 0]

    def _found(
        self, folder: Path, blocks: Iterator[tuple[Item, ...]], before: Unchanged | None
    ) -> Generator[Embedded, None, None]:
        """Give the images of each block: taken from a store where they did not change, or embedded.

        What is to be embedded of several blocks is put together, so that workers have whole blocks.
        """
        if before is None:
            yield from self.embed_items(folder, blocks)
            return
        while part := [*islice(blocks, _TOGETHER)]:
            yield from self._updated(folder, part, before)

    def _updated(
        self, folder: Path, blocks: Sequence[tuple[Item, ...]], before: Unchanged
    ) -> Generator[Embedded, None, None]:
        """Give the images of each block; while workers embed some, the store is read on."""
        taken, embedded = deque[Embedded | None](), deque[Embedded]()

        def changed() -> Iterator[Item]:
            for item in chain.from_iterable(blocks):
                found = before.take(item)
                taken.append(found)
                if found is None:
                    yield item

        with closing(self.embed_items(folder, chunks(changed()))) as answers:
            anew = _by_item(answers)

            def of_next() -> Embedded:
                while not taken:
                    embedded.extend(islice(anew, 1))
                found = taken.popleft()
                if found is not None:
                    return found
                return embedded.popleft() if embedded else next(anew)

            for block in blocks:
                yield _joined([of_next() for _ in block])

    def embed_views(self, images: Callable[[slice], Source], asked: NDArray[np.bool_]) -> Vectors:
        """Embed the test-time views (N, V) that are asked for of N images: (N, V, D).

        `images` gives those of a slice of the N, standardised and numbered from 0. Rows are NaN
        where a view was not asked for, or an image is missing.
        """
        parts = [*sliced(len(asked), CHUNK)]
        tasks = (Looks(images(part), asked[part]) for part in parts)
        with closing(self.run.map(partial(_embed_looks, self._network), tasks)) as answers:
            rows = [answer.arrays["rows"] for answer in answers]
        dimension = self.loaded.architecture.dimension
        return np.concatenate([np.empty((0, asked.shape[1], dimension), np.float32), *rows])

    @property
    def _network(self) -> "Network":
        return Network(self.loaded, self.run.device_of_blocks)

    def _write_store(
        self, listing: Listing, folder: Path, stage: str, before: Unchanged | None
    ) -> None:
        manifest = StoreManifest(
            self.loaded.fingerprint,
            self.loaded.architecture.dimension,
            self.config.shard_rows,
            source=self.source(listing.folder),
            thumbnail=SIDE,
        )
        with StoreWriter(folder, manifest) as writer:
            last = writer.last_item()
            total, progress = len(listing.files), self.run.progress
            done, blocks = _left(listing, last[0] if last else None)
            if before is not None:
                before.begin()
                before.skip(islice(listing.files, done))
            progress(stage, done, total)
            blocks, looked_at = tee(blocks)
            with closing(self._found(listing.folder, looked_at, before)) as embedded:
                for block, found in zip(blocks, embedded, strict=True):
                    records, made = _after(*last, *found) if last else found
                    writer.add(records, made.embeddings, made.thumbnails)
                    done, last = done + len(block), None
                    progress(stage, done, total)
            writer.finish(total)


@dataclass(frozen=True, slots=True)
class Network:
    """What embeds images where a block runs."""

    loaded: Checkpoint
    device: str

    def embed(
        self, images: Sequence[Pixels], progress: Progress, views: Sequence[int] = (0,)
    ) -> Vectors:
        """Embed test-time views of standardised images (H, W) of any shapes: (n, V, D)."""
        from deepssim_scan.encoder.inference import embed

        return embed(self.loaded, self.device, images, views, progress)


@dataclass(frozen=True, slots=True)
class Looks:
    """Images, and the test-time views (n, V) that are asked for of each."""

    images: Source
    asked: NDArray[np.bool_]


def _embed_looks(network: Network, looks: Looks) -> Answer:
    """Embed views of images: a block."""
    warned, images = Collected(), dict(looks.images.read())
    shape = *looks.asked.shape, network.loaded.architecture.dimension
    rows = np.full(shape, np.nan, np.float32)
    for asked in np.unique(looks.asked, axis=0):
        alike = np.flatnonzero((looks.asked == asked).all(1))
        there = [number for number in alike.tolist() if number in images]
        views = np.flatnonzero(asked).tolist()
        if there and views:
            found = network.embed([images[number] for number in there], warned, views)
            rows[np.ix_(there, views)] = found
    return Answer(None, {"rows": rows}, warned.warnings)


def _embed_files(network: Network, files: Decoding) -> Answer:
    """Embed the images of files: a block.

    Raises InputMissing where their folder is not to be seen.
    """
    if not files.folder.exists():
        raise InputMissing(
            f"{files.folder}: is not there on {gethostname()}. The workers of a cluster need the "
            "images under the same path as the machine that gives the command."
        )
    warned = Collected()
    least = network.loaded.architecture.least_side
    images = [_large_enough(image, least) for item in decoded(files) for image in item]
    embedded = [number for number, image in enumerate(images) if image.pixels is not None]
    pixels = [image.pixels for image in images if image.pixels is not None]
    rows = network.embed(pixels, warned)[:, 0]
    usable = np.array([first_not_unit(row[None]) is None for row in rows], bool)
    for number in np.array(embedded)[~usable].tolist():
        images[number] = images[number].rejected(_NO_EMBEDDING)
    records = [plain(image.record) for image in images]
    small = thumbnails(pixels)[usable].reshape(-1, SIDE * SIDE)
    return Answer(records, {"rows": rows[usable], "thumbnails": small}, warned.warnings)


def _by_item(embedded: Iterable[Embedded]) -> Iterator[Embedded]:
    """Give the images of each item of blocks."""
    for records, rows in embedded:
        done = 0
        for _, images in groupby(records, lambda record: record.key[:2]):
            of_item = [*images]
            count = sum(record.reason is None for record in of_item)
            yield of_item, rows.part(slice(done, done + count))
            done += count


def _joined(items: Sequence[Embedded]) -> Embedded:
    records = [record for of_item, _ in items for record in of_item]
    return records, Made.joined([rows for _, rows in items])


def _left(listing: Listing, last: ImageRecord | None) -> tuple[int, Iterator[tuple[Item, ...]]]:
    """Return how many items are before the block of the last record, and the blocks from it on.

    Raises StoreMismatch when the record is of no item of the listing.
    """
    blocks = chunks(listing.files)
    if last is None:
        return 0, blocks
    done = 0
    for block in blocks:
        if any((item.path, item.member) == last.key[:2] for item in block):
            return done, chain([block], blocks)
        done += len(block)
    raise StoreMismatch(f"{last.name!r} was embedded, and is not in {listing.folder}.")


def _after(last: ImageRecord, frames: int, records: list[ImageRecord], rows: Made) -> Embedded:
    """Leave out what was embedded: all before the item of the last record, and `frames` of it.

    Raises StoreMismatch when the file, of which a part was embedded, is not what it was.
    """
    first = [record.key[:2] for record in records].index(last.key[:2])
    again = records[first : first + frames]
    if [(each.sha256, each.frames) for each in again] != [(last.sha256, last.frames)] * frames:
        raise StoreMismatch(f"{last.name!r} is not the file any more that was embedded in part.")
    stop = first + frames
    before = sum(record.reason is None for record in records[:stop])
    return records[stop:], rows.part(slice(before, None))


def _large_enough(image: Decoded, least: int) -> Decoded:
    """Reject an image that has fewer pixels a side than the encoder can take."""
    if image.pixels is None or min(image.pixels.shape) >= least:
        return image
    height, width = image.pixels.shape
    detail = f"{width}x{height} pixels; this encoder needs {least} a side"
    return image.rejected(Rejection("too-small", detail))


def _require_rows(images: Path, folder: Path) -> None:
    """Raise InputError when not one image of a folder could be embedded."""
    with Store.open(folder) as store:
        if store.rows:
            return
        reasons = Counter(record.reason for record in store.rejections())
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    raise InputError(
        f"{images}: none of its {reasons.total()} images could be read ({counts}). "
        "There is nothing to go on with."
    )
