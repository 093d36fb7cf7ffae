"""The index that is there before another is built in its place, as far as it is of use.

index folder, job, listing -> ThereBefore: a store to take rows from, its encoder, its calibration
"""

from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from pathlib import Path

from deepssim_scan.calibration.calibration import Calibration
from deepssim_scan.encoder.checkpoint import Checkpoint
from deepssim_scan.errors import InputMissing, ScanError
from deepssim_scan.ingest.config import IngestConfig
from deepssim_scan.ingest.listing import Listing
from deepssim_scan.jobs.identity import index_encoder, require_encoder, same_but_for_files
from deepssim_scan.storage.layout import INDEX_MANIFEST, STORE
from deepssim_scan.storage.publish import Job, read_job
from deepssim_scan.store.store import Store
from deepssim_scan.store.unchanged import Changes, Unchanged

CHANGED = 0.05
"""Share of the files that may have changed or be new until an index is calibrated anew."""


@dataclass(frozen=True, slots=True)
class ThereBefore(AbstractContextManager["ThereBefore"]):
    """An index that is updated by a listing; what is `unchanged` is taken from its store.

    `adapted` tells whether its encoder is adapted to the training set. The encoder is kept. `made`
    is its calibration, None where it has none.
    """

    store: Store
    encoder: Checkpoint
    adapted: bool
    made: Calibration | None
    listing: Listing
    unchanged: Unchanged

    def __exit__(self, *_: object) -> None:
        self.unchanged.close()
        self.store.close()

    @property
    def changes(self) -> Changes:
        """How the listing differs from the store."""
        return self.unchanged.changes(self.listing)

    @property
    def calibration(self) -> Calibration | None:
        """The calibration, where few files changed since it was made, and none is gone.

        It may name who is gone. One that is bundled is not kept: there may be enough images by now.
        """
        if self.made is None or self.made.subjects == "bundled":
            return None
        found = self.changes
        changed = self.made.changed + found.new
        if found.gone or changed > CHANGED * found.before:
            return None
        return replace(self.made, changed=changed)


def there_before(
    index: Path, job: Job, listing: Listing, given: Checkpoint, ingest: IngestConfig
) -> ThereBefore | None:
    """Return the index that is in place, whose store is open; None when it is of no use.

    It is of use when it was built with the same options and versions, is whole, and its encoder is
    the one `given`, or was adapted from it to images of which all are still there as they were: an
    encoder knows what it was trained on.
    """
    record = read_job(index) if (index / INDEX_MANIFEST).is_file() else None
    if record is None or not same_but_for_files(job, record):
        return None
    try:
        encoder, store = index_encoder(index), Store.open(index / STORE)
    except ScanError:
        return None
    adapted = encoder.fingerprint != given.fingerprint
    try:
        require_encoder(index / STORE, store.manifest.encoder, encoder.fingerprint)
        store.verify()
        started = encoder.training.get("started_from")
        if adapted and (started != given.fingerprint or _has_seen(encoder, store, listing, ingest)):
            store.close()
            return None
        made = _calibration(index, store)
        return ThereBefore(store, encoder, adapted, made, listing, Unchanged(store, ingest))
    except ScanError:
        store.close()
        return None


def _calibration(index: Path, store: Store) -> Calibration | None:
    """Return the calibration of an index, None where it has none, or that of another."""
    try:
        made = Calibration.read(index)
    except InputMissing:
        return None
    ours = store.manifest.encoder, store.digest
    return made if (made.encoder, made.store) == ours else None


def _has_seen(encoder: Checkpoint, store: Store, listing: Listing, ingest: IngestConfig) -> bool:
    """Tell whether an encoder was trained on images that are gone or have changed."""
    kept = set[str]()
    with closing(Unchanged(store, ingest)) as unchanged:
        for item in listing.files:
            kept.update(record.digest for record, _ in unchanged.records(item) or ())
    return not encoder.seen <= kept
