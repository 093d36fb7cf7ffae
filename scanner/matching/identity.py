"""What a result depends on, as a digest: by it a later run finds the result again.

records of images, candidates -> SHA-256 of each image (Q,), of each image and its candidates (Q,)
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.index.rescore import Matches
from deepssim_scan.ingest.record import ImageRecord

Digests = NDArray[np.bytes_]
"""SHA-256 (n,), 32 bytes each."""

SIZE = 32


@dataclass(frozen=True, slots=True)
class Context:
    """What all results of a run depend on: values of JSON, such as versions and options."""

    looks: dict[str, Any]
    pairs: dict[str, Any]

    def of_images(self, images: Iterable[ImageRecord]) -> Digests:
        """Return what the embeddings of the test-time views of each image depend on."""
        start = _started(self.looks)
        return _digests(_of(start, image.sha256, image.frame) for image in images)

    def of_candidates(
        self,
        images: Sequence[ImageRecord],
        candidates: Matches,
        training: dict[int, ImageRecord],
        subjects: NDArray[np.int64],
    ) -> Digests:
        """Return what the evidence of the candidates (Q, n) of each image depends on.

        `training` has the record of every row among the candidates, `subjects` (Q, n) the number
        of whom each shows. Who a subject is makes no difference; which candidates show the same one
        does.
        """
        start, found = _started(self.pairs), []
        every = zip(images, candidates.rows, candidates.views, subjects, strict=True)
        for image, rows, views, whose in every:
            same = np.argmax(whose[:, None] == whose, axis=1)
            parts = [image.sha256, image.frame]
            for row, view, first in zip(rows.tolist(), views.tolist(), same.tolist(), strict=True):
                parts += [training[row].sha256, training[row].frame, str(view), str(first)]
            found.append(_of(start, *parts))
        return _digests(found)


def _started(value: dict[str, Any]) -> Any:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode())


def _of(start: Any, *parts: str) -> bytes:
    digest = start.copy()
    for part in parts:
        digest.update(b"\0" + part.encode("utf-8", "surrogatepass"))
    return bytes(digest.digest())


def _digests(found: Iterable[bytes]) -> Digests:
    return np.fromiter(found, f"S{SIZE}")


def found_among(
    wanted: Digests, others: Digests, order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which of some digests are among others, and where; `order` sorts the others."""
    at = np.searchsorted(others, wanted, sorter=order)
    mine = np.flatnonzero(at < len(others))
    mine = mine[others[order[at[mine]]] == wanted[mine]]
    return mine, order[at[mine]]
