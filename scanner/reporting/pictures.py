"""Pictures of a finding: the synthetic image, the training image aligned with it, the difference.

standardised images (H, W), the transform of a match -> three PNG files
"""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deepssim_scan.ingest.pixels import Pixels

_SIDE = 96  # pixels of a picture
_UNIT = 128  # a transform's shift is in pixels of a side of so many
_TAILS = 0.5, 99.5  # percentiles that become black and white
_MIRROR = {"none": (1, 1), "horizontal": (-1, 1), "vertical": (1, -1), "both": (-1, -1)}
_Greys = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pictures:
    """PNG files of a finding."""

    synthetic: bytes
    training: bytes
    difference: bytes


def draw(synthetic: Pixels, training: Pixels, transform: Mapping[str, Any]) -> Pictures:
    """Draw a finding; `transform` is that of a row of matches.parquet."""
    ours, theirs = _greys(synthetic), aligned(_greys(training), transform)
    return Pictures(*(_png(each) for each in (ours, theirs, np.abs(ours - theirs))))


def aligned(training: _Greys, transform: Mapping[str, Any]) -> _Greys:
    """Do to greys (H, H) from 0 to 1 what makes the synthetic image of the training image.

    That is a flip, a scale and a rotation about the centre, a shift, a gamma, then a quarter turn
    clockwise, and inverted greys. What was outside the image is black.
    """
    side = len(training)
    angle, scale = math.radians(transform["degrees"]), transform["scale"]
    across, along = _MIRROR[transform["flip"]]
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    middle = side / 2  # where Pillow counts from the corner of a pixel
    right, down = (middle + transform[name] * side / _UNIT for name in ("right", "down"))
    # A pixel of the result, from its shifted centre, is turned back and mirrored.
    rows = (across * cos, -across * sin), (along * sin, along * cos)
    coefficients = [
        number
        for one, other in rows
        for number in (one, other, middle - one * right - other * down)
    ]
    moved = Image.fromarray(training.astype(np.float32)).transform(
        training.shape, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    greys: _Greys = np.asarray(moved, np.float64).clip(0, 1) ** transform["gamma"]
    if transform["quarter_turn"]:
        greys = np.rot90(greys, -1)
    return 1 - greys if transform["inverted"] else greys


def _greys(pixels: Pixels) -> _Greys:
    low, high = np.percentile(pixels, _TAILS)
    found: _Greys = ((pixels.astype(np.float64) - low) / max(high - low, 1e-6)).clip(0, 1)
    return found


def _png(greys: _Greys) -> bytes:
    image, data = Image.fromarray((greys * 255).round().astype(np.uint8)), io.BytesIO()
    image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS).save(data, "PNG", optimize=True)
    return data.getvalue()
