"""Index a training set.

    training folder -> listing -> store -> index -> calibration -> adapted, once more

An index folder holds the encoder that made it, and queries use that one, so the two sides can
never be embedded differently. The folder replaces the old one when it is whole, and a killed run
is gone on with. An index of which any image was rejected is not complete.
"""

import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deepssim_scan.calibration.calibration import Calibration
from deepssim_scan.calibration.groups import groups_of
from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.checkpoint import Checkpoint
from deepssim_scan.errors import InputError
from deepssim_scan.index.build import build, require_type
from deepssim_scan.index.faiss_io import load_faiss
from deepssim_scan.index.manifest import IndexManifest, SearchType
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.listing import Listing
from deepssim_scan.jobs.adapt import adapt, needs_adapting
from deepssim_scan.jobs.calibrate import calibrated_if_large
from deepssim_scan.jobs.config import CalibrateConfig, IndexConfig
from deepssim_scan.jobs.identity import embedded, list_for_store, require_encoder
from deepssim_scan.jobs.update import ThereBefore, there_before
from deepssim_scan.reporting.tables import write_left_out
from deepssim_scan.storage.files import copy
from deepssim_scan.storage.layout import (
    BLANK,
    CALIBRATION,
    ENCODER,
    INDEX_FILES,
    INDEX_MANIFEST,
    JOB,
    REJECTED,
    SEARCHED,
    STORE,
    STORE_MANIFEST,
)
from deepssim_scan.storage.publish import Job, Stage, publishing, refuse_foreign
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.manifest import read_manifest
from deepssim_scan.store.store import Store
from deepssim_scan.store.unchanged import Changes

ADAPTED = "adapted"
"""In the folder in the making: the index of the adapted encoder, until it is known to be better."""

BESIDE = (ENCODER, REJECTED, BLANK, JOB)
"""The files of an index folder whose SHA-256 index.json records, beside the index's own."""


@dataclass(frozen=True, slots=True)
class IndexResult:
    """What `build_index` made; `listed` images are `indexed`, `rejected` or `blank`.

    `ignored` files are no images, `excluded` ones were left out as asked. `before` is the
    calibration with the encoder that was given, `calibration` that with the one that the index
    has, which may be adapted; both are None where there is none. `changes` says how the
    training images differ from those of the index that was updated, None where none was. `search`
    says how the index is searched.
    """

    folder: Path
    encoder: str
    listed: int
    indexed: int
    rejected: int
    blank: int
    ignored: int
    excluded: int
    seconds: float
    before: Calibration | None
    calibration: Calibration | None
    changes: Changes | None = None
    search: SearchType | None = None

    @property
    def adapted(self) -> bool:
        """Whether the encoder was adapted to the training set."""
        before, after = self.before, self.calibration
        return before is not None and after is not None and before.encoder != after.encoder

    @property
    def complete(self) -> bool:
        """Whether every training image is in the index."""
        return self.rejected == 0


def build_index(
    training: Path, index: Path, config: IndexConfig | None = None, run: RunContext | None = None
) -> IndexResult:
    """Embed the training images, index them and calibrate the index, into the folder `index`.

    Raises InputMissing or InputError when there is nothing to index, or `index` is a folder of
    something else; Unfinished when an interrupted run had other options; CheckpointError when the
    encoder is not a checkpoint; DependencyMissing without FAISS; Busy, WriteFailed. What was there
    before is intact.
    """
    config, run = config or IndexConfig(), run or RunContext()
    started = time.monotonic()
    refuse_foreign(index, INDEX_FILES)
    load_faiss()  # which is needed last: its absence is told first
    loaded = checkpoint.opened(config.encoder)
    require_type(config.search.kind, loaded.architecture.dimension)
    listing = list_for_store(training, config.ingest, run)
    build = _Build(listing, config, run)
    calibrated = {"calibrate": config.calibrate, "adapt": config.adapt}
    stages = (
        embedded(listing, build.embedder(loaded), STORE),
        Stage("calibrated", {}, calibrated, (CALIBRATION, ADAPTED)),
    )
    job, fresh = Job("build-index", stages), {"restart": config.restart, "anew": config.rebuild}
    publish = publishing(index, INDEX_FILES, job, **fresh, progress=run.progress)
    with run.opened() as opened, publish as folder, ExitStack() as held:
        there = None if config.rebuild else there_before(index, job, listing, loaded, config.ingest)
        if there is not None:
            held.enter_context(there)
            loaded = there.encoder
        build = replace(build, run=opened, there=there)
        copy(loaded.path, folder / ENCODER)
        found = checkpoint.fingerprint(folder / ENCODER)
        require_encoder(loaded.path, found, loaded.fingerprint)
        counts = build.make(folder, loaded)
        before = build.calibrate(folder)
        if before is not None and build.is_to_adapt(before):
            loaded = build.adapt(folder, loaded, before)
        changed = there.changes if there else None
    calibration = Calibration.read(index) if (index / CALIBRATION).is_file() else None
    left_out, search = (listing.ignored, listing.excluded), IndexManifest.read(index).search
    seconds = time.monotonic() - started
    return replace(
        IndexResult(index, loaded.fingerprint, *counts, *left_out, seconds, before, calibration),
        changes=changed,
        search=search,
    )


