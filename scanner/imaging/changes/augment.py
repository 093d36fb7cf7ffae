"""Random changes of image batches, on any device: what a copy may show, and what it may not.

Every function takes standardised images (B, H, W) and a `torch.Generator` of their device, draws
anew for each image, and returns images standardised again.

- `augment` is the reference's augmentation (arXiv:2509.16582). The score must be invariant to it.
- `simulate_copy` adds what else a copy may have gone through: a shift, another scale, a slight
  warp, noise, blur, compression, a lower resolution. The score must be invariant to these, too.
- `perturb` changes the content of an image, mildly to strongly, so that training meets the whole
  range of SSIM. The target is computed from what it returns.
- `other_subject` makes the hardest negative: the same slice of another person.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from deepssim_scan.imaging.content import padding_of
from deepssim_scan.imaging.warp import blur, gamma, resample, restandardise, rotation

FLIP_PROBABILITY = ROTATION_PROBABILITY = GAMMA_PROBABILITY = 0.33
MAX_ROTATION = 0.17  # radians
GAMMA = (0.5, 1.5)


@dataclass(frozen=True, slots=True)
class TransformParameters:
    """What was done to each image: its flip, and the pose that undoes the rest.

    flip (B,) is an index into `names.FLIPS`. pose (B, 4) is an angle in radians, a
    shift to the right and down in half sides, and the logarithm of a scale: where `warp.read_at`
    reads the flipped source.
    """

    flip: Tensor
    pose: Tensor


def augment(images: Tensor, generator: Generator) -> Tensor:
    """Flip on either axis, rotate within 0.17 rad, change gamma by 0.5 to 1.5; p 0.33 each."""
    images, _ = _random_flips(images, FLIP_PROBABILITY, generator)
    rotated = _chance(images, ROTATION_PROBABILITY, generator)
    angle = _uniform(images, -MAX_ROTATION, MAX_ROTATION, generator) * rotated
    images = resample(images, rotation(angle))
    return random_gamma(images, GAMMA_PROBABILITY, generator)


def simulate_copy(images: Tensor, generator: Generator) -> tuple[Tensor, TransformParameters]:
    """Make a copy of each image, changed more than by `augment`, and say how it was transformed.

    Flips (p 0.5 each), rotation within 0.26 rad (p 0.5), scale within 15 % (p 0.5), a shift within
    12 % of either side (p 0.5), a smooth warp of up to some 1.5 pixels of 128 (p 0.3). Beyond the
    border its value continues, or is that of the darkest pixel (p 0.5). Then gamma (p 0.5), and one
    of `DEGRADATIONS` (p 0.5).
    """
    images, flip = _random_flips(images, 0.5, generator)
    angle = _uniform(images, -0.26, 0.26, generator) * _chance(images, 0.5, generator)
    growth = _uniform(images, -0.15, 0.15, generator) * _chance(images, 0.5, generator)
    linear = rotation(angle) * growth.exp()[:, None, None]
    reach = _chance(images, 0.5, generator)[:, None] * 0.24
    shift = reach * (2 * torch.rand(len(images), 2, generator=generator, device=images.device) - 1)
    strength = _uniform(images, 0, 0.028, generator) * _chance(images, 0.3, generator)
    field = smooth_field(len(images), 2, 6, images.shape[1:], generator)
    displacement = strength[:, None, None, None] * field + shift[:, :, None, None]
    images = move_content(images, linear, displacement, _chance(images, 0.5, generator))
    images = random_gamma(images, 0.5, generator)
    back = -(torch.linalg.inv(linear) @ shift[:, :, None])[:, :, 0]
    parameters = TransformParameters(flip, torch.cat([-angle[:, None], back, -growth[:, None]], 1))
    return _one_of(DEGRADATIONS, images, generator, share=0.5), parameters


def move_content(
    images: Tensor, linear: Tensor, displacement: Tensor | None, dark: Tensor
) -> Tensor:
    """Read images elsewhere, as `resample` does, but leave bars of padding where they are.

    An oblong image was padded to a square after it was copied. What comes in from beyond its own
    border is the darkest grey where `dark` (B,) is true.
    """
    bars = padding_of(images)
    moved = resample(images, linear, displacement, dark)
    if not bool(bars.any()):
        return moved
    shown = resample(1.0 - bars.float(), linear, displacement, torch.ones_like(dark))
    beyond = (shown < 0.5) & dark[:, None, None]
    moved = torch.where(beyond, images.amin((1, 2))[:, None, None], moved)
    return torch.where(bars, images, moved)


def _random_flips(
    images: Tensor, probability: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Flip each axis of each image with a probability; return the indices in FLIPS as well."""
    flips = torch.zeros(len(images), dtype=torch.long, device=images.device)
    for bit, dim in ((2, 1), (1, 2)):
        flipped = _chance(images, probability, generator)
        images = torch.where(flipped[:, None, None], images.flip(dim), images)
        flips += bit * flipped
    return images, flips


