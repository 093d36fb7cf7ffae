"""Which training images show the same person, as far as it is known.

store -> Groups: a number for every row (N,), and the rows that are left out beside one
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.store.store import Store

_FEWEST = 20  # subjects, from which on those that are only guessed are taken for people
_RUN = 16  # neighbouring files that are left out on either side where no subjects are known
_FEWEST_RUNS = 4  # runs are shorter where there would be fewer


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """number (N,) of each row's subject, or of its run of files where there are no subjects.

    `subjects` tells which of the two; `known` whether the subjects were given, not guessed.
    """

    number: NDArray[np.int64]
    subjects: bool
    known: bool

    def __len__(self) -> int:
        """Return how many there are."""
        return int(self.number.max()) + 1

    @property
    def origin(self) -> str:
        """Where the groups come from: "known" or "guessed" subjects, or "runs" of files."""
        if not self.subjects:
            return "runs"
        return "known" if self.known else "guessed"

    def beside(self, row: int) -> NDArray[np.int64]:
        """Return the rows that may show the same person as a row, and itself."""
        if self.subjects:
            return np.flatnonzero(self.number == self.number[row])
        return np.arange(max(0, row - _RUN), min(len(self.number), row + _RUN + 1))

    def unseen(self, store: Store, seen: Collection[str]) -> NDArray[np.int64]:
        """Return the rows of groups of which an encoder has `seen` no image (by their digests).

        The embeddings of images that it was trained on lie further apart than those of others.
        """
        rows = [row for row, record in enumerate(store.embedded()) if record.digest in seen]
        return np.flatnonzero(~np.isin(self.number, self.number[rows]))

    def some(
        self, most: int, rng: np.random.Generator, among: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Draw at most so many rows, all or `among` some, of as many groups as there are: sorted.

        Every group gives one row before any gives a second one.
        """
        order = rng.permutation(len(self.number) if among is None else among)
        turn = np.empty(len(self.number), np.int64)
        taken: Counter[int] = Counter()
        for row in order.tolist():
            turn[row] = taken[number := int(self.number[row])]
            taken[number] += 1
        first = order[np.argsort(turn[order], kind="stable")]
        return np.sort(first[:most])


def groups_of(store: Store) -> Groups:
    """Tell the subjects of a store's rows apart.

    Subjects that are known count from two on, guessed ones from 20 on; a row without one is a
    subject of its own. Otherwise a group is a run of 16 neighbouring files, or of a quarter of them
    where there are fewer than 64: a match is told by its margin over those of other groups.
    """
    known = all(record.subject_known for record in store.embedded())
    if store.subject_count < (2 if known else _FEWEST):
        length = max(1, min(_RUN, store.rows // _FEWEST_RUNS))
        return Groups(np.arange(store.rows) // length, subjects=False, known=False)
    return Groups(store.subject_numbers(), subjects=True, known=known)
