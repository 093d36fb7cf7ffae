"""The training images of the case study: pseudo-people by default, or any folder.

    brain, head or a folder -> TRAINING/SUBJECT/NAME.png of members, and of other people
    samples -> augmented ones

"brain" has axial slices of deformations of the MNI152 template; "head" has radiographs of
deformations of the head CT of Debian's `invesalius-examples`. A folder is split by person.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from generator import read_square
from held_out import person

from deepssim_scan.training.pseudo_subjects import mni152, projections, slices

PSEUDO = ("brain", "head")
_AXIAL = 2
_IMAGES = 4  # of each pseudo-person
_POSITIONS = 0.4, 0.75  # fractions of the height of the brain
_ANGLES = 0.0, 180.0
_MARGIN = 8  # voxels about what a volume shows
_FIRST_SEED = 3_000_000_000
_LARGEST_ANGLE, _GAMMA = 10.0, 0.5


def write_pseudo(kind: str, subjects: range, side: int, out: Path) -> None:
    """Write four images of each pseudo-person: OUT/s0012/0.png and so on."""
    volume = _cropped(mni152() if kind == "brain" else person("cranium").volume)
    for number in subjects:
        someone = torch.Generator().manual_seed(_FIRST_SEED + number)
        low, high = _POSITIONS if kind == "brain" else _ANGLES
        places = (low + (high - low) * torch.rand(_IMAGES, generator=someone)).tolist()
        if kind == "brain":
            images = slices(volume, _AXIAL, places, side, someone, shell=False)
        else:
            images = projections(volume, places, side, someone, shell=False)
        _write(images, out / f"s{number:04d}")


def _cropped(volume: torch.Tensor) -> torch.Tensor:
    """Return the part of a volume that shows something, with a margin."""
    inside = (volume > 0.1).nonzero()
    low, high = (inside.amin(0) - _MARGIN).clamp_min(0), inside.amax(0) + _MARGIN
    (a, b, c), (d, e, f) = low.tolist(), high.tolist()
    return volume[a:d, b:e, c:f].contiguous()


def write_split(folder: Path, people: range, side: int, out: Path, most: int) -> None:
    """Write the images of some people of a folder, `most` of each: squares of `side` pixels.

    A person is a sub-folder, or a file where the folder has none. They are in a random order, since
    names often tell hospitals, or who is ill, and a hold-out must be of the same kind.
    """
    names = np.sort([path.name for path in folder.iterdir()])
    order = np.random.default_rng(0).permutation(len(names))
    for name in names[order[people.start : people.stop]].tolist():
        path = folder / name
        files = _spread(sorted(path.iterdir()), most) if path.is_dir() else [path]
        images = torch.from_numpy(np.stack([read_square(each, side) for each in files]))
        _write(images, out / path.stem)


def _spread(files: list[Path], most: int) -> list[Path]:
    """Return some of the files, evenly spread."""
    return [files[round(index)] for index in np.linspace(0, len(files) - 1, min(most, len(files)))]


def _write(images: torch.Tensor, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate((images * 255).round().to(torch.uint8).numpy()):
        Image.fromarray(image).save(folder / f"{number}.png")


def augmented(images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Change images (N, S, S) as the paper's robustness test does, with probability 0.8 each.

    A flip on either axis, a rotation within 10 degrees, a gamma from 0.5 to 1.5.
    """
    count = len(images)
    draws = torch.rand(4, count, generator=random) < 0.8
    turned = images
    for number, axis in enumerate((1, 2)):
        turned = torch.where(draws[number][:, None, None], turned.flip(axis), turned)
    degrees = (torch.rand(count, generator=random) * 2 - 1) * _LARGEST_ANGLE * draws[2]
    gamma = 1 + (torch.rand(count, generator=random) * 2 - 1) * _GAMMA * draws[3]
    rotated = [
        np.asarray(Image.fromarray(image.numpy()).rotate(float(angle), Image.Resampling.BICUBIC))
        for image, angle in zip(turned, degrees, strict=True)
    ]
    return torch.from_numpy(np.stack(rotated)).clamp(0, 1) ** gamma[:, None, None]
