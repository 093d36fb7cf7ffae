"""Registration: how a synthetic image was transformed, and its SSIM once that is undone.

    synthetic, training (P, H, W) standardised -> Registration: a transform and an SSIM a pair

The transform is what makes the synthetic image of the training image: flips, then a rotation about
the centre, then a shift, then a gamma. It is estimated on images after local contrast
normalisation, on which gamma has little effect:

1. At a quarter of the resolution, every flip and every third degree is tried, with all shifts at
   once as a cross-correlation (a product in the frequency domain).
2. At half the resolution, angle and shift of the best two flips are refined by Gauss-Newton steps.
3. At full resolution, those of the best flip are refined likewise (inverse compositional: Baker and
   Matthews 2004, doi:10.1023/B:VISI.0000011205.11775.fd).
4. Gamma is the exponent at which the registered pair correlates best.

The SSIM is that of `ssim`, between the synthetic image with its transform undone and the training
image under that gamma, over the windows that lie inside both. Both images are blurred a little
first. Reading a noisy image between its pixels blurs it, so that without this a neighbouring slice
half a pixel off would have a higher SSIM than the source.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from deepssim_scan.imaging.devices import BatchRunner
from deepssim_scan.imaging.ssim import image_range, ssim
from deepssim_scan.imaging.warp import (
    blur,
    normalise_local_contrast,
    pixel_centres,
    read_at,
    restandardise,
    rotation,
    sampling_grid,
)
from deepssim_scan.imaging.warp import gamma as raised

FLIPS = ("none", "horizontal", "vertical", "both")
"""The flips, by number: 1 mirrors columns, 2 rows."""

SIDE = 128  # pixels

MAX_DEGREES, MAX_SHIFT = 15.0, 0.125  # what is searched; shift as a share of the side
_STEP = 3.0  # degrees
_COARSE, _MIDDLE = 4, 2  # pixels that become one
_WINDOWS = {_COARSE: 9, _MIDDLE: 11, 1: 17}  # of local contrast normalisation, by resolution
_FLOOR = 1.0  # of the image's variance: below it, noise is not raised to the level of edges
_REFINED = 2  # flips that are refined
_MIDDLE_STEPS, _FULL_STEPS = 6, 3
_MAX_STEP = 0.1  # radians, and shares of half the side, of one Gauss-Newton step
_FARTHEST, _STEEPEST = 0.5, 0.4  # half sides and radians that no step exceeds: enough of the two
# images must overlap for their SSIM to mean something
_BLUR = 1.0  # pixels, of both images before their SSIM is computed
_GAMMAS = (9, 1.0), (5, 0.125)  # how many are tried, and how far in logarithm: first, around it
_CHUNK, _CUDA_CHUNK = 16, 256  # pairs worked on at once: what stays in a processor's cache; a GPU
# is faster the more there are


@dataclass(frozen=True, slots=True)
class Registration:
    """What makes each synthetic image of its training image, and their SSIM with that undone.

    flip (P,) index in FLIPS; degrees (P,) counter-clockwise as the image is seen; shift (P, 2)
    pixels to the right and down; gamma (P,); ssim (P,) of the registered pair, both images blurred
    by a Gaussian of one pixel.
    """

    flip: Tensor
    degrees: Tensor
    shift: Tensor
    gamma: Tensor
    ssim: Tensor

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """The five tensors, in their order."""
        return tuple(getattr(self, name) for name in self.__slots__)

    def cpu(self) -> Self:
        """Return the same on the CPU."""
        return type(self)(*(column.cpu() for column in self.columns))


@torch.inference_mode()
def register(synthetic: Tensor, training: Tensor) -> Registration:
    """Register pairs of standardised images (P, H, W), on their device.

    Finds rotations within 15 degrees and shifts within an eighth of the side. Raises ValueError
    when shapes differ, or sides are no multiple of 4.
    """
    if synthetic.shape != training.shape or synthetic.ndim != 3:
        shapes = tuple(synthetic.shape), tuple(training.shape)
        raise ValueError(f"pairs have one shape (P, H, W), found {shapes}")
    if any(side % _COARSE for side in synthetic.shape[1:]):
        raise ValueError(f"sides must be multiples of {_COARSE}, found {synthetic.shape[1:]}")
    chunk = _CHUNK if synthetic.device.type == "cpu" else _CUDA_CHUNK
    pairs = zip(synthetic.split(chunk), training.split(chunk), strict=True)
    return _joined([_register(*pair) for pair in pairs])


def register_on(runner: BatchRunner, synthetic: Tensor, training: Tensor) -> Registration:
    """Register pairs on a runner's device, as far as it has room; the result is on the CPU."""

    def work(device: str, *pairs: Tensor) -> Registration:
        return register(*(images.to(device) for images in pairs)).cpu()

    return _joined(runner.run(work, synthetic, training))


