"""What the decoders take and give: how to read, one frame, and why a file cannot be judged."""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from deepssim_scan.errors import InputError

Pixels = npt.NDArray[np.float32]

MAX_PIXELS = 64_000_000
MAX_FRAMES = 4096
MAX_INFLATED = 2 << 30  # bytes of samples of one file, uncompressed

REASONS: dict[str, str] = {
    "bad-archive": "an archive that cannot be read whole, or a member of one that has to be "
    "refused",
    "bad-array": "NPY, NPZ or NIfTI whose samples are not planes of real numbers, exactly as long "
    "as the header says",
    "changed": "the file changed while it was read",
    "constant": "one grey value, or so near to it that the standardised image would be noise",
    "damaged": "a known format that does not decode whole: truncated, a wrong checksum, or corrupt",
    "decoder-crashed": "the process that decoded it died, and a fresh one died again",
    "decoder-timeout": "decoding took longer than the limit",
    "embedding": "the encoder gave a zero or non-finite embedding",
    "empty-file": "no bytes",
    "executable": "a DICOM file whose preamble is a program",
    "no-decoder": "DICOM, compressed in a way that no installed package decodes",
    "no-pixels": "DICOM without pixel data, or a volume or NPZ of which nothing is selected",
    "not-a-file": "a FIFO, device, socket or folder under an image's name",
    "not-finite": "holds NaN, an infinity, or a value beyond float32",
    "outside-folder": "a link or path that leaves the folder given",
    "too-large": "more bytes, pixels, frames or memory than the limit",
    "too-small": "fewer pixels a side than an encoder without a fixed size can take",
    "unknown-format": "not PNG, JPEG, TIFF, GIF, NPY, NPZ, NIfTI or DICOM by its content, whatever "
    "its name",
    "unreadable": "the operating system refused to read it",
    "unsupported": "a known format with samples that would not survive decoding unchanged, or more "
    "axes than a volume has",
    "vanished": "was listed, and is no longer there",
}


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a file could not be judged: a code of REASONS, and one line with no path in it."""

    reason: str
    detail: str

    def __post_init__(self) -> None:
        if self.reason not in REASONS:
            raise ValueError(f"reason {self.reason!r} is not one of {', '.join(REASONS)}")


class Rejected(InputError):
    """One file cannot be judged; `rejection` says why."""

    def __init__(self, reason: str, detail: str) -> None:
        """Keep the first 200 characters of the detail's first line."""
        self.rejection = Rejection(reason, (detail.splitlines() or [""])[0][:200])
        super().__init__(f"{reason}: {self.rejection.detail}")


@dataclass(frozen=True, slots=True)
class Reading:
    """What to take of a file that holds more than one plane, or more than can be shown.

    `axis`: what volumes are cut across, counted from 0 without the axes of length 1; None: the
    third axis of a NIfTI, the first of an array.
    `slices`: "START:STOP" of a volume's slices, from START to before STOP; either may be missing.
    Whole numbers count slices, numbers with a point are fractions of the axis ("0.2:0.8").
    `window`: "CENTRE,WIDTH" in rescaled units, applied to DICOM and NIfTI; "file": a DICOM
    file's own first window, where it has one; None: the full range.
    `max_pixels`: of one frame.
    `subject_key`: a secret; DICOM patient ids are kept as HMAC-SHA256 under it, and not read
    when it is empty. Belongs in no record.

    Raises InputError for what none of this allows.
    """

    axis: int | None = None
    slices: str | None = None
    window: str | None = None
    max_pixels: int = MAX_PIXELS
    subject_key: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        if self.axis is not None and (type(self.axis) is not int or not 0 <= self.axis <= 2):
            raise InputError(f"axis ({self.axis!r}) must be 0, 1 or 2")
        if self.slices is not None and not _is_range(self.slices):
            raise InputError(
                f"slices ({self.slices!r}) must be START:STOP, in slices as in '20:80' or in "
                "fractions from 0.0 to 1.0 as in '0.2:0.8', START before STOP"
            )
        if self.window not in (None, "file") and not _is_window(str(self.window)):
            raise InputError(
                f"window ({self.window!r}) must be 'file' or 'CENTRE,WIDTH', as in '40,400', with "
                "a WIDTH above 0"
            )
        if type(self.max_pixels) is not int or self.max_pixels < 1:
            raise InputError(f"max_pixels ({self.max_pixels!r}) must be a whole number above 0")

    def cut(self, length: int) -> range:
        """Return the slices to take of an axis; a fraction is rounded to the nearest slice."""
        start, stop = (self.slices or ":").split(":")
        return range(_slice(start or "0", length), min(_slice(stop or "1.0", length), length))

    def clip(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Clip rescaled values to a window that is given in numbers; NaN stays."""
        if self.window in (None, "file"):
            return values
        centre, width = map(float, str(self.window).split(","))
        return np.clip(values, centre - width / 2, centre + width / 2)


_NUMBER = r"\d+(?:\.\d+)?"


def _is_range(text: str) -> bool:
    if not re.fullmatch(rf"(?:{_NUMBER})?:(?:{_NUMBER})?", text, re.ASCII):
        return False
    start, stop = text.split(":")
    if any("." in side and float(side) > 1 for side in (start, stop)):
        return False
    alike = ("." in start) == ("." in stop)
    return not (start and stop and alike) or float(start) < float(stop)


def _slice(side: str, length: int) -> int:
    return round(float(side) * length) if "." in side else int(side)


def _is_window(text: str) -> bool:
    try:
        centre, width = map(float, text.split(","))
    except ValueError:
        return False
    return math.isfinite(centre) and math.isfinite(width) and width > 0


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
    pixels: Pixels = (samples @ weights) / np.float32(1000)
    return pixels
