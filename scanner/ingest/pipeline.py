"""Folders of image files to standardised pixels, with a reason for everything left out.

    list_images(folder) -> Listing -> decode_images -> a list of Decoded per item, in its order

Every item that is listed comes out exactly once, as one Decoded per frame: pixels (H', W')
float32, or a reason. Sizes are bytes, times nanoseconds.
"""

import hashlib
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from deepssim_scan.errors import InputError
from deepssim_scan.execution.answer import Answer, NoAnswer
from deepssim_scan.ingest.archives import read_member
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.limits import Limits
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.decode import decode
from deepssim_scan.ingest.decode.values import Frame
from deepssim_scan.ingest.isolated import isolated
from deepssim_scan.ingest.listing import Item, Listing
from deepssim_scan.ingest.packing import packed, unpacked
from deepssim_scan.ingest.record import Decoded, ImageRecord
from deepssim_scan.ingest.rejection import BLANK, Rejected, Rejection
from deepssim_scan.ingest.safe_open import MAX_BYTES, inside, open_regular
from deepssim_scan.ingest.standardise import standardise
from deepssim_scan.ingest.subjects import subject_of

CHUNK = 64
"""Images of a block, at most."""

_CHUNK_BYTES = 8 << 20
_DEFAULT = IngestConfig()


def decode_item(
    folder: Path,
    item: Item,
    rule: Standardisation,
    ingest: IngestConfig = _DEFAULT,
    frames: frozenset[str] | None = None,
) -> list[Decoded]:
    """Read, hash, decode and standardise one item; every failure is a rejection.

    A frame that is constant or not finite is left out among the others, whatever else is wrong
    rejects the item whole. A constant frame is blank, unless all frames are constant. The bytes
    are read once, and the hash is of those that were decoded. With `frames`, only those of them
    are returned that the item has, each as if it were the only one.
    """
    record = ImageRecord(item.path, item.member, "", 1, 0, 0, "", "", "")
    try:
        if item.rejection is not None:
            raise Rejected(item.rejection.reason, item.rejection.detail)
        data = read_item(folder, item)
        record = replace(
            record,
            size=len(data),
            mtime_ns=max(-(1 << 63), min(item.mtime_ns, (1 << 63) - 1)),  # SQLite: year 2262
            sha256=hashlib.sha256(data).hexdigest(),
        )
        found = decode(data, ingest.read_options)
        images = [
            _standardised(record, frame, rule)
            for frame in found
            if frames is None or frame.name in frames
        ]
        images = _all_frames(images) if frames is None else images
    except Rejected as error:
        images = [_left_out(record, error.rejection)]
    except MemoryError:
        images = [_left_out(record, Rejection("too-large", "not enough memory"))]
    return [_with_subject(image, item, ingest) for image in images]


def _standardised(record: ImageRecord, frame: Frame, rule: Standardisation) -> Decoded:
    record = replace(record, frame=frame.name, mode=frame.mode, subject=frame.subject)
    try:
        return Decoded(record, standardise(frame.pixels, rule))
    except Rejected as error:
        return _left_out(record, error.rejection)


def _left_out(record: ImageRecord, rejection: Rejection) -> Decoded:
    return Decoded(replace(record, reason=rejection.reason, detail=rejection.detail), None)


def _all_frames(images: list[Decoded]) -> list[Decoded]:
    """Complete the records of the frames of one file: how many there are, and which are blank."""
    if not images:
        raise Rejected("damaged", "no frame in it")
    if len({image.record.frame for image in images}) < len(images):
        raise Rejected("bad-array", "two of its frames have one name")
    records = [replace(image.record, frames=len(images)) for image in images]
    if any(record.reason != "constant" for record in records):
        records = [
            replace(record, reason=BLANK) if record.reason == "constant" else record
            for record in records
        ]
    return [Decoded(record, image.pixels) for record, image in zip(records, images, strict=True)]


def _with_subject(image: Decoded, item: Item, ingest: IngestConfig) -> Decoded:
    """Decide whose image it is; until here, the record has the hashed patient id of a DICOM."""
    record = image.record
    subject = subject_of(item, record.frame, record.subject, ingest)
    record = replace(record, subject=subject.name, subject_known=subject.known)
    return replace(image, record=record)


def read_item(folder: Path, item: Item) -> bytes:
    """Return an item's bytes, of a file that did not change since it was listed."""
    path = folder / item.path
    if not inside(os.path.realpath(folder), path):
        raise Rejected("outside-folder", "the path leaves the folder")
    with open_regular(path) as file:
        _check_same(os.fstat(file.fileno()), item)
        data = read_member(file, item.location) if item.location else _read_whole(file, item)
        _check_same(os.fstat(file.fileno()), item)
    return data


def _read_whole(file: BinaryIO, item: Item) -> bytes:
    if item.size > MAX_BYTES:
        raise Rejected("too-large", f"{item.size} bytes, over the limit of {MAX_BYTES}")
    data = file.read(item.size + 1)
    if len(data) != item.size:
        raise Rejected("changed", "its size changed while it was read")
    return data


