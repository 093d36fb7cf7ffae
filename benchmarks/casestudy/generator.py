"""A latent diffusion model that memorizes: trained on a folder of images, and sampled.

    images (N, 1, S, S) in [0, 1] -> autoencoder -> latents (N, 3, S/4, S/4) -> diffusion -> samples

It is the recipe of the reference (arXiv:2509.16582) with MONAI's networks: AutoencoderKL, then
DiffusionModelUNet on its latents with 1,000 steps of noise, then 50 steps of DDIM. Training images
are repeated, which provokes memorization: "none" has each once, "low" 1 to 4 times, "high" 1 to 14
times, for the same number of epochs. `SIZES` go from one that memorizes 64 images in minutes on two
cores to that of the reference, which wants a GPU. A run that was killed goes on.

    python benchmarks/casestudy/generator.py --training DIR --out DIR --duplication high
"""

import argparse
import csv
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn import functional

from deepssim_scan.storage.files import replacing

REPEATS = {"none": 1, "low": 4, "high": 14}
"""How often an image is repeated at most, by level of duplication."""

STEPS, SAMPLED = 1000, 50  # of noise in training, and of DDIM
NOISE = {"schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0205}
_KL = 1e-6
_SAVED_EVERY = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Size:
    """Networks and how long they train; epochs of the diffusion are of the repeated images."""

    side: int
    autoencoder: tuple[int, ...]
    autoencoder_blocks: int
    autoencoder_steps: int
    diffusion: tuple[int, ...]
    attention: tuple[bool, ...]
    head: int
    epochs: int
    rate: float
    batch: int = 32
    latent: int = 3


SIZES = {
    "tiny": Size(32, (16, 32), 1, 200, (32, 64), (False, True), 32, 40, 1e-3, 16),
    "small": Size(64, (16, 32, 64), 1, 3000, (32, 64, 64), (False, True, True), 32, 60, 1e-3),
    "paper": Size(
        128, (64, 128, 128), 2, 20_000, (256, 512, 768), (False, True, True), 64, 100, 2.5e-5
    ),
}


@dataclass(frozen=True, slots=True)
class Pictures:
    """Training images (N, 1, S, S) in [0, 1], their names, and conditions (N, L, C) if any."""

    pixels: Tensor
    names: tuple[str, ...]
    conditions: Tensor | None = None


def read(folder: Path, side: int, conditions: Path | None = None) -> Pictures:
    """Read all PNG and JPEG images of a folder as grey squares."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg", ".jpeg"))
    if not paths:
        raise SystemExit(f"{folder}: holds no PNG or JPEG images.")
    names = tuple(str(path.relative_to(folder)) for path in paths)
    pixels = torch.from_numpy(np.stack([read_square(path, side) for path in paths]))[:, None]
    return Pictures(pixels, names, None if conditions is None else _conditions(conditions, names))


def read_square(path: Path, side: int) -> NDArray[np.float32]:
    """Read an image, padded to a square with its darkest grey, in [0, 1]."""
    grey = np.asarray(Image.open(path).convert("L"))
    longest = max(grey.shape)
    before = [(longest - length) // 2 for length in grey.shape]
    pads = [(b, longest - n - b) for b, n in zip(before, grey.shape, strict=True)]
    padded = Image.fromarray(np.pad(grey, pads, constant_values=grey.min()))
    small = np.asarray(padded.resize((side, side), Image.Resampling.BOX), np.float32)
    low, high = small.min(), small.max()
    return (small - low) / max(high - low, 1)


def _conditions(path: Path, names: tuple[str, ...]) -> Tensor:
    """Read what images are conditioned on: (N, L, C).

    A CSV has a column `file` and columns of numbers, which are standardised (L = 1). An NPZ has
    `names` and `vectors`, (N, C) or (N, L, C), such as the embeddings of texts.
    """
    if path.suffix == ".npz":
        held = np.load(path)
        by_name = dict(zip(held["names"].tolist(), held["vectors"], strict=True))
    else:
        with path.open(newline="", encoding="utf-8") as file:
            rows = {
                row.pop("file"): [float(each) for each in row.values()]
                for row in csv.DictReader(file)
            }
        values = np.array(list(rows.values()), np.float32)
        values = (values - values.mean(0)) / values.std(0).clip(1e-6)
        by_name = dict(zip(rows, values, strict=True))
    if missing := [name for name in names if name not in by_name]:
        raise SystemExit(
            f"{path}: has nothing of {missing[0]}, and of {len(missing)} images in all."
        )
    found = torch.from_numpy(np.stack([by_name[name] for name in names]).astype(np.float32))
    return found if found.ndim == 3 else found[:, None]


def repeats_of(count: int, duplication: str, seed: int) -> NDArray[np.int64]:
    """Return how often each image is repeated, (N,), from 1 to the most of a level."""
    return np.random.default_rng(seed).integers(1, REPEATS[duplication] + 1, count)


def autoencoder(size: Size) -> AutoencoderKL:
    """Return an autoencoder with random weights."""
    levels = len(size.autoencoder)
    return AutoencoderKL(
        spatial_dims=2,
        num_res_blocks=(size.autoencoder_blocks,) * levels,
        channels=size.autoencoder,
        attention_levels=(False,) * levels,
        latent_channels=size.latent,
        norm_num_groups=8,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )


def diffusion(size: Size, condition: int | None) -> DiffusionModelUNet:
    """Return a denoiser with random weights; `condition` is the width of what it attends to."""
    levels = len(size.diffusion)
    return DiffusionModelUNet(
        spatial_dims=2,
        in_channels=size.latent,
        out_channels=size.latent,
        num_res_blocks=(1,) * levels if size.side < 128 else (2,) * levels,
        channels=size.diffusion,
        attention_levels=size.attention,
        norm_num_groups=16,
        num_head_channels=size.head,
        with_conditioning=condition is not None,
        cross_attention_dim=condition,
    )


@dataclass
class Trainer:
    """Steps of one network, kept in a file as they go: `identity` is of all that they depend on."""

    path: Path
    network: nn.Module
    rate: float
    steps: int
    identity: str

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.network.parameters(), self.rate)
        self.losses: list[float] = []
        self._saved = time.monotonic()
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            if state["identity"] != self.identity:
                raise SystemExit(f"{self.path}: is of other images or options. Remove it.")
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.losses = state["losses"]

    def __iter__(self) -> Iterator[Generator]:
        """Give a generator of random numbers for each step that is left."""
        for step in range(len(self.losses), self.steps):
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * min(1.0, (step + 1) / 50) * _cosine(step / self.steps)
            yield Generator().manual_seed(step)
        self.save()

    def step(self, loss: Tensor) -> None:
        """Go a step down a loss."""
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.losses.append(loss.item())
        if time.monotonic() - self._saved > _SAVED_EVERY:
            self.save()

    def save(self) -> None:
        """Write what has been learnt so far."""
        states = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        with replacing(self.path) as file:
            torch.save({"identity": self.identity, "losses": self.losses, **states}, file)
        self._saved = time.monotonic()


def _cosine(done: float) -> float:
    return 0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * done)))


def train_autoencoder(pictures: Pictures, size: Size, path: Path, seed: int) -> Trainer:
    """Train the autoencoder, by absolute differences, or go on."""
    torch.manual_seed(seed)
    trainer = Trainer(
        path, autoencoder(size), 2e-3, size.autoencoder_steps, _identity(pictures, size, seed)
    )
    for random in trainer:
        chosen = torch.randint(len(pictures.pixels), (size.batch // 2,), generator=random)
        images = pictures.pixels[chosen]
        mean, sigma = trainer.network.encode(images)
        noise = torch.randn(mean.shape, generator=random)
        found = trainer.network.decode(mean + sigma * noise)
        divergence = (mean.square() + sigma.square() - sigma.square().log() - 1).sum((1, 2, 3)) / 2
        trainer.step(functional.l1_loss(found, images) + _KL * divergence.mean())
    return trainer


def train_diffusion(
    pictures: Pictures, coder: AutoencoderKL, size: Size, path: Path, duplication: str, seed: int
) -> tuple[Trainer, float]:
    """Train the denoiser on repeated images, or go on; return it, and the scale of the latents."""
    torch.manual_seed(seed)
    repeats = repeats_of(len(pictures.pixels), duplication, seed)
    indices = torch.from_numpy(np.repeat(np.arange(len(repeats)), repeats))
    mean, sigma = encoded(coder, pictures.pixels)
    scale = 1 / mean.std().item()
    condition = None if pictures.conditions is None else pictures.conditions.shape[2]
    steps = size.epochs * len(indices) // size.batch
    identity = _identity(pictures, size, seed, duplication)
    trainer = Trainer(path, diffusion(size, condition), size.rate, steps, identity)
    noising = DDPMScheduler(STEPS, **NOISE)
    order = _batches(indices, size.batch, len(trainer.losses), seed)
    for random, chosen in zip(trainer, order, strict=False):
        drawn = torch.randn(mean[chosen].shape, generator=random)
        latents = (mean[chosen] + sigma[chosen] * drawn) * scale
        times = torch.randint(STEPS, (len(chosen),), generator=random)
        noise = torch.randn(latents.shape, generator=random)
        noisy = noising.add_noise(latents, noise, times)
        told = None if pictures.conditions is None else pictures.conditions[chosen]
        trainer.step(functional.mse_loss(trainer.network(noisy, times, told), noise))
    return trainer, scale


def _batches(indices: Tensor, batch: int, first: int, seed: int) -> Iterator[Tensor]:
    """Give the batches of one epoch after another, from the first that is not done."""
    many, done = len(indices) // batch, first
    while True:
        epoch = Generator().manual_seed(seed * 1_000_003 + done // many)
        order = indices[torch.randperm(len(indices), generator=epoch)]
        yield from order[: many * batch].split(batch)[done % many :]
        done += many - done % many


@torch.inference_mode()
def encoded(coder: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and spread of the latents of images."""
    parts = [coder.encode(part) for part in images.split(64)]
    mean, sigma = (torch.cat(each) for each in zip(*parts, strict=True))
    return mean.clone(), sigma.clone()


@torch.inference_mode()
def sample(
    network: DiffusionModelUNet,
    coder: AutoencoderKL,
    size: Size,
    scale: float,
    conditions: Tensor | None,
    count: int,
    seed: int,
) -> Tensor:
    """Draw images (count, S, S) in [0, 1] in 50 steps of DDIM."""
    network.eval()
    random = Generator().manual_seed(seed)
    side = size.side // 2 ** (len(size.autoencoder) - 1)
    drawn = []
    for first in range(0, count, 64):
        many = min(64, count - first)
        told = None
        if conditions is not None:
            told = conditions[torch.randint(len(conditions), (many,), generator=random)]
        latents = torch.randn(many, size.latent, side, side, generator=random)
        scheduler = DDIMScheduler(STEPS, clip_sample=False, **NOISE)
        scheduler.set_timesteps(SAMPLED)
        for step in scheduler.timesteps:
            noise = network(latents, torch.full((many,), int(step)), told)
            latents, _ = scheduler.step(noise, int(step), latents)
        drawn.append(coder.decode(latents / scale)[:, 0].clamp(0, 1))
    return torch.cat(drawn)


def write_images(images: Tensor, folder: Path, prefix: str) -> str:
    """Write images (N, S, S) in [0, 1] as PNG; return a digest of all."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for number, image in enumerate((images * 255).round().to(torch.uint8).numpy()):
        digest.update(image.tobytes())
        Image.fromarray(image).save(folder / f"{prefix}{number:05d}.png")
    return digest.hexdigest()


def _identity(pictures: Pictures, size: Size, *others: Any) -> str:
    digest = hashlib.sha256(pictures.pixels.numpy().tobytes())
    if pictures.conditions is not None:
        digest.update(pictures.conditions.numpy().tobytes())
    return f"{digest.hexdigest()} {asdict(size)} {others}"


def generate(
    pictures: Pictures, size: Size, out: Path, duplication: str, count: int, seed: int
) -> dict[str, Any]:
    """Train both networks as far as they are not, write samples to `out`, and say what was done.

    The autoencoder lies beside `out`, for every level of duplication and every seed.
    """
    out.mkdir(parents=True, exist_ok=True)
    first = train_autoencoder(pictures, size, out.parent / "autoencoder.pt", 0)
    coder = first.network.eval()
    second, scale = train_diffusion(pictures, coder, size, out / "diffusion.pt", duplication, seed)
    found = sample(second.network, coder, size, scale, pictures.conditions, count, seed)
    digest = write_images(found, out / "samples", "")
    told = {
        "size": asdict(size),
        "images": len(pictures.names),
        "repeated": int(repeats_of(len(pictures.names), duplication, seed).sum()),
        "steps": len(second.losses),
        "autoencoder_loss": _last(first.losses),
        "diffusion_loss": _last(second.losses),
        "samples": count,
        "samples_sha256": digest,
    }
    (out / "generator.json").write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    return told


def _last(losses: list[float]) -> float:
    """Return the mean of the last losses."""
    return float(np.mean(losses[-100:]))


def main() -> None:
    """Train and sample, as asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--duplication", choices=REPEATS, default="high")
    parser.add_argument("--conditions", type=Path, help="CSV of variables, or NPZ of embeddings")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    size = SIZES[options.size]
    pictures = read(options.training, size.side, options.conditions)
    told = generate(pictures, size, options.out, options.duplication, options.count, options.seed)
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
