"""What conditions of a policy can name: the quantities of a synthetic set in one night.

summary.json of its query, how many findings are in each state -> values by name
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepssim_scan.audit.config.conditions import Value
from deepssim_scan.calibration.codes import CODES


@dataclass(frozen=True, slots=True)
class Quantity:
    """Of which type a quantity is, float or bool, and what it says."""

    kind: type
    text: str


QUANTITIES = {
    "listed": Quantity(float, "synthetic images that were listed"),
    "judged": Quantity(float, "those that have a verdict"),
    "rejected": Quantity(float, "those that could not be read"),
    "blank": Quantity(float, "frames with nothing on them"),
    "flagged": Quantity(float, "images with the verdict duplicate"),
    "duplicates": Quantity(float, "findings that no waiver answers for; a volume is one"),
    "similar": Quantity(float, "images with the verdict similar"),
    "undecidable": Quantity(float, "images with next to nothing on them"),
    "flagged_rate": Quantity(float, "flagged, as a share of the judged images"),
    "duplicate_rate": Quantity(float, "duplicates, as a share of the judged images"),
    "similar_rate": Quantity(float, "similar, as a share of the judged images"),
    "rejected_rate": Quantity(float, "rejected, as a share of the listed images"),
    "subjects_memorized": Quantity(float, "subjects, or training images, whom flagged images copy"),
    "volumes_copied": Quantity(float, "volumes that copy one; 0 where there are no volumes"),
    "partial_copies": Quantity(float, "images that are no copies, with a region like one subject "
    "alone"),
    "training_indexed": Quantity(float, "training images that were compared with"),
    "training_gone": Quantity(float, "training images that the last night had and this one has "
    "not, at least; copies of them are not found any more"),
    "mismatches": Quantity(float, "reasons for which the method may not fit these two sets"),
    "polarity_differs": Quantity(bool, "whether one side has inverted greys"),
    "sharpness_differs": Quantity(bool, "whether one side is less sharp"),
    "extent_differs": Quantity(bool, "whether what is shown fills the frame otherwise"),
    "aspect_differs": Quantity(bool, "whether what is shown is stretched"),
    "brightest_differs": Quantity(bool, "whether one side is clipped at the brightest grey"),
    "depth_differs": Quantity(bool, "whether one side alone has more than 8 bits"),
    "unlike_training": Quantity(bool, "whether synthetic images are unlike all training images"),
    "hub": Quantity(bool, "whether one training image is the nearest to very many images"),
    "encoder_unfit": Quantity(bool, "whether the encoder does not find planted copies first"),
    "copies_missed": Quantity(bool, "whether the calibration finds few of its planted copies"),
    "holdout_differs": Quantity(bool, "whether the hold-out is unlike the training set"),
    "holdout_synthetic": Quantity(bool, "whether the hold-out holds synthetic images"),
    "complete": Quantity(bool, "whether all was looked at, and enough canaries found"),
    "canary_recall": Quantity(float, "share of the planted copies that were found"),
    "search_recall": Quantity(float, "share of the best matches that an approximate index finds, "
    "at least (95 %); 1 for an exact one"),
    "copies_at_most": Quantity(float, "upper 95 % bound of the share of copies"),
    "false_alarm": Quantity(float, "share of images of other people that is flagged"),
    "expected_false_alarms": Quantity(float, "how many of the judged images that are"),
    "membership_auc": Quantity(float, "chance that a training image has a nearer synthetic image "
    "than one of the hold-out; 0.5 is none"),
    "membership_auc_low": Quantity(float, "lower 95 % bound of that chance"),
    "new": Quantity(float, "findings that the last night did not have"),
    "persisting": Quantity(float, "findings that the last night had, too"),
    "gone": Quantity(float, "findings of the last night that are no more"),
    "waived": Quantity(float, "findings with a waiver that holds"),
    "expired_waivers": Quantity(float, "findings with a waiver that holds no more"),
    "unreviewed": Quantity(float, "findings that fewer readers than are asked for have decided on"),
    "confirmed": Quantity(float, "findings that a reader calls a copy"),
    "drift": Quantity(float, "largest difference of the shares of images below a score, 0 to 1, "
    "between this night and the last; 0 in the first night"),
}  # fmt: skip
"""All quantities, by name."""

NOT_KNOWN: dict[str, Value] = dict.fromkeys(QUANTITIES, None) | {"complete": False}
"""The quantities of a set that could not be queried."""

KINDS = {name: quantity.kind for name, quantity in QUANTITIES.items()}


def values_of(
    summary: dict[str, Any], findings: Mapping[str, int], drift: float | None, gone: int
) -> dict[str, Value]:
    """Return the value of every quantity; None where it is not known.

    `findings` counts those in each of the states that are quantities, `gone` the training images
    that are gone.
    """
    counts, duplicates = summary["counts"], findings["new"] + findings["persisting"]
    judged, listed, flagged = counts["judged"], counts["listed"], counts["duplicate"]
    calibration, canaries = summary["calibration"] or {}, summary["canaries"] or {}
    membership = (summary["membership"] or {}).get("auc", {})
    values: dict[str, Value] = {
        "flagged": flagged,
        "duplicates": duplicates,
        "flagged_rate": _share(flagged, judged),
        "duplicate_rate": _share(duplicates, judged),
        "similar_rate": _share(counts["similar"], judged),
        "rejected_rate": _share(counts["rejected"], listed),
        "subjects_memorized": summary["subjects"]["flagged"],
        "volumes_copied": (summary["volumes"] or {}).get("duplicate", 0),
        "partial_copies": (summary["partial"] or {}).get("flagged"),
        "training_gone": gone,
        "mismatches": len(summary["mismatches"]),
        "complete": summary["complete"],
        "canary_recall": canaries.get("recall"),
        "search_recall": (summary["search"]["sample"] or {"recall_at_least_95": 1.0})[
            "recall_at_least_95"
        ],
        "copies_at_most": summary["most_copies_95"],
        "false_alarm": calibration.get("false_alarm"),
        "expected_false_alarms": calibration.get("expected_false_alarms"),
        "membership_auc": membership.get("value"),
        "membership_auc_low": membership.get("low"),
        "drift": drift,
    }
    same = "listed", "judged", "rejected", "blank", "similar", "undecidable", "training_indexed"
    found = {each["code"] for each in summary["mismatches"]}
    unfit = {code: code in found for code in CODES}
    return values | {name: counts[name] for name in same} | unfit | dict(findings)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
