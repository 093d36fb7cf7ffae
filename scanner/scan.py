"""The two jobs: index a training set, and query it with synthetic images.

    build_index: training folder -> listing -> store -> index
    query: synthetic folder -> listing -> store -> matches -> verified -> verdicts -> report

An index folder holds the encoder that made it, and queries use that one, so the two sides can
never be embedded differently. Both jobs write a new folder that replaces the old one when it is
whole, and go on where a killed run of theirs stopped. A run in which any image was rejected, now
or when the index was built, is not complete.
"""

import hashlib
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from deepssim_scan import __version__, checkpoint
from deepssim_scan.checkpoint import Checkpoint, Thresholds
from deepssim_scan.embed import EmbedConfig, Report, embed_listing, silent
from deepssim_scan.embeddings import Store
from deepssim_scan.encoder import pick_device
from deepssim_scan.errors import CheckpointError, InputError, InputMissing, StoreMismatch
from deepssim_scan.files import copy, sha256
from deepssim_scan.index import IndexManifest, Matches, TrainingIndex, build, flat
from deepssim_scan.listing import Listing, list_images
from deepssim_scan.publish import JOB, publishing, refuse_foreign
from deepssim_scan.records import read_json, write_json
from deepssim_scan.report import (
    FLAGGED,
    MATCHES,
    REJECTED,
    SUMMARY,
    Match,
    best_matches,
    count_verdicts,
    count_verified,
    merge_matches,
    write_flagged,
    write_matches,
    write_rejected,
)
from deepssim_scan.sources import listing_of
from deepssim_scan.verdicts import judge, proposed
from deepssim_scan.verify import Side, Verification, Verifier, strongest_first
from deepssim_scan.views import VIEWS

ENCODER, STORE, SYNTHETIC = "encoder.safetensors", "store", "synthetic"
PARTS = "parts"
BESIDE = (ENCODER, REJECTED, JOB)
"""The files of an index folder whose SHA-256 index.json records, beside the index's own."""
INDEX_FILES = (*BESIDE, STORE, flat.INDEX, flat.MANIFEST)
REPORT_FILES = (MATCHES, FLAGGED, REJECTED, SUMMARY, JOB, SYNTHETIC)
_DECODERS = ("pillow", "nibabel", "pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg")
_OTHERS = ("torch", "numpy", "zarr", "pyarrow", "faiss-cpu", "faiss-gpu")


@dataclass(frozen=True, slots=True)
class QueryConfig:
    """How synthetic images are judged; a threshold of None is the checkpoint's own.

    `views` says in how many of its `VIEWS` each synthetic image is looked at. With `verify`, pairs
    whose score is above `similar` are registered, and the best five of every image, and judged by
    their SSIM too (`verdicts`). `training` is where the training images are now, None: where they
    were when they were indexed.
    """

    top_k: int = 5
    views: int = len(VIEWS)
    similar: float | None = None
    duplicate: float | None = None
    ssim: float | None = None
    certain: float | None = None
    verify: bool = True
    training: Path | None = None
    embed: EmbedConfig = field(default_factory=EmbedConfig)

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise InputError(f"top_k must be >= 1, found {self.top_k}")
        if not 1 <= self.views <= len(VIEWS):
            raise InputError(f"views must be 1 to {len(VIEWS)}, found {self.views}")


