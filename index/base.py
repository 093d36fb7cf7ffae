"""What proposes candidates: the interface of all types of index.

unit-norm queries (Q, D) float32, how many -> Found: scores and training rows (Q, n), best first
"""

from typing import Protocol

import numpy as np

from deepssim_scan.index.rescore import Ids
from deepssim_scan.store.array import Vectors

Found = tuple[Vectors, Ids]


class Proposer(Protocol):
    """Proposes training rows, which are then scored again from the stored rows.

    `tolerance` is by how much its scores are off at most, so that a row which was left out has no
    more than the last score and that; None where nothing is known of rows that were left out.
    """

    @property
    def kind(self) -> str:
        """The factory string of its type."""

    @property
    def effort(self) -> int:
        """How much of an approximate index it looks at."""

    @property
    def tolerance(self) -> np.float32 | None: ...

    def propose(self, queries: Vectors, wanted: int) -> Found:
        """Return its scores and rows, (Q, n) with n >= wanted; -1 for a row where it has none."""
