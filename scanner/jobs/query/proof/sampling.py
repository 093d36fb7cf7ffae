"""Samples of both sides of a query, looked at, and kept for the next run.

store, digests of its images -> the sample: how its images look, and embeddings of inverted ones

The images of a sample are those with the least digests. So a set that changes a little has nearly
the same sample, and what was seen of it is taken from the earlier report.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.errors import Damaged
from deepssim_scan.imaging.looks import LOOKS, Looks, looks
from deepssim_scan.matching.identity import SIZE, Context
from deepssim_scan.storage.parquet import row_groups, writing
from deepssim_scan.store.array import Vectors
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.reread import Reader
from deepssim_scan.store.store import Store

_COLUMNS = pa.schema(
    [
        ("image", pa.binary(SIZE)),
        *((name, pa.float64()) for name in LOOKS),
        ("inverted", pa.list_(pa.float32())),
    ]
)
_INVERTED = TTA_VIEWS.index((0, True))


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of an image: `LOOKS`, and its embedding with inverted greys, where wanted."""

    looks: tuple[float, ...]
    inverted: Vectors | None


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """The rows (n,) of a sample in their store, and the digests (n,) of the images."""

    rows: NDArray[np.int64]
    digests: tuple[bytes, ...]

    @classmethod
    def of(cls, store: Store, context: Context, most: int) -> "Sample":
        """Choose the images with the least digests."""
        digests = context.of_images(store.embedded())
        rows = np.argsort(digests, kind="stable")[:most]
        # NumPy's bytes end before zeros.
        return cls(rows, tuple(bytes(each).ljust(SIZE, b"\0") for each in digests[rows]))


Kept = dict[bytes, Look]
"""What was seen of images, by their digests."""


def look(sample: Sample, reader: Reader, embedder: Embedder, kept: Kept, inverted: int) -> Kept:
    """Look at the images of a sample, and embed the first so many with inverted greys.

    What is `kept` is not read again. An image that is gone is left out.
    """
    wanted = sample.digests
    rows = dict(zip(wanted, sample.rows.tolist(), strict=True))
    turned = set(wanted[:inverted])
    again = [
        digest
        for digest in wanted
        if digest not in kept or (digest in turned and kept[digest].inverted is None)
    ]
    pixels = dict(reader.pixels(rows[digest] for digest in again))
    there = [digest for digest in again if rows[digest] in pixels]
    found = looks(pixels[rows[digest]] for digest in there)
    upside = _upside([rows[digest] for digest in there if digest in turned], reader, embedder)
    seen = {
        digest: Look(tuple(values), upside.get(rows[digest]))
        for digest, values in zip(there, found.tolist(), strict=True)
    }
    return {digest: each for digest in wanted if (each := seen.get(digest) or kept.get(digest))}


def _upside(rows: Sequence[int], reader: Reader, embedder: Embedder) -> dict[int, Vectors]:
    """Embed images with inverted greys."""
    asked = np.zeros((len(rows), len(TTA_VIEWS)), bool)
    asked[:, _INVERTED] = True
    standardised = replace(reader, rule=embedder.loaded.architecture.standardisation)
    views = embedder.embed_views(lambda part: standardised.wanted(rows[part]), asked)
    found = zip(rows, views[:, _INVERTED], strict=True)
    return {row: view for row, view in found if not np.isnan(view).any()}


def looks_of(seen: Iterable[Look]) -> Looks:
    """Return the looks (n, 4)."""
    return np.array([each.looks for each in seen], np.float64).reshape(-1, len(LOOKS))


def read_kept(path: Path) -> Kept:
    """Read what an earlier run has seen; nothing, where that is damaged."""
    kept: Kept = {}
    try:
        tables = [*row_groups(path, _COLUMNS)] if path.is_file() else []
    except Damaged:
        return kept
    for table in tables:
        for row in table.to_pylist():
            view = row["inverted"]
            seen = tuple(row[name] for name in LOOKS)
            kept[row["image"]] = Look(seen, None if view is None else np.array(view, np.float32))
    return kept


def write_kept(path: Path, kept: Kept) -> None:
    """Write what was seen."""
    rows = [
        {"image": digest, **dict(zip(LOOKS, seen.looks, strict=True)), "inverted": seen.inverted}
        for digest, seen in kept.items()
    ]
    with writing(path, _COLUMNS) as out:
        out.write_table(pa.Table.from_pylist(rows, schema=_COLUMNS))


def read_rows(store: Store, rows: NDArray[np.int64]) -> Vectors:
    """Return some rows (n, D) of a store that is read a shard at a time."""
    found = np.empty((len(rows), store.manifest.dimension), np.float32)
    for first, shard in store.shards():
        here = (rows >= first) & (rows < first + len(shard))
        found[here] = shard[rows[here] - first]
    return found
