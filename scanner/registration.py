"""How a copy was turned, shifted and darkened, and its SSIM with its source once that is undone.

    synthetic, training (P, H, W) standardised -> Registration: a change, and an SSIM, for each pair

The change is what makes the synthetic image of the training image: flips, then a rotation about
the centre, then a shift, then a gamma. It is looked for in images whose local contrast is evened
out, so that gamma matters little while geometry is found:

1. at a quarter of the resolution, every flip and every third degree, all shifts at once as a
   cross-correlation (a product in the frequency domain);
2. the best flips at half the resolution, by Gauss-Newton steps on angle and shift;
3. the best of those at full resolution, likewise (inverse compositional: Baker and Matthews
   2004, doi:10.1023/B:VISI.0000011205.11775.fd);
4. gamma, as what brings the registered pair's correlation highest.

The SSIM is that of `ssim`, of the synthetic image turned back with the training image under that
gamma, over the windows that turning back leaves inside. Both are blurred a little first: to read a
noisy image between its pixels blurs it too, and else a neighbour that is best laid half a pixel
off would be more alike than the source.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deepssim_scan.ssim import image_range, ssim
from deepssim_scan.standardise import Standardisation
from deepssim_scan.transform import (
    blur,
    evened,
    pixel_places,
    places_read,
    read_at,
    restandardise,
    rotation,
)
from deepssim_scan.transform import gamma as raised

FLIPS = ("none", "horizontal", "vertical", "both")
"""The flips, by number: 1 mirrors columns, 2 rows."""

SIDE = 128  # pixels
RULE = Standardisation(size=SIDE)
"""How images are standardised to be registered, whatever the encoder's own rule is."""

MAX_DEGREES, MAX_SHIFT = 15.0, 0.125  # what is searched; shift as a share of the side
_STEP = 3.0  # degrees
_COARSE, _MIDDLE = 4, 2  # pixels that become one
_WINDOWS = {_COARSE: 9, _MIDDLE: 11, 1: 17}  # across which brightness is evened, by resolution
_FLOOR = 1.0  # of the image's variance: below it, noise is not raised to the level of edges
_REFINED = 2  # flips that are refined
_MIDDLE_STEPS, _FULL_STEPS = 6, 3
_MAX_STEP = 0.1  # radians, and shares of half the side, of one Gauss-Newton step
_FARTHEST, _STEEPEST = 0.5, 0.4  # half sides, and radians, from where no step leads away: enough
# of the two images must overlap for their SSIM to mean something
_BLUR = 1.0  # pixels, of both images before their SSIM is computed
_GAMMAS = (9, 1.0), (5, 0.125)  # how many are tried, and how far in logarithm: first, around it
_CHUNK = 16  # pairs worked on at once: what stays in a processor's cache


