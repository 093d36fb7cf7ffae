"""The two jobs: index a training set, and query it with synthetic images.

    build_index: training folder -> images -> embeddings -> store -> index
    query: synthetic folder -> images -> embeddings -> store -> matches -> verdicts -> report

An index folder holds the encoder that made it, and queries use that one, so the two sides can
never be embedded differently. Both jobs write a new folder that replaces the old one when it is
whole. A run in which any file was rejected, now or when the index was built, is not complete.
"""

import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepssim_scan import __version__, checkpoint
from deepssim_scan.checkpoint import Checkpoint, Thresholds
from deepssim_scan.embeddings import (
    Entry,
    Store,
    StoreManifest,
    StoreWriter,
    Vectors,
    first_not_unit,
)
from deepssim_scan.encoder import Encoder, embed, pick_device
from deepssim_scan.errors import InputError, InputMissing, StoreMismatch
from deepssim_scan.files import replacing_folder, write_json
from deepssim_scan.images import MAX_PIXELS, Decoded, Pixels, Rejection, decode_images, list_images
from deepssim_scan.index import TrainingIndex, build, flat
from deepssim_scan.report import (
    SUMMARY,
    Match,
    MatchWriter,
    best_matches,
    write_flagged,
    write_rejected,
)
from deepssim_scan.verdicts import judge

