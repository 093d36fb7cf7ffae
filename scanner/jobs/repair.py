"""Embed damaged rows again, and make a damaged index again of its store.

    path -> repair -> Checked, after the damaged rows were embedded again

A repair puts back the same bytes or nothing: the images must have the SHA-256 that the catalog has
of them, and the embeddings the one that their shard was written with.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.bundled import BUNDLED
from deepssim_scan.encoder.checkpoint import Checkpoint
from deepssim_scan.errors import InputError, InputMissing, StoreMismatch
from deepssim_scan.imaging.devices import pick_device
from deepssim_scan.index.flat import build
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.record import Decoded, ImageRecord
from deepssim_scan.jobs.build_index import BESIDE
from deepssim_scan.jobs.check import Checked, Findings, check, check_index
from deepssim_scan.jobs.config import RepairConfig
from deepssim_scan.reporting.describe import kind_of
from deepssim_scan.reporting.tables import write_left_out
from deepssim_scan.storage.layout import (
    BLANK,
    ENCODER,
    INDEX,
    INDEX_MANIFEST,
    JOB,
    REJECTED,
    STORE,
    SYNTHETIC,
)
from deepssim_scan.storage.publish import locked
from deepssim_scan.storage.records import read_json
from deepssim_scan.store.array import Vectors
from deepssim_scan.store.catalog import Shard
from deepssim_scan.store.embed_listing import embed_into
from deepssim_scan.store.reread import Reader, listing_of
from deepssim_scan.store.store import Store

Key = tuple[str, str, str]


def repair(
    path: Path, config: RepairConfig | None = None, run: RunContext | None = None
) -> Checked:
    """Embed damaged rows again, of a store or of the one in an index or a report; then check.

    An index is made again of its store where its own files are damaged. Raises InputError when
    the images are not there any more as they were, or the rows do not come out as they were, and
    Damaged when the store's own records are.
    """
    config, run = config or RepairConfig(), run or RunContext()
    kind = kind_of(path)
    inside = {"store": path, "index": path / STORE, "report": path / SYNTHETIC}
    with locked(path.resolve()):
        if kind in inside:
            _repair_store(inside[kind], config.encoder or _encoder_near(path), config, run)
        if kind == "index":
            _repair_index(path, run)
    return check(path, run.progress)


def _repair_store(folder: Path, encoder: Path, config: RepairConfig, run: RunContext) -> None:
    with Store.open(folder) as store:
        damaged = store.damaged()
        if not damaged:
            return
        loaded = _encoder_of(store, encoder)
        try:
            listing = listing_of(store, run, config.images)
        except InputMissing as error:
            raise InputMissing(f"{error} Say where the images are now with --images.") from error
        reader = Reader(store, listing, loaded.architecture.standardisation, run)
        for done, shard in enumerate(damaged):
            run.progress("shards repaired", done, len(damaged))
            store.repair(shard, _embed_again(shard, reader, loaded))
        run.progress("shards repaired", len(damaged), len(damaged))


def _repair_index(folder: Path, run: RunContext) -> None:
    """Make the index of the store again when a file of it is damaged."""
    findings = Findings()
    check_index(folder, findings, run.progress)
    ours = {str(folder / name) for name in (INDEX, INDEX_MANIFEST, REJECTED, BLANK)}
    if not {problem.where for problem in findings.problems} & ours:
        return
    read_json(folder / JOB)  # Damaged when it is: its SHA-256 is about to be recorded
    with Store.open(folder / STORE) as store:
        _encoder_of(store, folder / ENCODER)
        write_left_out(folder, store)
        build(store, folder, BESIDE)


def _encoder_near(path: Path) -> Path:
    """Return the encoder of an index, or of the index that a report is of, or the bundled one."""
    job = path / JOB
    index = Path(read_json(job).get("index", path)) if job.is_file() else path
    return index / ENCODER if (index / ENCODER).is_file() else BUNDLED


def _encoder_of(store: Store, path: Path) -> Checkpoint:
    loaded = checkpoint.load(path)
    if loaded.fingerprint != store.manifest.encoder:
        raise StoreMismatch(
            f"{path}: is encoder {loaded.fingerprint[:12]}, and {store.folder} was made with "
            f"{store.manifest.encoder[:12]}. Give that one with --encoder."
        )
    return loaded


@dataclass(slots=True)
class _Rows:
    """Takes the rows of one shard."""

    room: int
    rows: list[Vectors] = field(default_factory=list)

    def add(self, records: Sequence[ImageRecord], embeddings: Vectors) -> None:
        self.rows.append(embeddings)
        self.room -= len(embeddings)


def _embed_again(shard: Shard, reader: Reader, loaded: Checkpoint) -> Vectors:
    """Return the rows of a shard, computed again batch by batch as they first were."""
    store, source = reader.store, reader.store.manifest.source
    # Those without an embedding were in the batches too.
    wanted = {
        record.key: record
        for record in store.records_of(shard)
        if record.reason in (None, "embedding", "too-small")
    }
    encoder = loaded.encoder.to(pick_device(source["device"]))
    rows = _Rows(store.manifest.shard_rows)
    with closing(reader.decode(wanted.values())) as decoded:
        images = (_unchanged(image, wanted, store) for image in decoded)
        kept = (image for image in images if image is not None)
        embed_into(
            rows, kept, encoder, source["batch"], store.manifest.tta_views, reader.run.progress
        )
    if wanted:
        record = next(iter(wanted.values()))
        raise InputError(
            f"{store.folder}: {len(wanted)} images of damaged rows are gone, the first "
            f"{record.name!r}. Put them back, say where they are with --images, or build it again."
        )
    return np.concatenate(rows.rows)


def _unchanged(image: Decoded, wanted: dict[Key, ImageRecord], store: Store) -> Decoded | None:
    """Return an image when it is wanted, and strike it off; None for others."""
    record = wanted.pop(image.record.key, None)
    if record is None:
        return None
    if image.record.sha256 == record.sha256 and image.pixels is None:
        raise InputError(
            f"{store.folder}: {record.name!r} cannot be decoded any more ({image.record.reason}: "
            f"{image.record.detail}). Where it is a limit, raise it."
        )
    if image.record.sha256 != record.sha256:
        raise InputError(
            f"{store.folder}: {record.name!r} is not the image any more that was embedded. Put the "
            "original back, or build the store again."
        )
    return image