@dataclass(frozen=True, slots=True)
class Registration:
    """What makes each synthetic image of its training image, and how alike they are then.

    flip (P,) places in FLIPS; degrees (P,) counter-clockwise as the image is seen; shift (P, 2)
    pixels to the right and down; gamma (P,); ssim (P,) once they lie on each other, both blurred by
    a Gaussian of one pixel.
    """

    flip: Tensor
    degrees: Tensor
    shift: Tensor
    gamma: Tensor
    ssim: Tensor


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
    pairs = zip(synthetic.split(_CHUNK), training.split(_CHUNK), strict=True)
    parts = [_register(*pair) for pair in pairs]
    names = Registration.__slots__
    return Registration(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _register(synthetic: Tensor, training: Tensor) -> Registration:
    score, angle, shift = _coarse(_features(synthetic, _COARSE), _features(training, _COARSE))
    flip = score.topk(_REFINED, dim=1).indices
    angle, shift = angle.gather(1, flip), shift.gather(1, flip[..., None].expand(-1, -1, 2))
    flipped = _flipped(_features(synthetic, _MIDDLE), flip).flatten(0, 1)
    same = _features(training, _MIDDLE).repeat_interleave(_REFINED, 0)
    start = angle.flatten(), shift.flatten(0, 1)
    angle, shift, score = _refine(flipped, same, *start, _MIDDLE_STEPS)
    best = score.view(-1, _REFINED).argmax(1, keepdim=True)
    place = best[:, 0] + _REFINED * torch.arange(len(best), device=best.device)
    flip, angle, shift = flip.gather(1, best), angle[place], shift[place]
    flipped = _flipped(_features(synthetic, 1), flip)[:, 0]
    angle, shift, _ = _refine(flipped, _features(training, 1), angle, shift, _FULL_STEPS)
    found = read_at(_flipped(synthetic, flip)[:, 0], angle, shift)
    exponent = _best_gamma(training, found)
    wanted, found = _blurred(raised(training, exponent)), _blurred(found)
    inside = (places_read(angle, shift, training.shape).abs() <= 1).all(-1)
    similarity = ssim(wanted, found, image_range(wanted), inside)
    return _as_change(flip[:, 0], angle, shift, exponent, similarity, synthetic.shape)


def _blurred(images: Tensor) -> Tensor:
    return restandardise(blur(images, images.new_tensor([_BLUR])))


def _as_change(
    flip: Tensor,
    angle: Tensor,
    shift: Tensor,
    exponent: Tensor,
    similarity: Tensor,
    shape: torch.Size,
) -> Registration:
    """Say of how the flipped synthetic image was read what had been done to the training image.

    The training image at x is the synthetic one at F(Rx + s), so the synthetic one at y is the
    training image at F(FRF)^-1 (y - Fs): flipped, turned by FRF, which is R or its inverse, and
    shifted by Fs.
    """
    mirrored = torch.stack([flip & 1, flip >> 1], 1) > 0
    one_axis = mirrored.sum(1) == 1
    half = torch.tensor([shape[2] / 2, shape[1] / 2], device=shift.device)
    return Registration(
        flip,
        torch.rad2deg(torch.where(one_axis, angle, -angle)),
        torch.where(mirrored, -shift, shift) * half,
        exponent,
        similarity,
    )


def _features(images: Tensor, pixels: int) -> Tensor:
    """Shrink images and even out their contrast: (P, H, W) -> (P, H / pixels, W / pixels)."""
    small = functional.avg_pool2d(images, pixels) if pixels > 1 else images
    return evened(small, _WINDOWS[pixels], _FLOOR)


def _flipped(images: Tensor, flips: Tensor) -> Tensor:
    """Flip each image (P, H, W) as each of its flips (P, n) says: (P, n, H, W)."""
    every = torch.stack([images, images.flip(2), images.flip(1), images.flip(1, 2)], 1)
    return every[torch.arange(len(images), device=images.device)[:, None], flips]


def _coarse(synthetic: Tensor, training: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each flip the best angle and shift of a grid, and their correlation.

    (P, h, w) twice -> correlation (P, 4), angle (P, 4), shift (P, 4, 2)
    """
    (height, width), device = training.shape[1:], training.device
    degrees = torch.arange(-MAX_DEGREES, MAX_DEGREES + 1, _STEP, device=device)
    every = torch.arange(len(FLIPS), device=device).expand(len(training), -1)
    turned = _turned(_flipped(synthetic, every), torch.deg2rad(degrees))
    turned = functional.normalize(turned.flatten(3), dim=3).unflatten(3, (height, width))
    spectrum = torch.fft.rfft2(turned) * torch.fft.rfft2(training)[:, None, None].conj()
    correlation = torch.fft.irfft2(spectrum, s=(height, width))
    down, right = math.ceil(MAX_SHIFT * height), math.ceil(MAX_SHIFT * width)
    near = correlation.roll((down, right), (-2, -1))[..., : 2 * down + 1, : 2 * right + 1]
    best, place = near.flatten(3).max(3)
    score, angle = best.max(2)
    place = place.gather(2, angle[..., None])[..., 0]
    across, along = place % (2 * right + 1) - right, place // (2 * right + 1) - down
    shift = torch.stack([across * 2 / width, along * 2 / height], -1)
    # The correlation is with the turned image, whose shift lies along its own axes.
    turn = rotation(torch.deg2rad(degrees))[angle]
    return score, torch.deg2rad(degrees)[angle], (turn @ shift[..., None])[..., 0]


def _turned(images: Tensor, angles: Tensor) -> Tensor:
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

    The training image's derivatives stand for those of the synthetic one, so that they, and the
    normal matrix, are computed once.
    """
    height, width = training.shape[1:]
    down, right = torch.gradient(training, dim=(1, 2))
    right, down = right * (width / 2), down * (height / 2)
    y, x = pixel_places(height, training)[:, None], pixel_places(width, training)
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


def _peak(places: Tensor, values: Tensor) -> Tensor:
    """Return where the parabola through the greatest value and its two neighbours peaks.

    places, values (P, n) -> (P,)
    """
    best = values.argmax(1, keepdim=True).clamp(1, values.shape[1] - 2)
    left, middle, right = (values.gather(1, best + by)[:, 0] for by in (-1, 0, 1))
    bend = (2 * middle - left - right).clamp_min(1e-9)
    step = places[:, 1] - places[:, 0]
    return places.gather(1, best)[:, 0] + step * ((right - left) / (2 * bend)).clamp(-1, 1)
