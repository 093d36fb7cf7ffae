"""The types of index, as factory strings of FAISS, and the rule by which one is chosen.

name, rows, dimension, memory of the machine -> factory string
"""

import os
from math import sqrt
from pathlib import Path

from deepssim_scan.index.config import FLAT

FEWEST = 1024
"""Rows, at least, of an approximate index: product quantisers are trained on 256 and more."""

_EXACT = 500_000  # rows that are searched exactly: a tenth of the time of a query
_IDENTIFIER = 8  # bytes of a row's number in a list
_BYTES = 64  # of a row, by a product quantiser, at most; half of the dimensions where they are few
_PER_ROOT = 4  # lists for each root of the rows


_LIMITS = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"
"""Of the control group, in its second and first version."""


def factory(kind: str, rows: int, dimension: int, memory: int) -> str:
    """Return the factory string of a type: of `config.TYPES`, or already such a string.

    "auto" is flat up to 500,000 rows. Above it is ivf where its lists take half of the memory, in
    bytes, at most, and else ivfpq.
    """
    if kind == "auto":
        lists = rows * (dimension + _IDENTIFIER)
        kind = "flat" if rows <= _EXACT else "ivf" if lists <= memory // 2 else "ivfpq"
    lists = max(1, round(_PER_ROOT * sqrt(rows)))
    most = max(1, min(_BYTES, dimension // 2))
    quantised = next(each for each in range(most, 0, -1) if dimension % each == 0)
    known = {
        "flat": FLAT,
        "ivf": f"IVF{lists},SQ8",
        "ivfpq": f"IVF{lists},PQ{quantised}",
        "hnsw": "HNSW32_SQ8",
    }
    return known.get(kind, kind)


def memory() -> int:
    """Return the memory of this machine, or what its control group may use, in bytes."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    texts = [path.read_text("ascii").strip() for path in map(Path, _LIMITS) if path.is_file()]
    return min([found, *(int(text) for text in texts if text.isdigit())])
