"""What every decoder gives: one frame of pixels; and the limits that all of them keep."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deepssim_scan.ingest.pixels import Pixels

MAX_FRAMES = 4096
MAX_INFLATED = 2 << 30  # bytes of samples of one file, uncompressed


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One plane of a file: pixels (H, W) float32, not yet checked to be finite.

    `name`: "" when the file is one plane; otherwise where it stands, counted from 0: "frame=3",
    "axis=2,slice=87", "array=arr_0", "array=arr_0,axis=0,slice=3".
    `mode`: what the samples were: Pillow's name ("L", "I;16", "RGB"), or "npy:float32",
    "nifti:int16", "dicom:MONOCHROME2:int16".
    `subject`: the keyed hash of a DICOM patient id, in hex; or "".
    """

    name: str
    mode: str
    pixels: Pixels
    subject: str = ""


def luminance(samples: npt.NDArray[Any]) -> Pixels:
    """Return the luminance (H, W) of red, green and blue (H, W, 3); equal ones keep their value."""
    # Whole numbers up to 255,000 are exact in float32; deeper samples need more.
    weights = np.array([299, 587, 114], np.float32)
    return ((samples @ weights) / np.float32(1000)).astype(np.float32)
