"""Volumes of a query: which synthetic ones are copies, confirmed in three dimensions.

stores of both sides + flagged matches -> CopiedVolume -> volumes.parquet, summary.json
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from deepssim_scan.calibration.rates import binomial_quantile
from deepssim_scan.calibration.rule import CalibratedRule, Rule
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.reporting.match import Match
from deepssim_scan.reporting.volumes import COPY, CopiedVolume, copied_volumes
from deepssim_scan.storage.files import shown
from deepssim_scan.store.reread import Reader
from deepssim_scan.store.store import Store

ALIGNED = 50
"""Volumes that are aligned, at most: those with the most copied slices."""

_CHANCE = 0.001  # that false alarms alone make a volume a copy
_FEWEST = 2  # slices of a copy


@dataclass(frozen=True, slots=True)
class Volumes:
    """How many synthetic volumes there are, and those of which slices are flagged."""

    judged: int
    copied: list[CopiedVolume]

    def as_json(self) -> dict[str, int] | None:
        """Return what summary.json says of them; None where there are no volumes."""
        if not self.judged:
            return None
        copies = sum(each.verdict == COPY for each in self.copied)
        return {"judged": self.judged, "flagged": len(self.copied), "duplicate": copies}


def volumes_of(synthetic: Store, training: Store, flagged: Sequence[Match], rule: Rule) -> Volumes:
    """Find the volumes of which slices are flagged."""
    slices: Counter[str] = Counter()
    mine = {match.synthetic_row for match in flagged}
    volume_of = dict[int, str]()
    for row, record in enumerate(synthetic.embedded()):
        if record.in_volume:
            name = _name(record)
            slices[name] += 1
            if row in mine:
                volume_of[row] = name
    theirs = sorted({m.training_row for m in flagged if m.synthetic_row in volume_of})
    records = zip(theirs, training.records_at(theirs), strict=True)
    training_of = {row: _name(record) for row, record in records if record.in_volume}
    least = {name: _least(count, rule) for name, count in slices.items()}
    return Volumes(len(slices), copied_volumes(flagged, slices, volume_of, training_of, least))


def _name(record: ImageRecord) -> str:
    return shown(replace(record, frame="").name)


def _least(slices: int, rule: Rule) -> int:
    """Return how many slices must copy one volume: more than false alarms explain."""
    if not isinstance(rule, CalibratedRule):
        return _FEWEST
    upper = rule.calibration.null.upper_bound(rule.bounds.duplicate, 0.975)
    return max(_FEWEST, binomial_quantile(1 - _CHANCE, slices, upper) + 1)


def aligned(
    volumes: Sequence[CopiedVolume], synthetic: Reader, training: Reader
) -> list[CopiedVolume]:
    """Align the first copies with their training volumes, slices of which are read again."""
    first = [each for each in volumes if each.verdict == COPY][:ALIGNED]
    found = {each.synthetic: _aligned(each, synthetic, training) for each in first}
    return [found.get(each.synthetic, each) for each in volumes]


def _aligned(volume: CopiedVolume, synthetic: Reader, training: Reader) -> CopiedVolume:
    import torch

    from deepssim_scan.imaging.registration.volumes import align

    best = volume.matches[0]
    sides = (synthetic, best.synthetic_row), (training, best.training_row)
    ours, theirs = (_slices(reader, row) for reader, row in sides)
    if ours is None or theirs is None or volume.order is None:
        return volume
    found = align(
        torch.from_numpy(ours), torch.from_numpy(theirs), volume.flip, reverse=volume.order < 0
    )
    return replace(volume, **asdict(found))


def _slices(reader: Reader, row: int) -> Pixels | None:
    """Read all slices (S, H, W) of the volume that a row is of; None where it is of none."""
    (record,) = reader.store.records_at([row])
    if not record.in_volume:
        return None
    first, last = row, row
    while first > 0 and _same(reader.store, first - 1, record):
        first -= 1
    while last + 1 < reader.store.rows and _same(reader.store, last + 1, record):
        last += 1
    pixels = [each for _, each in reader.pixels(range(first, last + 1))]
    return np.stack(pixels) if pixels else None


def _same(store: Store, row: int, record: ImageRecord) -> bool:
    (other,) = store.records_at([row])
    return other.key[:2] == record.key[:2]
