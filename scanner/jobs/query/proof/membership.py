"""Whether a synthetic set tells who was in the training set.

index calibrated by a hold-out + store of synthetic images -> Membership -> summary.json
"""

from typing import Any

import numpy as np

from deepssim_scan.calibration import calibrate
from deepssim_scan.calibration.membership import FEWEST, MOST, Side, membership, nearest
from deepssim_scan.calibration.rule import CalibratedRule, Rule
from deepssim_scan.jobs.gallery import Gallery
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.store import Store


def membership_of(
    gallery: Gallery, embedder: Embedder, rule: Rule, synthetic: Store
) -> dict[str, Any] | None:
    """Return what summary.json says of it; None without a hold-out of enough subjects.

    Members are training images of people whom the encoder was not trained on, where there are
    enough; `seen` tells whether it was. An encoder tells those apart that it was trained on.
    """
    held = rule.calibration.holdout if isinstance(rule, CalibratedRule) else None
    groups = gallery.groups
    if held is None or len(np.unique(held.subjects)) < FEWEST or len(groups) < 2:
        return None
    unseen = groups.unseen(gallery.store, embedder.loaded.seen)
    seen = len(unseen) < calibrate.FEWEST or len(np.unique(groups.number[unseen])) < 2
    chosen = groups.some(MOST, np.random.default_rng(0), None if seen else unseen)
    rows = np.concatenate([gallery.search.vectors(row, row + 1) for row in chosen.tolist()])
    shards = (shard for _, shard in synthetic.shards())
    scores = nearest(np.concatenate([rows, held.rows]), shards)
    members = Side(scores[: len(rows)], groups.number[chosen])
    others = Side(scores[len(rows) :], held.subjects)
    return membership(members, others).as_json() | {"seen": seen}
