"""Two volumes laid on each other: what rigid motion lies between them, and how alike they are then.

synthetic and training slices (S, H, W), how they are flipped, whether in reverse order -> Aligned

Slices of a copied volume are found one by one, each with its own motion. That they copy a volume is
confirmed where one rigid motion of all of it brings the two together. It is found by gradient
descent on the normalised correlation, at 24 and then at 48 points a side.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deepssim_scan.imaging.ssim import ssim

_SIDES = 24, 48
_STEPS, _RATE = 60, 0.02
_RANGE = 4.65  # of standardised volumes, as in `similarity`


@dataclass(frozen=True, slots=True)
class Aligned:
    """A rigid motion, and what is measured after it.

    degrees about the axes across columns, rows and slices; shift as shares of the sides in the same
    order; scale; ncc, the normalised correlation; ssim, the mean SSIM of all slices.
    """

    degrees: tuple[float, float, float]
    shift: tuple[float, float, float]
    scale: float
    ncc: float
    ssim: float


def align(synthetic: Tensor, training: Tensor, flip: int, *, reverse: bool) -> Aligned:
    """Align two volumes of any number of slices; `flip` is an index in `names.FLIPS`."""
    synthetic = synthetic.flip([d for bit, d in ((1, 2), (2, 1)) if flip & bit])
    moving = synthetic.flip(0) if reverse else synthetic
    at = torch.zeros(7, requires_grad=True)
    for side in _SIDES:
        pair = [_standardised(_resized(each, side)) for each in (moving, training)]
        optimizer = torch.optim.Adam([at], _RATE)
        for _ in range(_STEPS):
            optimizer.zero_grad()
            loss = -_correlation(_moved(pair[0], at), pair[1])
            loss.backward()
            optimizer.step()
    motion = at.detach()
    found = _standardised(_moved(pair[0], motion))
    angles, shift = torch.rad2deg(motion[:3]).tolist(), (motion[3:6] / 2).tolist()
    ncc, alike = _correlation(found, pair[1]), ssim(found, pair[1], _RANGE).mean()
    return Aligned((*angles,), (*shift,), float(motion[6].exp()), float(ncc), float(alike))


def _resized(volume: Tensor, side: int) -> Tensor:
    return functional.interpolate(
        volume[None, None].float(), (side,) * 3, mode="trilinear", align_corners=False
    )[0, 0]


def _standardised(volume: Tensor) -> Tensor:
    return (volume - volume.mean()) / volume.std().clamp_min(1e-6)


def _moved(volume: Tensor, at: Tensor) -> Tensor:
    """Read a volume (S, H, W) where a motion (7,) says: angles, shifts, logarithm of the scale."""
    (a, b, c), shift, scale = at[:3], at[3:6], at[6].exp()
    one, zero = torch.ones(()), torch.zeros(())
    about = (
        [one, zero, zero, zero, a.cos(), -a.sin(), zero, a.sin(), a.cos()],
        [b.cos(), zero, b.sin(), zero, one, zero, -b.sin(), zero, b.cos()],
        [c.cos(), -c.sin(), zero, c.sin(), c.cos(), zero, zero, zero, one],
    )
    first, second, third = (torch.stack(row).view(3, 3) for row in about)
    theta = torch.cat([scale * (first @ second @ third), shift[:, None]], 1)
    grid = functional.affine_grid(theta[None], [1, 1, *volume.shape], align_corners=False)
    return functional.grid_sample(
        volume[None, None], grid, padding_mode="border", align_corners=False
    )[0, 0]


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    first, second = first - first.mean(), second - second.mean()
    return functional.cosine_similarity(first.flatten(), second.flatten(), 0)
