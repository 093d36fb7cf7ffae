"""Index a training set.

    training folder -> listing -> store -> index

An index folder holds the encoder that made it, and queries use that one, so the two sides can
never be embedded differently. The folder replaces the old one when it is whole, and a killed run
is gone on with. An index of which any image was rejected is not complete.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from deepssim_scan.encoder import checkpoint
from deepssim_scan.index.faiss_io import load_faiss
from deepssim_scan.index.flat import build
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.config import IndexConfig
from deepssim_scan.jobs.identity import embedded, list_for_store, require_encoder
from deepssim_scan.reporting.tables import write_left_out
from deepssim_scan.storage.files import copy, sha256
from deepssim_scan.storage.layout import BLANK, ENCODER, INDEX_FILES, JOB, REJECTED, STORE
from deepssim_scan.storage.publish import Job, publishing, refuse_foreign
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.store import Store

BESIDE = (ENCODER, REJECTED, BLANK, JOB)
"""The files of an index folder whose SHA-256 index.json records, beside the index's own."""


@dataclass(frozen=True, slots=True)
class IndexResult:
    """What `build_index` made; `listed` images are `indexed`, `rejected` or `blank`.

    `ignored` files are no images, `excluded` ones were left out as asked.
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

    @property
    def complete(self) -> bool:
        """Whether every training image is in the index."""
        return self.rejected == 0


def build_index(
    training: Path, index: Path, config: IndexConfig | None = None, run: RunContext | None = None
) -> IndexResult:
    """Embed the training images and index them, into the folder `index`.

    Raises InputMissing or InputError when there is nothing to index, or `index` is a folder of
    something else; Unfinished when an interrupted run had other options; CheckpointError when the
    encoder is not a checkpoint; DependencyMissing without FAISS; Busy, WriteFailed. What was there
    before is intact.
    """
    config, run = config or IndexConfig(), run or RunContext()
    started = time.monotonic()
    refuse_foreign(index, INDEX_FILES)
    load_faiss()  # which is needed last: its absence is told first
    loaded = checkpoint.load(config.encoder)
    listing = list_for_store(training, config.ingest, run)
    embedder = Embedder(loaded, config.ingest, config.embed, run)
    job = Job("build-index", (embedded(listing, embedder, STORE),))
    with publishing(
        index, INDEX_FILES, job, restart=config.restart, progress=run.progress
    ) as folder:
        copy(config.encoder, folder / ENCODER)
        require_encoder(config.encoder, sha256(folder / ENCODER), loaded.fingerprint)
        embedder.embed(listing, folder / STORE, "training images")
        with Store.open(folder / STORE) as store:
            write_left_out(folder, store)
            build(store, folder, BESIDE)
            counts = store.listed, store.rows, store.rejected_count, store.blank_count
    seconds = time.monotonic() - started
    left_out = listing.ignored, listing.excluded
    return IndexResult(index, loaded.fingerprint, *counts, *left_out, seconds)
