"""Embed damaged rows again, and make a damaged index again of its store.

    path -> repair -> Checked, after the damaged rows were embedded again

A repair puts back the same bytes or nothing: the images must have the SHA-256 that the catalog has
of them, and the embeddings the one that their shard was written with.
"""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.bundled import BUNDLED
from deepssim_scan.encoder.checkpoint import Checkpoint
from deepssim_scan.errors import Damaged, InputError, InputMissing, StoreMismatch
from deepssim_scan.index.build import build
from deepssim_scan.index.config import SearchConfig
from deepssim_scan.index.manifest import IndexManifest
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.listing import Listing
from deepssim_scan.ingest.pipeline import chunks
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.jobs.build_index import BESIDE
from deepssim_scan.jobs.check import Checked, check, check_index
from deepssim_scan.jobs.check.findings import Findings
from deepssim_scan.jobs.config import RepairConfig
from deepssim_scan.reporting.describe import kind_of
from deepssim_scan.reporting.tables import write_left_out
from deepssim_scan.storage.layout import (
    APPROXIMATE,
    BLANK,
    ENCODER,
    INDEX_MANIFEST,
    JOB,
    REJECTED,
    SEARCHED,
    STORE,
    SYNTHETIC,
)
from deepssim_scan.storage.publish import locked
from deepssim_scan.storage.records import read_json
from deepssim_scan.store.array import Made
from deepssim_scan.store.catalog import Shard
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.reread import ingest_of, listing_of
from deepssim_scan.store.store import Store


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
    with locked(path.resolve()), run.opened() as run:
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
        for done, shard in enumerate(damaged):
            run.progress("shards repaired", done, len(damaged))
            store.repair(shard, _embed_again(store, shard, listing, loaded, run))
        run.progress("shards repaired", len(damaged), len(damaged))


def _repair_index(folder: Path, run: RunContext) -> None:
    """Make the index of the store again when a file of it is damaged."""
    findings = Findings()
    check_index(folder, findings, run.progress)
    ours = {str(folder / name) for name in (*SEARCHED, INDEX_MANIFEST, REJECTED, BLANK)}
    if not {problem.where for problem in findings.problems} & ours:
        return
    read_json(folder / JOB)  # Damaged when it is: its SHA-256 is about to be recorded
    with Store.open(folder / STORE) as store:
        _encoder_of(store, folder / ENCODER)
        write_left_out(folder, store)
        build(store, folder, BESIDE, _search_of(folder), run)


def _search_of(folder: Path) -> SearchConfig:
    """Return the type of an index; where index.json is damaged, flat if there is nothing else."""
    try:
        manifest = IndexManifest.read(folder)
    except (Damaged, InputMissing):
        return SearchConfig("auto" if (folder / APPROXIMATE).exists() else "flat")
    return SearchConfig(manifest.factory, manifest.recall)


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


def _embed_again(
    store: Store, shard: Shard, listing: Listing, loaded: Checkpoint, run: RunContext
) -> Made:
    """Return the rows of a shard, computed again in the blocks in which they first were."""
    wanted = {r.key: r for r in store.records_of(shard) if r.reason is None}
    order = {key: number for number, key in enumerate(wanted)}
    rows: list[Made | None] = [None] * len(wanted)
    run = replace(run, device=store.manifest.source["device"])
    embedder = Embedder(loaded, ingest_of(store), run=run)
    files = {record.key[:2] for record in wanted.values()}
    blocks = [
        block
        for block in chunks(listing.files)
        if any((item.path, item.member) in files for item in block)
    ]
    with closing(embedder.embed_items(listing.folder, blocks)) as embedded:
        for records, found in embedded:
            remaining = iter(range(len(found)))
            for record in records:
                at = next(remaining) if record.reason is None else None
                row = None if at is None else found.part(slice(at, at + 1))
                known = wanted.pop(record.key, None)
                if known is not None:
                    rows[order[record.key]] = _unchanged(record, row, known, store)
    if wanted:
        record = next(iter(wanted.values()))
        raise InputError(
            f"{store.folder}: {len(wanted)} images of damaged rows are gone, the first "
            f"{record.name!r}. Put them back, say where they are with --images, or build it again."
        )
    return Made.joined([row for row in rows if row is not None])


def _unchanged(record: ImageRecord, row: Made | None, known: ImageRecord, store: Store) -> Made:
    """Return the row of an image that is the one which was embedded."""
    if record.sha256 != known.sha256:
        raise InputError(
            f"{store.folder}: {record.name!r} is not the image any more that was embedded. Put the "
            "original back, or build the store again."
        )
    if row is None:
        raise InputError(
            f"{store.folder}: {record.name!r} cannot be decoded any more ({record.reason}: "
            f"{record.detail}). Where it is a limit, raise it."
        )
    return row
