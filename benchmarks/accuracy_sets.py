"""Training sets to measure accuracy on, what is looked for in them, and pairs of known SSIM.

a person of `held_out`, or a folder of people -> training images, Queries, Pairs
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from harness import console, standardised
from held_out import COPIES, Grey, Person, changed
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from torch import Tensor

from deepssim_scan.imaging.changes.augment import augment, perturb
from deepssim_scan.imaging.ssim import image_range, ssim

BINS = 20  # of the SSIM range, each with as many pairs
MORE = "quarter turn", "scale within 12 %"  # kinds of copies in a folder, beside COPIES

Images = Sequence[Grey] | Grey
"""Grey levels (H, W) of each; of several sizes, or an array (N, H, W)."""


@dataclass(frozen=True, slots=True)
class Queries:
    """Images to look for in a training set: copies by kind, and non-members.

    `sources` are the indices of what was copied. `people` (N,) has a number of the person of each
    training image, `others` (Q,) of each non-member: images of the same person are not compared.
    """

    copies: dict[str, Images]
    sources: dict[str, NDArray[np.int64]]
    people: NDArray[np.int64]
    non_members: Images
    others: NDArray[np.int64]
    hardest: Images


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of images and their SSIM (P,), which is that of the aligned ones."""

    aligned: tuple[Grey, Grey]
    augmented: tuple[Grey, Grey]
    ssim: NDArray[np.float32]


Set = tuple[Images, Queries, Pairs]


def of_person(one: Person, options: argparse.Namespace) -> Set:
    """Make a training set of a person and deformations; others of these are non-members."""
    rng = np.random.default_rng(options.seed)
    subjects = [None, *range(1, options.subjects)]
    others = range(options.subjects, options.subjects + options.non_members)
    gallery = _taken(one, subjects, "training images")
    non_members = _taken(one, others, "non-members")
    beside = np.concatenate([one.images(each, beside=True) for each in subjects[: options.hardest]])
    sources, copies = _copies(gallery, tuple(COPIES), options.copies, rng)
    people = np.repeat(np.arange(len(subjects)), len(gallery) // len(subjects))
    numbers = len(subjects) + np.repeat(np.arange(len(others)), len(non_members) // len(others))
    views = [one.images(10_000 + number) for number in range(options.pair_subjects)]
    pairs = even_pairs(standardised(np.concatenate(views)), len(views[0]), options)
    return gallery, Queries(copies, sources, people, non_members, numbers, beside), pairs


def of_folder(folder: Path, options: argparse.Namespace) -> Set:
    """Read a folder: all images are the training set, and each a non-member without its person.

    A person is a folder of it, or a file where `options.people_from` is "file".
    """
    rng = np.random.default_rng(options.seed)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    gallery = [np.asarray(Image.open(path).convert("L")) for path in paths]
    names = [str(path if options.people_from == "file" else path.parent) for path in paths]
    people = np.unique(names, return_inverse=True)[1]
    kinds = (*COPIES, *MORE)
    sources, copies = _copies(gallery, kinds, min(options.copies, len(gallery)), rng)
    pairs = even_pairs(standardised(gallery), int(np.median(np.bincount(people))), options)
    return gallery, Queries(copies, sources, people, gallery, people, []), pairs


def _copies(
    gallery: Images, kinds: Sequence[str], count: int, rng: np.random.Generator
) -> tuple[dict[str, NDArray[np.int64]], dict[str, Images]]:
    """Change `count` training images in each way; return which, and the copies."""
    sources = {kind: np.sort(rng.choice(len(gallery), count, replace=False)) for kind in kinds}
    copies: dict[str, Images] = {
        kind: [changed(gallery[source], kind, rng) for source in sources[kind]] for kind in kinds
    }
    return sources, copies


def _taken(one: Person, subjects: Sequence[int | None], what: str) -> Grey:
    made = [one.images(each) for each in track(subjects, f"{one.name}: {what}", console=console)]
    return np.concatenate(made)


def even_pairs(images: Tensor, positions: int, options: argparse.Namespace) -> Pairs:
    """Make pairs of every kind, and keep as many from each part of the SSIM range.

    images (N, H, W), `positions` of each person one after the other. Pairs are neighbours, the
    same view of two people, any two, and images with what was made of them by `perturb`, which
    spans the upper range.
    """
    rng = np.random.default_rng(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    subjects = len(images) // positions
    many = np.arange(len(images))
    other = rng.integers(1, subjects, len(many))
    steps = rng.integers(1, 4, len(many))
    second = [
        (many + steps) % len(many),
        (many + other * positions) % len(many),
        (many + other * positions + steps) % len(many),
        rng.integers(len(many), size=len(many)),
    ]
    shuffled = images[rng.permutation(len(images))]  # what `perturb` blends in is the one before
    perturbed = [perturb(shuffled, generator) for _ in range(3)]
    left = torch.cat([images[np.tile(many, 4)], *[shuffled] * 3])
    right = torch.cat([images[np.concatenate(second)], *perturbed])
    target = ssim(left, right, image_range(left))
    bins = (target.clamp(0, 1) * BINS).long().clamp_max(BINS - 1).numpy()
    chosen = np.concatenate(
        [
            rng.permutation(np.flatnonzero(bins == each))[: options.pairs // BINS]
            for each in range(BINS)
        ]
    )
    left, right = left[chosen], right[chosen]
    augmented = (_grey(augment(left, generator)), _grey(augment(right, generator)))
    return Pairs((_grey(left), _grey(right)), augmented, target[chosen].numpy())


def _grey(images: Tensor) -> Grey:
    low, high = images.amin((1, 2), keepdim=True), images.amax((1, 2), keepdim=True)
    return ((images - low) / (high - low) * 255).round().to(torch.uint8).numpy()
