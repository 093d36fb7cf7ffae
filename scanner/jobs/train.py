"""Train an encoder on a folder, and say what it gained.

folder -> dataset -> assess, train, assess again -> checkpoint
"""

from dataclasses import dataclass
from pathlib import Path

from deepssim_scan.calibration.assess import Assessment, assess
from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.architecture import ARCHITECTURES
from deepssim_scan.encoder.checkpoint import Checkpoint
from deepssim_scan.encoder.network import device_of
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.listing import list_images
from deepssim_scan.jobs.config import TrainConfig
from deepssim_scan.progress import Progress
from deepssim_scan.training import loop
from deepssim_scan.training.dataset import Dataset, load_dataset
from deepssim_scan.training.state import Step


@dataclass(frozen=True, slots=True)
class Trained:
    """What training on a folder gave.

    `before` and `after` are what the checkpoint that training started from, and the new one, reach
    on the images held out; `before` is None where training started from random weights. `held_out`
    and `rejected` are counts of images.
    """

    checkpoint: Checkpoint
    before: Assessment | None
    after: Assessment
    held_out: int
    rejected: int


def train(
    images: Path, out: Path, config: TrainConfig | None = None, run: RunContext | None = None
) -> Trained:
    """Read a folder, train on a part of it, and assess on the images held out.

    Writes the checkpoint `out`, and beside it `out`.csv, the history. Raises InputMissing or
    InputError for images that nothing can be learnt from, or where `out` is a folder;
    CheckpointError when `config.resume` finds the state of another run.
    """
    config, run = config or TrainConfig(), run or RunContext()
    checkpoint.check_place(out)
    training = config.training
    start = checkpoint.load(config.initial) if config.initial else None
    architecture = start.architecture if start else ARCHITECTURES[config.architecture]
    listing = list_images(images, config.ingest.selection, run)
    dataset = load_dataset(listing, architecture, training, config.ingest, run)
    device = run.device_here
    before = _assessed(start, dataset, training.seed, device) if start else None
    made = loop.train(
        dataset,
        out,
        training,
        start or architecture,
        device=device,
        resume=config.resume,
        on_step=_Shown(run.progress),
    )
    after = _assessed(made, dataset, training.seed, device)
    return Trained(made, before, after, len(dataset.validation), dataset.rejected)


def _assessed(loaded: Checkpoint, dataset: Dataset, seed: int, device: str) -> Assessment:
    """Assess an encoder on the images held out, on the device that trains."""
    encoder = loaded.encoder
    before = device_of(encoder)
    try:
        return assess(encoder.to(device), dataset.validation, seed)
    finally:
        encoder.to(before)


@dataclass(slots=True)
class _Shown:
    """Shows steps of training as progress: the loss, and the newest validation error."""

    progress: Progress
    mae: str = ""

    def __call__(self, step: Step) -> None:
        if step.mae is not None:
            self.mae = f"validation MAE {step.mae:.4f}"
        self.progress("step", step.step, step.steps, f"loss {step.loss:.4f}  {self.mae}")
