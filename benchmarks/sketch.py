"""An embedding whose inner product is SSIM, with nothing learned: what 256 numbers can say.

    images (N, side, side) -> (N, dimension) unit norm

SSIM is a mean over windows of two factors, 2ab / (a^2 + b^2) times a cosine each. With v a window's
deviations from its mean and a constant of K2, structure and contrast are the cosine of v and v'
times sech(log|v| - log|v'|); with u its mean and a constant of K1, luminance is the same of u and
u'. sech is its own Fourier transform, so it is a positive definite kernel, and SSIM is an inner
product of very many features: of each window, those of v times those of u times random Fourier
features (Rahimi and Recht 2007) of both logarithms. They are added up into `dimension` sums with
random signs (feature hashing: Weinberger et al. 2009, arXiv:0902.2206), which keeps inner products
up to an error of about (1 - SSIM^2) / sqrt(dimension).
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from deepssim_scan.imaging.ssim import K1, K2, WINDOW, image_range

_STRIDE = 2  # of the windows
_BATCH = 16
_EDGE = 1e-4  # of the distribution of frequencies, which is cut off


@dataclass(frozen=True, slots=True)
class Waves:
    """Random Fourier features of sech: a frequency and a phase for each feature."""

    frequency: Tensor
    phase: Tensor

    @classmethod
    def drawn(cls, count: int, rng: Generator) -> "Waves":
        """Draw frequencies of the density sech(pi w / 2) / 2, and phases."""
        uniform = torch.rand(count, generator=rng).clamp(_EDGE, 1 - _EDGE)
        frequency = 2 / math.pi * (math.pi / 2 * uniform).tan().log()
        return cls(frequency, 2 * math.pi * torch.rand(count, generator=rng))

    def of(self, logarithms: Tensor) -> Tensor:
        """Return the features of logarithms (B, count)."""
        return math.sqrt(2) * (self.frequency * logarithms + self.phase).cos()


class Sketch:
    """Sketches images (N, side, side)."""

    def __init__(self, side: int, dimension: int, seed: int = 0) -> None:
        rng = Generator().manual_seed(seed)
        windows = ((side - WINDOW) // _STRIDE + 1) ** 2
        count = windows * 2 * (WINDOW**2 + 1)
        self.dimension = dimension
        self.place = torch.randint(dimension, (count,), generator=rng)
        self.sign = torch.randint(2, (count,), generator=rng).float() * 2 - 1
        self.contrast, self.luminance = Waves.drawn(count, rng), Waves.drawn(count, rng)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the sketches."""
        return torch.cat([self._batch(part) for part in images.split(_BATCH)])

    def _batch(self, images: Tensor) -> Tensor:
        rows = images.unfold(1, WINDOW, _STRIDE).unfold(2, WINDOW, _STRIDE)
        windows = rows.flatten(3).flatten(1, 2)
        means = windows.mean(2, keepdim=True)
        span = image_range(images)[:, None, None]
        constants = K2 * span * math.sqrt((WINDOW**2 - 1) / 2), K1 * span / math.sqrt(2)
        v, size = _unit(windows - means, constants[0])
        u, level = _unit(means, constants[1])
        features = (u[..., None] * v[:, :, None]).flatten(1)
        each = features.shape[1] // windows.shape[1]
        for waves, lengths in ((self.contrast, size), (self.luminance, level)):
            features = features * waves.of(lengths.log().repeat_interleave(each, 1))
        sums = torch.zeros(len(images), self.dimension)
        return functional.normalize(sums.index_add_(1, self.place, self.sign * features))


def _unit(vectors: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
    """Append a constant to vectors (B, P, n); return unit vectors (B, P, n + 1), lengths (B, P)."""
    longer = torch.cat([vectors, constant.expand(-1, vectors.shape[1], 1)], 2)
    lengths = longer.norm(dim=2)
    return longer / lengths[..., None], lengths
