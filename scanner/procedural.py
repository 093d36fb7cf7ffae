"""Images that no patient ever sat for: random shapes and textures, to train encoders on.

Four families, each a function of a generator and a side in pixels that returns (side, side)
float64 in [0, 1], of which no two draws are alike:

- nested ellipses, after the Shepp-Logan phantom: a shell, and organs within organs;
- dead leaves (Lee, Mumford and Huang 2001): shapes that cover one another, edges everywhere;
- 1/f noise: the spectrum of natural images without their edges;
- band-limited textures: noise of one scale and direction.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray


def nested_ellipses(rng: Generator, side: int) -> NDArray[np.float64]:
    """Draw a shell that holds 3 to 30 ellipses, smaller ones inside, and faint noise."""
    image = np.zeros((side, side))
    centre, radii = rng.uniform(-0.15, 0.15, 2), rng.uniform(0.55, 0.95, 2)
    angle = rng.uniform(0, np.pi)
    body = _ellipse(side, centre, radii, angle)
    image[body] = rng.uniform(0.3, 1)
    inner = _ellipse(side, centre, radii * rng.uniform(0.8, 0.95), angle)
    image[inner] = rng.uniform(0, 1)
    for _ in range(rng.integers(3, 31)):
        size = rng.uniform(0.02, 0.4) * radii * rng.uniform(0.4, 1, 2)
        place = centre + rng.uniform(-0.7, 0.7, 2) * radii
        organ = _ellipse(side, place, size, rng.uniform(0, np.pi)) & inner
        image[organ] = rng.uniform(0, 1)
    texture = pink_noise(rng, side) - 0.5
    return _unit(image + rng.uniform(0, 0.3) * texture * body)


def dead_leaves(rng: Generator, side: int) -> NDArray[np.float64]:
    """Cover the image with ellipses whose sizes follow a power law, each of one grey."""
    image = np.full((side, side), rng.uniform())
    smallest = rng.uniform(0.02, 0.1)
    for _ in range(rng.integers(40, 250)):
        radius = smallest * rng.uniform(0.01, 1) ** -0.5
        shape = radius * rng.uniform(0.4, 1, 2)
        leaf = _ellipse(side, rng.uniform(-1.1, 1.1, 2), shape, rng.uniform(0, np.pi))
        image[leaf] = rng.uniform()
    return _framed(rng, image)


def pink_noise(rng: Generator, side: int) -> NDArray[np.float64]:
    """Filter white noise to an amplitude of 1/f^b, b from 0.8 to 2."""
    frequency = np.maximum(np.hypot(*_frequencies(side)), 1)
    return _unit(_filtered(rng, frequency ** -rng.uniform(0.8, 2)))


def band_limited(rng: Generator, side: int) -> NDArray[np.float64]:
    """Add up to three textures, each of a narrow band of frequencies and directions."""
    rows, columns = _frequencies(side)
    frequency, direction = np.hypot(rows, columns), np.arctan2(rows, columns)
    image = np.zeros((side, side))
    for _ in range(rng.integers(1, 4)):
        centre = np.exp(rng.uniform(np.log(2), np.log(side / 6)))
        band = np.exp(-(((frequency - centre) / (0.3 * centre)) ** 2))
        turn = np.cos(direction - rng.uniform(0, np.pi)) ** 2
        image += _unit(_filtered(rng, band * turn ** rng.uniform(0, 4))) * rng.uniform(0.3, 1)
    return _framed(rng, _unit(image))


FAMILIES: dict[str, Callable[[Generator, int], NDArray[np.float64]]] = {
    "nested-ellipses": nested_ellipses,
    "dead-leaves": dead_leaves,
    "pink-noise": lambda rng, side: _framed(rng, pink_noise(rng, side)),
    "band-limited": band_limited,
}


def _framed(rng: Generator, image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half of the time, keep an ellipse of the image on black, as a scan has a background."""
    if rng.uniform() < 0.5:
        return image
    radii = rng.uniform(0.5, 1, 2)
    body = _ellipse(len(image), rng.uniform(-0.1, 0.1, 2), radii, rng.uniform(0, np.pi))
    return np.where(body, 0.15 + 0.85 * image, 0)


def _ellipse(
    side: int, centre: NDArray[np.float64], radii: NDArray[np.float64], angle: float
) -> NDArray[np.bool_]:
    """Return where an ellipse is, in coordinates from -1 to 1."""
    axis = (np.arange(side) + 0.5) * 2 / side - 1
    x, y = axis[None, :] - centre[0], axis[:, None] - centre[1]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    inside: NDArray[np.bool_] = (along / radii[0]) ** 2 + (across / radii[1]) ** 2 <= 1
    return inside


def _frequencies(side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the cycles an image of each place of `rfft2`, by rows and by columns."""
    rows, columns = np.fft.fftfreq(side), np.fft.rfftfreq(side)
    return rows.astype(np.float64)[:, None] * side, columns.astype(np.float64)[None, :] * side


def _filtered(rng: Generator, response: NDArray[np.float64]) -> NDArray[np.float64]:
    side = len(response)
    noise = np.fft.rfft2(rng.standard_normal((side, side)))
    image: NDArray[np.float64] = np.fft.irfft2(noise * response, s=(side, side))
    return image


def _unit(image: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = float(image.min()), float(image.max())
    return (image - low) / max(high - low, 1e-9)
