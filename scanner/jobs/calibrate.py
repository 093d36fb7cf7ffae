"""Calibrate an index: how its verdicts are made, and how often they are wrong.

index folder + training images -> Calibration -> calibration.json in the index folder
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from deepssim_scan.calibration.calibrate import FEWEST
from deepssim_scan.calibration.calibration import Calibration
from deepssim_scan.calibration.groups import groups_of, numbers_of
from deepssim_scan.encoder.bundled import CALIBRATION as BUNDLED_CALIBRATION
from deepssim_scan.errors import InputError
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.listing import list_images
from deepssim_scan.ingest.pipeline import decode_images
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.jobs.config import CalibrateConfig
from deepssim_scan.jobs.gallery import Gallery, training_files
from deepssim_scan.jobs.identity import index_encoder
from deepssim_scan.matching.views import NEVER, Views
from deepssim_scan.storage.layout import STORE
from deepssim_scan.storage.publish import locked
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.store import Store


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """A calibration, and how long it took."""

    calibration: Calibration
    seconds: float


def calibrate(
    index: Path, config: CalibrateConfig | None = None, run: RunContext | None = None
) -> CalibrationResult:
    """Calibrate an index, in place of the calibration that it had.

    Raises InputMissing or InputError when there is no index, its images are gone, or there are too
    few of them; StoreMismatch, Damaged, Busy.
    """
    config, run = config or CalibrateConfig(), run or RunContext()
    started = time.monotonic()
    with run.opened() as run, locked(index.resolve()):
        calibration = calibrated(index, config, run)
        calibration.write(index)
    return CalibrationResult(Calibration.read(index), time.monotonic() - started)


def calibrated(index: Path, config: CalibrateConfig, run: RunContext) -> Calibration:
    """Calibrate the index of a folder, and write nothing.

    Raises what `calibrate` does.
    """
    loaded = index_encoder(index)
    embedder = Embedder(loaded, run=run)
    with Store.open(index / STORE) as store:
        search = TrainingIndex.open(index, store, run.device_here, exact=True)
        files = training_files(store, config.training, run)
        gallery = Gallery(store, search, groups_of(store), files)
        calibrator = gallery.calibrator(
            embedder, config.candidates, Views(config.tta_views), config.seed
        )
        rule = loaded.architecture.standardisation
        images = _hold_out(config.holdout, config.ingest, rule, run) if config.holdout else []
        return calibrator.calibrate(images)


def calibrated_if_large(index: Path, config: CalibrateConfig, run: RunContext) -> Calibration:
    """Calibrate the index of a folder; where it is too small for that, take the bundled one.

    The bundled calibration is of pseudo-subjects. What it says of rates does not hold for others,
    and its pairs of images that are copies of each other are not of this folder.
    """
    try:
        return calibrated(index, config, run)
    except InputError as error:
        run.progress.warn(
            f"Not calibrated: {error} Verdicts go by the bundled calibration, whose false-alarm "
            "rate is not that of these images."
        )
    bundled = Calibration.read(BUNDLED_CALIBRATION.parent)
    with Store.open(index / STORE) as store:
        return replace(
            bundled,
            store=store.digest,
            gallery=store.rows,
            encoder=store.manifest.encoder,
            enough=(NEVER, NEVER),
            duplicates=(),
        )


def _hold_out(
    folder: Path, ingest: IngestConfig, rule: Standardisation, run: RunContext
) -> list[tuple[Pixels, int]]:
    """Read the images of a hold-out folder, each with the number of its subject, or of its run."""
    listing = list_images(folder, ingest.selection, run)
    images, subjects, rejected = list[Pixels](), list[str](), 0
    for item in decode_images(listing, rule, ingest, run):
        for image in item:
            rejected += image.record.state == "rejected"
            if image.pixels is not None:
                images.append(image.pixels)
                subjects.append(image.record.subject)
    if rejected:
        run.progress.warn(f"{folder}: {rejected:,} images cannot be read, and take no part.")
    if len(images) < FEWEST:
        raise InputError(
            f"{folder}: holds {len(images)} images that can be read, and a null needs {FEWEST}. "
            "Give a folder of more images of people who are not in the training set."
        )
    return [*zip(images, numbers_of(subjects), strict=True)]
