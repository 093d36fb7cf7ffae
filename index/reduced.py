"""Rows of fewer dimensions, whose inner products bound those of the rows from above.

unit-norm rows (N, D) -> Directions: an orthonormal basis (D, d - 1) -> reduced rows (N, d)

A reduced row holds the coordinates of a row along the directions, and the norm of what is left of
it. What is left of two rows adds at most the product of its norms to their inner product (Cauchy
and Schwarz). So the rows whose bounds are highest hold the best, if the next bound is less than
the last of their scores; and to compare them takes d products instead of D.
"""

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.errors import Damaged
from deepssim_scan.execution.answer import Answer
from deepssim_scan.execution.executor import sliced
from deepssim_scan.index.base import Found
from deepssim_scan.index.config import FLAT
from deepssim_scan.index.flat import Flat
from deepssim_scan.index.manifest import IndexManifest
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.storage.files import check_sha256, replacing
from deepssim_scan.storage.layout import DIRECTIONS, REDUCED
from deepssim_scan.store.array import Vectors

_BLOCK = 8192  # rows that are reduced at once
_ORTHONORMAL = 1e-9  # by which products of directions may be off


class Directions:
    """An orthonormal basis (D, d - 1), float64, of the directions along which rows are long."""

    def __init__(self, basis: NDArray[np.float64]) -> None:
        """Take a basis."""
        self.basis = basis

    @classmethod
    def fitted(cls, rows: Vectors, dimension: int) -> Self:
        """Return the directions along which some rows (n, D) have the greatest sum of squares."""
        exact = rows.astype(np.float64)
        return cls(np.linalg.eigh(exact.T @ exact)[1][:, :-dimension:-1].copy())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read them from a file; Damaged where it holds no orthonormal basis."""
        try:
            basis = np.load(path, allow_pickle=False)
            off = np.abs(basis.T @ basis - np.eye(basis.shape[1])).max()
        except (ValueError, TypeError, IndexError, EOFError) as error:
            raise Damaged(f"{path}: is no matrix. Build the index again.") from error
        if basis.dtype != np.float64 or not off < _ORTHONORMAL:
            raise Damaged(f"{path}: is no orthonormal basis. Build the index again.")
        return cls(basis)

    def write(self, path: Path) -> None:
        """Write them to a file."""
        with replacing(path) as file:
            np.save(file, self.basis, allow_pickle=False)

    def reduced(self, rows: Vectors) -> Vectors:
        """Reduce rows (n, D) to (n, d), float32."""
        exact = rows.astype(np.float64)
        along = exact @ self.basis
        squares = [np.einsum("nd,nd->n", each, each) for each in (exact, along)]
        left = np.sqrt(np.maximum(0, squares[0] - squares[1]))
        return np.hstack([along, left[:, None]]).astype(np.float32)


class Reduced:
    """Proposes the rows whose upper bounds are the highest."""

    kind, effort = FLAT, 0

    def __init__(self, rows: Flat, directions: Directions) -> None:
        """Take the reduced rows, and the directions by which they were."""
        self.rows, self.directions = rows, directions
        self.tolerance = rows.tolerance

    @classmethod
    def open(cls, folder: Path, manifest: IndexManifest) -> Self | None:
        """Open the reduced rows of an index, where it has them; Damaged where they are not its."""
        if not manifest.reduced:
            return None
        for name in (REDUCED, DIRECTIONS):
            check_sha256(folder / name, manifest.files[name])
        directions = Directions.read(folder / DIRECTIONS)
        size = manifest.dimension, manifest.reduced - 1
        if directions.basis.shape != size:
            raise Damaged(
                f"{folder / DIRECTIONS}: is of {directions.basis.shape}, and must be of {size}. "
                "Build the index again."
            )
        rows = Flat.open(folder / REDUCED, manifest.rows, manifest.reduced)
        return cls(rows, directions)

    def propose(self, queries: Vectors, wanted: int) -> Found:
        """Return the upper bounds and numbers of the rows where these are highest (Q, wanted)."""
        return self.rows.propose(self.directions.reduced(queries), wanted)


def reduced_rows(flat: Flat, directions: Directions, run: RunContext) -> Iterator[Vectors]:
    """Give the reduced rows of an index, a block at a time."""
    parts = [*sliced(flat.rows, _BLOCK)]
    tasks = (flat.vectors(part.start, part.stop) for part in parts)
    with closing(run.map(partial(_block, directions.basis), tasks)) as answers:
        for part, answer in zip(parts, answers, strict=True):
            yield answer.arrays["rows"]
            run.progress("rows reduced", part.stop, flat.rows)


def _block(basis: NDArray[np.float64], rows: Vectors) -> Answer:
    return Answer(None, {"rows": Directions(basis).reduced(rows)})
