"""The bytes of one image file to pixels, and pixels to what an encoder is given.

    decode(bytes) -> mode, pixels (H, W) float32 -> standardise -> (H', W') float32

The format is told by the first bytes, never by the name: PNG, JPEG, TIFF, NPY, NIfTI (plain
or gzipped). What cannot be decoded whole and faithfully raises `Rejected`; nothing is
repaired, clipped or cut to its first frame. One written rule per question:

- Colour becomes luminance, (299 R + 587 G + 114 B) / 1000 (ITU-R BT.601), so that a grey
  image saved as RGB keeps its values. Palettes, CMYK and YCbCr pass through Pillow's RGB.
- Alpha, and a PNG's transparent colour, is composited over black.
- Grey keeps its full range: 16-bit, 32-bit and float samples are never brought to 8 bits.
  Colour of more than 8 bits is refused, because Pillow keeps only the upper 8.
- EXIF and TIFF orientation is applied, as viewers do (Pillow itself does for TIFF).
- A NIfTI's first axis runs along the columns and its second along the rows, with slope and
  intercept applied and the affine ignored. An array (NPY, NIfTI) may have further axes of
  length 1; anything else is several frames.

A JPEG whose entropy-coded data was altered without being shortened can decode with no
error: the format has no checksum.
"""

import gzip
import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from deepssim_scan.errors import InputError

Pixels = npt.NDArray[np.float32]

MAX_PIXELS = 64_000_000

