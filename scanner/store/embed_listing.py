"""Embeds the images of a listing into a store; goes on where an interrupted run stopped.

    listing -> blocks of items -> records and embeddings -> store

Blocks are cut by the listing alone. So a run that goes on after an interruption computes the same
blocks as one that was not interrupted, and its embeddings are the same to the bit.
"""

import math
import shutil
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from socket import gethostname
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepssim_scan.encoder.checkpoint import Checkpoint
from deepssim_scan.encoder.network import device_of
from deepssim_scan.encoder.tta import embed_tta
from deepssim_scan.errors import InputError, InputMissing, StoreMismatch
from deepssim_scan.execution.answer import Answer
from deepssim_scan.execution.executor import sliced
from deepssim_scan.imaging.devices import BatchRunner
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.listing import Item, Listing
from deepssim_scan.ingest.packing import plain, record_of
from deepssim_scan.ingest.pipeline import CHUNK, Decoding, chunks, decoded
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.ingest.record import Decoded, ImageRecord
from deepssim_scan.ingest.rejection import Rejection
from deepssim_scan.progress import Collected, Progress
from deepssim_scan.storage.layout import STORE_MANIFEST
from deepssim_scan.store.array import Vectors, first_not_unit
from deepssim_scan.store.config import EmbedConfig
from deepssim_scan.store.manifest import StoreManifest
from deepssim_scan.store.store import Store
from deepssim_scan.store.writer import StoreWriter

Embedded = tuple[list[ImageRecord], Vectors]
"""A record per image, and a row (V D,) per record without a reason."""

_NO_EMBEDDING = Rejection("embedding", "its embedding is zero or not finite")


@dataclass(frozen=True, slots=True)
class Embedder:
    """What embeds listings: an encoder, how files are read, and the means of the run."""

    loaded: Checkpoint
    ingest: IngestConfig = field(default_factory=IngestConfig)
    config: EmbedConfig = field(default_factory=EmbedConfig)
    run: RunContext = field(default_factory=RunContext)
    tta_views: int = 1

    def source(self, folder: Path) -> dict[str, Any]:
        """Return what a store records of where its images are and how they became rows."""
        return self.ingest.source(folder) | {"device": self.run.device_of_blocks}

    def embed(self, listing: Listing, folder: Path, stage: str = "images") -> None:
        """Embed every image of a listing into a finished store at `folder`.

        Goes on with what an interrupted run of the same embedder left there. Raises InputError when
        not one image could be embedded.
        """
        if not (folder / STORE_MANIFEST).is_file():
            try:
                self._write_store(listing, folder, stage)
            except StoreMismatch:  # what was left is of other files: it is of no use
                shutil.rmtree(folder)
                self._write_store(listing, folder, stage)
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
                yield [record_of(values) for values in answer.records], answer.arrays["rows"]

    def embed_pixels(self, images: Sequence[Pixels]) -> Vectors:
        """Embed the views of standardised images (H, W): (N, V, D)."""
        parts = (images[part] for part in sliced(len(images), CHUNK))
        with closing(self.run.map(partial(_embed_pixels, self._network), parts)) as answers:
            rows = [answer.arrays["rows"] for answer in answers]
        return np.concatenate([self._network.no_rows(), *rows])

    @property
    def _network(self) -> "Network":
        return Network(self.loaded, self.tta_views, self.run.device_of_blocks)

    def _write_store(self, listing: Listing, folder: Path, stage: str) -> None:
        manifest = StoreManifest(
            self.loaded.fingerprint,
            self.loaded.architecture.dimension,
            self.config.shard_rows,
            tta_views=self.tta_views,
            source=self.source(listing.folder),
        )
        with StoreWriter(folder, manifest) as writer:
            last = writer.last_item()
            total, progress = len(listing.files), self.run.progress
            done, blocks = _left(listing, last[0] if last else None)
            progress(stage, done, total)
            with closing(self.embed_items(listing.folder, blocks)) as embedded:
                for block, found in zip(blocks, embedded, strict=True):
                    writer.add(*(_after(*last, *found) if last else found))
                    done, last = done + len(block), None
                    progress(stage, done, total)
            writer.finish(total)


@dataclass(frozen=True, slots=True)
class Network:
    """What embeds images where a block runs."""

    loaded: Checkpoint
    tta_views: int
    device: str

    def no_rows(self) -> Vectors:
        """Return the embeddings of no image: (0, V, D)."""
        dimension = self.loaded.architecture.dimension
        return np.empty((0, self.tta_views, dimension), np.float32)

    def embed(self, images: Sequence[Pixels], progress: Progress) -> Vectors:
        """Embed the test-time views of standardised images (H, W) of any shapes: (n, V, D)."""
        encoder = self.loaded.encoder.to(self.device)
        runner = BatchRunner(self.device, "embedding", progress)

        def work(device: str, part: Tensor) -> Tensor:
            if device_of(encoder).type != device:
                encoder.to(device)
            return embed_tta(encoder, part.to(device), self.tta_views).float().cpu()

        rows = np.empty((len(images), *self.no_rows().shape[1:]), np.float32)
        for shape in sorted({image.shape for image in images}):
            same = [index for index, image in enumerate(images) if image.shape == shape]
            pixels = torch.from_numpy(np.stack([images[index] for index in same]))
            rows[same] = torch.cat(runner.run(work, pixels)).numpy()
        return rows


def _embed_pixels(network: Network, images: Sequence[Pixels]) -> Answer:
    """Embed images: a block."""
    warned = Collected()
    return Answer(None, {"rows": network.embed(images, warned)}, warned.warnings)


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
    rows = network.embed([image.pixels for image in images if image.pixels is not None], warned)
    usable = np.array([first_not_unit(row) is None for row in rows], bool)
    for number in np.array(embedded)[~usable].tolist():
        images[number] = images[number].rejected(_NO_EMBEDDING)
    kept = rows[usable].reshape(int(usable.sum()), math.prod(rows.shape[1:]))
    return Answer([plain(image.record) for image in images], {"rows": kept}, warned.warnings)


def _left(listing: Listing, last: ImageRecord | None) -> tuple[int, list[tuple[Item, ...]]]:
    """Return how many items are before the block of the last record, and the blocks from it on.

    Raises StoreMismatch when the record is of no item of the listing.
    """
    blocks = [*chunks(listing.files)]
    if last is None:
        return 0, blocks
    done = 0
    for number, block in enumerate(blocks):
        if any((item.path, item.member) == last.key[:2] for item in block):
            return done, blocks[number:]
        done += len(block)
    raise StoreMismatch(f"{last.name!r} was embedded, and is not in {listing.folder}.")


def _after(last: ImageRecord, frames: int, records: list[ImageRecord], rows: Vectors) -> Embedded:
    """Leave out what was embedded: all before the item of the last record, and `frames` of it.

    Raises StoreMismatch when the file, of which a part was embedded, is not what it was.
    """
    first = [record.key[:2] for record in records].index(last.key[:2])
    again = records[first : first + frames]
    if [(each.sha256, each.frames) for each in again] != [(last.sha256, last.frames)] * frames:
        raise StoreMismatch(f"{last.name!r} is not the file any more that was embedded in part.")
    stop = first + frames
    return records[stop:], rows[sum(record.reason is None for record in records[:stop]) :]


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
