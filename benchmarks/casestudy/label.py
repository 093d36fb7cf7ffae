"""Labels of pairs, by the definition that the score estimates; no radiologist's opinion.

A pair's label is its best SSIM over flips, quarter turns, rotation, scale, shift and gamma: above
0.85 duplicate, up to 0.60 different, else similar. The best is found by search at high effort. It
shares no step with the registration of `deepssim_scan`, whose verdicts are measured by it.

    images (M, S, S), training images (N, S, S) -> labelled.csv

1. At 32 x 32 pixels, without what is smooth, all pairs are compared under a grid of orientations,
   rotations and scales; the shift of each is that of the highest cross-correlation.
2. Of the nearest pairs, and of one that is drawn at random, the three best of that grid are refined
   at full resolution: a pattern search in rotation, scale, shift and gamma, whose steps are halved.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from deepssim_scan.evaluation.labelled import LABELS
from deepssim_scan.imaging.ssim import image_range, ssim

DUPLICATE, DIFFERENT = 0.85, 0.60
COLUMNS = (
    *("training", "synthetic", "label", "ssim", "chosen"),
    *("orientation", "degrees", "scale", "right", "down", "gamma"),
)
_NEAREST = 5
_COARSE = 32  # pixels
_DEGREES = torch.arange(-15.0, 15.1, 5.0)
_SCALES = torch.tensor([0.9, 1.0, 1.11])
_STARTS = 3
_FIRST_STEPS = torch.tensor([2.5, 0.05, 0.03, 0.03, 0.2])  # degrees, log scale, sides, log gamma
_HALVINGS, _MOVES = 5, 8
_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Found:
    """The best of each pair (P,): SSIM, orientation 0 to 7, and five numbers of its transform."""

    ssim: Tensor
    orientation: Tensor
    transform: Tensor


def orientations(images: Tensor) -> Tensor:
    """Return images (N, S, S) in all eight orientations: (8, N, S, S)."""
    turned = [torch.rot90(images, turns, (1, 2)) for turns in range(4)]
    return torch.stack(turned + [each.flip(2) for each in turned])


@dataclass(frozen=True, slots=True)
class Start:
    """Where the search of each pair (P, 3) begins: orientations, transforms (P, 3, 5)."""

    orientation: Tensor
    transform: Tensor

    def at(self, rows: Tensor) -> "Start":
        """Return those of some pairs."""
        return Start(self.orientation[rows], self.transform[rows])


def candidates(images: Tensor, training: Tensor, seed: int) -> tuple[Tensor, list[str], Start]:
    """Return pairs (P, 2) of image and training image, how each was chosen, and where to begin."""
    random = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(training), (len(images),), generator=random).tolist()
    spectrum = torch.fft.rfft2(_sharpened(_small(training))).conj()
    pairs, how, starts = [], list[str](), list[Start]()
    for number, image in enumerate(images):
        nearness, start = _coarse(image, spectrum)
        near = nearness.topk(min(_NEAREST, len(training))).indices.tolist()
        rows = near + [drawn[number]] * (drawn[number] not in near)
        pairs += [(number, row) for row in rows]
        how += ["near"] * len(near) + ["random"] * (len(rows) - len(near))
        starts.append(start.at(torch.tensor(rows)))
    joined = (torch.cat([getattr(each, name) for each in starts]) for name in Start.__slots__)
    return torch.tensor(pairs), how, Start(*joined)


def _coarse(image: Tensor, spectrum: Tensor) -> tuple[Tensor, Start]:
    """Compare an image (S, S) with all training images under a grid: (N,), (N, 3)."""
    turns, scales = torch.cartesian_prod(_DEGREES, _SCALES.log()).T
    seen = _small(orientations(image[None])[:, 0]).repeat_interleave(len(turns), 0)
    grid = torch.zeros(len(seen), 5)
    grid[:, 0], grid[:, 1] = turns.repeat(8), scales.repeat(8)
    moved = torch.fft.rfft2(_sharpened(transformed(seen, grid)))
    size = (_COARSE, _COARSE)
    peaks, where = torch.fft.irfft2(moved[:, None] * spectrum, s=size).flatten(2).max(2)  # (T, N)
    best = peaks.T.topk(_STARTS)
    down, right = (_signed(each) for each in _divided(where.T.gather(1, best.indices)))
    transform = grid[best.indices]
    transform[..., 2], transform[..., 3] = -right / _COARSE, -down / _COARSE
    return best.values[:, 0], Start(best.indices // len(turns), transform)


def _small(images: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(images[:, None], _COARSE)[:, 0]


def _sharpened(images: Tensor) -> Tensor:
    """Return images (P, S, S) without what is smooth, standardised."""
    smooth = functional.avg_pool2d(images[:, None], 7, 1, 3, count_include_pad=False)[:, 0]
    return _standardised(images - smooth)


def _divided(index: Tensor) -> tuple[Tensor, Tensor]:
    return index // _COARSE, index % _COARSE


def _signed(pixels: Tensor) -> Tensor:
    """Return shifts of a cyclic correlation as numbers from minus to plus half a side."""
    return torch.where(pixels > _COARSE // 2, pixels - _COARSE, pixels).float()


def search(images: Tensor, training: Tensor, pairs: Tensor, start: Start) -> Found:
    """Find the best SSIM of pairs (P, 2) over all transforms of the image."""
    parts = [
        _refined(images, training, pairs[rows], start.at(rows))
        for rows in torch.arange(len(pairs)).split(64)
    ]
    return Found(*(torch.cat([getattr(each, name) for each in parts]) for name in Found.__slots__))


def _refined(images: Tensor, training: Tensor, pairs: Tensor, start: Start) -> Found:
    many = len(pairs) * _STARTS
    which = torch.arange(len(pairs)).repeat_interleave(_STARTS)
    seen = orientations(images[pairs[which, 0]])[start.orientation.flatten(), torch.arange(many)]
    wanted = _standardised(training[pairs[which, 1]])
    at, steps = start.transform.flatten(0, 1), _FIRST_STEPS
    best = _scored(seen, wanted, at)
    moves = torch.cat([torch.eye(5), -torch.eye(5)])
    for _ in range(_HALVINGS):
        going = torch.arange(many)
        for _ in range(_MOVES):
            tried = at[going][:, None] + moves * steps
            here = going.repeat_interleave(len(moves))
            scores = _scored(seen[here], wanted[here], tried.flatten(0, 1)).view(-1, len(moves))
            top, index = scores.max(1)
            better = top > best[going]
            moved = tried[torch.arange(len(going)), index][better]
            going = going[better]
            if not len(going):
                break
            at[going], best[going] = moved, top[better]
        steps = steps / 2
    top, index = best.view(-1, _STARTS).max(1)
    rows = torch.arange(len(pairs)) * _STARTS + index
    return Found(top, start.orientation.flatten()[rows], at[rows])


def transformed(images: Tensor, at: Tensor) -> Tensor:
    """Return images (P, S, S) in [0, 1] under transforms (P, 5).

    Those are degrees counter-clockwise, log scale, shift to the right and down as shares of the
    side, log gamma. What comes in is the darkest grey.
    """
    angle, scale, right, down, gamma = at.T
    radians = torch.deg2rad(angle)
    cosine, sine = radians.cos() / scale.exp(), radians.sin() / scale.exp()
    # Where each pixel is read: the inverse of the transform, in units of half the side.
    x, y = -2 * right, -2 * down
    rows = torch.stack(
        [
            torch.stack([cosine, -sine, cosine * x - sine * y], 1),
            torch.stack([sine, cosine, sine * x + cosine * y], 1),
        ],
        1,
    )
    low = images.amin((1, 2), keepdim=True)
    grid = functional.affine_grid(rows, [len(images), 1, *images.shape[1:]], align_corners=False)
    moved = functional.grid_sample((images - low)[:, None], grid, "bilinear", align_corners=False)
    return (moved[:, 0] + low).clamp_min(1e-4) ** gamma.exp()[:, None, None]


def _scored(images: Tensor, wanted: Tensor, at: Tensor) -> Tensor:
    """Return the SSIM of transformed images with standardised training images: (P,)."""
    parts = zip(images.split(_AT_ONCE), wanted.split(_AT_ONCE), at.split(_AT_ONCE), strict=True)
    return torch.cat(
        [ssim(w, _standardised(transformed(i, a)), image_range(w)) for i, w, a in parts]
    )


def _standardised(images: Tensor) -> Tensor:
    mean, spread = images.mean((1, 2), keepdim=True), images.std((1, 2), keepdim=True)
    return (images - mean) / spread.clamp_min(1e-6)


def label(value: float) -> str:
    """Return the label of a pair by its best SSIM."""
    if value > DUPLICATE:
        return "duplicate"
    return "different" if value <= DIFFERENT else "similar"


@torch.inference_mode()
def write_labels(
    images: Tensor,
    names: Sequence[str],
    training: Tensor,
    training_names: Sequence[str],
    out: Path,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Write labelled.csv, and return the best SSIM of each image (M,).

    Of each image it has the nearest training image, the nearest of another subject (a folder), and
    the one that was drawn.
    """
    pairs, how, start = candidates(images, training, seed)
    found = search(images, training, pairs, start)
    values = found.ssim.numpy()
    subject = [str(Path(name).parent) for name in training_names]
    rows, best = [], np.zeros(len(images), np.float32)
    for number in range(len(images)):
        mine = np.flatnonzero(pairs[:, 0].numpy() == number)
        order = mine[np.argsort(-values[mine])]
        whose = [subject[int(pairs[each, 1])] for each in order]
        near = [each for each in order if how[each] == "near"]
        others = [
            e for e, who in zip(order, whose, strict=True) if who != whose[0] and how[e] == "near"
        ]
        drawn = [each for each in order if how[each] == "random"]
        best[number] = values[order[0]]
        kept = {"best": near[:1], "other": others[:1], "random": drawn}
        rows += [(chosen, each) for chosen, some in kept.items() for each in some]
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for chosen, each in rows:
            image, row = pairs[each].tolist()
            angle, scale, right, down, gamma = found.transform[each].tolist()
            told = [f"{v:.4f}" for v in (angle, np.exp(scale), right, down, np.exp(gamma))]
            value = float(values[each])
            names_of = training_names[row], names[image]
            how_found = int(found.orientation[each]), *told
            writer.writerow([*names_of, label(value), f"{value:.4f}", chosen, *how_found])
    return best


def duplicates(labelled: Path) -> set[str]:
    """Return the images of a labelled.csv whose best pair is a duplicate."""
    return {row["synthetic"] for row in _best(labelled) if row["label"] == "duplicate"}


def rate_of(labelled: Path) -> dict[str, Any]:
    """Return how many images of a labelled.csv copy, by their best pair, and how many subjects."""
    best = _best(labelled)
    copies = [row for row in best if row["label"] == "duplicate"]
    labels = Counter(row["label"] for row in best)
    return {
        "samples": len(best),
        "labels": {name: labels[name] for name in LABELS},
        "subjects": len({str(Path(row["training"]).parent) for row in copies}),
        "training_images": len({row["training"] for row in copies}),
    }


def _best(labelled: Path) -> list[dict[str, str]]:
    with labelled.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["chosen"] == "best"]
