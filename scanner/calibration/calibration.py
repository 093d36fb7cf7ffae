"""What a calibration found, kept in the index folder.

    Calibration <-> calibration.json

It is of one encoder, one store, and one way to query: with others, its rates do not hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from deepssim_scan.calibration.membership import Estimate, HeldOut
from deepssim_scan.calibration.null import NullDistribution
from deepssim_scan.calibration.partial import PartialCalibration
from deepssim_scan.errors import Damaged, InputError, InputMissing
from deepssim_scan.matching.statistic import Statistic
from deepssim_scan.storage.files import sha256
from deepssim_scan.storage.layout import CALIBRATION
from deepssim_scan.storage.records import read_json, write_json

FORMAT = 2
FALSE_ALARM = 0.001
"""The false-alarm rate that is asked for by default."""

SIMILAR = 10
"""How many times the false-alarm rate of a duplicate an image may have that is `similar`."""

_MOST_SIMILAR = 0.5  # rate, unless duplicates may have a higher one


def similar_rate(rate: float) -> float:
    """Return the p-value below which an image is `similar`, by the rate of duplicates."""
    return max(min(SIMILAR * rate, _MOST_SIMILAR), rate)


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """The decision statistic, its null, and what planted copies reached.

    `encoder` and `store` are what it was made with, `gallery` the number of training images, and
    `candidates` and `tta_views` how they were looked for. `enough` are the scores of an image as it
    is from which on it is not looked at turned, and inverted (`matching.views`). `subjects` says
    where non-members come from: "known" or "guessed" subjects of the training set left out, "runs"
    of neighbouring files left out, or "hold-out" images. `planted` holds the statistic
    of every planted copy by kind; `source_first` is the share of them whose source has the highest
    score; `duplicates` are training images of different subjects that are copies of each other;
    `changed` files of the training set are new or others since it was made. `same_patient` is of
    images of subjects of whom there are others: the statistic of the best of those, None where
    none of them was registered. `holdout` are the embeddings of hold-out images, where there are.
    `members` is the chance that a training image, without its own subject, is more like others than
    a hold-out image is. `partial` says how copies of a part of an image are told, None where they
    are not looked for.
    """

    encoder: str
    store: str
    gallery: int
    candidates: int
    tta_views: int
    enough: tuple[float, float]
    subjects: str
    statistic: Statistic
    null: NullDistribution
    planted: Mapping[str, tuple[float, ...]]
    source_first: float
    duplicates: tuple[tuple[str, str], ...]
    changed: int = 0
    same_patient: tuple[float | None, ...] = ()
    holdout: HeldOut | None = None
    members: Estimate | None = None
    partial: PartialCalibration | None = None
    digest: str = ""

    def false_alarm(self, asked: float | None) -> float:
        """Return the rate asked for, or the default one, as low as the null supports.

        Raises InputError for a rate that the null is too small to support.
        """
        if asked is None:
            return max(FALSE_ALARM, self.null.smallest_rate)
        self.null.threshold(asked)
        return asked

    def sensitivity(self, rate: float) -> dict[str, float]:
        """Return the share of planted copies that are flagged at a false-alarm rate, by kind."""
        bound = self.null.threshold(rate)
        return {kind: float((np.array(x) > bound).mean()) for kind, x in self.planted.items() if x}

    def found(self, rate: float) -> float:
        """Return the share of all planted copies that are flagged at a false-alarm rate."""
        found, planted = self.count_found(rate)
        return found / planted

    def count_found(self, rate: float) -> tuple[int, int]:
        """Return how many planted copies are flagged at a false-alarm rate, and how many are."""
        every = np.concatenate([np.array(values) for values in self.planted.values()])
        return int((every > self.null.threshold(rate)).sum()), len(every)

    def count_same_patient(self, rate: float) -> tuple[int, int]:
        """Return how many images are taken for copies of another image of the same patient.

        Of how many such images, too.
        """
        found = np.array(self.same_patient, float)
        return int((found > self.null.threshold(rate)).sum()), len(found)

    def summary(self, rate: float) -> dict[str, Any]:
        """Return what reports say of it, at a false-alarm rate: JSON values."""
        flagged, asked = self.count_same_patient(rate)
        return {
            "false_alarm": rate,
            "false_alarm_upper_95": self.null.upper_bound(self.null.threshold(rate)),
            "smallest_false_alarm": self.null.smallest_rate,
            "non_members": {
                "images": len(self.null.statistics),
                "subjects": len(np.unique(self.null.subjects)),
                "from": self.subjects,
            },
            "gallery": self.gallery,
            "planted": sum(map(len, self.planted.values())),
            "sensitivity": self.found(rate),
            "sensitivity_by_kind": self.sensitivity(rate),
            "source_first": self.source_first,
            "training_duplicates": len(self.duplicates),
            "same_patient": {"images": asked, "flagged": flagged} if asked else None,
            "digest": self.digest,
        }

    def write(self, folder: Path) -> None:
        """Write calibration.json of an index folder."""
        value: dict[str, Any] = {"format": FORMAT}
        for name in (
            "encoder",
            "store",
            "gallery",
            "candidates",
            "tta_views",
            "subjects",
            "source_first",
            "changed",
        ):
            value[name] = getattr(self, name)
        value["enough"] = list(self.enough)
        value["statistic"] = {
            "weights": list(self.statistic.weights),
            "constant": self.statistic.constant,
        }
        value["null"] = self.null.as_json()
        value["planted"] = {kind: list(values) for kind, values in self.planted.items()}
        value["duplicates"] = [list(pair) for pair in self.duplicates]
        value["same_patient"] = list(self.same_patient)
        value["holdout"] = self.holdout and self.holdout.as_json()
        value["members"] = self.members and self.members.as_json()
        value["partial"] = self.partial and self.partial.as_json()
        write_json(folder / CALIBRATION, value)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read calibration.json of an index folder.

        Raises InputMissing when there is none, Damaged when it is not what was written.
        """
        path = folder / CALIBRATION
        if not path.is_file():
            raise InputMissing(
                f"{folder}: the index is not calibrated (no {CALIBRATION}). "
                f"Run `deepssim-scan calibrate --index {folder}`."
            )
        value = read_json(path)
        if value.pop("format", None) != FORMAT:
            raise Damaged(f"{path}: of another version. Run `deepssim-scan calibrate` again.")
        try:
            statistic = value["statistic"]
            return cls(
                **value
                | {
                    "enough": tuple(map(float, value["enough"])),
                    "statistic": Statistic(tuple(statistic["weights"]), statistic["constant"]),
                    "null": NullDistribution.from_json(value["null"], path),
                    "planted": {kind: tuple(each) for kind, each in value["planted"].items()},
                    "duplicates": tuple(tuple(pair) for pair in value["duplicates"]),
                    "same_patient": tuple(value.get("same_patient", ())),
                    "holdout": HeldOut.from_json(held) if (held := value.get("holdout")) else None,
                    "members": Estimate(**held) if (held := value.get("members")) else None,
                    "partial": _partial(value.get("partial"), path),
                    "digest": sha256(path),
                }
            )
        except (AttributeError, InputError, KeyError, TypeError, ValueError) as error:
            raise Damaged(
                f"{path}: holds no calibration ({error}). Run `deepssim-scan calibrate` again."
            ) from error


def _partial(value: dict[str, Any] | None, path: Path) -> PartialCalibration | None:
    return PartialCalibration.from_json(value, path) if value else None
