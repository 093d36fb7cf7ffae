"""NPY and NPZ: arrays of one plane, or of a volume cut into slices.

    (H, W) -> one frame; (N, H, W) -> N frames, across the first axis unless told otherwise

Axes of length 1 are dropped first. Headers are read by themselves, so that nothing is unpickled
and nothing allocated for what they claim. An NPZ gives its arrays in the order of their names.
"""

import io
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.decode.values import MAX_FRAMES, MAX_INFLATED, Frame
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.ingest.rejection import Rejected

MAGIC = npy.MAGIC_PREFIX
MAGIC_NPZ = b"PK\x03\x04"
_HEADER = 16_384  # bytes; numpy refuses headers of more than 10,000
_PIECE = 1 << 20  # bytes
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True, slots=True)
class Layout:
    """What a header says of the samples that follow it; checked before anything is allocated."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Literal["C", "F"]

    def __post_init__(self) -> None:
        if self.dtype.kind not in "biuf" or self.dtype.itemsize > 8:
            kind, size = self.dtype.kind, self.dtype.itemsize
            raise Rejected("bad-array", f"samples of kind {kind!r}, {size} bytes each")
        if len(self.shape) < 2 or min(self.shape) < 1:
            raise Rejected("bad-array", f"shape {self.shape} is not an image")
        if self.nbytes > MAX_INFLATED:
            raise Rejected(
                "too-large", f"shape {self.shape}: {self.nbytes} bytes, over {MAX_INFLATED}"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of samples that have to follow the header."""
        return math.prod(self.shape) * self.dtype.itemsize

    def view(self, data: bytes | bytearray | memoryview) -> npt.NDArray[Any]:
        """View samples as an array; there must be exactly as many as the header says."""
        if len(data) != self.nbytes:
            found = "fewer" if len(data) < self.nbytes else "more"
            raise Rejected(
                "bad-array", f"the header asks for {self.nbytes} bytes of samples, found {found}"
            )
        return np.frombuffer(data, self.dtype).reshape(self.shape, order=self.order)


@dataclass(frozen=True, slots=True)
class SlicePlan:
    """Which planes to take of an array.

    Axes `dropped`, each of length 1, are left out, which leaves `shape`. A volume is cut across
    `axis`, into the slices of these numbers; a plane has no `axis`.
    """

    dropped: tuple[int, ...]
    shape: tuple[int, ...]
    axis: int | None
    slices: range


def plan_slices(shape: tuple[int, ...], options: ReadOptions, axis: int) -> SlicePlan:
    """Plan which planes to take of an array; a volume is cut across `axis` by default.

    Of the axes of length 1 as many are dropped, the last first, as leave a plane or volume.

    Raises Rejected: "unsupported" for more axes than three, "too-large", and "no-pixels" when
    the options select nothing.
    """
    kept = max(2, len(shape) - shape.count(1))
    ones = [number for number, side in enumerate(shape) if side == 1]
    dropped = tuple(ones[len(ones) - (len(shape) - kept) :])
    left = tuple(side for number, side in enumerate(shape) if number not in dropped)
    if kept > 3:
        raise Rejected("unsupported", f"shape {shape}; save each volume as a file of its own")
    volume = (axis if options.axis is None else options.axis) if kept == 3 else None
    slices = range(1) if volume is None else options.slice_range(left[volume])
    pixels = math.prod(left) // (1 if volume is None else left[volume])
    if pixels > options.max_pixels:
        raise Rejected("too-large", f"shape {shape} is over the limit of {options.max_pixels}")
    if len(slices) > MAX_FRAMES:
        raise Rejected("too-large", f"{len(slices)} slices, over the limit of {MAX_FRAMES}")
    if not slices:
        raise Rejected("no-pixels", f"slices {options.slices} select nothing of shape {shape}")
    return SlicePlan(dropped, left, volume, slices)


