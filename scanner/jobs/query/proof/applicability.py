"""What was seen of both sides of a query, by which it is told whether the method fits.

stores and files of both sides -> Seen -> Mismatch -> summary.json
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.calibration.applicability import FEWEST, Mismatch, Seen, mismatches
from deepssim_scan.calibration.membership import nearest as nearest_scores
from deepssim_scan.calibration.rule import CalibratedRule, Rule
from deepssim_scan.jobs.gallery import Gallery
from deepssim_scan.jobs.query.proof.rarity import known, nearest_other
from deepssim_scan.jobs.query.proof.sampling import (
    Kept,
    Sample,
    look,
    looks_of,
    read_rows,
    write_kept,
)
from deepssim_scan.matching.evidence import RULE
from deepssim_scan.matching.identity import Context
from deepssim_scan.reporting.match import Match
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.reread import Reader
from deepssim_scan.store.store import Store

_LOOKED, _INVERTED, _OTHERS = 100, 40, 500  # images of a sample, at most
_SAME = 1 - 1e-5  # the score of an image with itself, at least


@dataclass(frozen=True, slots=True)
class Fitting:
    """What tells whether the method fits, and the file that keeps what was seen of images."""

    gallery: Gallery
    embedder: Embedder
    rule: Rule
    context: Context
    kept: Kept
    file: Path

    def mismatches(self, reader: Reader, flagged: Sequence[Match]) -> list[Mismatch]:
        """Tell what keeps the method from fitting a synthetic set, whose images `reader` gives."""
        store, training = reader.store, self.gallery.store
        sample = Sample.of(store, self.context, _LOOKED)
        rows = read_rows(store, sample.rows)
        nearest = self.gallery.search.search(rows, 1)
        others = self.gallery.groups.some(_OTHERS, np.random.default_rng(0))
        mine = {match.synthetic_row for match in flagged}
        best = zip(nearest.rows[:, 0].tolist(), sample.rows.tolist(), strict=True)
        made = self.rule if isinstance(self.rule, CalibratedRule) else None
        ours, theirs = self._looked(sample, reader)
        scores = nearest.scores[:, 0].astype(float)
        return mismatches(
            Seen(
                looks_of(theirs.values()),
                looks_of(ours.values()),
                (training.catalog.modes(), store.catalog.modes()),
                scores,
                self._inverted(ours, sample, scores),
                known(nearest_other(self.gallery, others)),
                [row for row, at in best if at not in mine],
                made.calibration.source_first if made else None,
                made.calibration.members if made else None,
                (_window(training), _window(store)),
                self._both(store),
                found=made.calibration.found(made.rate) if made else None,
            )
        )

    def _looked(self, sample: Sample, reader: Reader) -> tuple[Kept, Kept]:
        """Look at samples of both sides, unless there are too few images to tell anything."""
        training, files = self.gallery.store, self.gallery.files
        if files is None or min(reader.store.rows, training.rows) < FEWEST:
            return {}, {}
        ours = look(sample, reader, self.embedder, self.kept, _INVERTED)
        theirs = Reader(training, files, RULE, self.embedder.run)
        context = replace(self.context, looks=self.context.pairs)
        other = Sample.of(training, context, _LOOKED)
        found = look(other, theirs, self.embedder, self.kept, 0)
        write_kept(self.file, ours | found)
        return ours, found

    def _both(self, store: Store) -> int:
        """Count the images of the hold-out that have the embedding of a synthetic image."""
        rule = self.rule
        held = rule.calibration.holdout if isinstance(rule, CalibratedRule) else None
        if held is None:
            return 0
        scores = nearest_scores(held.rows, (shard for _, shard in store.shards()))
        return int((scores >= _SAME).sum())

    def _inverted(self, ours: Kept, sample: Sample, scores: NDArray[np.float64]) -> float | None:
        """Return the share of some images that are nearer to training images when inverted."""
        plain = dict(zip(sample.digests, scores.tolist(), strict=True))
        views = {digest: each.inverted for digest, each in ours.items()}
        there = {digest: view for digest, view in views.items() if view is not None}
        if len(there) < FEWEST:
            return None
        upside = self.gallery.search.search(np.stack([*there.values()]), 1).scores[:, 0]
        nearer = [up > plain[digest] for digest, up in zip(there, upside.tolist(), strict=True)]
        return float(np.mean(nearer))


def _window(store: Store) -> str | None:
    """Return the window through which the images of a store were read."""
    window: str | None = store.manifest.source["read_options"]["window"]
    return window
