"""What synthetic images were looked at in, kept beside their evidence for the next run.

Looked (Q,) -> NNNNNNNN.images.parquet: a row an image -> the same
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.matching.identity import SIZE, Digests
from deepssim_scan.storage.parquet import row_groups, writing
from deepssim_scan.store.array import Vectors

_DIGESTS = "image", "candidates"
_VIEWS = [f"view_{view}" for view in range(1, len(TTA_VIEWS))]


@dataclass(frozen=True, slots=True, eq=False)
class Looked:
    """Q images in their test-time views, and the digests that `identity.Context` gives them.

    `images` (Q,) is what the views depend on, `candidates` (Q,) what the evidence does. `views`
    (Q, V, D) are embeddings; NaN where a view was not looked at. The first view, of the image as
    it is, is in the store, and not kept here.
    """

    images: Digests
    candidates: Digests
    views: Vectors


def write_looked(path: Path, looked: Looked) -> None:
    """Write a file, in place of what was there."""
    count, views, dimension = looked.views.shape
    columns = [digest_column(looked.images), digest_column(looked.candidates)]
    columns += [_embeddings(looked.views[:, view]) for view in range(1, views)]
    columns += [pa.nulls(count, pa.list_(pa.float32(), dimension))] * (len(TTA_VIEWS) - views)
    schema = _schema(dimension)
    with writing(path, schema) as out:
        out.write_table(pa.Table.from_arrays(columns, schema=schema))


def read_looked(path: Path, dimension: int) -> Looked:
    """Read a file; Damaged when it is not whole, or its embeddings are of another dimension."""
    schema = _schema(dimension)
    table = pa.concat_tables([schema.empty_table(), *row_groups(path, schema)])
    images, candidates = (digests_of(table[name]) for name in _DIGESTS)
    views = np.full((len(table), len(TTA_VIEWS), dimension), np.nan, np.float32)
    for view, name in enumerate(_VIEWS, 1):
        column = table[name].combine_chunks()
        there = column.is_valid().to_numpy(zero_copy_only=False)
        views[there, view] = column.drop_null().flatten().to_numpy().reshape(-1, dimension)
    return Looked(images, candidates, views)


def read_digests(path: Path, dimension: int, which: str) -> Digests:
    """Read one kind of digests of a file alone: "image" or "candidates"."""
    schema = _schema(dimension)
    found = [digests_of(table[which]) for table in row_groups(path, schema, [which])]
    return np.concatenate([np.empty(0, f"S{SIZE}"), *found])


def digests_of(column: pa.ChunkedArray) -> Digests:
    """Return the digests (Q,) of a column."""
    return np.array(column.to_pylist(), f"S{SIZE}")


def _schema(dimension: int) -> pa.Schema:
    digests = [(name, pa.binary(SIZE)) for name in _DIGESTS]
    return pa.schema([*digests, *((name, pa.list_(pa.float32(), dimension)) for name in _VIEWS)])


def digest_column(values: Digests) -> pa.Array:
    """Return digests (Q,) as a column."""
    data = pa.py_buffer(np.ascontiguousarray(values))  # whole: bytes of NumPy end before zeros
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(SIZE), len(values), [None, data])


def _embeddings(rows: Vectors) -> pa.Array:
    """Return rows (Q, D) as a column; null where they are NaN."""
    missing = pa.array(np.isnan(rows).any(1))
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1], mask=missing)