def _joined(parts: Sequence[Registration]) -> Registration:
    columns = zip(*(part.columns for part in parts), strict=True)
    return Registration(*(torch.cat(column) for column in columns))


def _register(synthetic: Tensor, training: Tensor) -> Registration:
    score, angle, shift = _coarse(_features(synthetic, _COARSE), _features(training, _COARSE))
    flip = score.topk(_REFINED, dim=1).indices
    angle, shift = angle.gather(1, flip), shift.gather(1, flip[..., None].expand(-1, -1, 2))
    flipped = _flipped(_features(synthetic, _MIDDLE), flip).flatten(0, 1)
    same = _features(training, _MIDDLE).repeat_interleave(_REFINED, 0)
    start = angle.flatten(), shift.flatten(0, 1)
    angle, shift, score = _refine(flipped, same, *start, _MIDDLE_STEPS)
    best = score.view(-1, _REFINED).argmax(1, keepdim=True)
    index = best[:, 0] + _REFINED * torch.arange(len(best), device=best.device)
    flip, angle, shift = flip.gather(1, best), angle[index], shift[index]
    flipped = _flipped(_features(synthetic, 1), flip)[:, 0]
    angle, shift, _ = _refine(flipped, _features(training, 1), angle, shift, _FULL_STEPS)
    found = read_at(_flipped(synthetic, flip)[:, 0], angle, shift)
    exponent = _best_gamma(training, found)
    wanted, found = _blurred(raised(training, exponent)), _blurred(found)
    inside = (sampling_grid(angle, shift, training.shape).abs() <= 1).all(-1)
    similarity = ssim(wanted, found, image_range(wanted), inside)
    degrees, pixels = _transform(flip[:, 0], angle, shift, synthetic.shape)
    return Registration(flip[:, 0], degrees, pixels, exponent, similarity)


def _blurred(images: Tensor) -> Tensor:
    return restandardise(blur(images, images.new_tensor([_BLUR])))


