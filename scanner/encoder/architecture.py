"""The shape of an encoder, and the three that are offered."""

from dataclasses import dataclass, field, replace
from typing import Literal

from deepssim_scan.errors import InputError
from deepssim_scan.ingest.config.standardisation import Standardisation

ORIENTATIONS = 4
"""Orientations that the `flips` trunk keeps of each feature: one for an image and each flip."""

_STEEPEST = 64.0


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of an encoder; with its weights, all that is needed to run it.

    `expansion` is how much wider a block is inside than outside. Only the `flips` trunk has the
    rest: `pooling`, 1 or 2, is the side in pixels of the squares over which images are averaged
    first, `pose` are the widths of the network that estimates poses, `scale` says whether a pose
    has one, and `exponents` are the least and the greatest by which gamma is undone.
    """

    trunk: Literal["flips", "convnext"] = "flips"
    depths: tuple[int, ...] = (1, 3, 3)
    widths: tuple[int, ...] = (48, 96, 192)
    pooling: int = 1
    pose: tuple[int, ...] = (32, 64, 64)
    scale: bool = False
    exponents: tuple[float, float] = (0.9, 8.0)
    expansion: int = 2
    dimension: int = 256
    standardisation: Standardisation = field(default_factory=Standardisation)

    def __post_init__(self) -> None:
        if self.trunk not in ("flips", "convnext"):
            raise ValueError(f"unknown trunk {self.trunk!r}")
        if len(self.depths) != len(self.widths) or not self.depths:
            raise ValueError(f"one width a stage: {self.depths} depths, {self.widths} widths")
        if min(*self.depths, *self.widths, self.expansion, self.dimension) < 1:
            raise ValueError(f"depths, widths, expansion and dimension must be >= 1: {self}")
        if self.trunk == "flips":
            self._check_flips()
        else:
            self._check_convnext()

    def _check_flips(self) -> None:
        step = 4 * ORIENTATIONS
        for what, widths in (("the trunk", self.widths), ("the pose estimator (pose)", self.pose)):
            if not widths or any(width < 1 or width % step for width in widths):
                raise ValueError(f"widths of {what} are multiples of {step}, found {widths}")
        if type(self.pooling) is not int or self.pooling not in (1, 2):  # True is 1, but no size
            raise ValueError(f"pooling is 1 or 2, found {self.pooling!r}")
        least, greatest = self.exponents
        if not 0 < least < greatest < _STEEPEST:
            raise ValueError(
                f"exponents lie between 0 and {_STEEPEST}, the least first: {self.exponents}"
            )
        size = self.standardisation.size
        if size is None:
            raise ValueError("the flips trunk needs a fixed input size, found none")
        step = max(self.least_side, 4 << len(self.pose))  # the estimator halves images first
        if size % step:
            raise InputError(
                f"found size {size}, where {len(self.depths)} stages of the trunk and "
                f"{len(self.pose)} of the pose estimator need a multiple of {step}"
            )

    def _check_convnext(self) -> None:
        size, least = self.standardisation.size, self.least_side
        if self.pose:
            raise ValueError(f"the convnext trunk has no pose estimator, found widths {self.pose}")
        if size is not None and size < least:
            raise InputError(f"{len(self.depths)} stages need a size >= {least}, found {size}")

    @property
    def least_side(self) -> int:
        """The fewest pixels a side that leave one position of the last stage's grid."""
        return self.pooling * (2 << len(self.depths))


SMALL = Architecture(scale=True, exponents=(0.4, 16.0))
FAST = replace(SMALL, pooling=2, depths=(2, 2), widths=(96, 192))
REFERENCE = Architecture(
    trunk="convnext",
    depths=(3, 3, 27, 3),
    widths=(128, 256, 512, 1024),
    pose=(),
    expansion=4,
    standardisation=Standardisation(size=None),
)
ARCHITECTURES = {"small": SMALL, "fast": FAST, "base": REFERENCE}
