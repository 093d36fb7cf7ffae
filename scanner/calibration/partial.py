"""Partial copies: how like one subject alone the best region of a non-member is, and of a copy.

thumbnails of training images, each without its own subject, or of a hold-out -> null
a half or a quarter of a training image, pasted into another's image -> what is found of them
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.calibration.groups import Groups
from deepssim_scan.calibration.null import NullDistribution
from deepssim_scan.imaging.changes.pasted import paste
from deepssim_scan.imaging.names import PARTS
from deepssim_scan.imaging.thumbnails import Thumbnails, thumbnails
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.matching.regions import (
    Regions,
    RegionSearch,
    are_few_enough,
    look_for,
    regions_of,
)
from deepssim_scan.store.reread import Reader

FEWEST = 100
"""Images of non-members, at least, to know how like one subject alone a region is."""

_NULL = 1200  # images that are looked for, at most
_PASTED = 100  # of each part, at most
_ANYONE = -1  # subject of the images that may show anyone


@dataclass(frozen=True, slots=True, eq=False)
class PartialCalibration:
    """The null of the statistic of regions (`matching.regions`), and what pasted parts reached.

    `planted` has, by part, the statistic of each image into which one was pasted; None where the
    region that was found is not of its subject.
    """

    null: NullDistribution
    planted: Mapping[str, tuple[float | None, ...]]

    def rate(self, asked: float) -> float:
        """Return a false-alarm rate, as low as the null supports."""
        return max(asked, self.null.smallest_rate)

    def sensitivity(self, rate: float) -> dict[str, float]:
        """Return the share of the pasted parts that are found at a false-alarm rate, by part."""
        bound = self.null.threshold(rate)
        return {
            part: float((np.array(values, float) > bound).mean())
            for part, values in self.planted.items()
            if values
        }

    def as_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        planted = {part: list(values) for part, values in self.planted.items()}
        return {"null": self.null.as_json(), "planted": planted}

    @classmethod
    def from_json(cls, value: dict[str, Any], path: Path) -> Self:
        """Make what `as_json` told of; `path` is the file that held it."""
        planted = {part: tuple(values) for part, values in value["planted"].items()}
        return cls(NullDistribution.from_json(value["null"], path), planted)


@dataclass(frozen=True, slots=True)
class PartialCalibrator:
    """Calibrates on training images, which `reader` gives as they were embedded."""

    reader: Reader
    groups: Groups
    seed: int

    def calibrate(
        self, holdout: Sequence[tuple[Pixels, int]], members: NDArray[np.int64]
    ) -> PartialCalibration | None:
        """Calibrate on non-members: those of a hold-out, with subjects, or rows of training images.

        None where there are too many training images to look for regions, or too few non-members.
        """
        if not are_few_enough(self.reader.store) or len(holdout or members) < FEWEST:
            return None
        search = regions_of(self.reader.store, self.groups.number)
        hosts = self._held_out(holdout) if holdout else self._members(members)
        found = self._found(search, hosts)
        known = np.isfinite(found.statistic)
        if np.count_nonzero(known) < FEWEST:
            return None
        null = NullDistribution.of(found.statistic[known], hosts.subjects[known], self.seed)
        return PartialCalibration(null, self._planted(search, hosts))

    def _held_out(self, holdout: Sequence[tuple[Pixels, int]]) -> "Hosts":
        rng = np.random.default_rng(self.seed)
        some = [holdout[at] for at in np.sort(rng.permutation(len(holdout))[:_NULL]).tolist()]
        images, subjects = [pixels for pixels, _ in some], [subject for _, subject in some]
        return Hosts(thumbnails(images), np.array(subjects), None, dict(enumerate(images)))

    def _members(self, rows: NDArray[np.int64]) -> "Hosts":
        """Return training images, each to be looked for without its own subject."""
        every = np.concatenate([part for _, part in self.reader.store.thumbnails()])
        whose = self.groups.number[rows]
        near = np.array([0] if self.groups.subjects else [-1, 0, 1])
        beside = whose[:, None] + near
        return Hosts(every[rows], whose, beside, rows=rows)

    def _found(self, search: RegionSearch, hosts: "Hosts") -> Regions:
        """Look for hosts; beside training images those that may show anyone do not count, either.

        They are one subject then, which is left out.
        """
        certain, beside = self.groups.certain, hosts.beside
        if beside is not None and not certain.all():
            search = regions_of(self.reader.store, np.where(certain, self.groups.number, _ANYONE))
            beside = np.column_stack([beside, np.full(len(beside), _ANYONE)])
        return look_for(search, hosts.small, self.reader.run, beside)

    def _planted(self, search: RegionSearch, hosts: "Hosts") -> dict[str, tuple[float | None, ...]]:
        """Paste parts of training images into hosts, and look for them."""
        rng, planted = np.random.default_rng(self.seed), {}
        count = min(_PASTED, len(hosts.small))
        for part in PARTS:
            into = np.sort(rng.permutation(len(hosts.small))[:count])
            of = rng.permutation(self.groups.some(count, rng))
            images, donors = hosts.pixels(into, self.reader), dict(self.reader.pixels(of.tolist()))
            made = {
                at: paste(images[host], donors[row], part, rng)
                for at, (host, row) in enumerate(zip(into.tolist(), of.tolist(), strict=False))
                if host in images
                and row in donors
                and images[host].shape == donors[row].shape
                and not hosts.shows(host, self.groups.number[row])
            }
            kept = np.array([*made], np.int64)
            beside = None if hosts.beside is None else hosts.beside[into[kept]]
            small = thumbnails([*made.values()])
            found = look_for(search, small, self.reader.run, beside)
            right = self.groups.number[found.rows] == self.groups.number[of[kept]]
            planted[part] = tuple(
                value if same and np.isfinite(value) else None
                for value, same in zip(found.statistic.tolist(), right.tolist(), strict=True)
            )
        return planted


@dataclass(frozen=True, slots=True, eq=False)
class Hosts:
    """Images of non-members (n,): thumbnails, subjects, and groups (n, m) that do not count.

    They are `rows` of the training images, or the images of a hold-out.
    """

    small: Thumbnails
    subjects: NDArray[np.int64]
    beside: NDArray[np.int64] | None
    images: Mapping[int, Pixels] | None = None
    rows: NDArray[np.int64] | None = None

    def pixels(self, wanted: NDArray[np.int64], reader: Reader) -> Mapping[int, Pixels]:
        """Return the images of some numbers, but for those that are gone."""
        if self.rows is None:
            return self.images or {}
        number = dict(zip(self.rows[wanted].tolist(), wanted.tolist(), strict=True))
        return {number[row]: image for row, image in reader.pixels([*number])}

    def shows(self, host: int, group: int) -> bool:
        """Tell whether a host may show the people of a group."""
        return self.beside is not None and bool((self.beside[host] == group).any())
