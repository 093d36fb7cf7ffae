"""A folder of images to a store of their embeddings, from where a killed run left it.

    listing -> decoded images -> batches -> embeddings -> store

Batches end where shards end, so that what is computed after an interruption is, batch by
batch, what would have been computed without it.
"""

import hashlib
import hmac
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from deepssim_scan.catalog import Entry
from deepssim_scan.checkpoint import Checkpoint
from deepssim_scan.decode import Pixels, Reading, Rejection
from deepssim_scan.embeddings import (
    MANIFEST,
    Store,
    StoreManifest,
    StoreWriter,
    Vectors,
    first_not_unit,
)
from deepssim_scan.encoder import Encoder, device_of, pick_device
from deepssim_scan.errors import InputError, StoreMismatch
from deepssim_scan.files import sha256
from deepssim_scan.images import Decoded, decode_images
from deepssim_scan.listing import Listing, Selection
from deepssim_scan.views import embed_views
from deepssim_scan.workers import Limits

WORKERS = max(1, min(8, (os.cpu_count() or 1) // 2))
"""Processes that decode images, by default: half of the cores; the network has the others."""

Report = Callable[[str, int, int], None]
"""Told how far a job is: the stage, the units done, and all there are."""


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True, slots=True)
class EmbedConfig:
    """How a folder becomes embeddings; `workers` 0 decodes in this process, without limits."""

    selection: Selection = field(default_factory=Selection)
    reading: Reading = field(default_factory=Reading)
    limits: Limits = field(default_factory=Limits)
    device: str = "auto"
    batch: int = 64
    shard_rows: int = 4096
    workers: int = WORKERS

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("shard_rows", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be >= {least}, found {getattr(self, name)}")

    def source(self, folder: Path) -> dict[str, Any]:
        """Return what a store records of where its images are and how they were read.

        Of a subject key there is only a mark, by which another one is noticed.
        """
        reading = asdict(self.reading)
        key = reading.pop("subject_key")
        mark = hmac.new(key, b"deepssim-scan subject key", hashlib.sha256).hexdigest()
        manifest = self.selection.manifest
        return {
            "folder": str(folder.absolute()),
            "include": list(self.selection.include),
            "manifest": str(manifest.absolute()) if manifest else None,
            "manifest_sha256": sha256(manifest) if manifest else None,
            "reading": reading,
            "subject_key": mark if key else None,
            "device": pick_device(self.device),
            "batch": self.batch,
        }


def embed_listing(
    listing: Listing,
    place: Path,
    loaded: Checkpoint,
    config: EmbedConfig,
    stage: str = "images",
    report: Report = silent,
    views: int = 1,
) -> None:
    """Embed every image of a listing, each in so many views, into a finished store at `place`.

    Goes on with what an interrupted run of the same arguments left there. Raises InputError when
    not one image could be embedded.
    """
    if not (place / MANIFEST).is_file():
        try:
            _write_store(listing, place, loaded, config, stage, report, views)
        except StoreMismatch:  # what was left is of other files: it is of no use
            shutil.rmtree(place)
            _write_store(listing, place, loaded, config, stage, report, views)
    _require_rows(listing.folder, place)


def _write_store(
    listing: Listing,
    place: Path,
    loaded: Checkpoint,
    config: EmbedConfig,
    stage: str,
    report: Report,
    views: int,
) -> None:
    manifest = StoreManifest(
        loaded.fingerprint,
        loaded.architecture.dimension,
        config.shard_rows,
        views=views,
        source=config.source(listing.folder),
    )
    with StoreWriter(place, manifest) as writer:
        _embed_rest(listing, writer, loaded, config, stage, report)
        writer.finish(len(listing.files))


def _embed_rest(
    listing: Listing,
    writer: StoreWriter,
    loaded: Checkpoint,
    config: EmbedConfig,
    stage: str,
    report: Report,
) -> None:
    """Embed what the writer has not got yet."""
    encoder = loaded.encoder.to(pick_device(config.device))
    last = writer.last_item()
    done, frames = _place(listing, *last) if last else (0, 0)
    total = len(listing.files)
    left = replace(listing, files=listing.files[done:])
    rule = loaded.architecture.standardisation
    decoded = decode_images(
        left, rule, config.reading, workers=config.workers, limits=config.limits
    )

    def images() -> Iterator[Decoded]:
        report(stage, done, total)
        for count, item in enumerate(decoded):
            if last and not count:
                _check_same(item, *last)
            yield from item[0 if count else frames :]
            report(stage, done + count + 1, total)

    with closing(decoded):
        embed_into(writer, images(), encoder, config.batch, writer.manifest.views)


class Sink(Protocol):
    """What takes embeddings: it has room for so many more rows until its shard is full."""

    @property
    def room(self) -> int:
        """How many more rows the shard takes."""

    def add(self, entries: Sequence[Entry], embeddings: Vectors) -> None:
        """Take entries, and a row for each that has no reason."""


def embed_into(
    sink: Sink, images: Iterable[Decoded], encoder: Encoder, size: int, views: int
) -> None:
    """Embed images in batches of `size`, cut where a shard of the sink is full."""
    batch: list[Decoded] = []
    usable = 0
    for image in images:
        batch.append(image)
        usable += image.pixels is not None
        if usable == min(size, sink.room):
            sink.add(*embed_decoded(encoder, batch, views))
            batch, usable = [], 0
    sink.add(*embed_decoded(encoder, batch, views))


def _place(listing: Listing, entry: Entry, frames: int) -> tuple[int, int]:
    """Return how many items of the listing need not be looked at, and frames of the next one."""
    for place, item in enumerate(listing.files):
        if (item.path, item.member) == (entry.path, entry.member):
            return place, frames
    raise StoreMismatch(f"{entry.name!r} was embedded, and is not in {listing.folder}.")


def _check_same(item: list[Decoded], entry: Entry, frames: int) -> None:
    """Raise StoreMismatch when a file of which a part was embedded is not what it was."""
    found = [(image.sha256, image.frames) for image in item[:frames]]
    if found != [(entry.sha256, entry.frames)] * frames:
        raise StoreMismatch(f"{entry.name!r} is not the file any more that was embedded in part.")


def embed_decoded(
    encoder: Encoder, batch: list[Decoded], views: int = 1
) -> tuple[list[Entry], Vectors]:
    """Embed what was decoded: an entry per image, and a row (V D,) per entry without a reason."""
    batch = [_large_enough(image, encoder.architecture.least_side) for image in batch]
    vectors: dict[int, Vectors] = {}
    for same_size in _by_size(batch):
        pixels = torch.from_numpy(np.stack([plane for _, plane in same_size]))
        rows = _embed(encoder, pixels, views)
        vectors |= {place: row for (place, _), row in zip(same_size, rows, strict=True)}
    usable = {place for place, row in vectors.items() if first_not_unit(row[None]) is None}
    entries = [_entry(image, usable=place in usable) for place, image in enumerate(batch)]
    kept = [vectors[place] for place in sorted(usable)]
    width = views * encoder.architecture.dimension
    return entries, np.array(kept, np.float32).reshape(-1, width)


def _large_enough(image: Decoded, least: int) -> Decoded:
    """Reject an image that has fewer pixels a side than the encoder can take."""
    if image.pixels is None or min(image.pixels.shape) >= least:
        return image
    height, width = image.pixels.shape
    detail = f"{width}x{height} pixels; this encoder needs {least} a side"
    return replace(image, pixels=None, rejection=Rejection("too-small", detail))


def _by_size(batch: list[Decoded]) -> Iterable[list[tuple[int, Pixels]]]:
    """Group places and pixels by shape: an encoder takes one shape at a time."""
    groups: dict[tuple[int, ...], list[tuple[int, Pixels]]] = {}
    for place, image in enumerate(batch):
        if image.pixels is not None:
            groups.setdefault(image.pixels.shape, []).append((place, image.pixels))
    return groups.values()


def _embed(encoder: Encoder, pixels: Tensor, views: int) -> Vectors:
    """Embed views: (n, H, W) -> (n, V, D).

    When the GPU has no room, half a batch at a time, then on the CPU.
    """
    device, size = device_of(encoder), len(pixels)
    while True:
        try:
            parts = [
                embed_views(encoder, part.to(device), views).float().cpu()
                for part in pixels.split(size)
            ]
            return torch.cat(parts).numpy()
        except torch.OutOfMemoryError:
            if device.type == "cpu":
                raise
            torch.cuda.empty_cache()
            if size == 1:
                encoder.cpu()
                device, size = torch.device("cpu"), len(pixels)
            else:
                size = -(-size // 2)


def _entry(image: Decoded, *, usable: bool) -> Entry:
    rejection = image.rejection
    if rejection is None and not usable:
        rejection = Rejection("embedding", "its embedding is zero or not finite")
    reason, detail = (rejection.reason, rejection.detail) if rejection else (None, "")
    return Entry(
        image.path,
        image.member,
        image.frame,
        image.frames,
        image.size,
        max(-(1 << 63), min(image.mtime_ns, (1 << 63) - 1)),  # as far as SQLite counts: year 2262
        image.sha256,
        image.mode,
        image.subject,
        reason,
        detail,
    )


def _require_rows(folder: Path, place: Path) -> None:
    """Raise InputError when not one image of a folder could be embedded."""
    with Store.open(place) as store:
        if store.rows:
            return
        reasons = Counter(entry.reason for entry in store.rejections())
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    raise InputError(
        f"{folder}: none of its {reasons.total()} images could be read ({counts}). "
        "There is nothing to go on with."
    )