def random_gamma(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Change the gamma of some images, within the reference's range, and standardise all."""
    changed = _chance(images, probability, generator)
    exponent = torch.where(changed, _uniform(images, *GAMMA, generator), 1.0)
    return restandardise(gamma(images, exponent))


def perturb(images: Tensor, generator: Generator) -> Tensor:
    """Change the content of each image by one of `PERTURBATIONS`, mildly to strongly."""
    return _one_of(PERTURBATIONS, images, generator)


def _one_of(changes: "Changes", images: Tensor, generator: Generator, share: float = 1.0) -> Tensor:
    """Make one of the changes to each image, or to each of a random share of them."""
    among = torch.randint(len(changes), (len(images),), generator=generator, device=images.device)
    which = torch.where(_chance(images, share, generator), among, -1)
    changed = images.clone()
    for index, change in enumerate(changes):
        chosen = which == index
        if chosen.any():
            changed[chosen] = change(images[chosen], generator)
    return restandardise(changed)


def other_subject(images: Tensor, generator: Generator) -> Tensor:
    """Deform each image about as much as people differ after alignment, and change its contrast.

    Displacements of some 3 % of the width over a quarter of the image and 1 % over a tenth,
    scale and aspect by 6 %, a smooth shading of 15 %, gamma 0.7 to 1.4.
    """
    stretch = 1 + 0.06 * torch.randn(len(images), 2, generator=generator, device=images.device)
    linear = torch.zeros(len(images), 2, 2, device=images.device)
    linear[:, 0, 0], linear[:, 1, 1] = stretch.unbind(1)
    coarse = smooth_field(len(images), 2, 5, images.shape[1:], generator) * 0.06
    fine = smooth_field(len(images), 2, 11, images.shape[1:], generator) * 0.02
    warped = resample(images, linear, coarse + fine)
    shading = 1 + 0.15 * smooth_field(len(images), 1, 3, images.shape[1:], generator)[:, 0]
    floor = warped.amin((1, 2), keepdim=True)
    exponent = _uniform(images, 0.7, 1.4, generator)
    return restandardise(gamma((warped - floor) * shading, exponent))


def smooth_field(
    count: int, channels: int, knots: int, size: tuple[int, ...], generator: Generator
) -> Tensor:
    """Draw smooth random fields of about unit variance with `knots` knots a side: (B, C, *size)."""
    shape = (count, channels, *[knots] * len(size))
    values = torch.randn(shape, generator=generator, device=generator.device)
    mode = {2: "bicubic", 3: "trilinear"}[len(size)]
    return functional.interpolate(values, size, mode=mode, align_corners=True)


def random_blur(images: Tensor, generator: Generator) -> Tensor:
    return blur(images, _uniform(images, 0.4, 1.5, generator))


def add_noise(images: Tensor, generator: Generator) -> Tensor:
    strength = _uniform(images, -4.0, -1.0, generator).exp()  # 0.02 to 0.37 standard deviations
    return images + strength[:, None, None] * _normal(images, generator)


def _add_much_noise(images: Tensor, generator: Generator) -> Tensor:
    strength = _uniform(images, 0.15, 0.4, generator)  # standard deviations
    return images + strength[:, None, None] * _normal(images, generator)


def _warp(images: Tensor, generator: Generator) -> Tensor:
    strength = _uniform(images, -4.2, -2.6, generator).exp()  # 1 to 5 pixels of 128
    field = smooth_field(len(images), 2, 6, images.shape[1:], generator)
    identity = torch.eye(2, device=images.device).expand(len(images), 2, 2)
    return resample(images, identity, strength[:, None, None, None] * field)


def _blend(images: Tensor, generator: Generator) -> Tensor:
    share = _uniform(images, 0.05, 0.7, generator)[:, None, None]
    return (1 - share) * images + share * images.roll(1, 0)


def _graft(images: Tensor, generator: Generator) -> Tensor:
    """Replace a part of each image by the same part of another, with a soft outline."""
    level = _uniform(images, -1.0, 2.0, generator)[:, None, None]
    outline = smooth_field(len(images), 1, 4, images.shape[1:], generator)[:, 0]
    share = torch.sigmoid(8 * (outline - level))
    return (1 - share) * images + share * images.roll(1, 0)


def compress(images: Tensor, generator: Generator) -> Tensor:
    """Quantise the cosine transform of 8x8 blocks, coarser for higher frequencies, as JPEG does."""
    height, width = (side - side % 8 for side in images.shape[1:])
    basis = _cosine_basis(images)
    tiles = images[:, :height, :width].unflatten(1, (-1, 8)).unflatten(3, (-1, 8))
    frequencies = torch.einsum("ui,bhiwj,vj->bhwuv", basis, tiles, basis)
    order = torch.arange(8, device=images.device)
    coarseness = _uniform(images, -4.5, -2.0, generator).exp()[:, None, None, None, None]
    step = coarseness * (1 + order[:, None] + order)
    restored = torch.einsum("ui,bhwuv,vj->bhiwj", basis, (frequencies / step).round() * step, basis)
    changed = images.clone()
    changed[:, :height, :width] = restored.flatten(3).flatten(1, 2)
    return changed


def _cosine_basis(like: Tensor) -> Tensor:
    """Return the orthonormal DCT-II of length 8: (8 frequencies, 8 positions)."""
    order = torch.arange(8, device=like.device, dtype=like.dtype)
    basis = torch.cos(math.pi / 8 * (order + 0.5) * order[:, None]) / 2
    basis[0] /= math.sqrt(2)
    return basis


def lower_resolution(images: Tensor, generator: Generator) -> Tensor:
    """Shrink the batch to between 45 and 90 % of its size and enlarge it again."""
    factor = 0.45 + 0.45 * torch.rand((), generator=generator, device=images.device).item()
    small = functional.interpolate(
        images[:, None], scale_factor=factor, mode="bilinear", antialias=True
    )
    return functional.interpolate(small, images.shape[1:], mode="bicubic")[:, 0]


Change = Callable[[Tensor, Generator], Tensor]
Changes = tuple[Change, ...]
DEGRADATIONS: Changes = (random_blur, add_noise, _add_much_noise, compress, lower_resolution)
PERTURBATIONS: Changes = (_warp, _blend, _graft)


def _uniform(images: Tensor, low: float, high: float, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(len(images), generator=generator, device=images.device)


def _chance(images: Tensor, probability: float, generator: Generator) -> Tensor:
    return torch.rand(len(images), generator=generator, device=images.device) < probability


def _normal(images: Tensor, generator: Generator) -> Tensor:
    return torch.randn(images.shape, generator=generator, device=images.device)
