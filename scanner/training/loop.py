"""Train an encoder on images, without labels, to score pairs by their SSIM.

    Dataset, TrainingConfig, Checkpoint or Architecture -> steps -> Checkpoint

Each step draws images and beside each a neighbour: the next file of the folder (the next slice, as
a rule) or a file of the same name in another folder (the same slice of another subject). It makes a
perturbed version and another subject of each, and computes the SSIM of all with all (`pairs`).
Then it simulates a copy of each image: the reference's augmentation (arXiv:2509.16582), shifts,
slight warps and degradations; of the drawn ones two copies. The network learns that the cosine of
two copies is the SSIM of their sources. Where the reference sees one pair for two forward passes, a
batch of B images gives B^2/2. A contrastive term tells the two copies of an image from all else.

Images held out for validation are never drawn, and are augmented as the reference does.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from deepssim_scan.calibration.assess import score_mae
from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.architecture import SMALL, Architecture
from deepssim_scan.encoder.checkpoint import Checkpoint
from deepssim_scan.encoder.network import Encoder, device_of
from deepssim_scan.errors import InputError
from deepssim_scan.imaging.image_set import ImageSet, ImageSource
from deepssim_scan.training.config import TrainingConfig
from deepssim_scan.training.dataset import Dataset
from deepssim_scan.training.objective import pose_loss, score_loss
from deepssim_scan.training.state import RunFiles, Step, identity_of

_SEED_STRIDE = 1 << 20  # more than the steps of any run, so that no two share a seed


def train(
    dataset: Dataset,
    out: Path,
    config: TrainingConfig,
    initial: Checkpoint | Architecture = SMALL,
    *,
    teacher: Checkpoint | None = None,
    device: str = "cpu",
    resume: bool = False,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Checkpoint:
    """Train an encoder on a dataset, and write its checkpoint to `out`.

    Training starts from the weights of the checkpoint `initial`, which stays as it is, or from
    random ones of an architecture, which need a step at least. It learns from the embeddings of a
    `teacher`, too, if there is one, of the same dimension and standardisation. Beside `out` lie
    `out`.csv, the history, and until the end `out`.state. `resume` goes on from there, and ends in
    the same weights as an undisturbed run (on a CPU; CUDA's sums differ in their last bits).

    Raises InputError when an encoder cannot be written to `out`, there is nothing to train, or
    training diverges; CheckpointError when `resume` finds a state of other images, another start
    or another config.
    """
    checkpoint.check_place(out)
    torch.manual_seed(config.seed)
    encoder, started_from, seen = _started(initial, device)
    taught_by, taught = (teacher.fingerprint, teacher.seen) if teacher else (None, frozenset())
    start = [started_from, taught_by]
    files = RunFiles(out, identity_of(dataset, config, encoder.architecture, start))
    taught_with = teacher.encoder.to(device) if teacher else None
    trainer = _Trainer(encoder, dataset.training, config, taught_with)
    _run(trainer, dataset.validation, files, resume, on_step)
    facts = {
        "config": asdict(config),
        "started_from": started_from,
        "taught_by": taught_by,
        "seen": sorted(seen | taught | dataset.seen),
        "training_images": len(dataset.training),
        "validation_images": len(dataset.validation),
        "validation_error": _error(encoder, dataset.validation, config.seed),
    }
    checkpoint.save(out, encoder.eval(), facts)
    files.finish()
    return checkpoint.load(out)


def _error(encoder: Encoder, images: ImageSet, seed: int) -> float:
    """Return the validation error of a trained encoder; InputError where its weights are none."""
    error = score_mae(encoder, images, seed)
    if not math.isfinite(error):
        raise InputError(
            f"training diverged at its last step: the error is {error}. Lower the rate."
        )
    return error


def _started(
    initial: Checkpoint | Architecture, device: str
) -> tuple[Encoder, str | None, frozenset[str]]:
    """Return an encoder to train, the fingerprint of the checkpoint, and what that has seen."""
    if isinstance(initial, Architecture):
        return Encoder(initial).to(device), None, frozenset()
    encoder = Encoder(initial.architecture)
    encoder.load_state_dict(initial.encoder.state_dict())
    return encoder.to(device), initial.fingerprint, initial.seen


class _Trainer:
    """Takes the steps of a run: first those that teach poses alone, then the others."""

    def __init__(
        self,
        encoder: Encoder,
        images: ImageSource,
        config: TrainingConfig,
        teacher: Encoder | None,
    ) -> None:
        self.encoder, self.images, self.config = encoder, images, config
        self.teacher = teacher
        self.optimizer = torch.optim.AdamW(
            encoder.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self.pose_steps = config.pose_steps if encoder.canonical is not None else 0
        self.steps = self.pose_steps + config.steps

    def step(self, number: int) -> tuple[float, float]:
        """Take one step; its draws depend on its number alone, so a resumed run repeats them.

        Returns the loss and the learning rate.
        """
        seed = self.config.seed * _SEED_STRIDE + number
        torch.manual_seed(seed)  # for dropout
        generator = Generator(device_of(self.encoder)).manual_seed(seed)
        rate = self._set_rate(number)
        self.encoder.train()
        loss = self._loss(number, generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.encoder.parameters(), self.config.gradient_norm)
        self.optimizer.step()
        if not math.isfinite(value := loss.item()):
            raise InputError(
                f"training diverged at step {number}: the loss is {value}. Lower the rate."
            )
        return value, rate

    def _loss(self, number: int, generator: Generator) -> Tensor:
        canonicaliser = self.encoder.canonical
        if canonicaliser is not None and number < self.pose_steps:
            return pose_loss(canonicaliser, self.images, self.config, generator)
        return score_loss(self.encoder, self.images, self.config, generator, self.teacher)

    def _set_rate(self, number: int) -> float:
        """Set the learning rate of a step, which starts anew with the steps that teach scores."""
        first, steps = 0, self.pose_steps
        if number >= self.pose_steps:
            first, steps = self.pose_steps, self.config.steps
        rate = self.config.learning_rate * schedule(number - first, steps, self.config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate


def _run(
    trainer: _Trainer,
    validation: ImageSet,
    files: RunFiles,
    resume: bool,
    on_step: Callable[[Step], None],
) -> None:
    """Take every step that is left, and record each evaluation."""
    encoder, optimizer, config = trainer.encoder, trainer.optimizer, trainer.config
    first = files.begin(encoder, optimizer, resume=resume)
    started = time.monotonic()
    for number in range(first, trainer.steps):
        loss, rate = trainer.step(number)
        done = number + 1
        evaluated = done % config.evaluate_every == 0 or done == trainer.steps
        scored = evaluated and done > trainer.pose_steps
        mae = score_mae(encoder, validation, config.seed) if scored else None
        step = Step(done, trainer.steps, loss, mae, rate, time.monotonic() - started)
        if evaluated:
            files.record(step, encoder, optimizer)
        on_step(step)


def schedule(step: int, steps: int, warmup: int) -> float:
    """Return the share of the learning rate: it rises in the warm-up, then falls along a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))
