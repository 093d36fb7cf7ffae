"""An inverted file, written a list at a time: of any size, in little memory.

rows -> number of the list and code of each, in blocks -> lists on the disk

FAISS writes the head, of an index without rows; the lists are put after it as FAISS reads them. So
nothing is added to an index in memory, and the file is the same however the blocks were worked on.
"""

import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.execution.answer import Answer
from deepssim_scan.execution.executor import sliced
from deepssim_scan.index.faiss_io import counted, deserialised, load_faiss, serialised
from deepssim_scan.index.flat import Flat
from deepssim_scan.index.rescore import Ids
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.storage.files import HashingFile
from deepssim_scan.store.array import Vectors

Codes = NDArray[np.uint8]

_BLOCK = 8192  # rows that are coded at once
_GATHERED = 2**18  # rows that are written at once
_LISTS = b"ilar"  # before the lists, in a file of FAISS


def write_lists(file: HashingFile, trained: Any, flat: Flat, run: RunContext, work: Path) -> None:
    """Write a trained inverted file of FAISS with all rows; codes are kept in `work` meanwhile."""
    head = serialised(trained)
    with tempfile.TemporaryFile(dir=work) as kept:
        numbers = _coded(head, flat, run, kept)
        sizes = np.bincount(numbers, minlength=trained.nlist)
        file.write(counted(head[: head.rindex(_LISTS)], flat.rows))
        file.write(_LISTS + struct.pack("<QQ", trained.nlist, trained.code_size))
        file.write(b"full" + struct.pack("<Q", trained.nlist) + sizes.astype("<u8").tobytes())
        codes = np.memmap(kept, np.uint8, "r", shape=(flat.rows, trained.code_size))
        for part, rows in _lists(sizes, np.argsort(numbers, kind="stable")):
            some, start = codes[rows], 0
            for size in part.tolist():
                file.write(some[start : start + size].data)
                file.write(rows[start : start + size].astype("<i8").data)
                start += size


def _coded(head: bytes, flat: Flat, run: RunContext, kept: Any) -> NDArray[np.int32]:
    """Write the code of each row to a file, and return the number of its list (N,)."""
    numbers = np.empty(flat.rows, np.int32)
    parts = [*sliced(flat.rows, _BLOCK)]
    tasks = (flat.vectors(part.start, part.stop) for part in parts)
    with closing(run.map(partial(_code, head), tasks)) as answers:
        for part, answer in zip(parts, answers, strict=True):
            numbers[part] = answer.arrays["lists"]
            kept.write(answer.arrays["codes"].data)
            run.progress("rows put into lists", part.stop, flat.rows)
    kept.flush()
    return numbers


def _code(head: bytes, rows: Vectors) -> Answer:
    """Find the list of each row, and its code: a block."""
    faiss = load_faiss()
    faiss.omp_set_num_threads(1)
    trained = deserialised(head)
    lists = np.ascontiguousarray(trained.quantizer.search(rows, 1)[1][:, 0])
    codes = np.empty((len(rows), trained.code_size), np.uint8)
    trained.encode_vectors(len(rows), *map(faiss.swig_ptr, (rows, lists, codes)), False)
    return Answer(None, {"lists": lists, "codes": codes})


def _lists(sizes: Ids, order: Ids) -> Iterator[tuple[Ids, Ids]]:
    """Give some lists at a time: their sizes, and their rows, one list after the other."""
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        start = ends[first] - sizes[first]
        last = max(first + 1, int(np.searchsorted(ends, start + _GATHERED, "right")))
        yield sizes[first:last], order[start : ends[last - 1]]
        first = last
