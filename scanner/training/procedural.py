"""Procedural images to train encoders on: random shapes and textures, of no patient.

    generator, count, side in pixels -> (count, side, side) float32 in [0, 1] on its device

Five families, each a function that draws every image anew:

- nested ellipses, after the Shepp-Logan phantom: a shell, and organs within organs;
- shadows, as radiographs are: bodies, organs and ribs whose thickness adds up;
- dead leaves (Lee, Mumford and Huang 2001): shapes that cover one another, edges everywhere;
- 1/f noise: the spectrum of natural images without their edges;
- band-limited textures: noise of one scale and direction.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

_ORGANS, _SHADOWS, _LEAVES, _BANDS = 30, 14, 250, 3  # at most, of one image


def nested_ellipses(rng: Generator, count: int, side: int) -> Tensor:
    """Draw shells that hold 3 to 30 ellipses, smaller ones inside, and faint noise."""
    image = _zeros(rng, count, side)
    centre = _uniform(rng, count, 2, low=-0.15, high=0.15)
    radii = _uniform(rng, count, 2, low=0.55, high=0.95)
    angle = _uniform(rng, count, high=math.pi)
    body = _ellipse(side, centre, radii, angle)
    image = torch.where(body, drawn(rng, count, 0.3), image)
    inner = _ellipse(side, centre, radii * _uniform(rng, count, 1, low=0.8, high=0.95), angle)
    image = torch.where(inner, drawn(rng, count), image)
    organs = integers(rng, count, 3, _ORGANS)
    for number in range(_ORGANS):
        size = _uniform(rng, count, 1, low=0.02, high=0.4) * radii
        size = size * _uniform(rng, count, 2, low=0.4)
        position = centre + _uniform(rng, count, 2, low=-0.7, high=0.7) * radii
        organ = _ellipse(side, position, size, _uniform(rng, count, high=math.pi)) & inner
        shown = organ & (number < organs)[:, None, None]
        image = torch.where(shown, drawn(rng, count), image)
    texture = pink_noise(rng, count, side) - 0.5
    return _unit(image + drawn(rng, count, 0, 0.3) * texture * body)


def shadows(rng: Generator, count: int, side: int) -> Tensor:
    """Add up the thickness of a body, of organs denser or lighter than it, and of ribs."""
    centre = _uniform(rng, count, 2, low=-0.15, high=0.15)
    radii = _uniform(rng, count, 2, low=0.6, high=1.1)
    angle = _uniform(rng, count, low=-0.3, high=0.3)
    body = _thickness(side, centre, radii, angle)
    image = body * drawn(rng, count, 0.3)
    organs = integers(rng, count, 3, _SHADOWS)
    for number in range(_SHADOWS):
        size = radii * _uniform(rng, count, 1, low=0.05, high=0.7)
        size = size * _uniform(rng, count, 2, low=0.4)
        position = centre + _uniform(rng, count, 2, low=-0.7, high=0.7) * radii
        organ = _thickness(side, position, size, _uniform(rng, count, high=math.pi))
        shown = organ * drawn(rng, count, -0.5, 0.6) * (number < organs)[:, None, None]
        image = image + shown * body.sqrt()
    image = image + _ribs(rng, centre, radii, side) * body.sqrt()
    texture = pink_noise(rng, count, side) - 0.5
    image = _unit((image + drawn(rng, count, 0, 0.2) * texture * body).clamp_min(0))
    return image ** drawn(rng, count, 0.6, 1.6)


def dead_leaves(rng: Generator, count: int, side: int) -> Tensor:
    """Cover images with ellipses whose sizes follow a power law, each of one grey."""
    image = _zeros(rng, count, side) + drawn(rng, count)
    smallest = _uniform(rng, count, 1, low=0.02, high=0.1)
    leaves = integers(rng, count, 40, _LEAVES - 1)
    for number in range(_LEAVES):
        radius = smallest * _uniform(rng, count, 1, low=0.01) ** -0.5
        shape = radius * _uniform(rng, count, 2, low=0.4)
        position = _uniform(rng, count, 2, low=-1.1, high=1.1)
        leaf = _ellipse(side, position, shape, _uniform(rng, count, high=math.pi))
        shown = leaf & (number < leaves)[:, None, None]
        image = torch.where(shown, drawn(rng, count), image)
    return _framed(rng, image)


def pink_noise(rng: Generator, count: int, side: int) -> Tensor:
    """Filter white noise to amplitudes of 1/f^b, b from 0.8 to 2."""
    frequency = torch.hypot(*_frequencies(side, rng)).clamp_min(1)
    return _unit(_filtered(rng, frequency ** -drawn(rng, count, 0.8, 2), side))


def band_limited(rng: Generator, count: int, side: int) -> Tensor:
    """Add up to three textures, each of a narrow band of frequencies and directions."""
    rows, columns = _frequencies(side, rng)
    frequency, direction = torch.hypot(rows, columns), torch.atan2(rows, columns)
    image = _zeros(rng, count, side)
    bands = integers(rng, count, 1, _BANDS)
    for number in range(_BANDS):
        centre = drawn(rng, count, math.log(2), math.log(side / 6)).exp()
        band = (-(((frequency - centre) / (0.3 * centre)) ** 2)).exp()
        turn = (direction - drawn(rng, count, 0, math.pi)).cos() ** 2
        response = band * turn ** drawn(rng, count, 0, 4)
        texture = _unit(_filtered(rng, response, side)) * drawn(rng, count, 0.3)
        image = image + texture * (number < bands)[:, None, None]
    return _framed(rng, _unit(image))


def framed_noise(rng: Generator, count: int, side: int) -> Tensor:
    """Draw 1/f noise, half of it on a background."""
    return _framed(rng, pink_noise(rng, count, side))


FAMILIES: dict[str, Callable[[Generator, int, int], Tensor]] = {
    "nested-ellipses": nested_ellipses,
    "shadows": shadows,
    "dead-leaves": dead_leaves,
    "pink-noise": framed_noise,
    "band-limited": band_limited,
}


def _framed(rng: Generator, images: Tensor) -> Tensor:
    """Half of the time, keep an ellipse of the image on black, as a scan has a background."""
    count, side = images.shape[:2]
    radii = _uniform(rng, count, 2, low=0.5)
    position = _uniform(rng, count, 2, low=-0.1, high=0.1)
    body = _ellipse(side, position, radii, _uniform(rng, count, high=math.pi))
    body = body | (drawn(rng, count) < 0.5)
    whole = body.flatten(1).all(1)[:, None, None]
    return torch.where(whole, images, torch.where(body, 0.15 + 0.85 * images, 0.0))


def _ribs(rng: Generator, centre: Tensor, radii: Tensor, side: int) -> Tensor:
    """Draw bent bands at even distances, and in half of the images none: (B, side, side)."""
    count = len(centre)
    axis = (torch.arange(side, device=rng.device) + 0.5) * 2 / side - 1
    across = (axis - centre[:, :1]) / radii[:, :1]
    bend = drawn(rng, count, -0.6, 0.6) * across[:, None] ** 2
    bend = bend + drawn(rng, count, -0.3, 0.3) * across[:, None].abs()
    down = (axis - centre[:, 1:])[:, :, None] - bend
    phase = torch.cos(2 * math.pi * (down / drawn(rng, count, 0.12, 0.35) + drawn(rng, count)))
    width = drawn(rng, count, 0.2, 0.8)
    bands = ((phase - width) / (1 - width)).clamp_min(0).sqrt()
    return bands * drawn(rng, count, 0.05, 0.3) * (drawn(rng, count) < 0.5)


def _ellipse(side: int, centre: Tensor, radii: Tensor, angle: Tensor) -> Tensor:
    """Return where ellipses are, in coordinates from -1 to 1: (B, 2), (B, 2), (B,) -> (B, H, W)."""
    return _distance(side, centre, radii, angle) <= 1


def _thickness(side: int, centre: Tensor, radii: Tensor, angle: Tensor) -> Tensor:
    """Return how thick ellipsoids are, 1 in the middle and 0 outside; arguments as `_ellipse`."""
    return (1 - _distance(side, centre, radii, angle)).clamp_min(0).sqrt()


def _distance(side: int, centre: Tensor, radii: Tensor, angle: Tensor) -> Tensor:
    """Return the squared distance from the centres of ellipses, 1 on their outlines."""
    axis = (torch.arange(side, device=angle.device) + 0.5) * 2 / side - 1
    x, y = axis - centre[:, :1], axis - centre[:, 1:]
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    along = (cos * x)[:, None, :] + (sin * y)[:, :, None]
    across = (cos * y)[:, :, None] - (sin * x)[:, None, :]
    wide, high = radii[:, 0, None, None], radii[:, 1, None, None]
    return (along / wide) ** 2 + (across / high) ** 2


def _frequencies(side: int, rng: Generator) -> tuple[Tensor, Tensor]:
    """Return the cycles an image of each element of `rfft2`, by rows and by columns."""
    rows = torch.fft.fftfreq(side, device=rng.device) * side
    columns = torch.fft.rfftfreq(side, device=rng.device) * side
    return rows[:, None], columns[None]


def _filtered(rng: Generator, response: Tensor, side: int) -> Tensor:
    """Filter white noise by the response (B, side, side // 2 + 1) at each frequency."""
    noise = torch.randn(len(response), side, side, generator=rng, device=rng.device)
    images: Tensor = torch.fft.irfft2(torch.fft.rfft2(noise) * response, s=(side, side))
    return images


def _unit(images: Tensor) -> Tensor:
    low, high = images.amin((1, 2), keepdim=True), images.amax((1, 2), keepdim=True)
    return (images - low) / (high - low).clamp_min(1e-9)


def _zeros(rng: Generator, count: int, side: int) -> Tensor:
    return torch.zeros(count, side, side, device=rng.device)


def drawn(rng: Generator, count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Draw a number for each image: (B, 1, 1)."""
    return _uniform(rng, count, 1, 1, low=low, high=high)


def _uniform(rng: Generator, *size: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(size, generator=rng, device=rng.device)


def integers(rng: Generator, count: int, least: int, most: int) -> Tensor:
    return torch.randint(least, most + 1, (count,), generator=rng, device=rng.device)
