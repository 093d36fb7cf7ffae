"""The bytes of one file to the planes that it holds, or a reason why not.

    decode(bytes) -> Frame(name, mode, pixels (H, W) float32), one a plane

The format is told by the first bytes, never by the name: PNG, JPEG, TIFF, GIF, NPY, NPZ, NIfTI
(plain or gzipped), DICOM. What cannot be decoded whole and faithfully raises `Rejected`; nothing is
repaired, clipped unasked, or cut to its first frame. One written rule per question:

- Colour becomes luminance, (299 R + 587 G + 114 B) / 1000 (ITU-R BT.601), so that a grey
  image saved as RGB keeps its values. Palettes, CMYK and YCbCr pass through RGB.
- Alpha, and a PNG's or GIF's transparent colour, is composited over black.
- Grey keeps its full range: 16-bit, 32-bit and float samples are never brought to 8 bits.
  Colour of more than 8 bits is refused where Pillow reads it, because it keeps only the upper 8.
- EXIF and TIFF orientation is applied, as viewers do (Pillow itself does for TIFF).
- A NIfTI's first axis runs along the columns and its second along the rows, with slope and
  intercept applied and the affine ignored. Volumes are cut into slices (`ReadOptions`); axes of
  length 1 do not count. More than three axes are refused.

A JPEG whose entropy-coded data was altered without being shortened can decode with no
error: the format has no checksum.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.decode import arrays, dicom, nifti, pillow
from deepssim_scan.ingest.decode.beside import found_beside
from deepssim_scan.ingest.decode.values import Frame
from deepssim_scan.ingest.rejection import Rejected, Rejection


def decode(data: bytes, options: ReadOptions = ReadOptions()) -> Iterator[Frame]:
    """Decode one file's bytes, a frame at a time.

    A file that is rejected after some frames is rejected whole. Raises Rejected with the
    reason, and only that: whatever else a decoder raises becomes "damaged", or "too-large" when
    it is MemoryError.
    """
    frames = _frames(data, options)
    private = dicom.is_dicom(data)
    while (step := _step(frames, options.max_pixels, private)) is not None:
        if isinstance(step, Rejection):
            # Raised here, where no other error is being handled, so that none hangs on to it.
            raise Rejected(step.reason, step.detail)
        yield step


def beside_frames(data: bytes, frames: int) -> str:
    """Say what a file that gave so many frames holds beside them; "" where nothing is found.

    A file that cannot be looked through is told as well.
    """
    try:
        with pillow.strict(sys.maxsize), _silent():
            return found_beside(data, frames)
    except Exception:
        return "what cannot be looked through"


def _step(frames: Iterator[Frame], max_pixels: int, private: bool) -> Frame | Rejection | None:
    """Take the next frame; of an error that may quote a patient's tags, only the type is told."""
    try:
        # Around each step, and not around them all: between two of them other code runs.
        with pillow.strict(max_pixels), _silent():
            return next(frames, None)
    except Rejected as error:
        return error.rejection
    except (MemoryError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        return Rejection("too-large", str(error) or "not enough memory")
    except UnidentifiedImageError:
        # Pillow's text holds an address in memory, which differs from run to run.
        return Rejection("damaged", "the header is corrupt or its samples are unknown")
    except Exception as error:
        name = type(error).__name__
        return Rejection(
            "damaged", f"it does not decode ({name})" if private else f"{name}: {error}"
        )


_LOGGERS = [
    logging.getLogger(name)
    for name in ("PIL", "libjpeg", "nibabel", "nibabel.global", "openjpeg", "pydicom", "pylibjpeg")
]
_NOWHERE = logging.NullHandler()


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the decoders' loggers quiet: what they log quotes headers, which may name a patient.

    Their levels are left alone: to set one empties the caches of all loggers.
    """
    before = [(each.disabled, each.handlers, each.propagate) for each in _LOGGERS]
    try:
        for each in _LOGGERS:  # `disabled` is of a logger alone, the others of those below, too
            each.disabled, each.handlers, each.propagate = True, [_NOWHERE], False
        yield
    finally:
        for each, (disabled, handlers, propagate) in zip(_LOGGERS, before, strict=True):
            each.disabled, each.handlers, each.propagate = disabled, handlers, propagate


def _frames(data: bytes, options: ReadOptions) -> Iterator[Frame]:
    if not data:
        raise Rejected("empty-file", "0 bytes")
    if dicom.is_dicom(data):  # first, because such a file may be TIFF as well
        return dicom.frames(data, options)
    if pillow.form(data):
        return pillow.frames(data, options)
    if data.startswith(arrays.MAGIC):
        return arrays.npy_frames(data, options)
    if data.startswith(arrays.MAGIC_NPZ):
        return arrays.npz_frames(data, options)
    return nifti.frames(data, options)
