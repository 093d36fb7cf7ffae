"""Make the bundled encoder: draw its images, train on them, fit its thresholds.

    python benchmarks/bundled_encoder.py

`bundled_encoder.toml` says how much of what. The images are procedural ones and deformations of
the MNI152 template, sliced and projected: no image of a person goes in. A run that was
stopped goes on. `--release` puts the checkpoint into the package, and its history into docs/. Needs
the extra `demo` (nilearn carries the MNI152 template).
"""

import argparse
import hashlib
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from deepssim_scan.checkpoint import BUNDLED
from deepssim_scan.cli.console import messages
from deepssim_scan.cli.progress import reporting
from deepssim_scan.encoder import SMALL, pick_device
from deepssim_scan.procedural import FAMILIES
from deepssim_scan.subjects import mni152, projections, slices
from deepssim_scan.training import TrainingConfig, train_on_folder

RECIPE = Path(__file__).with_suffix(".toml")
HISTORY = Path(__file__).parents[1] / "docs" / "bundled-encoder-history.csv"
# Each axis with the fractions of it between which the template fills a slice.
AXES = {"sagittal": (0.18, 0.82), "coronal": (0.16, 0.84), "axial": (0.18, 0.74)}


def main() -> None:
    """Draw the images that are not there yet, train, and release what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/bundled"))
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode")
    parser.add_argument("--release", action="store_true", help="put it into the package")
    options = parser.parse_args()
    recipe = tomllib.loads(RECIPE.read_text())
    corpus, out = options.folder / "corpus", options.folder / "encoder.safetensors"
    if not corpus.exists():
        draw(corpus, SimpleNamespace(**recipe["corpus"]))
    with reporting(messages) as progress:
        trained = train_on_folder(
            corpus,
            out,
            TrainingConfig(**recipe["training"]),
            SMALL,
            workers=options.workers,
            device=pick_device(options.device),
            resume=True,
            report=progress,
            report_step=progress.training,
        )
    print(f"{out}: {trained.checkpoint.thresholds}, {trained.after}")
    if options.release:
        shutil.copyfile(out, BUNDLED)
        shutil.copyfile(out.with_name(f"{out.name}.csv"), HISTORY)


def draw(corpus: Path, options: SimpleNamespace) -> None:
    """Draw all images into a folder that appears when it is whole."""
    part = corpus.with_name(f".{corpus.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    for family in FAMILIES:
        write_family(family, part, options)
    volume = mni152()
    for subject in track(range(options.subjects), "MNI152 pseudo-subjects"):
        write_subject(volume, subject, part, options)
        write_radiographs(volume, subject, part, options)
    part.rename(corpus)


def write_family(family: str, out: Path, options: SimpleNamespace) -> None:
    """Write the images of one procedural family, a hundred a folder."""
    seed = int.from_bytes(hashlib.sha256(family.encode()).digest()[:4])
    for number in track(range(options.per_family), family):
        rng = torch.Generator().manual_seed((options.seed << 48) + (seed << 16) + number)
        image = FAMILIES[family](rng, 1, options.side)[0].numpy()
        save(image, out / family / f"{number // 100:03d}" / f"{number:05d}.png")


def write_subject(volume: torch.Tensor, subject: int, out: Path, options: SimpleNamespace) -> None:
    """Write the slices of one pseudo-subject on the three axes, in anatomical order."""
    for axis, (name, span) in enumerate(AXES.items()):
        positions = np.linspace(*span, options.slices).tolist()
        person = torch.Generator().manual_seed(options.seed * 1_000_000 + subject)
        images = slices(volume, axis, positions, options.side, person)
        for position, image in zip(positions, images.numpy(), strict=True):
            file = out / "mni152" / f"{subject:04d}" / f"{name}-{position:.3f}.png"
            save(image, file)


def write_radiographs(
    volume: torch.Tensor, subject: int, out: Path, options: SimpleNamespace
) -> None:
    """Write the projections of one pseudo-subject, all around it."""
    angles = np.arange(options.views) * (360 / options.views)
    person = torch.Generator().manual_seed(options.seed * 1_000_000 + subject)
    images = projections(volume, angles.tolist(), options.side, person, shell=subject % 2 == 0)
    for angle, image in zip(angles, images.numpy(), strict=True):
        file = out / "projected" / f"{subject:04d}" / f"view-{angle:05.1f}.png"
        save(image, file)


def save(image: np.ndarray, path: Path) -> None:
    """Write an image of values in [0, 1] as an 8-bit PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(image * 255).astype(np.uint8)).save(path)


if __name__ == "__main__":
    main()