def planes(samples: npt.NDArray[Any], plan: SlicePlan) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Give the name and the samples of each plane; the name of the only plane is ""."""
    left = samples.squeeze(plan.dropped)
    for number in plan.slices:
        if plan.axis is None:
            yield "", left
        else:
            yield f"axis={plan.axis},slice={number}", np.moveaxis(left, plan.axis, 0)[number]


def to_float32(values: npt.NDArray[Any]) -> Pixels:
    """Return values as pixels; what is beyond float32 becomes infinite, and is rejected as such.

    The memory order is always C, so that sums over pixels round alike, whatever the file's order.
    """
    with np.errstate(over="ignore"):
        return values.astype(np.float32, order="C")


def read_at_most(stream: IO[bytes] | io.BufferedIOBase, count: int) -> bytearray:
    """Read up to `count` bytes, piece by piece: memory grows with the bytes that are there."""
    body = bytearray()
    while (left := count - len(body)) > 0 and (piece := stream.read(min(_PIECE, left))):
        body += piece
    return body


def npy_frames(data: bytes, options: ReadOptions) -> Iterator[Frame]:
    """Give the planes of an NPY file."""
    layout, start = _header(data[:_HEADER])
    plan = _plan(layout, options)
    samples = layout.view(memoryview(data)[start:])
    for name, plane in planes(samples, plan):
        yield Frame(name, f"npy:{layout.dtype.name}", to_float32(plane))


def npz_frames(data: bytes, options: ReadOptions) -> Iterator[Frame]:
    """Give the planes of every array of an NPZ; no more is inflated than the headers ask for."""
    inflated = count = 0
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = _members(archive)
        for name, member in members:
            with archive.open(member) as stream:
                head = stream.read(_HEADER)
                layout, start = _header(head)
                plan = _plan(layout, options)
                inflated, count = inflated + layout.nbytes, count + len(plan.slices)
                if inflated > MAX_INFLATED or count > MAX_FRAMES:
                    raise Rejected("too-large", f"{inflated} bytes in {count} planes, or more")
                # One byte more than needed: it shows trailing bytes, and leads to the checksum.
                body = head[start:] + read_at_most(stream, layout.nbytes + 1 - len(head) + start)
            for slice_name, plane in planes(layout.view(body), plan):
                only = len(members) == 1 and not slice_name
                parts = [] if only else [f"array={name}", slice_name]
                label = ",".join(part for part in parts if part)
                yield Frame(label, f"npz:{layout.dtype.name}", to_float32(plane))


def _members(archive: zipfile.ZipFile) -> list[tuple[str, zipfile.ZipInfo]]:
    """Return the arrays of an NPZ by sorted name; refuse what numpy would not have written."""
    members = sorted(archive.infolist(), key=lambda member: member.filename)
    names = [member.filename for member in members]
    if not any(name.endswith(".npy") for name in names):
        raise Rejected("unknown-format", "a ZIP file without arrays")
    if len(names) > MAX_FRAMES:
        raise Rejected("too-large", f"{len(names)} arrays, over the limit of {MAX_FRAMES}")
    if len(set(names)) < len(names) or not all(name.endswith(".npy") for name in names):
        raise Rejected("bad-array", "an NPZ with other files in it, or two arrays of one name")
    if any(member.compress_type not in _METHODS or member.flag_bits & 1 for member in members):
        raise Rejected("unsupported", "an NPZ encrypted, or compressed by another way than deflate")
    return [(member.filename.removesuffix(".npy"), member) for member in members]


def _plan(layout: Layout, options: ReadOptions) -> SlicePlan:
    plan = plan_slices(layout.shape, options, axis=0)
    if plan.axis is not None and plan.shape[-1] in (3, 4):
        raise Rejected(
            "unsupported", f"shape {layout.shape} looks like colour; save it as PNG, or as grey"
        )
    return plan


def _header(head: bytes) -> tuple[Layout, int]:
    """Read an NPY header; return what it says, and where the samples start."""
    stream = io.BytesIO(head)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    try:
        shape, fortran, dtype = readers[npy.read_magic(stream)](stream)
    except Exception as error:  # its text would quote the header
        raise Rejected("bad-array", "the NPY header cannot be read") from error
    return Layout(shape, dtype, "F" if fortran else "C"), stream.tell()
