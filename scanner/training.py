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
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from io import TextIOWrapper
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Generator, Tensor, nn
from torch.nn import functional

from deepssim_scan import checkpoint
from deepssim_scan.augment import augment, disguise, other_subject, perturb
from deepssim_scan.checkpoint import Checkpoint, Thresholds
from deepssim_scan.decode import Reading
from deepssim_scan.encoder import SMALL, Architecture, Encoder, embed
from deepssim_scan.errors import CheckpointError, InputError
from deepssim_scan.files import replacing
from deepssim_scan.images import decode_images
from deepssim_scan.listing import Listing
from deepssim_scan.ssim import image_range, ssim_matrix
from deepssim_scan.workers import Limits

_SSIM_STRIDE = 2  # windows skipped in a target: within 0.02 of the exact one, a quarter of the cost
_SSIM_BINS = 10  # ranges of SSIM that count alike, however few pairs fall into one
_FEWEST = 32  # images to train on, and to validate on
_MANY_FOLDERS = 20  # from here on, folders are taken for subjects and held out whole
_NAME_DISTANCE = 8  # places by name within which a neighbour is drawn
_GALLERY, _QUERIES = 4096, 512  # images of the audit that thresholds are fitted on
_SEED_STRIDE = 1 << 20  # more than the steps of any run, so that no two share a seed


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How to train; recorded in the checkpoint."""

    steps: int = 4000
    batch: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    warmup: int = 100
    gradient_norm: float = 1.0
    contrastive_weight: float = 0.1
    temperature: float = 0.05
    held_out: float = 0.05
    max_images: int = 50_000
    evaluate_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "evaluate_every", "max_images"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be >= 1, found {getattr(self, name)}")
        if self.batch % 4 or not 4 <= self.batch <= 64:
            raise InputError(f"batch must be a multiple of 4 up to 64, found {self.batch}")
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out must lie between 0 and 1, found {self.held_out:g}")


@dataclass(frozen=True, slots=True)
class Step:
    """What training reports: after each step, and with `error` where it was evaluated."""

    step: int
    steps: int
    loss: float
    error: float | None
    learning_rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Pool:
    """Images to draw from: pixels (N, H, W) float16 in the folder's order, standardised.

    `by_name` (N,) lists their places sorted by file name first: there, files of one name in
    several folders are neighbours.
    """

    pixels: Tensor
    by_name: Tensor

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw `count` images, half of them neighbours of the others: (count, H, W) float32."""
        quarter, last = count // 4, len(self.pixels) - 1
        first, third = _distinct(last, quarter, generator), _distinct(last, quarter, generator)
        apart = torch.randint(
            1, _NAME_DISTANCE + 1, (quarter,), generator=generator, device=generator.device
        ).cpu()
        named = self.by_name[torch.cat([third, (third + apart).clamp_max(last)])]
        chosen = torch.cat([first, first + 1, named])
        return self.pixels[chosen].to(generator.device).float()


@dataclass(frozen=True, slots=True)
class Images:
    """The images of a folder: to train on, to validate on, and how many could not be read."""

    training: Pool
    validation: Pool
    rejected: int


