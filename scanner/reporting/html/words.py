"""What the page of a query says in sentences.

summary.json -> sentences
"""

from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from math import ceil
from typing import Any


def verdict(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the verdict in one sentence, its tone, and how often it is wrong."""
    counts, most = summary["counts"], summary["most_copies_95"]
    flagged, judged = counts["duplicate"], counts["judged"]
    more = "" if most is None else f"; at most {at_most(most)} of all are copies (95\u00a0%)"
    if flagged:
        what = "is a copy of a training image" if flagged == 1 else "are copies of training images"
        text, tone = f"{flagged:,} of {judged:,} images {what}{more}.", "bad"
    elif (summary["partial"] or {}).get("beyond_chance"):
        part = f"{summary['partial']['flagged']:,} hold a part of one"
        text, tone = f"None of {judged:,} images is a copy of a training image, but {part}.", "bad"
    elif summary["mismatches"]:
        among = f"{judged:,} images{more}, in two sets that do not go together"
        text, tone = f"No copy was found among {among}.", "unsure"
    else:
        text = f"No copy was found among {judged:,} images{more}."
        tone = "good" if has_rate(summary) and not counts["undecidable"] else "unsure"
    if not summary["complete"]:
        text, tone = f"Incomplete, so this is no clean result. {text}", "bad"
    return {"text": text, "tone": tone, "rates": [*_rates(summary), *_open(summary)]}


def at_most(share: float, digits: int = 2) -> str:
    """Return an upper bound in per cent, rounded up: to the nearest it may be no bound any more."""
    return _percent(share, digits, ROUND_CEILING)


def at_least(share: float, digits: int = 2) -> str:
    """Return a lower bound in per cent, rounded down."""
    return _percent(share, digits, ROUND_FLOOR)


def rate_at_most(rate: float) -> str:
    """Return the upper bound of a rate, rounded up to two digits."""
    exact = Decimal(str(float(rate)))
    return f"{float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - 1), ROUND_CEILING)):.2g}"


def _percent(share: float, digits: int, rounding: str) -> str:
    percent = Decimal(str(float(share))).scaleb(2)
    return f"{percent.quantize(Decimal(1).scaleb(-digits), rounding)}%"


def has_rate(summary: Mapping[str, Any]) -> bool:
    """Tell whether it is known how often verdicts are wrong."""
    found = summary["calibration"]
    return found is not None and found["non_members"]["from"] != "bundled"


def _open(summary: Mapping[str, Any]) -> list[str]:
    """Say which images may copy someone though they are not flagged."""
    undecidable, lines = summary["counts"]["undecidable"], []
    if undecidable:
        has = "image has" if undecidable == 1 else "images have"
        lines.append(
            f"Undecidable: {undecidable:,} {has} next to nothing on them that can be compared. "
            "Any of these may be a copy."
        )
    if (summary["partial"] or {}).get("flagged"):
        lines.append(_with_region(summary["partial"]["flagged"]))
    return lines


def _rates(summary: Mapping[str, Any]) -> list[str]:
    """Say how often verdicts are wrong."""
    found, canaries = summary["calibration"], summary["canaries"]
    approximate = [*filter(None, [searched(summary["search"])])]
    if found is None:
        fixed = "Judged by fixed scores: how often the verdicts are wrong is not known."
        return [fixed, *approximate]
    people = found["non_members"]
    if people["from"] == "bundled":
        return [
            "Judged by a calibration of pseudo-subjects, because the training set is too small: "
            "how often the verdicts are wrong is not known.",
            *approximate,
        ]
    lines = [
        f"False alarms: of images of other people, {found['false_alarm']:.2g} are flagged, at most "
        f"{rate_at_most(found['false_alarm_upper_95'])} (95 %). "
        f"{found['expected_false_alarms']:.1f} are expected in this run."
    ]
    if canaries and canaries["planted"]:
        lines.append(
            f"Missed copies: {canaries['found']:,} of {canaries['planted']:,} planted copies of "
            "training images were found."
        )
    return [*lines, *approximate]


def left_out(summary: Mapping[str, Any]) -> list[str]:
    """Say what has no verdict, and what was not verified."""
    counts, pairs = summary["counts"], summary["verification"]
    told = (
        (counts["rejected"], "synthetic images could not be read; rejected.csv says why"),
        (counts["training_rejected"], "training images could not be read: copies of them are not "
         "found"),
        (counts["blank"], "frames have nothing on them; blank.csv lists them"),
        (counts["undecidable"], "images have next to nothing on them: people cannot be told apart "
         "by them"),
        (summary["excluded"], "files were left out, as was asked for"),
        (summary["ignored"], "files are no images, or were not asked for"),
        (pairs["not_registered"] if pairs else 0, "pairs could not be verified, because an image "
         "is gone or has changed"),
    )  # fmt: skip
    lines = [f"{count:,} {what}." for count, what in told if count]
    if pairs is None:
        lines.append("No pair was verified, as was asked for: verdicts are by the score alone.")
    canaries = summary["canaries"]
    if canaries and not canaries["planted"]:
        lines.append("No copy was planted, because no training image could be read.")
    elif canaries and not canaries["passed"]:
        lines.append(f"Fewer planted copies were found than {canaries['least']:.1%}.")
    return lines


def at_risk(summary: Mapping[str, Any]) -> str:
    """Say how many subjects are copied."""
    copied, more = whom(summary["subjects"])
    return f"{copied} are copied{more}."


def whom(subjects: Mapping[str, int], images: str = "training images") -> tuple[str, str]:
    """Say whom flagged images copy: subjects, or `images`, and what is to be said beside them.

    A training image whose subject is not known is counted by itself, and not as a subject.
    """
    unnamed, people = subjects["unnamed"], subjects["training"]
    named = subjects["flagged"] - unnamed
    if not people and not named:
        return f"{unnamed:,} {images}", ". No subjects are told apart"
    of = f" of {people:,}" if people else ""
    beside = f", and {unnamed:,} training images whose subject is not known" if unnamed else ""
    return f"{named:,}{of} subjects", beside


def method(summary: Mapping[str, Any]) -> list[str]:
    """Say in words how the verdicts came about."""
    found = summary["calibration"]
    lines = [
        f"Each synthetic image was embedded, and its {summary['candidates']} most similar training "
        "images were laid on it coarsely. The best three were registered: flip, rotation, scale, "
        "shift, gamma and a smooth displacement were undone, and what is left was compared."
    ]
    if found is None or found["non_members"]["from"] == "bundled":
        return lines
    people = found["non_members"]
    origin = {
        "hold-out": "images of people who are not in the training set",
        "runs": "training images, each looked for without its neighbouring files",
    }.get(people["from"], "training images, each looked for without its own subject")
    return [
        *lines,
        f"An image is flagged when its best match is stronger than that of nearly all people who "
        f"are not in the training set. They are represented by {people['images']:,} "
        f"{origin}.",
        f"In the calibration {found['sensitivity']:.1%} of {found['planted']:,} copies that were "
        "changed at random were found.",
        *_same_patient(found["same_patient"]),
    ]


def _same_patient(found: Mapping[str, int] | None) -> list[str]:
    """Say how often another image of the same patient is taken for a copy."""
    if found is None:
        return ["No copy does not mean: not this patient. Another image of one is no copy."]
    return [
        "No copy does not mean: not this patient. Of training images of whose patient there are "
        f"others, {found['flagged'] / found['images']:.1%} of {found['images']:,} were taken for "
        "copies of one of those."
    ]


def rare(count: int) -> str:
    """Say how many of those who are copied are rare."""
    if not count:
        return ""
    return (
        f"{count:,} of them {'is' if count == 1 else 'are'} rare: 95 % of the training images have "
        "another subject's image nearer to them. Such images are recognised more easily."
    )


def copied_volumes(found: Mapping[str, int] | None) -> str:
    """Say how many volumes are copies; nothing where there are none."""
    if found is None:
        return ""
    alone = found["flagged"] - found["duplicate"]
    more = f" Of {alone:,} more, single slices are flagged." if alone else ""
    return f"{found['duplicate']:,} of {found['judged']:,} volumes are copies.{more}"


def partial_copies(found: Mapping[str, Any] | None, *, rate_known: bool = True) -> str:
    """Say how many images copy a part of a training image, or that nobody looked.

    `rate_known` tells whether the calibration is of these images (`has_rate`).
    """
    if found is None:
        return (
            "Copies of a part of an image were not looked for: that needs verdicts by a "
            "calibration of this index, on 100 images of others at least, and at most 20,000 "
            "training images."
        )
    if not rate_known:
        return (
            f"{_with_region(found['flagged'])} How many of {found['looked_for']:,} are expected by "
            "chance, and how many copied parts are missed, is not known: the calibration is of "
            "pseudo-subjects."
        )
    parts = {"half": "halves", "quarter": "quarters"}
    planted = " and ".join(
        f"{share:.0%} of {parts[part]}" for part, share in found["sensitivity"].items()
    )
    return (
        f"{_with_region(found['flagged'])} "
        f"By chance {found['expected_false_alarms']:.1f} of {found['looked_for']:,} are expected, "
        f"at most {ceil(10 * found['false_alarm_upper_95'] * found['looked_for']) / 10} (95 %). "
        f"In the calibration {planted} that were pasted into other images were found."
    )


def _with_region(count: int) -> str:
    """Say how many images copy a part of a training image."""
    many = "image that is no copy has" if count == 1 else "images that are no copies have"
    return f"Copies of a part: {count:,} {many} a region that is like one subject alone."


def searched(found: Mapping[str, Any]) -> str:
    """Say how many of the best matches an approximate search found; nothing of an exact one."""
    if found["exact"]:
        return ""
    sample, canaries = found["sample"], found["canaries"]
    text = f"Search: approximate ({found['type']}, effort {found['effort']:,})."
    if sample:
        text += (
            f" Of {sample['queries']:,} images that were searched exactly as well, the best match "
            f"of {sample['best_found']:,} was found: {sample['recall']:.2%}, at least "
            f"{at_least(sample['recall_at_least_95'])} (95 %)."
        )
    if canaries:
        text += (
            f" Of {canaries['listed']:,} planted copies of which an exact search lists the source, "
            f"this one lists {canaries['found']:,}."
        )
    if not found["passed"]:
        text += (
            f" That is less than the {found['least']:.2%} asked for: copies may have been missed. "
            "Build the index with a higher --recall, or with --index-type flat."
        )
    return text


def membership(found: Mapping[str, Any]) -> str:
    """Say how well members are told from others by their nearest synthetic image."""
    auc, control, at = found["auc"], found["control"], found["true_positives"]["0.01"]
    told = "not told" if auc["low"] <= 0.5 else "told"
    seen = " The encoder was trained on the members, so this may say too much." * found["seen"]
    return (
        f"Membership: by their nearest synthetic image, {found['members']:,} training images are "
        f"{told} from {found['non_members']:,} of the hold-out: AUC {_estimate(auc)}, where 0.5 is "
        f"chance. At 1 % false positives {at['value']:.1%} of the members are found "
        f"({at['low']:.1%} to {at['high']:.1%}). Two halves of the hold-out have an AUC of "
        f"{_estimate(control)}.{seen}"
    )


def _estimate(found: Mapping[str, float]) -> str:
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
