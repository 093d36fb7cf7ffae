"""Write the images that the bundled encoder is trained on: procedural ones and warped MNI152.

    python benchmarks/bundled_corpus.py --out runs/corpus

No image of a person goes in. Needs the extra `demo` (nilearn carries the MNI152 template).
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from deepssim_scan.procedural import FAMILIES
from deepssim_scan.subjects import mni152, projections, slices

# Each axis with the fractions of it between which the template fills a slice.
AXES = {"sagittal": (0.18, 0.82), "coronal": (0.16, 0.84), "axial": (0.18, 0.74)}


def main() -> None:
    """Write the corpus."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-family", type=int, default=2500)
    parser.add_argument("--subjects", type=int, default=120)
    parser.add_argument("--slices", type=int, default=36, help="of each subject and axis")
    parser.add_argument("--views", type=int, default=24, help="of each subject, projected")
    parser.add_argument("--side", type=int, default=128, help="pixels")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for family in FAMILIES:
        write_family(family, options)
    volume = mni152()
    for subject in track(range(options.subjects), "MNI152 pseudo-subjects"):
        write_subject(volume, subject, options)
        write_radiographs(volume, subject, options)


def write_family(family: str, options: argparse.Namespace) -> None:
    """Write the images of one procedural family, a hundred a folder."""
    seed = int.from_bytes(hashlib.sha256(family.encode()).digest()[:4])
    for number in track(range(options.per_family), family):
        rng = torch.Generator().manual_seed((options.seed << 48) + (seed << 16) + number)
        image = FAMILIES[family](rng, 1, options.side)[0].numpy()
        save(image, options.out / family / f"{number // 100:03d}" / f"{number:05d}.png")


def write_subject(volume: torch.Tensor, subject: int, options: argparse.Namespace) -> None:
    """Write the slices of one pseudo-subject on the three axes, in anatomical order."""
    for axis, (name, span) in enumerate(AXES.items()):
        positions = np.linspace(*span, options.slices).tolist()
        person = torch.Generator().manual_seed(options.seed * 1_000_000 + subject)
        images = slices(volume, axis, positions, options.side, person)
        for position, image in zip(positions, images.numpy(), strict=True):
            file = options.out / "mni152" / f"{subject:04d}" / f"{name}-{position:.3f}.png"
            save(image, file)


def write_radiographs(volume: torch.Tensor, subject: int, options: argparse.Namespace) -> None:
    """Write the projections of one pseudo-subject, all around it."""
    angles = np.arange(options.views) * (360 / options.views)
    person = torch.Generator().manual_seed(options.seed * 1_000_000 + subject)
    images = projections(volume, angles.tolist(), options.side, person, shell=subject % 2 == 0)
    for angle, image in zip(angles, images.numpy(), strict=True):
        file = options.out / "projected" / f"{subject:04d}" / f"view-{angle:05.1f}.png"
        save(image, file)


def save(image: np.ndarray, path: Path) -> None:
    """Write an image of values in [0, 1] as an 8-bit PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(image * 255).astype(np.uint8)).save(path)


if __name__ == "__main__":
    main()
