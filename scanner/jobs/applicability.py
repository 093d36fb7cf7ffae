"""What was seen of both sides of a query, by which it is told whether the method fits.

stores and files of both sides -> Seen -> Mismatch -> summary.json
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.calibration.applicability import FEWEST, Mismatch, Seen, mismatches
from deepssim_scan.calibration.rule import CalibratedRule, Rule
from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.imaging.looks import LOOKS, Looks, looks
from deepssim_scan.jobs.gallery import Gallery
from deepssim_scan.jobs.rarity import nearest_other
from deepssim_scan.matching.evidence import RULE
from deepssim_scan.reporting.match import Match
from deepssim_scan.store.array import Vectors
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.reread import Reader
from deepssim_scan.store.store import Store

_LOOKED, _INVERTED, _OTHERS = 100, 40, 500  # images of a sample, at most
_PLAIN, _UPSIDE = TTA_VIEWS.index((0, False)), TTA_VIEWS.index((0, True))


def mismatches_of(
    gallery: Gallery, embedder: Embedder, rule: Rule, reader: Reader, flagged: Sequence[Match]
) -> list[Mismatch]:
    """Tell what keeps the method from fitting a synthetic set, whose images `reader` gives."""
    rng, store, training = np.random.default_rng(0), reader.store, gallery.store
    chosen = np.sort(rng.permutation(store.rows)[:_LOOKED])
    nearest = gallery.search.search(_rows(store, chosen), 1)
    others = nearest_other(gallery, gallery.groups.some(_OTHERS, rng))
    ours = theirs = np.empty((0, len(LOOKS)))
    inverted = None
    if gallery.files is not None:
        ours = _looks(reader, chosen)
        sample = gallery.groups.some(_LOOKED, rng)
        theirs = _looks(Reader(training, gallery.files, RULE, embedder.run), sample)
        inverted = _inverted(gallery, embedder, reader, rng.permutation(chosen)[:_INVERTED])
    mine = {match.synthetic_row for match in flagged}
    best = zip(nearest.rows[:, 0].tolist(), chosen.tolist(), strict=True)
    left = [row for row, at in best if at not in mine]
    first = rule.calibration.source_first if isinstance(rule, CalibratedRule) else None
    modes = training.catalog.modes(), store.catalog.modes()
    scores = nearest.scores[:, 0].astype(float)
    return mismatches(
        Seen(theirs, ours, modes, scores, inverted, others.astype(float), left, first)
    )


def _rows(store: Store, chosen: NDArray[np.int64]) -> Vectors:
    """Return some rows of a store, which is read a shard at a time."""
    parts = []
    for first, rows in store.shards():
        parts.append(rows[chosen[(chosen >= first) & (chosen < first + len(rows))] - first])
    return np.concatenate(parts)


def _looks(reader: Reader, rows: NDArray[np.int64]) -> Looks:
    return looks(pixels for _, pixels in reader.pixels(rows.tolist()))


def _inverted(
    gallery: Gallery, embedder: Embedder, reader: Reader, rows: NDArray[np.int64]
) -> float | None:
    """Return the share of some images that are nearer to training images with inverted greys."""
    if len(rows) < FEWEST:
        return None
    asked = np.zeros((len(rows), len(TTA_VIEWS)), bool)
    asked[:, [_PLAIN, _UPSIDE]] = True
    rule = embedder.loaded.architecture.standardisation
    wanted = replace(reader, rule=rule)
    views = embedder.embed_views(lambda part: wanted.wanted(rows[part].tolist()), asked)
    plain, upside = (
        gallery.search.search(np.ascontiguousarray(seen), 1).scores[:, 0]
        for seen in np.moveaxis(_whole(views[:, [_PLAIN, _UPSIDE]]), 1, 0)
    )
    return float((upside > plain).mean()) if len(plain) else None


def _whole(views: Vectors) -> Vectors:
    """Return the images (n, V, D) that were there to be embedded."""
    return views[~np.isnan(views).any((1, 2))]
