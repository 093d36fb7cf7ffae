"""Registration: how a synthetic image was transformed, and the pair with that undone.

    synthetic, training (P, H, W) standardised -> Registered: a transform, and aligned pairs

The transform is what makes the synthetic image of the training image: flips, then a scale and a
rotation about the centre, then a shift, then a gamma. It is estimated on images after local
contrast normalisation, on which gamma has little effect:

1. At a quarter of the resolution, every flip, every fifth degree and three scales are tried, with
   all shifts at once as a cross-correlation (a product with the shifted training image). The best
   of each flip is refined by Gauss-Newton steps.
2. At half the resolution, the best flip is refined likewise (inverse compositional: Baker and
   Matthews 2004, doi:10.1023/B:VISI.0000011205.11775.fd).
3. Gamma is the exponent at which the registered pair correlates best.

Half the resolution is enough: what is compared afterwards is blurred by one pixel of 128 or more.
Quarter turns and inverted greys are not searched here. The test-time view in which a candidate was
found says which one it is.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deepssim_scan.imaging.content import apart_from, dark_margin, is_dark, is_flat, padding_of
from deepssim_scan.imaging.warp import gamma as raised
from deepssim_scan.imaging.warp import (
    normalise_local_contrast,
    pixel_centres,
    read_at,
    read_grid,
    rotation,
    sampling_grid,
)

FLIPS = ("none", "horizontal", "vertical", "both")
"""The flips, by number: 1 mirrors columns, 2 rows."""

SIDE = 128  # pixels

MAX_DEGREES, MAX_SHIFT = 15.0, 0.125  # what is searched; shift as a share of the side
_STEP = 5.0  # degrees
_SCALES = (0.9, 1.0, 1.11)  # tried first
_COARSE, _FINE = 4, 2  # pixels that become one
_WINDOW = 11  # of local contrast normalisation
_BACKGROUND = 0.1  # of the pixels: with so many dark ones, an image does not fill its frame
_FLOOR = 1.0  # of the image's variance: below it, noise is not raised to the level of edges
_STEPS = {_COARSE: 3, _FINE: 6}  # of Gauss and Newton, by resolution
_MAX_STEP = 0.1  # radians, logarithms of scale, and shares of half the side, of one step
_FARTHEST, _STEEPEST = 0.5, 0.4  # half sides and radians that no step exceeds: enough of the two
# images must overlap for their similarity to mean something
_LARGEST = 0.25  # logarithm of the scale that no step exceeds
_GAMMAS = (9, 1.0), (5, 0.125)  # how many are tried, and how far in logarithm: first, around it


@dataclass(frozen=True, slots=True)
class Pose:
    """Where images are read: Ax + s, where A rotates by angle (P,) radians and grows by scale (P,).

    shift (P, 2) is to the right and down, in half sides.
    """

    angle: Tensor
    scale: Tensor
    shift: Tensor

    def at(self, index: Tensor) -> "Pose":
        """Return the poses with an index."""
        return Pose(self.angle[index], self.scale[index], self.shift[index])


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


def register(synthetic: Tensor, training: Tensor) -> Registered:
    """Register pairs of standardised images (P, H, W), on their device.

    Finds rotations within 15 degrees, scales within 15 % and shifts within an eighth of the side.
    Raises ValueError when shapes differ, or sides are no multiple of 4.
    """
    check_pairs(synthetic, training)
    size = synthetic.shape
    synthetic, training = (functional.avg_pool2d(each, _FINE) for each in (synthetic, training))
    weights = _weights(synthetic, training)
    features = [_features(*each) for each in zip((synthetic, training), weights, strict=True)]
    flip, pose = _coarse(*(functional.avg_pool2d(each, _COARSE // _FINE) for each in features))
    pose, _ = _refine(_flipped(features[0], flip), features[1], pose, _FINE)
    grid = sampling_grid(pose.angle, pose.shift, training.shape, pose.scale)
    frame = (grid.abs() <= 1).all(-1)
    sides = _flipped(torch.stack([synthetic, weights[0], _shown(synthetic)], 1), flip)
    found, weight, shown = read_grid(sides, grid).unbind(1)
    counted, inside = (
        frame & (one > 0.99) & (other > 0)
        for one, other in ((weight, weights[1]), (shown, _shown(training)))
    )
    exponent = _best_gamma(training, found, counted)
    transform = _transform(flip, pose, size)
    return Registered(flip, *transform, exponent, found, raised(training, exponent), inside)


def check_pairs(synthetic: Tensor, training: Tensor) -> None:
    """Raise ValueError when images are no pairs, or their sides are no multiple of 4."""
    if synthetic.shape != training.shape or synthetic.ndim != 3:
        shapes = tuple(synthetic.shape), tuple(training.shape)
        raise ValueError(f"pairs have one shape (P, H, W), found {shapes}")
    if any(side % _COARSE for side in synthetic.shape[1:]):
        raise ValueError(f"sides must be multiples of {_COARSE}, found {synthetic.shape[1:]}")


def _transform(flip: Tensor, pose: Pose, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """Return the transform of the training image: degrees and scale (P,), shift (P, 2) in pixels.

    The pose is where the flipped synthetic image is read. The training image at x is the synthetic
    one at F(Ax + s), so the synthetic one at y is the training image at F(FAF)^-1 (y - Fs):
    flipped, then scaled and rotated by FAF, and shifted by Fs.
    """
    flipped = torch.stack([flip & 1, flip >> 1], 1) > 0
    one_axis = flipped.sum(1) == 1
    half = torch.tensor([shape[2] / 2, shape[1] / 2], device=flip.device)
    degrees = torch.rad2deg(torch.where(one_axis, pose.angle, -pose.angle))
    return degrees, pose.scale, torch.where(flipped, -pose.shift, pose.shift) * half


def _shown(images: Tensor) -> Tensor:
    """Return 1 where registered images are compared: where something is shown, (P, h, w)."""
    return apart_from(is_dark(images) | is_flat(images) | padding_of(images))


def _weights(synthetic: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """Return which pixels of either side count when poses are estimated: (P, h, w) twice.

    Bars of padding do not count: they do not move with what an image shows. Nor does as much of
    opposite black bars as can be padding, nor fill, black corners for instance, where the training
    image fills its frame. Where it has a background, the outline of what it shows is what tells
    poses best, and the background counts on both sides: a noisy copy's is not flat.
    """
    padding = [padding_of(each) | dark_margin(each) for each in (synthetic, training)]
    shown = (~padding[1]).sum((1, 2))
    dark = (is_dark(training) & ~padding[1]).sum((1, 2))
    framed = (dark < _BACKGROUND * shown)[:, None, None]
    masks = [
        bars | (framed & (is_flat(each) | is_dark(each)))
        for bars, each in zip(padding, (synthetic, training), strict=True)
    ]
    weights = [apart_from(mask) for mask in masks]
    return weights[0], weights[1]


def _features(images: Tensor, content: Tensor) -> Tensor:
    """Normalise the local contrast of what images show: (P, h, w)."""
    return normalise_local_contrast(images, _WINDOW, _FLOOR, content)


def _every_flip(images: Tensor) -> Tensor:
    """Return each image (P, H, W) under every flip: (P, 4, H, W)."""
    return torch.stack([images, images.flip(2), images.flip(1), images.flip(1, 2)], 1)


def _flipped(images: Tensor, flip: Tensor) -> Tensor:
    """Flip each image (P, ..., H, W) as its flip (P,) says."""
    one = (-1, *[1] * (images.ndim - 1))
    columns, rows = ((flip & bit > 0).view(one) for bit in (1, 2))
    images = torch.where(columns, images.flip(-1), images)
    return torch.where(rows, images.flip(-2), images)


def _coarse(synthetic: Tensor, training: Tensor) -> tuple[Tensor, Pose]:
    """Return the best flip (P,) of each pair, and its pose: (P, h, w) twice."""
    pose = _grid_search(synthetic, training)
    same = training.repeat_interleave(len(FLIPS), 0)
    pose, score = _refine(_every_flip(synthetic).flatten(0, 1), same, pose, _COARSE)
    flip = score.view(-1, len(FLIPS)).argmax(1)
    return flip, pose.at(flip + len(FLIPS) * torch.arange(len(flip), device=flip.device))


def _grid_search(synthetic: Tensor, training: Tensor) -> Pose:
    """Return the best pose of a grid for each flip: (P, h, w) twice -> poses (P 4,)."""
    device = training.device
    degrees = torch.arange(-MAX_DEGREES, MAX_DEGREES + 1, _STEP, device=device)
    scale = torch.tensor(_SCALES, device=device).repeat_interleave(len(degrees))
    angle = torch.deg2rad(degrees).repeat(len(_SCALES))
    linear = rotation(angle) * scale[:, None, None]
    read = _read_linear(synthetic, linear)
    read = read / read.square().sum((2, 3), keepdim=True).sqrt().clamp_min(1e-12)
    # A mirror image read under a rotation is the image under the opposite one, mirrored.
    opposite = read.unflatten(1, (len(_SCALES), -1)).flip(2).flatten(1, 2)
    every = [read, opposite.flip(3), opposite.flip(2), read.flip(2, 3)]
    tried = torch.stack(every, 1).flatten(1, 2).flatten(2)
    shifts, shifted = _shifted(training)
    correlation = (tried @ shifted).view(len(training) * len(FLIPS), -1)
    best = correlation.argmax(1)
    which, where = best // len(shifts), best % len(shifts)
    # The correlation is with the image as read, whose shift lies along its own axes.
    shift = (linear[which] @ shifts[where][..., None])[..., 0]
    return Pose(angle[which], scale[which], shift)


def _shifted(training: Tensor) -> tuple[Tensor, Tensor]:
    """Return all shifts (S, 2) that are searched, in half sides, and what each makes of an image.

    (P, h, w) -> (P, h w, S): the image shifted against the sign of the shift, 0 beyond the border.
    """
    height, width = training.shape[1:]
    down, right = math.ceil(MAX_SHIFT * height), math.ceil(MAX_SHIFT * width)
    padded = functional.pad(training, (right, right, down, down))
    windows = padded.unfold(1, height, 1).unfold(2, width, 1)  # (P, 2 down + 1, 2 right + 1, h, w)
    y, x = (torch.arange(-n, n + 1, device=training.device) for n in (down, right))
    shifts = torch.stack(torch.meshgrid(-x * 2 / width, -y * 2 / height, indexing="xy"), -1)
    return shifts.flatten(0, 1), windows.flatten(3).flatten(1, 2).mT


def _read_linear(images: Tensor, linear: Tensor) -> Tensor:
    """Read images (P, h, w) at each matrix (R, 2, 2) of their coordinates: (P, R, h, w)."""
    count, height, width = images.shape
    theta = functional.pad(linear, (0, 1))
    grid = functional.affine_grid(theta, [len(linear), 1, height, width], align_corners=False)
    grid = grid.reshape(1, len(linear) * height, width, 2).expand(count, -1, -1, -1)
    read = functional.grid_sample(images[:, None], grid, align_corners=False)
    return read.view(count, len(linear), height, width)


def _refine(synthetic: Tensor, training: Tensor, pose: Pose, pixels: int) -> tuple[Pose, Tensor]:
    """Improve poses (P,) by Gauss-Newton steps, and return them with the correlation (P,).

    The derivatives of the training image are used in place of the synthetic one's, so that they
    and the normal matrix are computed once.
    """
    solve, wanted = _gauss_newton(training), training.flatten(1)
    for _ in range(_STEPS[pixels]):
        read = read_at(synthetic, pose.angle, pose.shift, pose.scale).flatten(1)
        gain = (read * wanted).sum(1) / read.square().sum(1).clamp_min(1e-6)
        step = (solve @ (gain[:, None] * read - wanted)[..., None])[..., 0]
        pose = _moved(pose, step.clamp(-_MAX_STEP, _MAX_STEP))
    read = read_at(synthetic, pose.angle, pose.shift, pose.scale).flatten(1)
    return pose, functional.cosine_similarity(read, wanted)


def _gauss_newton(training: Tensor) -> Tensor:
    """Return what turns a difference into a step: (P, 4, H W), for angle, scale and shift."""
    height, width = training.shape[1:]
    down, right = torch.gradient(training, dim=(1, 2))
    right, down = right * (width / 2), down * (height / 2)
    y, x = pixel_centres(height, training)[:, None], pixel_centres(width, training)
    slopes = [down * x - right * y, right * x + down * y, right, down]
    stacked = torch.stack(slopes, 1).flatten(2)
    ridge = 1e-3 * torch.eye(len(slopes), device=training.device)
    solve: Tensor = torch.linalg.inv(stacked @ stacked.mT + ridge) @ stacked
    return solve


def _moved(pose: Pose, step: Tensor) -> Pose:
    """Compose poses with the inverse of a step (P, 4)."""
    shrink = (-step[:, 1]).exp()
    back = -shrink[:, None, None] * (rotation(-step[:, 0]) @ step[:, 2:, None])
    linear = rotation(pose.angle) * pose.scale[:, None, None]
    limit = math.exp(_LARGEST)
    return Pose(
        (pose.angle - step[:, 0]).clamp(-_STEEPEST, _STEEPEST),
        (pose.scale * shrink).clamp(1 / limit, limit),
        (pose.shift + (linear @ back)[..., 0]).clamp(-_FARTHEST, _FARTHEST),
    )


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
