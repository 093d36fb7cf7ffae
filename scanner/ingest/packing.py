"""Decoded images as an Answer, and back: nothing of a decoder's making is unpickled.

Decoded -> Answer: a list of plain values a record, pixels by the number of their record -> Decoded
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from deepssim_scan.execution.answer import Answer, NoAnswer
from deepssim_scan.ingest.record import Decoded, ImageRecord
from deepssim_scan.ingest.rejection import REASONS

_NAMES = [field.name for field in fields(ImageRecord)]
_KINDS: list[Any] = [field.type for field in fields(ImageRecord)]


def plain(record: ImageRecord) -> list[Any]:
    """Return the values of a record, as JSON holds them."""
    return [getattr(record, name) for name in _NAMES]


def record_of(values: Any) -> ImageRecord:
    """Return the record of plain values; raises NoAnswer where they are none."""
    if not isinstance(values, list) or len(values) != len(_KINDS):
        raise NoAnswer(f"a record has {len(_KINDS)} values")
    if not all(isinstance(*each) for each in zip(values, _KINDS, strict=True)):
        raise NoAnswer("a value of a record is of another kind")
    record = ImageRecord(*values)
    if record.reason is not None and record.reason not in REASONS:
        raise NoAnswer(f"{record.reason!r} is no reason")
    return record


def packed(images: Sequence[Decoded]) -> Answer:
    """Return the answer that holds images."""
    pixels = {str(n): each.pixels for n, each in enumerate(images) if each.pixels is not None}
    return Answer([plain(image.record) for image in images], pixels)


def unpacked(answer: Answer) -> list[Decoded]:
    """Return the images that an answer holds; raises NoAnswer where it holds none.

    Pixels must be float32 (H, W), and finite.
    """
    if not isinstance(answer.records, list):
        raise NoAnswer("records are a list")
    images = []
    for number, values in enumerate(answer.records):
        pixels, record = answer.arrays.get(str(number)), record_of(values)
        if (pixels is None) == (record.reason is None):
            raise NoAnswer("an image has either pixels or a reason")
        if pixels is not None:
            _check_pixels(pixels)
        images.append(Decoded(record, pixels))
    return images


def _check_pixels(pixels: np.ndarray[Any, Any]) -> None:
    if pixels.dtype != np.float32 or pixels.ndim != 2 or not np.isfinite(pixels).all():
        raise NoAnswer(f"pixels are {pixels.dtype} {pixels.shape}, or not finite")