ENCODER, STORE, SYNTHETIC = "encoder.safetensors", "store", "synthetic"
WORKERS = max(1, min(8, (os.cpu_count() or 1) // 2))
"""Processes that decode images, by default: half of the cores; the network has the others."""

Report = Callable[[str, int, int], None]
"""Told how far a job is: the stage, the units done, and all there are."""


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True, slots=True)
class EmbedConfig:
    """How a folder becomes embeddings."""

    include: tuple[str, ...] = ()
    device: str = "auto"
    batch: int = 64
    workers: int = WORKERS
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        for name in ("batch", "workers", "max_pixels"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be >= 1, found {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class QueryConfig:
    """How synthetic images are judged; a threshold of None is the checkpoint's own."""

    top_k: int = 5
    similar: float | None = None
    duplicate: float | None = None
    embed: EmbedConfig = field(default_factory=EmbedConfig)

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise InputError(f"top_k must be >= 1, found {self.top_k}")


@dataclass(frozen=True, slots=True)
class IndexResult:
    """What `build_index` made."""

    folder: Path
    encoder: str
    indexed: int
    rejected: int
    ignored: int
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether every training image is in the index."""
        return self.rejected == 0


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What `query` found: summary.json's content, and the strongest matches."""

    folder: Path
    summary: dict[str, Any]
    strongest: list[Match]

    @property
    def complete(self) -> bool:
        """Whether every training and every synthetic image was looked at."""
        return bool(self.summary["complete"])

    @property
    def flagged(self) -> int:
        """How many synthetic images are duplicates."""
        return int(self.summary["counts"]["duplicate"])


def build_index(
    training: Path,
    index: Path,
    encoder: Path = checkpoint.BUNDLED,
    config: EmbedConfig | None = None,
    report: Report = silent,
) -> IndexResult:
    """Embed the training images and index them, into the folder `index`.

    Raises InputMissing or InputError when there is nothing to index, or `index` is a folder of
    something else; CheckpointError when `encoder` is not a checkpoint.
    """
    config = config or EmbedConfig()
    started = time.monotonic()
    loaded = checkpoint.load(encoder)
    with replacing_folder(index, flat.MANIFEST) as folder:
        ignored = _embed_folder(training, folder / STORE, loaded, config, "training images", report)
        shutil.copyfile(encoder, folder / ENCODER)
        (folder / ENCODER).chmod(0o600)
        with Store.open(folder / STORE) as store:
            build(store, folder)
            write_rejected(folder, store.rejections())
            counts = store.rows, store.rejected_count
    return IndexResult(index, loaded.fingerprint, *counts, ignored, time.monotonic() - started)


def query(
    synthetic: Path,
    index: Path,
    report_folder: Path,
    config: QueryConfig | None = None,
    report: Report = silent,
) -> QueryResult:
    """Find each synthetic image's most similar training images, and judge them.

    Writes the report folder. Raises InputMissing, InputError, StoreMismatch or Damaged when
    there is nothing to judge, or the index is not whole; what was there before is intact.
    """
    config = config or QueryConfig()
    started = time.monotonic()
    with ExitStack() as stack:
        folder = stack.enter_context(replacing_folder(report_folder, SUMMARY))
        loaded = _index_encoder(index)
        thresholds = _thresholds(loaded.thresholds, config)
        training = stack.enter_context(Store.open(index / STORE))
        search = TrainingIndex.open(index, training, pick_device(config.embed.device))
        place = folder / SYNTHETIC
        ignored = _embed_folder(synthetic, place, loaded, config.embed, "synthetic images", report)
        embedded = time.monotonic()
        store = stack.enter_context(Store.open(place))
        with MatchWriter(folder) as writer:
            for names, sources, scores in _matches(store, training, search, config.top_k):
                writer.add(names, sources, scores, judge(scores, thresholds))
                report("searched", sum(writer.counts.values()), store.rows)
        write_rejected(folder, store.rejections())
        write_flagged(folder)
        strongest = best_matches(folder, limit=5)
        summary = _summary(store, training, loaded, thresholds, writer.counts) | {
            "ignored": ignored,
            "top_k": min(config.top_k, training.rows),
            "top_k_asked": config.top_k,
            "seconds": {
                "embed": round(embedded - started, 3),
                "search": round(time.monotonic() - embedded, 3),
            },
        }
        write_json(folder / SUMMARY, summary)
    return QueryResult(report_folder, summary, strongest)


def _embed_folder(
    folder: Path, place: Path, loaded: Checkpoint, config: EmbedConfig, stage: str, report: Report
) -> int:
    """Embed a folder's images into a store at `place`; return how many files were ignored."""
    listing = list_images(folder, config.include)
    encoder = loaded.encoder.to(pick_device(config.device))
    rule, total, done = loaded.architecture.standardisation, len(listing.files), 0
    decoded = decode_images(listing, rule, workers=config.workers, max_pixels=config.max_pixels)
    manifest = StoreManifest(loaded.fingerprint, loaded.architecture.dimension)
    with StoreWriter(place, manifest) as writer, closing(decoded):
        report(stage, 0, total)
        while batch := list(islice(decoded, config.batch)):
            writer.add(*_embed_batch(encoder, batch))
            done += len(batch)
            report(stage, done, total)
        writer.finish(total)
    _require_rows(folder, place)
    return listing.ignored


def _embed_batch(encoder: Encoder, batch: list[Decoded]) -> tuple[list[Entry], Vectors]:
    """Embed what was decoded: an entry per file, and a row (D,) per entry without a reason."""
    vectors: dict[str, Vectors] = {}
    for same_size in _by_size(batch):
        pixels = torch.from_numpy(np.stack([plane for _, plane in same_size]))
        rows = embed(encoder, pixels.to(next(encoder.parameters()).device)).float().cpu().numpy()
        vectors |= {path: row for (path, _), row in zip(same_size, rows, strict=True)}
    usable = {path for path, row in vectors.items() if first_not_unit(row[None]) is None}
    entries = [_entry(image, image.path in usable) for image in batch]
    kept = [vectors[entry.path] for entry in entries if entry.reason is None]
    return entries, np.array(kept, np.float32).reshape(-1, encoder.architecture.dimension)


def _by_size(batch: list[Decoded]) -> Iterable[list[tuple[str, Pixels]]]:
    """Group paths and pixels by shape: an encoder takes one shape at a time."""
    groups: dict[tuple[int, ...], list[tuple[str, Pixels]]] = {}
    for image in batch:
        if image.pixels is not None:
            groups.setdefault(image.pixels.shape, []).append((image.path, image.pixels))
    return groups.values()


def _entry(image: Decoded, usable: bool) -> Entry:
    rejection = image.rejection
    if rejection is None and not usable:
        rejection = Rejection("embedding", "its embedding is zero or not finite")
    reason, detail = (rejection.reason, rejection.detail) if rejection else (None, "")
    return Entry(image.path, image.size, image.mtime_ns, image.sha256, image.mode, reason, detail)


def _require_rows(folder: Path, place: Path) -> None:
    """Raise InputError when not one image of a folder could be embedded."""
    with Store.open(place) as store:
        if store.rows:
            return
        reasons = Counter(entry.reason for entry in store.rejections())
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    raise InputError(
        f"{folder}: none of its {reasons.total()} image files could be read ({counts}). "
        "Nothing was judged."
    )


def _index_encoder(index: Path) -> Checkpoint:
    """Load the encoder that an index was built with."""
    if not (index / flat.MANIFEST).is_file():
        raise InputMissing(
            f"{index}: holds no finished index (no {flat.MANIFEST}). "
            "Make one with `deepssim-scan build-index --training DIR`."
        )
    manifest = flat.IndexManifest.read(index)
    loaded = checkpoint.load(index / ENCODER)
    if loaded.fingerprint != manifest.encoder:
        raise StoreMismatch(
            f"{index / ENCODER}: is encoder {loaded.fingerprint[:12]}, and the index was built "
            f"with {manifest.encoder[:12]}. Build the index again."
        )
    return loaded


def _thresholds(default: Thresholds, config: QueryConfig) -> Thresholds:
    chosen = {"similar": config.similar, "duplicate": config.duplicate}
    return replace(default, **{name: value for name, value in chosen.items() if value is not None})


def _matches(
    store: Store, training: Store, search: TrainingIndex, top_k: int
) -> Iterator[tuple[list[str], list[str], Vectors]]:
    """Search a shard at a time: Q synthetic paths, their Q * k matches' paths, scores (Q, k)."""
    for first, rows in store.shards():
        found = search.search(rows, top_k)
        unique, places = np.unique(found.rows, return_inverse=True)
        names = training.paths(unique)
        synthetic = store.paths(np.arange(first, first + len(rows)))
        yield synthetic, [names[place] for place in places.ravel()], found.scores


def _summary(
    store: Store,
    training: Store,
    loaded: Checkpoint,
    thresholds: Thresholds,
    verdicts: dict[str, int],
) -> dict[str, Any]:
    """Return what summary.json says of a finished search."""
    return {
        "complete": store.rejected_count == training.rejected_count == 0,
        "counts": {
            "listed": store.listed,
            "judged": store.rows,
            "rejected": store.rejected_count,
            **verdicts,
            "training_indexed": training.rows,
            "training_rejected": training.rejected_count,
        },
        "rates": {verdict: count / store.rows for verdict, count in verdicts.items()},
        "thresholds": asdict(thresholds),
        "fingerprints": {
            "encoder": loaded.fingerprint,
            "training": training.digest,
            "synthetic": store.digest,
        },
        "versions": {
            "deepssim-scan": __version__,
            **{name: version(name) for name in ("torch", "numpy", "zarr")},
            "python": platform.python_version(),
        },
    }
