"""The coarse look: which candidates of an image are worth a fine registration, and from where.

    sides of images and candidates, pairs of the two -> Coarse: flip, pose, correlation of each pair

At a quarter of the resolution, on images after local contrast normalisation, every flip, every
fifth degree and three scales are tried, with all shifts at once as a cross-correlation (a product
with the shifted training image). Of the flips of all candidates of an image, the best are refined
by Gauss-Newton steps: three more than it has candidates, so that a pair alone has all four refined.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from deepssim_scan.imaging.devices import batches
from deepssim_scan.imaging.names import FLIPS
from deepssim_scan.imaging.registration.pose import Pose, flipped, refine
from deepssim_scan.imaging.registration.sides import Sides
from deepssim_scan.imaging.warp import rotation

MAX_DEGREES, MAX_SHIFT = 15.0, 0.125  # what is searched; shift as a share of the side
_STEP = 5.0  # degrees
_SCALES = (0.9, 1.0, 1.11)  # tried first
_STEPS = 3  # of Gauss and Newton
_MORE = 3  # flips that are refined beyond as many as there are candidates
_CHUNK, _CUDA_CHUNK = 32, 256  # pairs worked on at once


@dataclass(frozen=True, slots=True)
class Coarse:
    """The best flip (P,), an index in FLIPS, and pose (P,) of pairs, and the correlation (P,)."""

    flip: Tensor
    pose: Pose
    correlation: Tensor


def search(synthetic: Sides, training: Sides, pairs: Tensor, image: NDArray[np.int64]) -> Coarse:
    """Look at pairs: (P, 2) are the numbers of a synthetic and of a training side.

    `image` (P,) tells which pairs are of the candidates of one image.
    """
    scores, poses = _grid_search(synthetic, training, pairs)
    chosen = _worth_refining(scores.cpu().numpy(), image)
    for flat in chunks(torch.from_numpy(chosen).to(pairs.device)):
        pair, flip = flat // len(FLIPS), flat % len(FLIPS)
        (moving, fixed), start = pairs[pair].T, poses.at(flat)
        from_image = flipped(synthetic.coarse[moving], flip)
        pose, scores.view(-1)[flat] = refine(from_image, training.coarse[fixed], start, _STEPS)
        poses.put(flat, pose)
    flip = scores.argmax(1)
    every = torch.arange(len(flip), device=flip.device)
    return Coarse(flip, poses.at(flip + len(FLIPS) * every), scores[every, flip])


def chunks(index: Tensor) -> Iterator[Tensor]:
    """Cut the numbers of pairs into as many as are worked on at once."""
    return batches(index, _CHUNK if index.device.type == "cpu" else _CUDA_CHUNK)


def _worth_refining(scores: NDArray[np.float32], image: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which flips of pairs (P, 4), numbered through, are refined."""
    owner = np.repeat(image, len(FLIPS))
    order = np.lexsort((-scores.ravel(), owner))
    ordered = owner[order]
    place = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return np.sort(order[place < np.bincount(image)[ordered] + _MORE])


def _grid_search(synthetic: Sides, training: Sides, pairs: Tensor) -> tuple[Tensor, Pose]:
    """Return the best correlation of each flip of pairs, (P, 4), and the poses (P 4,)."""
    device = pairs.device
    degrees = torch.arange(-MAX_DEGREES, MAX_DEGREES + 1, _STEP, device=device)
    scale = torch.tensor(_SCALES, device=device).repeat_interleave(len(degrees))
    angle = torch.deg2rad(degrees).repeat(len(_SCALES))
    linear = rotation(angle) * scale[:, None, None]
    found = [_best_of_grid(synthetic, training, part, linear) for part in chunks(pairs)]
    scores, best = (torch.cat(each)[: len(pairs)] for each in zip(*found, strict=True))
    shifts = _shifts(training.coarse)
    which, where = best.flatten() // len(shifts), best.flatten() % len(shifts)
    # The correlation is with the image as read, whose shift lies along its own axes.
    shift = (linear[which] @ shifts[where][..., None])[..., 0]
    return scores, Pose(angle[which], scale[which], shift)


def _best_of_grid(
    synthetic: Sides, training: Sides, pairs: Tensor, linear: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the best correlation of each flip, and which of the grid it is: (P, 4) twice."""
    order = pairs[:, 0].argsort(stable=True)
    sides, counts = pairs[order, 0].unique_consecutive(return_counts=True)
    tried = _tried(synthetic.coarse[sides], linear)
    shifted = _shifted(training.coarse[pairs[order, 1]])
    best = []
    for each, theirs in zip(tried, shifted.split(counts.tolist()), strict=True):
        correlation = (theirs.flatten(0, 1) @ each.T).view(len(theirs), -1, len(FLIPS), len(linear))
        best.append(correlation.permute(0, 2, 3, 1).flatten(2).max(2))
    back = order.argsort()
    scores, index = (torch.cat(each)[back] for each in zip(*best, strict=True))
    return scores, index


def _tried(images: Tensor, linear: Tensor) -> Tensor:
    """Read images (S, h, w) under every flip at each of R matrices: (S, 4 R, h w), of norm 1."""
    read = _read_linear(images, linear)
    read = read / read.square().sum((2, 3), keepdim=True).sqrt().clamp_min(1e-12)
    # A mirror image read under a rotation is the image under the opposite one, mirrored.
    opposite = read.unflatten(1, (len(_SCALES), -1)).flip(2).flatten(1, 2)
    return torch.cat([read, opposite.flip(3), opposite.flip(2), read.flip(2, 3)], 1).flatten(2)


def _read_linear(images: Tensor, linear: Tensor) -> Tensor:
    """Read images (P, h, w) at each matrix (R, 2, 2) of their coordinates: (P, R, h, w)."""
    count, height, width = images.shape
    theta = functional.pad(linear, (0, 1))
    grid = functional.affine_grid(theta, [len(linear), 1, height, width], align_corners=False)
    grid = grid.reshape(1, len(linear) * height, width, 2).expand(count, -1, -1, -1)
    read = functional.grid_sample(images[:, None], grid, align_corners=False)
    return read.view(count, len(linear), height, width)


def _reach(side: int) -> int:
    return math.ceil(MAX_SHIFT * side)


def _shifts(training: Tensor) -> Tensor:
    """Return all shifts (S, 2) that are searched, in half sides."""
    y, x = (
        torch.arange(-_reach(side), _reach(side) + 1, device=training.device) * (-2 / side)
        for side in training.shape[1:]
    )
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)


def _shifted(training: Tensor) -> Tensor:
    """Return what all shifts make of training images: (P, h, w) -> (P, S, h w), before of norm 1.

    They are shifted against the sign of the shift; beyond the border is 0.
    """
    height, width = training.shape[1:]
    norm = training.square().sum((1, 2), keepdim=True).sqrt().clamp_min(1e-12)
    down, right = _reach(height), _reach(width)
    padded = functional.pad(training / norm, (right, right, down, down))
    windows = padded.unfold(1, height, 1).unfold(2, width, 1)  # (P, 2 down + 1, 2 right + 1, h, w)
    return windows.flatten(3).flatten(1, 2)
