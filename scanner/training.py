"""Train an encoder on a folder of images, without labels, to score pairs by their SSIM.

Each step draws images of the folder, and beside each a neighbour: the next file of the folder
(the next slice, as a rule) or a file of the same name in another folder (the same slice of another
subject). It makes a perturbed version and another subject of each, and computes the SSIM of
all with all. Every image is then disguised on its own (what the reference does,
arXiv:2509.16582, and shifts, slight warps and degradations), the drawn ones twice, and the network
learns that the cosine of any two is the SSIM of what they were before. Where the reference
sees one pair for two forward passes, a batch of B gives B^2/2. A contrastive term tells the
two disguises of one image from all else. Validation changes images as the reference does.

What is held out for validation is never drawn. The checkpoint's thresholds are fitted on it.
"""

import csv
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Generator, Tensor, nn
from torch.nn import functional

from deepssim_scan import checkpoint
from deepssim_scan.assess import Assessment, assess, fit_thresholds, score_error
from deepssim_scan.augment import Placement, disguise
from deepssim_scan.canonical import Canonical, settled
from deepssim_scan.checkpoint import Checkpoint
from deepssim_scan.decode import Reading
from deepssim_scan.encoder import SMALL, Architecture, Encoder, device_of
from deepssim_scan.errors import CheckpointError, InputError
from deepssim_scan.files import replacing
from deepssim_scan.flips import POSE_SIGNS
from deepssim_scan.listing import Selection, list_images
from deepssim_scan.pools import Images, load_images, pairs, range_weights
from deepssim_scan.workers import Limits

