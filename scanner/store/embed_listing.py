"""Embeds the images of a listing into a store; goes on where an interrupted run stopped.

    listing -> decoded images -> batches -> embeddings -> store

Batches end where shards end. So a run that goes on after an interruption computes the same batches
as one that was not interrupted, and its embeddings are the same to the bit.
"""

import shutil
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from deepssim_scan.encoder.checkpoint import Checkpoint
from deepssim_scan.encoder.network import Encoder, device_of
from deepssim_scan.encoder.tta import embed_tta
from deepssim_scan.errors import InputError, StoreMismatch
from deepssim_scan.imaging.devices import BatchRunner, pick_device
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.listing import Listing
from deepssim_scan.ingest.pipeline import decode_images
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.ingest.record import Decoded, ImageRecord
from deepssim_scan.ingest.rejection import Rejection
from deepssim_scan.progress import SILENT, Progress
from deepssim_scan.storage.layout import STORE_MANIFEST
from deepssim_scan.store.array import Vectors, first_not_unit
from deepssim_scan.store.config import EmbedConfig
from deepssim_scan.store.manifest import StoreManifest
from deepssim_scan.store.store import Store
from deepssim_scan.store.writer import StoreWriter

_NO_EMBEDDING = Rejection("embedding", "its embedding is zero or not finite")


@dataclass(frozen=True, slots=True)
class Embedder:
    """What embeds listings: an encoder, how files are read, batches, and the means of the run."""

    loaded: Checkpoint
    ingest: IngestConfig = field(default_factory=IngestConfig)
    config: EmbedConfig = field(default_factory=EmbedConfig)
    run: RunContext = field(default_factory=RunContext)
    tta_views: int = 1

    def source(self, folder: Path) -> dict[str, Any]:
        """Return what a store records of where its images are and how they became rows."""
        device = pick_device(self.run.device)
        return self.ingest.source(folder) | {"device": device, "batch": self.config.batch}

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

    def embed_pixels(self, images: Sequence[Pixels]) -> Vectors:
        """Embed the views of standardised images (H, W): (N, V, D)."""
        encoder = self.loaded.encoder.to(pick_device(self.run.device))
        runner = _runner(encoder, self.run.progress)
        rows = np.empty((len(images), self.tta_views, encoder.architecture.dimension), np.float32)
        sizes = sorted({image.shape for image in images})
        for size in sizes:
            same = [index for index, image in enumerate(images) if image.shape == size]
            pixels = torch.from_numpy(np.stack([images[index] for index in same]))
            rows[same] = _embed(runner, encoder, pixels, self.tta_views)
        return rows

    def _write_store(self, listing: Listing, folder: Path, stage: str) -> None:
        manifest = StoreManifest(
            self.loaded.fingerprint,
            self.loaded.architecture.dimension,
            self.config.shard_rows,
            tta_views=self.tta_views,
            source=self.source(listing.folder),
        )
        with StoreWriter(folder, manifest) as writer:
            encoder = self.loaded.encoder.to(pick_device(self.run.device))
            with closing(self._rest(listing, writer, stage)) as images:
                size, progress = self.config.batch, self.run.progress
                embed_into(writer, images, encoder, size, self.tta_views, progress)
            writer.finish(len(listing.files))

    def _rest(
        self, listing: Listing, writer: StoreWriter, stage: str
    ) -> Generator[Decoded, None, None]:
        """Decode what the writer has not got yet."""
        last = writer.last_item()
        done, frames = _position(listing, *last) if last else (0, 0)
        total, progress = len(listing.files), self.run.progress
        left = replace(listing, files=listing.files[done:])
        rule = self.loaded.architecture.standardisation
        with closing(decode_images(left, rule, self.ingest, self.run)) as decoded:
            progress(stage, done, total)
            for count, item in enumerate(decoded):
                if last and not count:
                    _check_same(item, *last)
                yield from item[0 if count else frames :]
                progress(stage, done + count + 1, total)


class Sink(Protocol):
    """What takes embeddings: it has room for so many more rows until its shard is full."""

    @property
    def room(self) -> int:
        """How many more rows the shard takes."""

    def add(self, records: Sequence[ImageRecord], embeddings: Vectors) -> None:
        """Take records, and a row for each that has no reason."""


