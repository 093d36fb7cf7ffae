"""What an earlier report has of the same images, and of the same images and candidates.

digests (Q,) -> embeddings of test-time views (Q, V, D), Evidence (Q, n), where there are any
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.matching.evidence import Evidence
from deepssim_scan.matching.identity import SIZE, Digests, found_among
from deepssim_scan.matching.looked import Looked, read_digests, read_looked
from deepssim_scan.matching.parts import read_part
from deepssim_scan.store.array import Vectors


@dataclass(frozen=True, slots=True)
class PartFiles:
    """The files of one part: its evidence, and what its images were looked at in."""

    evidence: Path
    looked: Path


def part_files(folder: Path, number: int) -> PartFiles:
    """Return the files of a shard in a folder of evidence."""
    return PartFiles(folder / f"{number:08d}.parquet", folder / f"{number:08d}.images.parquet")


class EvidenceCache:
    """The parts of an earlier report, which nothing changes meanwhile; none where there is none."""

    def __init__(self, parts: Sequence[PartFiles], dimension: int) -> None:
        """Read the digests of all parts; Damaged where one is not whole."""
        self._parts, self._dimension = parts, dimension
        self._images, self._candidates = (
            _Digests([read_digests(part.looked, dimension, which) for part in parts])
            for which in ("image", "candidates")
        )

    def views(self, images: Digests) -> Vectors:
        """Return the embeddings that there are of images, by `Context.of_images`; NaN elsewhere."""
        found = np.full((len(images), len(TTA_VIEWS), self._dimension), np.nan, np.float32)
        for part, mine, theirs in self._images.find(images):
            found[mine] = self._looked(self._parts[part]).views[theirs]
        return found

    def evidence(self, candidates: Digests, count: int) -> tuple[NDArray[np.bool_], Evidence]:
        """Return which images have evidence of all their `count` candidates, and the evidence.

        `candidates` are of `Context.of_candidates`.
        """
        found = Evidence.none((len(candidates), count))
        for part, mine, theirs in self._candidates.find(candidates):
            there = read_part(self._parts[part].evidence, self._candidates.sizes[part])
            found.put(mine, there.evidence.part(theirs, count))
        return np.all(~found.missing, axis=1), found

    def _looked(self, part: PartFiles) -> Looked:
        return read_looked(part.looked, self._dimension)


class _Digests:
    """The digests of parts, and their order, to find others among them."""

    def __init__(self, parts: Sequence[Digests]) -> None:
        self._every = np.concatenate([np.empty(0, f"S{SIZE}"), *parts])
        self.sizes = [len(part) for part in parts]
        self._starts = np.cumsum([0, *self.sizes])
        self._order = np.argsort(self._every, kind="stable")

    def find(self, wanted: Digests) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Give, a part at a time, which of the wanted it has, and where in the part."""
        mine, places = found_among(wanted, self._every, self._order)
        parts = np.searchsorted(self._starts, places, "right") - 1
        for part in np.unique(parts).tolist():
            here = parts == part
            yield part, mine[here], places[here] - self._starts[part]
