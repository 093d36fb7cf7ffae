"""A contrastive encoder after Dar et al. (arXiv:2402.01054), to measure ours against.

A ResNet-50 for one channel with 128 features. It learns to tell two changed versions of an image
from all other images (NT-Xent). The score of two images is the correlation of their features; no
SSIM is learnt. It is trained on the bundled encoder's images. They are changed as for that encoder
(`simulate_copy`), which is more than Dar et al. do, so that it has met every kind of copy. It takes
1,200 steps of 32 images, an hour on two cores; the bundled encoder takes 11,000 steps of 64:

    python benchmarks/contrastive.py --corpus runs/bundled/corpus --out runs/contrastive.safetensors
"""

import argparse
import hashlib
import math
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from torch.nn import functional

from deepssim_scan.encoder.architecture import SMALL
from deepssim_scan.imaging.changes.augment import simulate_copy
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.listing import list_images
from deepssim_scan.storage.files import replacing
from deepssim_scan.training.config import TrainingConfig
from deepssim_scan.training.dataset import load_dataset

FEATURES = 128
_BLOCKS, _WIDTHS = (3, 4, 6, 3), (64, 128, 256, 512)
_WIDENED = 4  # what a bottleneck's output has of its width
_TEMPERATURE = 0.1


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, wide: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * _WIDENED
        self.body = nn.Sequential(
            *_normed(wide, width, 1, 1),
            nn.ReLU(inplace=True),
            *_normed(width, width, 3, stride),
            nn.ReLU(inplace=True),
            *_normed(width, out, 1, 1),
        )
        same = wide == out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_normed(wide, out, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


def _normed(wide: int, out: int, side: int, stride: int) -> tuple[nn.Module, nn.Module]:
    return (
        nn.Conv2d(wide, out, side, stride, padding=side // 2, bias=False),
        nn.BatchNorm2d(out),
    )


class ResNet50(nn.Sequential):
    """Standardised images (B, 1, H, W) -> features (B, 128), centred and of unit norm."""

    def __init__(self) -> None:
        layers = [*_normed(1, _WIDTHS[0], 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
        wide = _WIDTHS[0]
        for stage, (blocks, width) in enumerate(zip(_BLOCKS, _WIDTHS, strict=True)):
            for block in range(blocks):
                layers.append(_Bottleneck(wide, width, 2 if stage and not block else 1))
                wide = width * _WIDENED
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, FEATURES))

    def forward(self, images: Tensor) -> Tensor:
        """Return features whose inner products are correlations."""
        features = super().forward(images)
        return functional.normalize(features - features.mean(1, keepdim=True))


def load(path: Path) -> ResNet50:
    """Read trained weights."""
    network = ResNet50()
    network.load_state_dict(load_file(path))
    return network.eval()


def main() -> None:
    """Train and write the weights; a run that was stopped goes on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=16, help="images, two views of each")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    run = RunContext(workers=options.workers)
    network = train(
        options.corpus, options.out, options.steps, options.batch, options.learning_rate, run
    )
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()}, options.out
    )
    options.out.with_suffix(".state").unlink(missing_ok=True)


def train(
    corpus: Path, out: Path, steps: int, batch: int, rate: float, run: RunContext
) -> ResNet50:
    """Train on a folder of images, or go on from the state that lies beside `out`."""
    listing = list_images(corpus)
    pool = load_dataset(listing, SMALL, TrainingConfig(), IngestConfig(), run).training
    torch.manual_seed(0)
    network = ResNet50().train()
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-3)
    digest = hashlib.sha256(pool.pixels.numpy().data).hexdigest()
    identity = f"{corpus} {steps} {batch} {rate} {digest}"
    state, first = out.with_suffix(".state"), 0
    if state.exists():
        left_by, first, *states = torch.load(state, weights_only=True)
        if left_by != identity:
            raise SystemExit(f"{state}: left by a run with other images or options. Remove it.")
        for part, values in zip((network, optimizer), states, strict=True):
            part.load_state_dict(values)
    for step in track(range(first, steps), "contrastive training"):
        generator = Generator().manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * _schedule(step, steps)
        images = pool.draw(batch, generator)
        views = network(simulate_copy(torch.cat([images, images]), generator)[0][:, None])
        loss = _nt_xent(views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 49:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
            with replacing(state) as file:
                torch.save([identity, step + 1, network.state_dict(), optimizer.state_dict()], file)
    return network


def _nt_xent(views: Tensor) -> Tensor:
    """Cross-entropy of finding the other view of an image among all views (2n, 128)."""
    half = len(views) // 2
    logits = (views @ views.T / _TEMPERATURE).fill_diagonal_(-math.inf)
    return functional.cross_entropy(logits, (torch.arange(2 * half) + half) % (2 * half))


def _schedule(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))


if __name__ == "__main__":
    main()
