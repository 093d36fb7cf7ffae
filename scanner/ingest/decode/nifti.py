"""NIfTI-1 and -2, plain or gzipped: one plane, or a volume cut into slices.

The first of a plane's two axes runs along the columns and the second along the rows. Slope and
intercept are applied, the affine is ignored. No more is inflated than the header asks for.
"""

import gzip
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.decode.arrays import Layout, plan_slices, planes, read_at_most, to_float32
from deepssim_scan.ingest.decode.loading import load
from deepssim_scan.ingest.decode.values import Frame
from deepssim_scan.ingest.rejection import REASONS, Rejected

_MODULES = "nibabel.nifti1", "nibabel.nifti2"
GZIP = b"\x1f\x8b"
_SHORTEST = 348  # bytes of a NIfTI-1 header
_HEAD = 540  # bytes of a NIfTI-2 header, the longer


@dataclass(frozen=True, slots=True)
class Header:
    """Where the samples start, what they are, and `sample * slope + intercept` for a value."""

    layout: Layout
    start: int
    slope: float
    intercept: float


def frames(data: bytes, options: ReadOptions) -> Iterator[Frame]:
    """Give the planes of a volume, across the third axis unless told otherwise."""
    source = io.BytesIO(data)
    with gzip.GzipFile(fileobj=source) if data.startswith(GZIP) else source as stream:
        head = stream.read(_HEAD)
        header = _header(head)
        plan = plan_slices(header.layout.shape, options, axis=2)
        length = header.start + header.layout.nbytes
        # One byte more than needed: it shows trailing bytes, and takes gzip to its checksum.
        body = head + read_at_most(stream, length + 1 - len(head))
    samples = header.layout.view(memoryview(body)[header.start :])
    for name, plane in planes(samples, plan):
        values = plane.T.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            values = values * header.slope + header.intercept
        pixels = to_float32(options.clip(values))
        yield Frame(name, f"nifti:{header.layout.dtype.name}", pixels)


def before_samples(data: bytes) -> bytes:
    """Return what lies between the header and the samples, as of extensions of the header."""
    source = io.BytesIO(data)
    with gzip.GzipFile(fileobj=source) if data.startswith(GZIP) else source as stream:
        head = stream.read(_HEAD)
        start = _header(head).start
        return (head + read_at_most(stream, max(0, start - len(head))))[_SHORTEST:start]


def _header(head: bytes) -> Header:
    first, second = head[344:348] == b"n+1\0", head[4:8] == b"n+2\0"
    if not (first or second):
        raise Rejected("unknown-format", REASONS["unknown-format"])
    load(*_MODULES)
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    # Unchecked, because its check repairs, and logs what it repaired.
    header = (Nifti1Header if first else Nifti2Header)(head[: 348 if first else 540], check=False)
    shape = tuple(int(side) for side in header.get_data_shape())
    layout = Layout(shape, header.get_data_dtype(), "F")
    slope, intercept = header.get_slope_inter()  # None: 0 or NaN, which stand for no scaling
    if math.isinf(header["scl_slope"]):  # nibabel takes it for no scaling as well
        raise Rejected("damaged", "an infinite slope")
    start = int(header.get_data_offset())
    if not (348 if first else 540) <= start <= 1 << 24:
        raise Rejected("damaged", f"the samples are said to start at byte {start}")
    return Header(layout, start, *((1.0, 0.0) if slope is None else (slope, intercept)))
