"""Which training images show the same person, as far as it is known.

store -> Groups: a number for every row (N,), and the rows that are left out beside one
"""

import itertools
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.store.store import Store

_FEWEST = 20  # subjects, from which on those that are only guessed are taken for people
_RUN = 16  # neighbouring files that are left out on either side where no subjects are known
_FEWEST_RUNS = 4  # runs are shorter where there would be fewer
_MOST = 0.5  # of the rows, more than which must have a subject


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """number (N,) of each row's subject, or of its run of files where there are no subjects.

    `subjects` tells which of the two; `known` whether the subjects were given, not guessed.
    `certain` (N,) tells of which rows that is as well known as of most; the others may show anyone.
    """

    number: NDArray[np.int64]
    subjects: bool
    known: bool
    certain: NDArray[np.bool_]

    def __len__(self) -> int:
        """Return how many there are."""
        return int(self.number.max()) + 1

    @property
    def people(self) -> int:
        """How many subjects there are, 0 where none are told apart."""
        return len(np.unique(self.number[self.certain])) if self.subjects else 0

    @property
    def origin(self) -> str:
        """Where the groups come from: "known" or "guessed" subjects, or "runs" of files."""
        if not self.subjects:
            return "runs"
        return "known" if self.known else "guessed"

    def beside(self, row: int) -> NDArray[np.int64]:
        """Return the rows that may show the same person as a row, and itself."""
        if self.subjects:
            return np.flatnonzero((self.number == self.number[row]) | ~self.certain)
        return np.arange(max(0, row - _RUN), min(len(self.number), row + _RUN + 1))

    def unseen(self, store: Store, seen: Collection[str]) -> NDArray[np.int64]:
        """Return certain rows of groups of which an encoder has `seen` no image (by digests).

        The embeddings of images that it was trained on lie further apart than those of others.
        """
        rows = [row for row, record in enumerate(store.embedded()) if record.digest in seen]
        return np.flatnonzero(self.certain & ~np.isin(self.number, self.number[rows]))

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


def numbers_of(subjects: Sequence[str]) -> list[int]:
    """Number the subjects of images, in the order of their files.

    Images without a subject ("") are numbered by runs, as those of a store are.
    """
    length, nameless = _run_length(len(subjects)), itertools.count()
    runs = ((name, 0 if name else next(nameless) // length) for name in subjects)
    numbers: dict[tuple[str, int], int] = {}
    return [numbers.setdefault(each, len(numbers)) for each in runs]


def _run_length(images: int) -> int:
    return max(1, min(_RUN, images // _FEWEST_RUNS))


def groups_of(store: Store) -> Groups:
    """Tell the subjects of a store's rows apart.

    Known subjects count from two on, guessed ones from 20 on, where most rows have one; the other
    rows may show anyone. Otherwise a group is a run of 16 neighbouring files, or of a quarter of
    them where there are fewer than 64: a match is told by its margin over those of other groups.
    """
    numbers, told = store.subject_numbers(), store.subjects_told()
    for certain, fewest, known in ((told[:, 1], 2, True), (told[:, 0], _FEWEST, False)):
        if certain.mean() > _MOST and len(np.unique(numbers[certain])) >= fewest:
            return Groups(numbers, subjects=True, known=known, certain=certain)
    runs = np.arange(store.rows) // _run_length(store.rows)
    return Groups(runs, subjects=False, known=False, certain=np.ones(store.rows, bool))
