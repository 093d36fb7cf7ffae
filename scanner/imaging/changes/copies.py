"""Planted copies: training images changed at random, in every way that is looked for.

    standardised images (B, H, W), a kind each -> changed images

Calibration and canaries plant them: what is found of them says what would be found of real copies.
"""

import torch
from torch import Generator, Tensor

from deepssim_scan.imaging.changes import augment
from deepssim_scan.imaging.names import KINDS
from deepssim_scan.imaging.warp import resample, restandardise, rotation

_DEGREES, _GROWTH, _SHIFT = 15.0, 0.15, 0.12  # at most; the shift is a share of the side
_WARP = 0.022  # half sides, root mean square: some 1.5 pixels of 128


def _identity(images: Tensor, generator: Generator) -> Tensor:
    return images


def _flip(images: Tensor, generator: Generator) -> Tensor:
    both = torch.stack([images.flip(2), images.flip(1), images.flip(1, 2)], 1)
    return both[torch.arange(len(images)), _drawn(images, 3, generator)]


def _quarter_turn(images: Tensor, generator: Generator) -> Tensor:
    turned = torch.stack([torch.rot90(images, turns, (1, 2)) for turns in (1, 3)], 1)
    return turned[torch.arange(len(images)), _drawn(images, 2, generator)]


def _inverted(images: Tensor, generator: Generator) -> Tensor:
    return -images


def _rotation(images: Tensor, generator: Generator) -> Tensor:
    reach = torch.pi / 180 * _DEGREES
    return _moved(images, rotation(_uniform(images, -reach, reach, generator)), generator)


def _scale(images: Tensor, generator: Generator) -> Tensor:
    scale = _uniform(images, -_GROWTH, _GROWTH, generator).exp()
    identity = torch.eye(2, device=images.device)
    return _moved(images, scale[:, None, None] * identity, generator)


def _shift(images: Tensor, generator: Generator) -> Tensor:
    by = [2 * _uniform(images, -_SHIFT, _SHIFT, generator) for _ in range(2)]
    displacement = torch.stack(by, 1)[:, :, None, None].expand(-1, -1, *images.shape[1:])
    identity = torch.eye(2, device=images.device).expand(len(images), 2, 2)
    return _moved(images, identity, generator, displacement)


def _warp(images: Tensor, generator: Generator) -> Tensor:
    field = augment.smooth_field(len(images), 2, 6, images.shape[1:], generator)
    strength = _WARP / field.square().mean((1, 2, 3), keepdim=True).sqrt()
    identity = torch.eye(2, device=images.device).expand(len(images), 2, 2)
    amount = _uniform(images, 0.0, 1.0, generator)[:, None, None, None]
    return resample(images, identity, amount * strength * field)


def _moved(
    images: Tensor, linear: Tensor, generator: Generator, displacement: Tensor | None = None
) -> Tensor:
    """Read images elsewhere; what comes in continues the border, or is dark."""
    dark = _drawn(images, 2, generator) == 1
    return augment.move_content(images, linear, displacement, dark)


def _gamma(images: Tensor, generator: Generator) -> Tensor:
    return augment.random_gamma(images, 1.0, generator)


def _mixed(images: Tensor, generator: Generator) -> Tensor:
    """Change images in several ways at once."""
    images = augment.simulate_copy(images, generator)[0]
    return torch.where(_drawn(images, 4, generator)[:, None, None] == 0, -images, images)


_CHANGES: tuple[augment.Change, ...] = (
    _identity,
    _flip,
    _quarter_turn,
    _rotation,
    _scale,
    _shift,
    _inverted,
    _gamma,
    augment.add_noise,
    augment.random_blur,
    augment.compress,
    augment.lower_resolution,
    _warp,
    _mixed,
)
COPIES = dict(zip(KINDS, _CHANGES, strict=True))
"""The kinds of copy by name: each changes all images of a batch, at random."""


def plant(images: Tensor, kinds: Tensor, generator: Generator) -> list[Tensor]:
    """Change each image (B, H, W) in the way of its kind (B,), an index in KINDS: B images.

    A quarter turn of an oblong image has its sides exchanged.
    """
    planted: list[Tensor] = list(images)
    for kind, name in enumerate(KINDS):
        chosen = (kinds == kind).nonzero()[:, 0]
        if len(chosen):
            changed = restandardise(COPIES[name](images[chosen], generator))
            for index, image in zip(chosen.tolist(), changed, strict=True):
                planted[index] = image
    return planted


def _drawn(images: Tensor, below: int, generator: Generator) -> Tensor:
    return torch.randint(below, (len(images),), generator=generator, device=images.device)


def _uniform(images: Tensor, low: float, high: float, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(len(images), generator=generator, device=images.device)
