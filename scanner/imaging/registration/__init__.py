"""Registration: how a synthetic image was transformed, and the pair with that undone.

    synthetic, training sides (P, ...), where they begin -> Registered: a transform, aligned pairs

The transform is what makes the synthetic image of the training image: flips, then a scale and a
rotation about the centre, then a shift, then a gamma. It is estimated on images after local
contrast normalisation, on which gamma has little effect:

1. At a quarter of the resolution, `coarse` finds a flip, and a pose to begin with.
2. At half the resolution, the pose is refined (inverse compositional: Baker and Matthews 2004,
   doi:10.1023/B:VISI.0000011205.11775.fd).
3. Gamma is the exponent at which the registered pair correlates best.

Half the resolution is enough: what is compared afterwards is blurred by one pixel of 128 or more.
Rotations within 15 degrees, scales within 15 % and shifts within an eighth of the side are found.
Quarter turns and inverted greys are not searched here. The test-time view in which a candidate was
found says which one it is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deepssim_scan.imaging.registration.pose import Pose, flipped, refine
from deepssim_scan.imaging.registration.sides import FINE, Sides
from deepssim_scan.imaging.warp import gamma as raised
from deepssim_scan.imaging.warp import read_at, read_grid, sampling_grid

_STEPS = 6  # of Gauss and Newton
_GAMMAS = (9, 1.0), (5, 0.125)  # how many are tried, and how far in logarithm: first, around it


@dataclass(frozen=True, slots=True)
class Registered:
    """What makes each synthetic image of its training image, and both with that undone.

    flip (P,) index in FLIPS; degrees (P,) counter-clockwise as the image is seen; scale (P,);
    shift (P, 2) pixels to the right and down; gamma (P,). The images are half as large:
    synthetic (P, H / 2, W / 2) is the synthetic image with the geometry undone, training the
    training image under the gamma, and inside (bool) is where both show something.
    """

    flip: Tensor
    degrees: Tensor
    scale: Tensor
    shift: Tensor
    gamma: Tensor
    synthetic: Tensor
    training: Tensor
    inside: Tensor


def register(synthetic: Sides, training: Sides, flip: Tensor, pose: Pose) -> Registered:
    """Register pairs from a flip (P,), an index in FLIPS, and a pose (P,) on."""
    pose, _ = refine(flipped(synthetic.features, flip), training.features, pose, _STEPS)
    grid = sampling_grid(pose.angle, pose.shift, training.images.shape, pose.scale)
    frame = (grid.abs() <= 1).all(-1)
    every = torch.stack([synthetic.images, synthetic.weight, synthetic.shown], 1)
    found, weight, shown = read_grid(flipped(every, flip), grid).unbind(1)
    counted, inside = (
        frame & (one > 0.99) & (other > 0)
        for one, other in ((weight, training.weight), (shown, training.shown))
    )
    exponent = _best_gamma(training.images, found, counted)
    transform = _transform(flip, pose, training.images.shape)
    return Registered(flip, *transform, exponent, found, raised(training.images, exponent), inside)


def undone(images: Tensor, flip: Tensor, degrees: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Undo the geometry of transforms (P,), as in `Registered`, of synthetic images (P, H, W).

    Beyond the border its value continues.
    """
    mirrored, one_axis = _mirrored(flip)
    angle = torch.deg2rad(torch.where(one_axis, degrees, -degrees))
    half = torch.tensor([images.shape[2], images.shape[1]], device=flip.device) / 2
    return read_at(flipped(images, flip), angle, torch.where(mirrored, -shift, shift) / half, scale)


def _transform(flip: Tensor, pose: Pose, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """Return the transform of the training image: degrees and scale (P,), shift (P, 2) in pixels.

    The pose is where the flipped synthetic image is read. The training image at x is the synthetic
    one at F(Ax + s), so the synthetic one at y is the training image at F(FAF)^-1 (y - Fs):
    flipped, then scaled and rotated by FAF, and shifted by Fs.
    """
    mirrored, one_axis = _mirrored(flip)
    half = torch.tensor([shape[2], shape[1]], device=flip.device) * (FINE / 2)
    degrees = torch.rad2deg(torch.where(one_axis, pose.angle, -pose.angle))
    return degrees, pose.scale, torch.where(mirrored, -pose.shift, pose.shift) * half


def _mirrored(flip: Tensor) -> tuple[Tensor, Tensor]:
    """Tell which axes flips (P,) mirror, (P, 2), and whether that is one of the two, (P,)."""
    axes = torch.stack([flip & 1, flip >> 1], 1) > 0
    return axes, axes.sum(1) == 1


def _best_gamma(training: Tensor, found: Tensor, counted: Tensor) -> Tensor:
    """Return the exponents (P,) that bring `training` closest to `found`, by correlation."""
    weight = counted.flatten(1).float()
    low, high = training.amin((1, 2))[:, None], training.amax((1, 2))[:, None]
    logarithm = ((training.flatten(1) - low) / (high - low).clamp_min(1e-6)).clamp_min(1e-4).log()
    total = weight.sum(1, keepdim=True).clamp_min(1)
    wanted = found.flatten(1)
    wanted = weight * (wanted - (weight * wanted).sum(1, keepdim=True) / total)
    centre = logarithm.new_zeros(len(found))
    for count, reach in _GAMMAS:
        tried = centre[:, None] + torch.linspace(-reach, reach, count, device=centre.device)
        curves = (logarithm[:, None] * tried.exp()[..., None]).exp() * weight[:, None]
        variance = curves.square().sum(2) - curves.sum(2).square() / total
        fit = (curves @ wanted[..., None])[..., 0] / variance.clamp_min(1e-6).sqrt()
        centre = _peak(tried, fit)
    return centre.exp()


def _peak(positions: Tensor, values: Tensor) -> Tensor:
    """Return the peak of the parabola through the greatest value and its two neighbours.

    positions, values (P, n) -> (P,)
    """
    best = values.argmax(1, keepdim=True).clamp(1, values.shape[1] - 2)
    left, middle, right = (values.gather(1, best + by)[:, 0] for by in (-1, 0, 1))
    bend = (2 * middle - left - right).clamp_min(1e-9)
    step = positions[:, 1] - positions[:, 0]
    return positions.gather(1, best)[:, 0] + step * ((right - left) / (2 * bend)).clamp(-1, 1)
