"""Which slices and which range of values are read of a file, and what is too large."""

import hashlib
import hmac
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deepssim_scan.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_PIXELS = 64_000_000
_SHORTEST_KEY = 16  # bytes


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Which slices and which range of values are read of a file, and what is too large.

    `axis`: what volumes are cut across, counted from 0 without the axes of length 1; None: the
    third axis of a NIfTI, the first of an array.
    `slices`: "START:STOP" of a volume's slices, from START to before STOP; either may be missing.
    Whole numbers count slices, numbers with a point are fractions of the axis ("0.2:0.8").
    `window`: "CENTRE,WIDTH" in rescaled units, applied to DICOM and NIfTI; "file": a DICOM
    file's own first window, where it has one; None: the full range.
    `max_pixels`: of one frame.
    `subject_key`: a secret under which subjects are hashed. Without it DICOM patient ids are not
    read, and other subjects are kept as they are. It has 16 bytes at least. Belongs in no record.

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
        check_key("subject_key", self.subject_key)

    def slice_range(self, length: int) -> range:
        """Return the slices to take of an axis; a fraction is rounded to the nearest slice."""
        start, stop = (self.slices or ":").split(":")
        return range(_slice(start or "0", length), min(_slice(stop or "1.0", length), length))

    def clip(self, values: "npt.NDArray[np.float64]") -> "npt.NDArray[np.float64]":
        """Clip rescaled values to a window that is given in numbers; NaN stays."""
        if self.window in (None, "file"):
            return values
        centre, width = map(float, str(self.window).split(","))
        return values.clip(centre - width / 2, centre + width / 2)

    def hashed(self, subject: bytes) -> str:
        """Return the HMAC-SHA256 of a subject under the key, in hex."""
        return hmac.new(self.subject_key, subject, hashlib.sha256).hexdigest()


_NUMBER = r"\d+(?:\.\d+)?"


def _is_range(text: str) -> bool:
    if not re.fullmatch(rf"(?:{_NUMBER})?:(?:{_NUMBER})?", text, re.ASCII):
        return False
    start, stop = text.split(":")
    if any("." in side and float(side) > 1 for side in (start, stop)):
        return False
    comparable = start and stop and ("." in start) == ("." in stop)
    return not comparable or float(start) < float(stop)


def _slice(side: str, length: int) -> int:
    return round(float(side) * length) if "." in side else int(side)


def _is_window(text: str) -> bool:
    try:
        centre, width = map(float, text.split(","))
    except ValueError:
        return False
    return math.isfinite(centre) and math.isfinite(width) and width > 0


def check_key(name: str, key: bytes) -> None:
    """Raise InputError for a secret so short that whoever tries keys finds it; b"" is none."""
    if 0 < len(key) < _SHORTEST_KEY:
        raise InputError(
            f"{name} has {len(key)} bytes, and at least {_SHORTEST_KEY} are needed. Take "
            "secrets.token_bytes(32), and keep it."
        )


def read_key(path: Path) -> bytes:
    """Read the secret under which names are hashed; InputError where it cannot be used."""
    if not path.is_file():
        raise InputError(f"{path}: no such file. A key is a file that holds a secret.")
    key = path.read_bytes()
    if len(key) < _SHORTEST_KEY:
        raise InputError(
            f"{path}: the key has {len(key)} bytes, and at least {_SHORTEST_KEY} are "
            f"needed. Make one with: head -c 32 /dev/urandom > {path}"
        )
    return key