REASONS: dict[str, str] = {
    "bad-array": "NPY or NIfTI whose samples are not one plane of real numbers, exactly as long "
    "as its header says",
    "changed": "the file changed while it was read",
    "constant": "one grey value, or so near to it that the standardised image would be noise",
    "damaged": "a known format that does not decode whole: truncated, a wrong checksum, or corrupt",
    "decoder-crashed": "the process that decoded it died, and a fresh one died again",
    "embedding": "the encoder gave a zero or non-finite embedding",
    "empty-file": "no bytes",
    "multi-frame": "more than one frame, page or slice",
    "not-a-file": "a FIFO, device, socket or folder under an image's name",
    "not-finite": "holds NaN, an infinity, or a value beyond float32",
    "outside-folder": "a link or path that leaves the folder given",
    "too-large": "more bytes, pixels or memory than the limit",
    "unknown-format": "not PNG, JPEG, TIFF, NPY or NIfTI by its content, whatever its name",
    "unreadable": "the operating system refused to read it",
    "unsupported": "a known format with samples that would not survive decoding unchanged",
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
    """One image cannot be judged; `rejection` says why."""

    def __init__(self, reason: str, detail: str) -> None:
        """Keep the first 200 characters of the detail's first line."""
        self.rejection = Rejection(reason, (detail.splitlines() or [""])[0][:200])
        super().__init__(f"{reason}: {self.rejection.detail}")


@dataclass(frozen=True, slots=True)
class Standardisation:
    """How pixels become an encoder's input; recorded in the checkpoint.

    `size`: the side of the square that the image is fitted into, aspect kept, in pixels; or
    None, the reference's rule: never resized, only z-scored.
    `pad`: what fills the square beside the image. "border-median", the only rule so far, is
    the median of the scaled image's border, which is air in most medical images.
    """

    size: int | None = 128
    pad: str = "border-median"

    def __post_init__(self) -> None:
        whole = isinstance(self.size, int) and not isinstance(self.size, bool)
        if self.size is not None and not (whole and 8 <= self.size <= 4096):
            raise InputError(f"size ({self.size!r}) must be None or a whole number from 8 to 4096")
        if self.pad != "border-median":
            raise InputError(f"pad ({self.pad!r}) must be 'border-median'")


def standardise(pixels: Pixels, rule: Standardisation) -> Pixels:
    """Scale, pad and z-score one image.

        pixels (H, W) float32 -> (size, size) float32, or (H, W) when size is None

    The result has mean 0 and population standard deviation 1. The longer side becomes `size`
    and the image is centred; an odd pixel of padding goes below or right.

    Raises Rejected: "not-finite", or "constant" by the bound in `z_score`, which holds for
    the image as decoded and again for the scaled one.
    """
    bad = pixels.size - np.count_nonzero(np.isfinite(pixels))
    if bad:
        raise Rejected("not-finite", f"{bad} of {pixels.size} pixels are not finite in float32")
    # Z-scored before scaling as well, so that scaling rounds numbers near 1, whatever the unit.
    scores = z_score(pixels)
    if rule.size is None:
        return scores
    return z_score(_pad(_scale(scores, rule.size), rule.size))


def z_score(pixels: Pixels) -> Pixels:
    """Bring finite pixels (H, W) to mean 0 and population standard deviation 1.

    Raises Rejected "constant" in two cases, the written bound:

    - The standard deviation is at most 1e-6 of the largest magnitude. Float32 holds a pixel to
      6e-8 of it, so below the bound the z-score would be made of some 17 rounding steps.
    - Fewer than 1 in 1000 pixels differ from the most common value. Such an image is a blank
      with specks, and its z-score a few spikes that say nothing about anatomy.
    """
    values = pixels.astype(np.float64)
    spread, low, high = float(values.std()), float(values.min()), float(values.max())
    if spread <= 1e-6 * max(-low, high):
        raise Rejected("constant", f"standard deviation {spread:.3g} in {low:.6g} to {high:.6g}")
    # When a share p of the pixels differ from one value, the variance is at most p * range^2:
    # most images need no count.
    if 1000 * spread**2 <= (high - low) ** 2:
        _check_specks(pixels)
    scores: Pixels = ((values - values.mean()) / spread).astype(np.float32)
    return scores


def _check_specks(pixels: Pixels) -> None:
    # A value held by more than half of the pixels is the median.
    median = np.partition(pixels, pixels.size // 2, axis=None)[pixels.size // 2]
    differing = np.count_nonzero(pixels != median)
    if differing * 1000 < pixels.size:
        raise Rejected("constant", f"{differing} of {pixels.size} pixels differ from the others")


def _scale(pixels: Pixels, size: int) -> Pixels:
    """Resize so that the longer side is `size`.

    Pillow widens the filter when it shrinks, so fine structure is averaged and not aliased.
    Bilinear, because its weights are never negative: no ringing at the skin line, and no value
    outside of the image's own range.
    """
    height, width = (max(1, round(side * size / max(pixels.shape))) for side in pixels.shape)
    scaled = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(scaled, dtype=np.float32)


def _pad(pixels: Pixels, size: int) -> Pixels:
    """Centre in a square of `size`, filled with the median of the image's border."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    before = [(size - side) // 2 for side in pixels.shape]
    after = [size - side - first for side, first in zip(pixels.shape, before, strict=True)]
    widths = list(zip(before, after, strict=True))
    return np.pad(pixels, widths, constant_values=np.median(border))


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[str, Pixels]:
    """Decode one image file's bytes.

        bytes -> mode, pixels (H, W) float32, not yet checked to be finite

    The mode says what the samples were: Pillow's name ("L", "I;16", "RGB"), or "npy:float32",
    "nifti:int16". Raises Rejected with the reason, and only that: whatever else a decoder
    raises becomes "damaged", or "too-large" when it is MemoryError.
    """
    try:
        return _decode(data, max_pixels)
    except Rejected:
        raise
    except (MemoryError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise Rejected("too-large", str(error) or "not enough memory") from error
    except UnidentifiedImageError as error:
        # Pillow's text holds an address in memory, which differs from run to run.
        raise Rejected("damaged", "the header is corrupt or its samples are unknown") from error
    except Exception as error:
        raise Rejected("damaged", f"{type(error).__name__}: {error}") from error


def _decode(data: bytes, max_pixels: int) -> tuple[str, Pixels]:
    if not data:
        raise Rejected("empty-file", "0 bytes")
    for magic, name in _PILLOW.items():
        if data.startswith(magic):
            return _decode_pillow(data, name, max_pixels)
    if data.startswith(npy.MAGIC_PREFIX):
        return _decode_npy(data, max_pixels)
    if data.startswith(b"\x1f\x8b"):
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            return _decode_nifti(stream, max_pixels)
    return _decode_nifti(io.BytesIO(data), max_pixels)


_PILLOW = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}


@contextmanager
def _strict_pillow(max_pixels: int) -> Iterator[None]:
    """Refuse bombs and half images, whatever another library has set; restore it after."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata, which may name a patient
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, max_pixels
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


def _decode_pillow(data: bytes, name: str, max_pixels: int) -> tuple[str, Pixels]:
    with _strict_pillow(max_pixels):
        if name == "PNG":  # load() does not look at the checksums of pixel data
            with Image.open(io.BytesIO(data), formats=(name,)) as image:
                image.verify()
        with Image.open(io.BytesIO(data), formats=(name,)) as image:
            frames = getattr(image, "n_frames", 1)
            if frames != 1:
                raise Rejected("multi-frame", f"{frames} frames; save each as a file of its own")
            bits = data[24] if name == "PNG" else _tiff_tag(image, 258, 8)
            mode = image.mode
            ImageOps.exif_transpose(image, in_place=True)
            grey = mode in ("1", "L", "I", "F") or mode.startswith("I;16")
            return mode, _grey(image, bits) if grey else _luminance(image, bits)


def _tiff_tag(image: Image.Image, tag: int, default: int) -> int:
    """Return the first value of a TIFF tag; `default` where it, or the TIFF, is absent."""
    value: Any = image.tag_v2.get(tag, default) if isinstance(image, TiffImageFile) else default
    return int(value[0] if isinstance(value, tuple) else value)


def _grey(image: Image.Image, bits: int) -> Pixels:
    """Return a grey image's samples (H, W), with what Pillow leaves undone.

    It gives unsigned 32-bit and signed 8-bit TIFF samples the other sign's type, and inverts
    white-is-zero TIFF at 8 bits but not at 16.
    """
    samples: npt.NDArray[Any] = np.asarray(image.convert("L") if image.mode == "1" else image)
    if isinstance(image, TiffImageFile):
        layout = _tiff_tag(image, 258, 1), _tiff_tag(image, 339, 1)
        actual = {(32, 1): np.uint32, (8, 2): np.int8}.get(layout)
        samples = samples if actual is None else samples.view(actual)
        if image.mode.startswith("I;16") and _tiff_tag(image, 262, 1) == 0:
            samples = (1 << bits) - 1 - samples.astype(np.int32)
    transparent = image.info.get("transparency")
    if transparent is not None:
        if bits < 8:  # Pillow spreads such samples to 8 bits, and not this one
            raise Rejected("unsupported", f"a transparent value in {bits}-bit grey")
        samples = np.where(samples == transparent, 0, samples)
    return samples.astype(np.float32)


def _luminance(image: Image.Image, bits: int) -> Pixels:
    """Return the luminance (H, W) of an 8-bit image with colour, a palette or alpha."""
    if bits > 8 or image.mode not in ("LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        raise Rejected(
            "unsupported", f"{bits}-bit {image.mode}; save as 8-bit colour or as 16-bit grey"
        )
    alpha = image.has_transparency_data
    samples = np.asarray(image.convert("RGBA" if alpha else "RGB")).astype(np.float32)
    # Whole numbers up to 255,000 are exact in float32: equal channels give their own value.
    weights = np.array([299, 587, 114], np.float32)
    pixels: Pixels = (samples[..., :3] @ weights) / np.float32(1000)
    return pixels * (samples[..., 3] / np.float32(255)) if alpha else pixels


def _decode_npy(data: bytes, max_pixels: int) -> tuple[str, Pixels]:
    """Read the header by itself, so that nothing is unpickled and nothing allocated for it."""
    stream = io.BytesIO(data)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape, fortran, dtype = readers[npy.read_magic(stream)](stream)
    except Exception as error:  # its text would quote the header
        raise Rejected("bad-array", "the NPY header cannot be read") from error
    _check_array(shape, dtype, max_pixels)
    samples = _samples(data, stream.tell(), shape, dtype, "F" if fortran else "C")
    return f"npy:{dtype.name}", _plane(samples)


def _decode_nifti(stream: BinaryIO | gzip.GzipFile, max_pixels: int) -> tuple[str, Pixels]:
    """Read a NIfTI-1 or -2 of one slice; no more is inflated than its header asks for."""
    head = stream.read(540)
    first, second = head[344:348] == b"n+1\0", head[4:8] == b"n+2\0"
    if not (first or second):
        raise Rejected("unknown-format", "not PNG, JPEG, TIFF, NPY or NIfTI by its content")
    # Imported late: it takes half a second, which most workers need not spend.
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    # Unchecked, because its check repairs, and logs what it repaired.
    header = (Nifti1Header if first else Nifti2Header)(head[: 348 if first else 540], check=False)
    shape = tuple(int(side) for side in header.get_data_shape())
    dtype, offset = header.get_data_dtype(), int(header.get_data_offset())
    slope, intercept = header.get_slope_inter()  # None: 0 or NaN, which stand for no scaling
    if math.isinf(header["scl_slope"]):  # nibabel takes it for no scaling as well
        raise Rejected("damaged", "an infinite slope")
    _check_array(shape, dtype, max_pixels)
    if not (348 if first else 540) <= offset <= 1 << 24:
        raise Rejected("damaged", f"the samples are said to start at byte {offset}")
    length = offset + math.prod(shape) * dtype.itemsize
    # One byte more than needed: it shows trailing bytes, and takes gzip to its checksum.
    body = head + stream.read(max(0, length + 1 - len(head)))
    samples = _samples(body, offset, shape, dtype, "F").astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = samples if slope is None else samples * slope + intercept
    return f"nifti:{dtype.name}", _plane(scaled.T)


def _check_array(shape: tuple[int, ...], dtype: np.dtype[Any], max_pixels: int) -> None:
    """Refuse what is not one plane of real numbers, before anything is allocated."""
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise Rejected("bad-array", f"samples of kind {dtype.kind!r}, {dtype.itemsize} bytes each")
    if len(shape) < 2 or min(shape) < 1:
        raise Rejected("bad-array", f"shape {shape} is not an image")
    if len(shape) - shape.count(1) > 2:
        raise Rejected("multi-frame", f"shape {shape}; volumes are not read, export the slices")
    if math.prod(shape) > max_pixels:
        raise Rejected("too-large", f"shape {shape} is over the limit of {max_pixels} pixels")


def _samples(
    data: bytes, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], order: Any
) -> npt.NDArray[Any]:
    """View the bytes from `offset` on as an array; they must be exactly as many as it takes."""
    wanted = math.prod(shape) * dtype.itemsize
    if len(data) - offset != wanted:
        found = "fewer" if len(data) - offset < wanted else "more"
        raise Rejected("bad-array", f"the header asks for {wanted} bytes of samples, found {found}")
    return np.frombuffer(data, dtype, offset=offset).reshape(shape, order=order)


def _plane(samples: npt.NDArray[Any]) -> Pixels:
    """Drop axes of length 1, the last first, until two are left; as float32."""
    while samples.ndim > 2:
        samples = samples.squeeze(axis=samples.ndim - 1 - samples.shape[::-1].index(1))
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite, and is rejected as such
        return samples.astype(np.float32)