def train(
    images: Images,
    out: Path,
    config: TrainingConfig,
    architecture: Architecture = SMALL,
    *,
    device: str = "cpu",
    resume: bool = False,
    report: Callable[[Step], None] = lambda step: None,
) -> Checkpoint:
    """Train an encoder on `images` and write its checkpoint to `out`.

    Beside `out` lie `out`.csv, the history, and until the end `out`.state, from which `resume`
    goes on and ends in the same weights as an undisturbed run (on a CPU; CUDA's sums differ in
    their last bits). A state of other images or another config raises CheckpointError.
    """
    if out.is_dir():
        raise InputError(f"{out}: is a folder, and a file is to be written. Choose another name.")
    torch.manual_seed(config.seed)
    encoder = Encoder(architecture).to(device)
    optimizer = torch.optim.AdamW(
        encoder.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    run = _Run(encoder, optimizer, images, config, out)
    first = run.restore() if resume else 0
    if not first:
        run.begin_history()
    started = time.monotonic()
    for step in range(first, config.steps):
        loss, rate = run.step(step)
        done = step + 1
        evaluated = done % config.evaluate_every == 0 or done == config.steps
        error = score_error(encoder, images.validation, config.seed) if evaluated else None
        state = Step(done, config.steps, loss, error, rate, time.monotonic() - started)
        if evaluated:
            run.record(state)
        report(state)
    thresholds = fit_thresholds(encoder, images, config.seed)
    error = score_error(encoder, images.validation, config.seed)
    checkpoint.save(out, encoder.eval(), thresholds, _provenance(images, config, error))
    run.state_file.unlink(missing_ok=True)
    return checkpoint.load(out)


def load_images(
    listing: Listing,
    architecture: Architecture,
    config: TrainingConfig,
    reading: Reading = Reading(),
    *,
    workers: int,
    limits: Limits = Limits(),
    report: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Images:
    """Read a folder into memory, at most `max_images` files of it, and hold a part of it out.

    From 20 folders on, folders are held out whole, since a folder is usually a subject; a small
    number of folders says nothing, and single images are held out.

    Raises InputError when fewer than 64 images are left, or their sizes differ where the
    architecture does not bring them to one size.
    """
    chosen = _sample(listing, config)
    pixels, paths, rejected = [], [], 0
    decoded = decode_images(
        chosen, architecture.standardisation, reading, workers=workers, limits=limits
    )
    for done, images in enumerate(decoded, 1):
        for image in images:
            if image.pixels is None:
                rejected += 1
            else:
                pixels.append(torch.from_numpy(image.pixels).half())
                paths.append(f"{image.path}/{image.member}/{image.frame}".rstrip("/"))
        report("files read", done, len(chosen.files))
    if len(pixels) < 2 * _FEWEST:
        raise InputError(
            f"{listing.folder}: {len(pixels)} readable images; training needs {2 * _FEWEST}."
        )
    if len({image.shape for image in pixels}) > 1:
        raise InputError(
            f"{listing.folder}: images of several sizes, which this architecture "
            "takes one at a time. Give images of one size, or another --architecture."
        )
    held_out = _held_out(paths, config)
    if (left := int((~held_out).sum())) < _FEWEST:
        raise InputError(
            f"{listing.folder}: {len(pixels) - left} of {len(pixels)} images are held out, which "
            f"leaves {left} to train on, and {_FEWEST} are needed. Give more images, or spread "
            "them over more folders."
        )
    return Images(_pool(pixels, paths, ~held_out), _pool(pixels, paths, held_out), rejected)


def score_error(encoder: Encoder, pool: Pool, seed: int, batches: int = 4) -> float:
    """Return the mean absolute error of score against SSIM on images not trained on.

    Pairs are made as in training, with draws that are the same at every call; every tenth of
    the SSIM range that occurs counts alike.
    """
    device = _device(encoder)
    generator = Generator(device).manual_seed(seed)
    scores, targets = [], []
    encoder.eval()
    with torch.inference_mode():
        for _ in range(batches):
            views, target = _batch(pool.draw(16, generator), generator, augment)
            embeddings = encoder(views[:, None])
            scores.append((embeddings @ embeddings.T).flatten())
            targets.append(target.flatten())
    score, target = torch.cat(scores), torch.cat(targets)
    weights = _range_weights(target)
    return float(((score - target).abs() * weights).sum() / weights.sum())


def fit_thresholds(encoder: Encoder, images: Images, seed: int) -> Thresholds:
    """Choose the default thresholds by playing an audit through.

    Training images are 4,096 of those trained on. Copies are 512 of them,
    disguised. Strangers are of two kinds: 512 images held out, and pseudo-subjects
    made of 512 training images. What counts is a stranger's best match, as in an audit.

    `duplicate` is half-way between the score that 0.5 % of the strangers pass (of the kind that
    scores higher) and the one that 5 % of the copies do not reach, and no lower than the first.
    `similar` is the score that all but 0.5 % of the copies reach, and at most `duplicate`.
    """
    generator = Generator(_device(encoder)).manual_seed(seed)
    gallery = _some(images.training, _GALLERY, generator)
    copied = gallery[:_QUERIES]
    copies = embed(encoder, disguise(copied, generator))
    strangers = _some(images.validation, _QUERIES, generator), other_subject(copied, generator)
    known = embed(encoder, gallery)
    of_copies = (copies * known[: len(copies)]).sum(1)
    of_strangers = [(embed(encoder, kind) @ known.T).amax(1) for kind in strangers]
    highest_stranger = max(float(scores.quantile(0.995)) for scores in of_strangers)
    middle = (highest_stranger + float(of_copies.quantile(0.05))) / 2
    duplicate = min(round(max(highest_stranger, middle), 3), 0.999)
    similar = min(round(float(of_copies.quantile(0.005)), 3), duplicate)
    return Thresholds(max(similar, -1.0), duplicate)


def _some(pool: Pool, count: int, generator: Generator) -> Tensor:
    """Draw at most `count` different images of a pool: (n, H, W) float32."""
    chosen = _distinct(len(pool.pixels), count, generator)
    return pool.pixels[chosen].to(generator.device).float()


class _Run:
    """One training run: what changes from step to step, and how it is kept on disk."""

    def __init__(
        self,
        encoder: Encoder,
        optimizer: torch.optim.Optimizer,
        images: Images,
        config: TrainingConfig,
        out: Path,
    ) -> None:
        self.encoder, self.optimizer, self.images, self.config = encoder, optimizer, images, config
        self.state_file = out.with_name(f"{out.name}.state")
        self.history = out.with_name(f"{out.name}.csv")
        self._identity = _identity(images, config, encoder.architecture)
        out.parent.mkdir(parents=True, exist_ok=True)

    def step(self, number: int) -> tuple[float, float]:
        """Take one step; its draws depend on its number alone, so a resumed run repeats them."""
        config, device = self.config, _device(self.encoder)
        seed = config.seed * _SEED_STRIDE + number
        torch.manual_seed(seed)  # for dropout
        generator = Generator(device).manual_seed(seed)
        rate = config.learning_rate * _schedule(number, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        drawn = self.images.training.draw(config.batch, generator)
        views, target = _batch(drawn, generator, disguise)
        self.encoder.train()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            embeddings = self.encoder(views[:, None]).float()
        loss = _loss(embeddings, target, config)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.encoder.parameters(), config.gradient_norm)
        self.optimizer.step()
        if not math.isfinite(value := loss.item()):
            raise InputError(
                f"training diverged at step {number}: the loss is {value}. Lower the rate."
            )
        return value, rate

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


def _identity(images: Images, config: TrainingConfig, architecture: Architecture) -> str:
    """What must be the same for a run to go on: options, architecture, and the images."""
    digest = hashlib.sha256()
    for pool in (images.training, images.validation):
        digest.update(pool.pixels.numpy().data)
        digest.update(pool.by_name.numpy().data)
    return json.dumps([asdict(config), asdict(architecture), digest.hexdigest()])


def _batch(
    images: Tensor, generator: Generator, change: Callable[[Tensor, Generator], Tensor]
) -> tuple[Tensor, Tensor]:
    """Make a batch of all kinds of pairs from n images drawn.

        images (n, H, W) -> views (4n, H, W), the SSIM of what they show (4n, 4n)

    Views are changed images: those drawn, perturbed ones, other subjects, those drawn again.
    """
    clean = torch.cat([images, perturb(images, generator), other_subject(images, generator)])
    matrix = ssim_matrix(clean, clean, image_range(clean), stride=_SSIM_STRIDE)
    matrix = (matrix + matrix.T) / 2
    source = torch.arange(4 * len(images), device=images.device) % len(clean)
    return change(clean[source], generator), matrix[source][:, source]


def _loss(embeddings: Tensor, target: Tensor, config: TrainingConfig) -> Tensor:
    """Squared error of the cosines against SSIM, and the contrast of copies with strangers.

    An image and its second view are copies; all others are strangers to it but its perturbed
    version, which is neither.
    """
    scores = embeddings @ embeddings.T
    weights = _range_weights(target).fill_diagonal_(0)
    regression = ((scores - target).square() * weights).sum() / weights.sum()
    drawn = len(embeddings) // 4
    logits = scores[-drawn:, : 3 * drawn] / config.temperature
    own = torch.arange(drawn, device=scores.device)
    neither = torch.zeros_like(logits, dtype=torch.bool)
    neither[own, own + drawn] = True
    contrast = functional.cross_entropy(logits.masked_fill(neither, -math.inf), own)
    return regression + config.contrastive_weight * contrast


def _range_weights(target: Tensor) -> Tensor:
    """Weigh pairs so that each tenth of the SSIM range that occurs counts alike."""
    bins = (target.clamp(0, 1) * _SSIM_BINS).long().clamp_max(_SSIM_BINS - 1)
    counts = torch.bincount(bins.flatten(), minlength=_SSIM_BINS)
    return 1 / counts[bins].float()


def _distinct(stop: int, count: int, generator: Generator) -> Tensor:
    """Draw `count` distinct places below `stop`, on the CPU."""
    return torch.randperm(stop, generator=generator, device=generator.device)[:count].cpu()


def _schedule(step: int, config: TrainingConfig) -> float:
    """Rise over the warm-up, then fall along a cosine to nothing."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def _sample(listing: Listing, config: TrainingConfig) -> Listing:
    """Keep at most `max_images` files, drawn at random, in their order."""
    if len(listing.files) <= config.max_images:
        return listing
    rng = np.random.default_rng(config.seed)
    kept = np.sort(rng.choice(len(listing.files), config.max_images, replace=False))
    return replace(listing, files=tuple(listing.files[index] for index in kept))


def _pool(pixels: list[Tensor], paths: list[str], chosen: Tensor) -> Pool:
    places = torch.nonzero(chosen)[:, 0].tolist()
    names = [(PurePosixPath(paths[place]).name, paths[place]) for place in places]
    by_name = sorted(range(len(names)), key=names.__getitem__)
    return Pool(torch.stack([pixels[place] for place in places]), torch.tensor(by_name))


def _held_out(paths: list[str], config: TrainingConfig) -> Tensor:
    """Return which images are for validation: (N,) bool, at least 32."""
    folders = [str(PurePosixPath(path).parent) for path in paths]
    groups = folders if len(set(folders)) >= _MANY_FOLDERS else paths
    rng = np.random.default_rng(config.seed)
    held: set[str] = set()
    wanted = max(_FEWEST, round(config.held_out * len(paths)))
    members = list(Counter(groups).items())
    for place in rng.permutation(len(members)):
        if wanted <= 0:
            break
        group, size = members[place]
        held.add(group)
        wanted -= size
    return torch.tensor([group in held for group in groups])


def _provenance(images: Images, config: TrainingConfig, error: float) -> dict[str, object]:
    return {
        "config": asdict(config),
        "training_images": len(images.training.pixels),
        "validation_images": len(images.validation.pixels),
        "validation_error": error,
    }


def _device(encoder: Encoder) -> str:
    return next(encoder.parameters()).device.type
