"""Adapt an encoder to the training set, where copies of its images are not found as they should be.

    calibration -> needs_adapting; listing + encoder -> training -> encoder of the index folder

DeepSSIM is meant to be trained on the data that it judges. The adapted encoder has seen patients:
it stays in the index folder, which is private.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deepssim_scan.calibration.calibration import Calibration
from deepssim_scan.encoder.checkpoint import Checkpoint
from deepssim_scan.imaging.names import SEVERAL
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.listing import Listing
from deepssim_scan.training.config import ADAPTING

if TYPE_CHECKING:
    from deepssim_scan.training.state import Step

FOUND, FOUND_OF_KIND = 0.98, 0.93
"""The bar: shares of the planted copies that must be found, of all and of the worst kind.

Copies changed in several ways at once count among all, and are no kind of their own: of those at
the end of all ranges no encoder finds so many.
"""

QUICK = replace(ADAPTING, steps=250, learning_rate=1e-3, contrastive_weight=0.5, max_images=4000)
"""How an encoder is adapted: in minutes, whatever the size of the set."""


def needs_adapting(calibration: Calibration) -> bool:
    """Tell whether too few planted copies are found at the default false-alarm rate."""
    if calibration.subjects == "bundled":
        return False
    rate = calibration.false_alarm(None)
    found = calibration.sensitivity(rate)
    worst = min(share for kind, share in found.items() if kind != SEVERAL)
    return calibration.found(rate) < FOUND or worst < FOUND_OF_KIND


def adapt(
    listing: Listing, start: Checkpoint, ingest: IngestConfig, run: RunContext, out: Path
) -> Checkpoint:
    """Train an encoder on some images of a listing, and write its checkpoint `out`.

    Raises InputError when there are too few images to learn from.
    """
    from deepssim_scan.training import loop
    from deepssim_scan.training.dataset import load_dataset

    dataset = load_dataset(listing, start.architecture, QUICK, ingest, run)

    def shown(step: "Step") -> None:
        run.progress("steps of adapting", step.step, step.steps, f"loss {step.loss:.4f}")

    made = loop.train(dataset, out, QUICK, start, device=run.device_here, on_step=shown)
    out.with_name(f"{out.name}.csv").unlink()
    return made