def _transform(
    flip: Tensor, angle: Tensor, shift: Tensor, shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """Return the transform of the training image: degrees (P,), and a shift (P, 2) in pixels.

    `angle` and `shift` are where the flipped synthetic image is read. The training image at x is
    the synthetic one at F(Rx + s), so the synthetic one at y is the training image at
    F(FRF)^-1 (y - Fs): flipped, rotated by FRF, which is R or its inverse, and shifted by Fs.
    """
    flipped = torch.stack([flip & 1, flip >> 1], 1) > 0
    one_axis = flipped.sum(1) == 1
    half = torch.tensor([shape[2] / 2, shape[1] / 2], device=shift.device)
    degrees = torch.rad2deg(torch.where(one_axis, angle, -angle))
    return degrees, torch.where(flipped, -shift, shift) * half


def _features(images: Tensor, pixels: int) -> Tensor:
    """Shrink images and normalise local contrast: (P, H, W) -> (P, H / pixels, W / pixels)."""
    small = functional.avg_pool2d(images, pixels) if pixels > 1 else images
    return normalise_local_contrast(small, _WINDOWS[pixels], _FLOOR)


def _flipped(images: Tensor, flips: Tensor) -> Tensor:
    """Flip each image (P, H, W) as each of its flips (P, n) says: (P, n, H, W)."""
    every = torch.stack([images, images.flip(2), images.flip(1), images.flip(1, 2)], 1)
    return every[torch.arange(len(images), device=images.device)[:, None], flips]


def _coarse(synthetic: Tensor, training: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each flip the best angle and shift of a grid, and their correlation.

    (P, h, w) twice -> correlation (P, 4), angle (P, 4), shift (P, 4, 2)
    """
    (height, width), device = training.shape[1:], training.device
    degrees = torch.arange(-MAX_DEGREES, MAX_DEGREES + 1, _STEP, device=device)
    every = torch.arange(len(FLIPS), device=device).expand(len(training), -1)
    rotated = _rotated(_flipped(synthetic, every), torch.deg2rad(degrees))
    rotated = functional.normalize(rotated.flatten(3), dim=3).unflatten(3, (height, width))
    spectrum = torch.fft.rfft2(rotated) * torch.fft.rfft2(training)[:, None, None].conj()
    correlation = torch.fft.irfft2(spectrum, s=(height, width))
    down, right = math.ceil(MAX_SHIFT * height), math.ceil(MAX_SHIFT * width)
    near = correlation.roll((down, right), (-2, -1))[..., : 2 * down + 1, : 2 * right + 1]
    best, index = near.flatten(3).max(3)
    score, angle = best.max(2)
    index = index.gather(2, angle[..., None])[..., 0]
    across, along = index % (2 * right + 1) - right, index // (2 * right + 1) - down
    shift = torch.stack([across * 2 / width, along * 2 / height], -1)
    # The correlation is with the rotated image, whose shift lies along its own axes.
    linear = rotation(torch.deg2rad(degrees))[angle]
    return score, torch.deg2rad(degrees)[angle], (linear @ shift[..., None])[..., 0]


def _rotated(images: Tensor, angles: Tensor) -> Tensor:
    """Read images (P, n, h, w) at each angle (R,): (P, n, R, h, w), zero beyond the border."""
    count, flips, height, width = images.shape
    theta = functional.pad(rotation(angles), (0, 1))
    grid = functional.affine_grid(theta, [len(angles), 1, height, width], align_corners=False)
    grid = grid.reshape(1, len(angles) * height, width, 2).expand(count, -1, -1, -1)
    read = functional.grid_sample(images, grid, align_corners=False)
    return read.view(count, flips, len(angles), height, width)


def _refine(
    synthetic: Tensor, training: Tensor, angle: Tensor, shift: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Improve angle (P,) and shift (P, 2), and return them with the correlation (P,).

    The derivatives of the training image are used in place of the synthetic one's, so that they
    and the normal matrix are computed once.
    """
    height, width = training.shape[1:]
    down, right = torch.gradient(training, dim=(1, 2))
    right, down = right * (width / 2), down * (height / 2)
    y, x = pixel_centres(height, training)[:, None], pixel_centres(width, training)
    slopes = torch.stack([down * x - right * y, right, down], 1).flatten(2)
    ridge = 1e-3 * torch.eye(3, device=training.device)
    solve = torch.linalg.inv(slopes @ slopes.mT + ridge) @ slopes
    wanted = training.flatten(1)
    for _ in range(steps):
        read = read_at(synthetic, angle, shift).flatten(1)
        gain = (read * wanted).sum(1) / read.square().sum(1).clamp_min(1e-6)
        step = (solve @ (gain[:, None] * read - wanted)[..., None])[..., 0]
        step = step.clamp(-_MAX_STEP, _MAX_STEP)
        back = -(rotation(-step[:, 0]) @ step[:, 1:, None])
        shift = shift + (rotation(angle) @ back)[..., 0]
        shift = shift.clamp(-_FARTHEST, _FARTHEST)
        angle = (angle - step[:, 0]).clamp(-_STEEPEST, _STEEPEST)
    read = read_at(synthetic, angle, shift).flatten(1)
    return angle, shift, functional.cosine_similarity(read, wanted)


def _best_gamma(training: Tensor, found: Tensor) -> Tensor:
    """Return the exponents (P,) that bring `training` closest to `found`, by correlation."""
    small, wanted = (each[:, ::2, ::2].flatten(1) for each in (training, found))
    low, high = training.amin((1, 2))[:, None], training.amax((1, 2))[:, None]
    logarithm = ((small - low) / (high - low).clamp_min(1e-6)).clamp_min(1e-4).log()
    wanted = functional.normalize(wanted - wanted.mean(1, keepdim=True))
    centre = logarithm.new_zeros(len(found))
    for count, reach in _GAMMAS:
        tried = centre[:, None] + torch.linspace(-reach, reach, count, device=centre.device)
        curves = (logarithm[:, None] * tried.exp()[..., None]).exp()
        curves = curves - curves.mean(2, keepdim=True)
        fit = (curves @ wanted[..., None])[..., 0] / curves.norm(dim=2).clamp_min(1e-6)
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
