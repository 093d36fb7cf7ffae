"""The training images of an index as they are now, opened to be searched and registered with.

index folder + where the images are -> Gallery -> Calibrator
"""

from dataclasses import dataclass, replace
from pathlib import Path

from deepssim_scan.calibration.calibrate import Calibrator
from deepssim_scan.calibration.groups import Groups
from deepssim_scan.errors import InputError, InputMissing
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.listing.lookup import Lookup
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.matching.candidates import Shown
from deepssim_scan.matching.evidence import RULE, Verifier
from deepssim_scan.matching.probe import Probe
from deepssim_scan.matching.views import Views
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.reread import Reader
from deepssim_scan.store.store import Store


@dataclass(frozen=True, slots=True)
class Gallery:
    """A store of training images, its index, whose image each row is, and the files of now."""

    store: Store
    search: TrainingIndex
    groups: Groups
    files: Lookup | None

    @property
    def shown(self) -> Shown:
        """Whom the training images show."""
        return Shown(self.search, self.groups.number)

    def as_told(self, record: ImageRecord) -> ImageRecord:
        """Return a training image, without its folder's name where that is no person's."""
        guessed = not self.groups.known and (self.groups.subjects or record.in_volume)
        return record if record.subject_known or guessed else replace(record, subject="")

    def verifier(self, run: RunContext) -> Verifier:
        """Return what registers images with the training images, which must be there."""
        if self.files is None:
            raise ValueError("the training images are not there")
        return Verifier(Reader(self.store, self.files, RULE, run))

    def calibrator(
        self, embedder: Embedder, candidates: int, views: Views, seed: int = 0
    ) -> Calibrator:
        """Return what looks for training images and copies of them."""
        run = embedder.run
        rule = embedder.loaded.architecture.standardisation
        probe = Probe(embedder, self.shown, self.verifier(run), candidates, views)
        reader = replace(probe.verifier.training, rule=rule)
        return Calibrator(self.store, self.groups, reader, probe, seed)


def training_files(store: Store, given: Path | None, run: RunContext) -> Lookup:
    """Return the training images as they are now, where they were indexed or in `given`.

    Raises InputMissing or InputError when none of them is there.
    """
    folder = given or Path(store.manifest.source["folder"])
    if not folder.exists():
        raise InputMissing(f"{folder}: there is no such folder. Check the path.")
    files = Lookup(folder, run)
    if not any(files.find(record.path, "") for record in store.embedded()):
        raise InputError(
            f"{folder}: holds none of the {store.rows:,} training images under the names that "
            "the index has. Give the folder that was indexed, or the one it was moved to."
        )
    return files


def files_or_none(store: Store, given: Path | None, run: RunContext) -> Lookup | None:
    """Return the training images as they are now; None, with a warning, where they are gone.

    Raises InputMissing or InputError where `given` says that they are, and they are not.
    """
    try:
        return training_files(store, given, run)
    except (InputMissing, InputError):
        if given is not None:
            raise
        run.progress.warn(
            f"{store.manifest.source['folder']}: the training images are not there any more, so "
            "no pair can be verified. Say where they are with --training, or give --no-verify."
        )
        return None