@dataclass(frozen=True, slots=True)
class _Build:
    """Makes what an index folder holds, of one listing."""

    listing: Listing
    config: IndexConfig
    run: RunContext
    there: ThereBefore | None = None

    def embedder(self, loaded: Checkpoint) -> Embedder:
        return Embedder(loaded, self.config.ingest, self.config.embed, self.run)

    def make(self, folder: Path, loaded: Checkpoint) -> tuple[int, int, int, int]:
        """Make store and index; return how many images are listed, embedded, rejected and blank."""
        store = folder / STORE
        made_before = (store / STORE_MANIFEST).is_file()
        if made_before and read_manifest(store)[0].encoder != loaded.fingerprint:
            _drop(store)  # of a run that was killed while it adapted
        same = self.there is not None and self.there.encoder.fingerprint == loaded.fingerprint
        before = self.there.unchanged if self.there is not None and same else None
        self.embedder(loaded).embed(self.listing, store, "training images", before)
        with Store.open(store) as made:
            write_left_out(folder, made)
            build(made, folder, BESIDE, self.config.search, self.run)
            return made.listed, made.rows, made.rejected_count, made.blank_count

    def calibrate(self, folder: Path) -> Calibration | None:
        """Calibrate the index of a folder, where asked; keep a calibration of before that holds."""
        self._warn_of_subjects(folder)
        kept = self.there.calibration if self.there is not None else None
        if kept is not None:
            with Store.open(folder / STORE) as store:
                same = replace(kept, store=store.digest, gallery=store.rows)
                holds = same.subjects in ("hold-out", groups_of(store).origin)
            if holds:
                same.write(folder)
                return same
        if self.config.calibrate:
            return self._calibrated(folder)
        if self.there is not None and self.there.made is not None:
            self.run.progress.warn(
                "The calibration of the index that was there does not hold for these images, and "
                "none is made in its place, as asked. Run `deepssim-scan calibrate`."
            )
        return None

    def _warn_of_subjects(self, folder: Path) -> None:
        """Warn where subjects were to be named, and are not of some images, or are all the same."""
        with Store.open(folder / STORE) as store:
            named = store.subjects_told()[:, 1]
            unnamed = np.flatnonzero(~named)
            if len(unnamed) and (named.any() or self.config.ingest.subject_regex is not None):
                (first,) = store.paths(unnamed[:1])
                found = f"{len(unnamed):,} of {store.rows:,} training images have no named subject"
                found += f", for instance {first!r}"
            elif named.all() and store.rows > store.subject_count == 1:
                found = f"All {store.rows:,} training images have the same named subject"
            else:
                return
        self.run.progress.warn(
            f"{found}. Check --subject-regex and the manifest: where people are not told apart, "
            "fewer copies may be found, and reports count them wrongly."
        )

    def _calibrated(self, folder: Path) -> Calibration:
        calibration = calibrated_if_large(folder, CalibrateConfig(), self.run)
        calibration.write(folder)
        return calibration

    def is_to_adapt(self, found: Calibration) -> bool:
        """Tell whether the encoder is adapted to the training set: once, and not at updates."""
        adapt = self.config.adapt
        if self.there is not None and (self.there.adapted or self.there.calibration is not None):
            return False
        return adapt == "always" or (adapt == "auto" and needs_adapting(found))

    def adapt(self, folder: Path, loaded: Checkpoint, before: Calibration) -> Checkpoint:
        """Adapt the encoder, make and calibrate the index anew, and keep the better one.

        "always" keeps the adapted one.
        """
        new = folder / ADAPTED
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        try:
            made = adapt(self.listing, loaded, self.config.ingest, self.run, new / ENCODER)
        except InputError as error:
            self.run.progress.warn(f"Not adapted: {error}")
            shutil.rmtree(new)
            return loaded
        (new / JOB).write_bytes((folder / JOB).read_bytes())
        self.make(new, made)
        after = self._calibrated(new)
        rate = max(each.false_alarm(None) for each in (before, after))
        gained = after.found(rate) > before.found(rate)
        lost = after.subjects == "bundled" != before.subjects
        if lost:
            self.run.progress.warn("Not adapted: too few images would be left to calibrate on.")
        better = not lost and (gained or self.config.adapt == "always")
        if better:
            _drop(folder / STORE)
            for name in (ENCODER, STORE, *SEARCHED, INDEX_MANIFEST, CALIBRATION):
                (folder / name).unlink(missing_ok=True)
                if (new / name).exists():
                    (new / name).replace(folder / name)
        shutil.rmtree(new)
        return made if better else loaded


def _drop(store: Path) -> None:
    """Remove a store; a kill leaves nothing that passes for one, and the next run clears it."""
    gone = store.with_name(f".{store.name}.partial")
    store.replace(gone)
    shutil.rmtree(gone)