@dataclass(frozen=True, slots=True)
class IndexResult:
    """What `build_index` made; `listed` images are `indexed` or `rejected`."""

    folder: Path
    encoder: str
    listed: int
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
    something else; CheckpointError when `encoder` is not a checkpoint; Busy, WriteFailed.
    """
    config = config or EmbedConfig()
    started = time.monotonic()
    refuse_foreign(index, INDEX_FILES)
    loaded = checkpoint.load(encoder)
    listing = _list(training, config)
    job = _job("build-index", listing, loaded, config)
    with publishing(index, INDEX_FILES, job) as folder:
        copy(encoder, folder / ENCODER)
        _require_encoder(encoder, sha256(folder / ENCODER), loaded.fingerprint)
        embed_listing(listing, folder / STORE, loaded, config, "training images", report)
        with Store.open(folder / STORE) as store:
            write_rejected(folder, store.rejections())
            build(store, folder, BESIDE)
            counts = store.listed, store.rows, store.rejected_count
    seconds = time.monotonic() - started
    return IndexResult(index, loaded.fingerprint, *counts, listing.ignored, seconds)


def query(
    synthetic: Path,
    index: Path,
    report_folder: Path,
    config: QueryConfig | None = None,
    report: Report = silent,
) -> QueryResult:
    """Find each synthetic image's most similar training images, and judge them.

    Writes the report folder. Raises InputMissing, InputError, StoreMismatch or Damaged when
    there is nothing to judge, or the index is not whole; Busy, WriteFailed. What was there before
    is intact.
    """
    config = config or QueryConfig()
    refuse_foreign(report_folder, REPORT_FILES)
    loaded = index_encoder(index)
    thresholds = _thresholds(loaded.thresholds, config)
    with Store.open(index / STORE) as training:
        _require_encoder(index / STORE, training.manifest.encoder, loaded.fingerprint)
        training.verify()
        search = TrainingIndex.open(index, training, pick_device(config.embed.device))
        listing = _list(synthetic, config.embed)
        job = _job("query", listing, loaded, config.embed) | {
            "index": str(index.absolute()),
            "training": training.digest,
            "thresholds": asdict(thresholds),
            "top_k": config.top_k,
            "views": config.views,
            "verify": config.verify,
            "training_images": str(config.training.absolute()) if config.training else None,
        }
        with publishing(report_folder, REPORT_FILES, job) as folder:
            if not (folder / SUMMARY).is_file():
                audit = _Audit(folder, training, search, loaded, thresholds, config)
                audit.run(listing, report)
            if (folder / PARTS).exists():
                shutil.rmtree(folder / PARTS)
            summary = read_json(folder / SUMMARY)
            strongest = best_matches(folder, limit=5)
    return QueryResult(report_folder, summary, strongest)


@dataclass(frozen=True, slots=True)
class _Audit:
    """What a query goes by, and the folder that it writes to."""

    folder: Path
    training: Store
    search: TrainingIndex
    loaded: Checkpoint
    thresholds: Thresholds
    config: QueryConfig

    def run(self, listing: Listing, report: Report) -> None:
        """Embed, search, verify, judge, and write all that the report holds, summary.json last."""
        place, started = self.folder / SYNTHETIC, time.monotonic()
        config, views = self.config.embed, self.config.views
        embed_listing(listing, place, self.loaded, config, "synthetic images", report, views)
        embedded = time.monotonic()
        with Store.open(place) as store:
            verifier = self._verifier(store, listing, report) if self.config.verify else None
            merge_matches(self.folder, list(self._parts(store, verifier, report)))
            write_rejected(self.folder, store.rejections())
            write_flagged(self.folder)
            seconds = {
                "embed": round(embedded - started, 3),
                "search": round(time.monotonic() - embedded, 3),
            }
            summary = self._summary(store) | {"ignored": listing.ignored, "seconds": seconds}
        write_json(self.folder / SUMMARY, summary)

    def _verifier(self, store: Store, listing: Listing, report: Report) -> Verifier | None:
        """Return what registers pairs, or None where the training images are gone.

        Raises InputMissing or InputError where the user said that they are.
        """
        try:
            known = listing_of(self.training, self.config.training)
        except (InputMissing, InputError):
            if self.config.training is not None:
                raise
            return None
        embed = self.config.embed
        device = pick_device(embed.device)
        sides = Side(store, listing), Side(self.training, known)
        return Verifier(*sides, device, embed.workers, embed.limits, report)

    def _parts(self, store: Store, verifier: Verifier | None, report: Report) -> Iterator[Path]:
        """Search and judge a shard at a time; those that an interrupted run left are kept."""
        parts = self.folder / PARTS
        parts.mkdir(mode=0o700, exist_ok=True)
        report("searched", 0, store.rows)
        for number, (first, rows) in enumerate(store.shards()):
            part = parts / f"{number:08d}.parquet"
            if not part.is_file():
                views = store.manifest.by_view(rows)
                found = self.search.search_views(views, self.config.top_k)
                self._write_part(part, store, first, found, verifier)
            report("searched", first + len(rows), store.rows)
            yield part

    def _write_part(
        self, part: Path, store: Store, first: int, found: Matches, verifier: Verifier | None
    ) -> None:
        """Verify and judge the matches of one shard, and write them, the strongest first."""
        verification = Verification.none(found.rows.shape)
        if verifier is not None:
            chosen = proposed(found.scores, self.thresholds)
            verification = verifier.verify(first, found.rows, chosen)
        verdicts = judge(found.scores, self.thresholds, verification.ssim)
        order = strongest_first(verdicts, verification.ssim, found.scores)
        rows = np.take_along_axis(found.rows, order, 1)
        unique, places = np.unique(rows, return_inverse=True)
        names = self.training.paths(unique)
        write_matches(
            part,
            store.paths(np.arange(first, first + len(rows))),
            [names[place] for place in places.ravel()],
            np.take_along_axis(found.scores, order, 1),
            np.take_along_axis(verdicts, order, 1),
            verification.reordered(order),
            self.thresholds.ssim,
        )

    def _summary(self, store: Store) -> dict[str, Any]:
        """Return what summary.json says of a finished search."""
        verdicts = count_verdicts(self.folder)
        if sum(verdicts.values()) != store.rows:
            raise InputError(
                f"{self.folder}: {store.rows} images were embedded and {sum(verdicts.values())} "
                "judged: every one must have a verdict."
            )
        return {
            "complete": store.rejected_count == self.training.rejected_count == 0,
            "counts": {
                "listed": store.listed,
                "judged": store.rows,
                "rejected": store.rejected_count,
                **verdicts,
                "training_indexed": self.training.rows,
                "training_rejected": self.training.rejected_count,
            },
            "rates": {verdict: count / store.rows for verdict, count in verdicts.items()},
            "thresholds": asdict(self.thresholds),
            "verification": self._verified(),
            "top_k": min(self.config.top_k, self.training.rows),
            "top_k_asked": self.config.top_k,
            "views": self.config.views,
            "fingerprints": {
                "encoder": self.loaded.fingerprint,
                "training": self.training.digest,
                "synthetic": store.digest,
            },
            "files": {
                name: sha256(self.folder / name) for name in (MATCHES, FLAGGED, REJECTED, JOB)
            },
            "versions": _versions(),
        }

    def _verified(self) -> dict[str, int] | None:
        """Count the pairs that were registered; None where that was not asked for."""
        if not self.config.verify:
            return None
        return count_verified(self.folder, self.thresholds.similar)


def _job(command: str, listing: Listing, loaded: Checkpoint, config: EmbedConfig) -> dict[str, Any]:
    """Say what a run does; one that says the same may go on with what it left."""
    digest = hashlib.sha256()
    for item in listing.files:
        digest.update(repr(item).encode("utf-8", "surrogatepass"))
    return {
        "command": command,
        "encoder": loaded.fingerprint,
        "source": config.source(listing.folder) | {"shard_rows": config.shard_rows},
        "listing": digest.hexdigest(),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {"deepssim-scan": __version__, "python": platform.python_version()}
    for name in (*_OTHERS, *_DECODERS):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _list(folder: Path, config: EmbedConfig) -> Listing:
    """List the images; subjects that could not be hashed are refused."""
    listing = list_images(folder, config.selection)
    if not config.reading.subject_key and any(item.subject for item in listing.files):
        raise InputError(
            f"{config.selection.manifest}: names subjects, which are kept only as hashes under a "
            "secret. Give one with --subject-key FILE, or leave the column out."
        )
    return listing


def index_encoder(index: Path) -> Checkpoint:
    """Load the encoder that an index was built with.

    Raises InputMissing when there is no finished index, StoreMismatch for another encoder.
    """
    if not (index / flat.MANIFEST).is_file():
        raise InputMissing(
            f"{index}: holds no finished index (no {flat.MANIFEST}). "
            "Make one with `deepssim-scan build-index --training DIR`."
        )
    manifest = IndexManifest.read(index)
    loaded = checkpoint.load(index / ENCODER)
    if loaded.fingerprint != manifest.encoder:
        raise StoreMismatch(
            f"{index / ENCODER}: is encoder {loaded.fingerprint[:12]}, and the index was built "
            f"with {manifest.encoder[:12]}. Build the index again."
        )
    return loaded


def _require_encoder(path: Path, found: str, wanted: str) -> None:
    """Raise StoreMismatch when a file was replaced while the run began."""
    if found != wanted:
        raise StoreMismatch(
            f"{path}: is of encoder {found[:12]}, and this run began with {wanted[:12]}: it was "
            "replaced meanwhile. Run the same command again."
        )


def _thresholds(default: Thresholds, config: QueryConfig) -> Thresholds:
    certain = config.certain
    if certain is None and config.ssim is not None:
        certain = max(default.certain, config.ssim)
    chosen = {
        "similar": config.similar,
        "duplicate": config.duplicate,
        "ssim": config.ssim,
        "certain": certain,
    }
    try:
        return replace(default, **{name: each for name, each in chosen.items() if each is not None})
    except CheckpointError as error:
        raise InputError(str(error)) from error