_ABSOLUTE = 0.05  # weight of where an image is put, beside that both views are put there
_SEED_STRIDE = 1 << 20  # more than the steps of any run, so that no two share a seed


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How to train; recorded in the checkpoint.

    `pose_steps` come before the `steps`, where the network reads poses, and teach it these alone.
    With no steps of either kind the weights stay, and only thresholds are fitted.
    """

    steps: int = 4000
    batch: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    warmup: int = 100
    gradient_norm: float = 1.0
    contrastive_weight: float = 0.1
    temperature: float = 0.05
    pose_weight: float = 20.0
    pose_steps: int = 0
    held_out: float = 0.05
    max_images: int = 50_000
    evaluate_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"steps": 0, "pose_steps": 0, "batch": 1, "evaluate_every": 1, "max_images": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"{name} must be >= {bound}, found {getattr(self, name)}")
        if self.batch % 4 or not 4 <= self.batch <= 64:
            raise InputError(f"batch must be a multiple of 4 up to 64, found {self.batch}")
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out must lie between 0 and 1, found {self.held_out:g}")


SCRATCH = TrainingConfig(pose_steps=2000)
"""How to train from random weights."""

ADAPTING = TrainingConfig(steps=300, learning_rate=3e-4, warmup=30, evaluate_every=50)
"""How to train from an encoder that is good already: minutes on a processor."""


@dataclass(frozen=True, slots=True)
class Step:
    """What training reports: after each step, with `error` where the score was evaluated."""

    step: int
    steps: int
    loss: float
    error: float | None
    learning_rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Trained:
    """What training on a folder gave.

    `before` is what the checkpoint that training started from reaches on the images held out, None
    where it started from random weights, and `after` what the new one does.
    """

    checkpoint: Checkpoint
    before: Assessment | None
    after: Assessment
    held_out: int
    rejected: int


def train_on_folder(
    folder: Path,
    out: Path,
    config: TrainingConfig,
    initial: Checkpoint | Architecture,
    selection: Selection = Selection(),
    reading: Reading = Reading(),
    *,
    workers: int,
    limits: Limits = Limits(),
    device: str = "cpu",
    resume: bool = False,
    report: Callable[[str, int, int], None] = lambda stage, done, total: None,
    report_step: Callable[[Step], None] = lambda step: None,
) -> Trained:
    """Read a folder, train on a part of it as `train` does, and assess on the rest."""
    start = initial if isinstance(initial, Checkpoint) else None
    images = load_images(
        list_images(folder, selection),
        initial.architecture if isinstance(initial, Checkpoint) else initial,
        reading,
        held_out=config.held_out,
        max_images=config.max_images,
        seed=config.seed,
        workers=workers,
        limits=limits,
        report=report,
    )
    before = assess(start.encoder, images.validation, config.seed) if start else None
    made = train(images, out, config, initial, device=device, resume=resume, report=report_step)
    after = assess(made.encoder, images.validation, config.seed)
    return Trained(made, before, after, len(images.validation.pixels), images.rejected)


def train(
    images: Images,
    out: Path,
    config: TrainingConfig,
    initial: Checkpoint | Architecture = SMALL,
    *,
    device: str = "cpu",
    resume: bool = False,
    report: Callable[[Step], None] = lambda step: None,
) -> Checkpoint:
    """Train an encoder on `images` and write its checkpoint to `out`.

    It starts from the weights of the checkpoint `initial`, which stays as it is, or from random
    ones of an architecture, which need a step at least. Beside `out` lie `out`.csv, the history,
    and until the end `out`.state, from which `resume` goes on and ends in the same weights as an
    undisturbed run (on a CPU; CUDA's sums differ in their last bits). A state of other images,
    another start or another config raises CheckpointError.
    """
    if out.is_dir():
        raise InputError(f"{out}: is a folder, and a file is to be written. Choose another name.")
    if not config.steps and isinstance(initial, Architecture):
        raise InputError("steps must be >= 1 where training starts from random weights, found 0")
    torch.manual_seed(config.seed)
    encoder, started_from = _started(initial, device)
    optimizer = torch.optim.AdamW(
        encoder.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    run = _Run(encoder, optimizer, images, config, out, started_from)
    first = run.restore() if resume else 0
    if not first:
        run.begin_history()
    started = time.monotonic()
    for step in range(first, run.steps):
        loss, rate = run.step(step)
        done = step + 1
        evaluated = done % config.evaluate_every == 0 or done == run.steps
        scored = evaluated and done > run.pose_steps
        error = score_error(encoder, images.validation, config.seed) if scored else None
        state = Step(done, run.steps, loss, error, rate, time.monotonic() - started)
        if evaluated:
            run.record(state)
        report(state)
    thresholds = fit_thresholds(encoder, images, config.seed)
    error = score_error(encoder, images.validation, config.seed)
    facts = _provenance(images, config, error, started_from)
    checkpoint.save(out, encoder.eval(), thresholds, facts)
    run.state_file.unlink(missing_ok=True)
    return checkpoint.load(out)


def _started(initial: Checkpoint | Architecture, device: str) -> tuple[Encoder, str | None]:
    """Return an encoder to train, and the fingerprint of the checkpoint that it starts from."""
    if isinstance(initial, Architecture):
        return Encoder(initial).to(device), None
    encoder = Encoder(initial.architecture)
    encoder.load_state_dict(initial.encoder.state_dict())
    return encoder.to(device), initial.fingerprint


class _Run:
    """One training run: what changes from step to step, and how it is kept on disk."""

    def __init__(
        self,
        encoder: Encoder,
        optimizer: torch.optim.Optimizer,
        images: Images,
        config: TrainingConfig,
        out: Path,
        started_from: str | None,
    ) -> None:
        self.encoder, self.optimizer, self.images, self.config = encoder, optimizer, images, config
        self.pose_steps = config.pose_steps if encoder.canonical is not None else 0
        self.steps = self.pose_steps + config.steps
        self.state_file = out.with_name(f"{out.name}.state")
        self.history = out.with_name(f"{out.name}.csv")
        self._identity = _identity(images, config, encoder.architecture, started_from)
        out.parent.mkdir(parents=True, exist_ok=True)

    def step(self, number: int) -> tuple[float, float]:
        """Take one step; its draws depend on its number alone, so a resumed run repeats them."""
        config, device = self.config, device_of(self.encoder)
        seed = config.seed * _SEED_STRIDE + number
        torch.manual_seed(seed)  # for dropout
        generator = Generator(device).manual_seed(seed)
        canonical, place, steps = self.encoder.canonical, number, self.pose_steps
        if number >= self.pose_steps:
            canonical, place, steps = None, number - self.pose_steps, config.steps
        rate = config.learning_rate * _schedule(place, steps, config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.encoder.train()
        loss = self._pose_loss(canonical, generator) if canonical else self._score_loss(generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.encoder.parameters(), config.gradient_norm)
        self.optimizer.step()
        if not math.isfinite(value := loss.item()):
            raise InputError(
                f"training diverged at step {number}: the loss is {value}. Lower the rate."
            )
        return value, rate

    def _pose_loss(self, canonical: Canonical, generator: Generator) -> Tensor:
        """Teach poses alone, which takes a quarter of the time, with two views of each image."""
        drawn = self.images.training.some(2 * self.config.batch, generator)
        views, placement = disguise(torch.cat([drawn, drawn]), generator)
        poses = canonical.poses(settled(views))
        return self.config.pose_weight * _pose_error(poses, placement, len(drawn))

    def _score_loss(self, generator: Generator) -> Tensor:
        """Teach scores, and poses beside them."""
        config, device = self.config, generator.device.type
        drawn = self.images.training.draw(config.batch, generator)
        sources, target = pairs(drawn, generator)
        views, placement = disguise(sources, generator)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            embeddings, poses = self.encoder.placed(views[:, None])
        loss = _loss(embeddings.float(), target, config)
        if poses is None:
            return loss
        return loss + config.pose_weight * _pose_error(poses, placement, len(drawn))

    def begin_history(self, rows: Iterable[Iterable[object]] = ()) -> None:
        """Write the history file anew, with the rows of an earlier run that still hold."""
        with replacing(self.history) as file, TextIOWrapper(file, "ascii", newline="") as text:
            writer = csv.writer(text)
            writer.writerow(Step.__slots__)
            writer.writerows(rows)

    def record(self, state: Step) -> None:
        """Append to the history and replace the state on disk."""
        with self.history.open("a", newline="") as file:
            csv.writer(file).writerow(getattr(state, name) for name in Step.__slots__)
        tensors = {f"encoder.{k}": v.contiguous() for k, v in self.encoder.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        with replacing(self.state_file) as file:
            file.write(serialise(tensors, {"step": str(state.step), "run": self._identity}))

    def restore(self) -> int:
        """Load the state on disk, if there is one, and return the step to go on from."""
        if not self.state_file.exists():
            return 0
        metadata, tensors = self._read_state()
        if metadata.get("run") != self._identity:
            raise CheckpointError(
                f"{self.state_file}: left by a run with other images or options. Give the same "
                "ones to resume it, or leave --resume away to start anew."
            )
        parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        self.encoder.load_state_dict(parts["encoder"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimizer"].items():
            index, _, moment = name.partition(".")
            state.setdefault(int(index), {})[moment] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        step = int(metadata["step"])
        with self.history.open(newline="") as file:
            rows = [row for row in list(csv.reader(file))[1:] if int(row[0]) <= step]
        self.begin_history(rows)
        return step

    def _read_state(self) -> tuple[dict[str, str], dict[str, Tensor]]:
        try:
            with safe_open(self.state_file, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return file.metadata() or {}, tensors
        except SafetensorError as error:
            raise CheckpointError(
                f"{self.state_file}: damaged ({error}). Leave --resume away to start anew."
            ) from error


def _identity(
    images: Images, config: TrainingConfig, architecture: Architecture, started_from: str | None
) -> str:
    """What must be the same for a run to go on: options, architecture, start, and the images."""
    digest = hashlib.sha256()
    for pool in (images.training, images.validation):
        digest.update(pool.pixels.numpy().data)
        digest.update(pool.by_name.numpy().data)
    return json.dumps([asdict(config), asdict(architecture), started_from, digest.hexdigest()])


def _loss(embeddings: Tensor, target: Tensor, config: TrainingConfig) -> Tensor:
    """Squared error of the cosines against SSIM, and the contrast of copies with strangers.

    An image and its second view are copies; all others are strangers to it but its perturbed
    version, which is neither.
    """
    scores = embeddings @ embeddings.T
    drawn = len(embeddings) // 4
    weights = range_weights(target).fill_diagonal_(0)
    regression = ((scores - target).square() * weights).sum() / weights.sum()
    logits = scores[-drawn:, : 3 * drawn] / config.temperature
    own = torch.arange(drawn, device=scores.device)
    neither = torch.zeros_like(logits, dtype=torch.bool)
    neither[own, own + drawn] = True
    contrast = functional.cross_entropy(logits.masked_fill(neither, -math.inf), own)
    return regression + config.contrastive_weight * contrast


def _pose_error(poses: Tensor, placement: Placement, drawn: int) -> Tensor:
    """Return how far poses (..., B, 3) are from those that undo what was done.

    What counts is that the two views of an image, among the first `drawn` and the last, are put to
    the same place, wherever that is; that it is where the image was given counts a little.
    """
    off = (poses - placement.pose) * POSE_SIGNS.to(poses)[placement.mirrored]
    apart = off[..., :drawn, :] - off[..., -drawn:, :]
    return apart.square().mean() / 2 + _ABSOLUTE * off.square().mean()


def _schedule(step: int, steps: int, warmup: int) -> float:
    """Rise over the warm-up, then fall along a cosine to nothing."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def _provenance(
    images: Images, config: TrainingConfig, error: float, started_from: str | None
) -> dict[str, object]:
    return {
        "config": asdict(config),
        "started_from": started_from,
        "training_images": len(images.training.pixels),
        "validation_images": len(images.validation.pixels),
        "validation_error": error,
    }
