"""Stored samples of DICOM to the values that are given out.

grey: modality LUT or rescale -> window, when asked -> MONOCHROME1 negated -> padding filled
colour, palettes: luminance
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.decode.arrays import to_float32
from deepssim_scan.ingest.decode.dicom_tags import PALETTE, PIXELS
from deepssim_scan.ingest.decode.values import luminance
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.ingest.rejection import Rejected

if TYPE_CHECKING:
    from pydicom import Dataset

_Values = npt.NDArray[np.float64]


def grey(
    tags: "Dataset",
    stored: npt.NDArray[Any],
    number: int,
    padding: tuple[float, float] | None,
    options: ReadOptions,
) -> Pixels:
    """Return the values of the grey frame (H, W) of that number in the file, from 0.

    `padding` is what `padding_of` gives.
    """
    values = _rescaled(tags, stored.astype(np.float64), number)
    values = (
        _file_window(tags, values, number) if options.window == "file" else options.clip(values)
    )
    pixels = to_float32(-values if tags.PhotometricInterpretation == "MONOCHROME1" else values)
    if padding is not None:
        _fill(pixels, (stored >= padding[0]) & (stored <= padding[1]))
    return pixels


def _fill(pixels: Pixels, padded: npt.NDArray[np.bool_]) -> None:
    """Make padded pixels background: the least of the others, or of all when all are padded."""
    others = pixels if padded.all() else pixels[~padded]
    pixels[padded] = others.min()


def padding_of(tags: "Dataset") -> tuple[float, float] | None:
    """Return the least and the greatest stored sample that are padding; None: there is none.

    The value and the limit of the range may come in either order; both are included.
    """
    (kind,) = (name.removesuffix("PixelData") for name in PIXELS if name in tags)
    value = _padding(tags, f"{kind}PixelPaddingValue", kind)
    limit = _padding(tags, f"{kind}PixelPaddingRangeLimit", kind)
    if value is None:
        return None
    limit = value if limit is None else limit
    return min(value, limit), max(value, limit)


def _padding(tags: "Dataset", name: str, kind: str) -> float | None:
    """Read a padding value from its bytes, which have the type of the samples.

    The element's own VR is not asked for: in implicit VR there is none, and files of signed
    samples are common whose padding says that it is unsigned.
    """
    data = tags.get_item(name).value if name in tags else None
    if not data:
        return None
    signed = tags.get("PixelRepresentation", 0) == 1
    dtype = {"": "i2" if signed else "u2", "Float": "f4", "DoubleFloat": "f8"}[kind]
    order = "<" if tags.file_meta.TransferSyntaxUID.is_little_endian else ">"
    if len(data) != int(dtype[1]):
        raise Rejected("damaged", "a pixel padding value that is not one number")
    return float(np.frombuffer(data, order + dtype)[0])


def _rescaled(tags: "Dataset", values: _Values, number: int) -> _Values:
    """Apply the modality's look-up table, or slope and intercept."""
    if tags.get("ModalityLUTSequence"):
        return _looked_up(tags, values, "ModalityLUTSequence")
    source = _functional(tags, "PixelValueTransformationSequence", number)
    slope, intercept = source.get("RescaleSlope"), source.get("RescaleIntercept")
    slope = 1.0 if slope is None else float(slope)
    intercept = 0.0 if intercept is None else float(intercept)
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope):
        raise Rejected("damaged", "a rescale slope of 0, or one that is not finite")
    return values * slope + intercept


def _functional(tags: "Dataset", macro: str, number: int) -> "Dataset":
    """Return what holds a value of one frame: its own group, the shared one, or the file."""
    for name, index in (
        ("PerFrameFunctionalGroupsSequence", number),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        groups = tags.get(name) or []
        if index < len(groups) and groups[index].get(macro):
            found: Dataset = groups[index].get(macro)[0]
            return found
    return tags


def _looked_up(tags: "Dataset", values: _Values, name: str) -> _Values:
    """Look whole values up; those before the table get its first entry, those after its last."""
    item = tags.get(name)[0]
    entries, first, bits = item.LUTDescriptor
    entries = entries % 65536 or 65536
    table = item.LUTData
    if isinstance(table, bytes):
        order = "<" if tags.file_meta.TransferSyntaxUID.is_little_endian else ">"
        narrow = bits <= 8 and len(table) < 2 * entries
        table = np.frombuffer(table, "u1" if narrow else f"{order}u2")
    table = np.asarray(table, np.float64)
    if len(table) < entries:
        raise Rejected("damaged", "a look-up table with too few entries")
    looked_up: _Values = table[np.clip(values - first, 0, entries - 1).astype(np.intp)]
    return looked_up


def _file_window(tags: "Dataset", values: _Values, number: int) -> _Values:
    """Apply a frame's first window, else its first VOI table, else nothing.

    PS3.3 C.11.2.1.2 and C.11.2.1.3, but in the rescaled unit.
    """
    source = _functional(tags, "FrameVOILUTSequence", number)
    centre, width = _first(source.get("WindowCenter")), _first(source.get("WindowWidth"))
    if centre is None or width is None:
        return _looked_up(tags, values, "VOILUTSequence") if tags.get("VOILUTSequence") else values
    function = source.get("VOILUTFunction") or "LINEAR"
    if not (math.isfinite(centre) and width >= (1 if function == "LINEAR" else 1e-30)):
        raise Rejected("damaged", "a window without a width")
    if function == "SIGMOID":
        return centre - width / 2 + width / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return np.clip(values, centre - width / 2, centre + width / 2)


def _first(value: Any) -> float | None:
    """Return the first of a tag's values."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    value = (value[0] if value else None) if several else value
    return None if value is None or value == "" else float(value)


def colour(tags: "Dataset", stored: npt.NDArray[Any], photometric: str) -> Pixels:
    """Return the luminance of colour (H, W, 3), or of indices into a palette (H, W)."""
    if photometric == PALETTE:
        stored = _painted(tags, stored)
    elif photometric != "RGB":
        raise Rejected("unsupported", "colour that was not brought to RGB")
    return luminance(stored)


def _painted(tags: "Dataset", stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    from pydicom.pixels.processing import apply_color_lut

    entries, first, _ = tags.RedPaletteColorLookupTableDescriptor
    entries = entries % 65536 or 65536
    # pydicom's index has the type of the table's entries, in which a greater one wraps round.
    painted = apply_color_lut(np.clip(stored.astype(np.int32), first, first + entries - 1), tags)
    if painted.dtype.itemsize == 1 and entries > 256:
        raise Rejected("unsupported", f"a palette of {entries} colours of 8 bits")
    return painted