def _check_same(status: os.stat_result, item: Item) -> None:
    if (status.st_size, status.st_mtime_ns) != (item.size, item.mtime_ns):
        raise Rejected("changed", "its size or time is not what it was when it was listed")


@dataclass(frozen=True, slots=True)
class Decoding:
    """Items of a folder, and how they are decoded: in a process under limits, or in this one.

    `frames` are those that are wanted of each item, by its path and member; None: all.
    """

    folder: Path
    items: tuple[Item, ...]
    rule: Standardisation
    ingest: IngestConfig
    limits: Limits | None
    frames: Mapping[tuple[str, str], frozenset[str]] | None = None

    def one(self, item: Item) -> list[Decoded]:
        """Decode an item in this process."""
        return decode_item(self.folder, item, self.rule, self.ingest, self.wanted(item))

    def wanted(self, item: Item) -> frozenset[str] | None:
        """Return which frames of an item are wanted; None: all."""
        return None if self.frames is None else self.frames[item.path, item.member]


def decoded(task: Decoding) -> Iterator[list[Decoded]]:
    """Decode every item, in their order: one list of Decoded per item.

    It is empty only where some frames are wanted and the file has none of them.
    """
    readable = [item for item in task.items if item.rejection is None]
    answers: Iterator[list[Decoded] | Rejection]
    if task.limits is None:
        answers = map(task.one, readable)
    else:
        alone = replace(task, items=())  # which travels with every item
        sizes = [item.location.size if item.location else item.size for item in readable]
        found = isolated(task.limits).answers(partial(_decode_packed, alone), readable, sizes)
        answers = map(partial(_of_item, task), readable, found)
    for item in task.items:
        answer = next(answers) if item.rejection is None else item.rejection
        yield task.one(item.rejected(answer)) if isinstance(answer, Rejection) else answer


def _decode_packed(task: Decoding, item: Item) -> Answer:
    return packed(task.one(item))


def _of_item(task: Decoding, item: Item, answer: Answer | Rejection) -> list[Decoded] | Rejection:
    """Return the images of an item that a decoder answered."""
    if isinstance(answer, Rejection):
        return answer
    try:
        images = unpacked(answer)
        _check_records(item, task.wanted(item), [image.record for image in images])
    except NoAnswer as error:
        return Rejection("decoder-crashed", f"what its process answered is no answer: {error}")
    return images


def _check_records(
    item: Item, wanted: frozenset[str] | None, records: Sequence[ImageRecord]
) -> None:
    """Raise NoAnswer unless records are those of an item, one a frame, or of what is wanted."""
    keys = {(item.path, item.member, record.frame) for record in records}
    if keys != {record.key for record in records} or len(keys) != len(records):
        raise NoAnswer("its records are not of the file")
    if wanted is not None:
        return
    if not records or any(record.frames != len(records) for record in records):
        raise NoAnswer(f"it has {len(records)} frames, and says another number")


def decode_images(
    listing: Listing,
    rule: Standardisation,
    ingest: IngestConfig,
    run: RunContext,
    *,
    chunk: int = CHUNK,
) -> Generator[list[Decoded], None, None]:
    """Decode every item of a listing, in its order: one list of Decoded per item, never empty.

    The workers of the run take `chunk` items at a time, or fewer: at most 8 MiB of files, so that
    volumes go alone. What is held does not grow with the folder; where images are large and never
    resized, a smaller `chunk` holds less. The result does not depend on `run` or `chunk`.

    Raises InputError for a chunk below 1, at the call; ScanError while iterating, when no process
    can be started.
    """
    if chunk < 1:
        raise InputError(f"chunk ({chunk}) must be >= 1")
    tasks = (
        Decoding(listing.folder, items, rule, ingest, run.isolation)
        for items in chunks(listing.files, chunk)
    )
    return _by_item(run.map(_decode, tasks))


def _decode(task: Decoding) -> Answer:
    """Decode items: a block."""
    return packed([image for images in decoded(task) for image in images])


def _by_item(answers: Generator[Answer, None, None]) -> Generator[list[Decoded], None, None]:
    with closing(answers):
        for answer in answers:
            for _, images in groupby(unpacked(answer), lambda image: image.record.key[:2]):
                yield [*images]


def chunks(items: Iterable[Item], most: int = CHUNK) -> Iterator[tuple[Item, ...]]:
    """Cut items into parts of at most `most`, and of 8 MiB of files where there are several."""
    chunk: list[Item] = []
    total = 0
    for item in items:
        size = item.location.size if item.location else item.size
        if chunk and (len(chunk) == most or total + size > _CHUNK_BYTES):
            yield tuple(chunk)
            chunk, total = [], 0
        chunk.append(item)
        total += size
    if chunk:
        yield tuple(chunk)