def embed_into(
    sink: Sink,
    images: Iterable[Decoded],
    encoder: Encoder,
    size: int,
    tta_views: int,
    progress: Progress = SILENT,
) -> None:
    """Embed images in batches of `size`, cut where a shard of the sink is full."""
    runner = _runner(encoder, progress)
    batch: list[Decoded] = []
    usable = 0
    for image in images:
        batch.append(image)
        usable += image.pixels is not None
        if usable == min(size, sink.room):
            sink.add(*embed_decoded(encoder, batch, tta_views, runner))
            batch, usable = [], 0
    sink.add(*embed_decoded(encoder, batch, tta_views, runner))


def _position(listing: Listing, record: ImageRecord, frames: int) -> tuple[int, int]:
    """Return how many items of the listing need not be looked at, and frames of the next one."""
    for index, item in enumerate(listing.files):
        if (item.path, item.member) == (record.path, record.member):
            return index, frames
    raise StoreMismatch(f"{record.name!r} was embedded, and is not in {listing.folder}.")


def _check_same(item: list[Decoded], record: ImageRecord, frames: int) -> None:
    """Raise StoreMismatch when a file of which a part was embedded is not what it was."""
    found = [(image.record.sha256, image.record.frames) for image in item[:frames]]
    if found != [(record.sha256, record.frames)] * frames:
        raise StoreMismatch(f"{record.name!r} is not the file any more that was embedded in part.")


def embed_decoded(
    encoder: Encoder, batch: list[Decoded], tta_views: int = 1, runner: BatchRunner | None = None
) -> tuple[list[ImageRecord], Vectors]:
    """Embed what was decoded: a record per image, and a row (V D,) per record without a reason."""
    runner = runner or _runner(encoder)
    batch = [_large_enough(image, encoder.architecture.least_side) for image in batch]
    vectors: dict[int, Vectors] = {}
    for same_size in _by_size(batch):
        pixels = torch.from_numpy(np.stack([plane for _, plane in same_size]))
        rows = _embed(runner, encoder, pixels, tta_views)
        vectors |= {index: row for (index, _), row in zip(same_size, rows, strict=True)}
    usable = {index for index, row in vectors.items() if first_not_unit(row[None]) is None}
    records = [
        (image if image.pixels is None or index in usable else image.rejected(_NO_EMBEDDING)).record
        for index, image in enumerate(batch)
    ]
    kept = [vectors[index] for index in sorted(usable)]
    width = tta_views * encoder.architecture.dimension
    return records, np.array(kept, np.float32).reshape(-1, width)


def _large_enough(image: Decoded, least: int) -> Decoded:
    """Reject an image that has fewer pixels a side than the encoder can take."""
    if image.pixels is None or min(image.pixels.shape) >= least:
        return image
    height, width = image.pixels.shape
    detail = f"{width}x{height} pixels; this encoder needs {least} a side"
    return image.rejected(Rejection("too-small", detail))


def _by_size(batch: list[Decoded]) -> Iterable[list[tuple[int, Pixels]]]:
    """Group indices and pixels by shape: an encoder takes one shape at a time."""
    groups: dict[tuple[int, ...], list[tuple[int, Pixels]]] = {}
    for index, image in enumerate(batch):
        if image.pixels is not None:
            groups.setdefault(image.pixels.shape, []).append((index, image.pixels))
    return groups.values()


def _runner(encoder: Encoder, progress: Progress = SILENT) -> BatchRunner:
    """Return what runs batches where an encoder is."""
    return BatchRunner(device_of(encoder).type, "embedding", progress)


def _embed(runner: BatchRunner, encoder: Encoder, pixels: Tensor, tta_views: int) -> Vectors:
    """Embed test-time views: (n, H, W) -> (n, V, D)."""

    def work(device: str, part: Tensor) -> Tensor:
        if device_of(encoder).type != device:
            encoder.to(device)
        return embed_tta(encoder, part.to(device), tta_views).float().cpu()

    return torch.cat(runner.run(work, pixels)).numpy()


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
