"""The record that a release committee asks for: filled from a night and from `[dossier]`.

audit.toml, history, a night -> sections of fields; a field that nobody filled is a visible gap
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepssim_scan.audit.config.audit import AuditConfig
from deepssim_scan.audit.config.waivers import read_waivers
from deepssim_scan.audit.findings import GONE, HOLDS
from deepssim_scan.audit.history import History, Night, SetOfNight
from deepssim_scan.audit.review.agreement import agreements
from deepssim_scan.errors import InputError
from deepssim_scan.reporting.html.page import pseudonym
from deepssim_scan.reporting.html.render import render
from deepssim_scan.reporting.html.words import (
    at_most,
    copied_volumes,
    has_rate,
    left_out,
    membership,
    partial_copies,
    rate_at_most,
    searched,
    whom,
)


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the record: its name, and what it says; None is a gap."""

    name: str
    text: str | None


@dataclass(frozen=True, slots=True)
class Section:
    """Fields of the record under a title."""

    title: str
    fields: Sequence[Field]


def dossier_page(config: AuditConfig, history: History) -> str:
    """Return the record of the last night that was finished; InputError where there is none."""
    nights = [night for night in history.nights() if night.finished is not None]
    if not nights:
        raise InputError(f"{history.path}: holds no finished night. Run an audit first.")
    sections = sections_of(config, history, nights[-1])
    gaps = sum(field.text is None for section in sections for field in section.fields)
    return render(
        "dossier.html.j2",
        title=f"Record of night {nights[-1].number}",
        night=nights[-1],
        sections=sections,
        gaps=gaps,
    )


def sections_of(config: AuditConfig, history: History, night: Night) -> list[Section]:
    """Return the sections of the record of a night."""
    asked, sets = config.dossier, history.sets(night)
    key = config.report.key()
    results = [Section(f"Results: {each.name}", _results(each, key)) for each in sets]
    return [
        Section("Scope", _scope(asked, sets, night)),
        Section("Generator", _stated(asked, "checkpoint", "epochs", "seeds", "privacy")),
        Section("Threat model", _stated(asked, "tried", "not_tried", "tried_by")),
        *results,
        *(
            Section(f"Results: {name}", [Field("NOT AUDITED", _HIDDEN if key else text)])
            for name, text in night.errors.items()
        ),
        Section("Method", _method(sets)),
        Section("Decision", _decision(config, history, sets, night)),
    ]


_HIDDEN = "could not be queried; night.json says why, and may name an image"
_NAMES = {
    "purpose": "Purpose of the release",
    "recipient": "Recipient",
    "exclusions": "Exclusions",
    "checkpoint": "Checkpoint",
    "epochs": "Epochs",
    "seeds": "Seeds",
    "privacy": "Differential privacy",
    "tried": "What was tried",
    "not_tried": "What was not tried",
    "tried_by": "By whom",
    "residual_risk": "Residual risk",
    "conditions": "Conditions",
    "signer": "Signer",
    "review_date": "To be reviewed on",
}


def _stated(asked: Any, *names: str) -> list[Field]:
    """Return fields that people fill; one of spaces alone is a gap."""
    return [Field(_NAMES[name], (getattr(asked, name) or "").strip() or None) for name in names]


def _scope(asked: Any, sets: Sequence[SetOfNight], night: Night) -> list[Field]:
    digests = [
        Field(f"Released set {each.name}, digest", each.summary["fingerprints"]["synthetic"])
        for each in sets
    ]
    training = {each.summary["fingerprints"]["training"] for each in sets}
    return [
        *_stated(asked, "purpose", "recipient"),
        *digests,
        Field("Training set, digest", ", ".join(sorted(training)) or None),
        Field("Hold-out set", _holdout(sets, night)),
        *_stated(asked, "exclusions"),
    ]


def _holdout(sets: Sequence[SetOfNight], night: Night) -> str | None:
    """Say which hold-out images a night was judged by; None where no set was."""
    made = [each.summary["calibration"] for each in sets]
    if not made:
        return None
    if not any(each and each["non_members"]["from"] == "hold-out" for each in made):
        return "none"
    digest = night.facts.get("holdout")
    return f"{digest} (of names, sizes and times)" if digest else "given to calibrate, not to audit"


def _results(found: SetOfNight, key: bytes) -> list[Field]:
    """Return what the night says of a set."""
    summary = found.summary
    counts, subjects = summary["counts"], summary["subjects"]
    calibration, canaries = summary["calibration"], summary["canaries"]
    judged, flagged = counts["judged"], counts["duplicate"]
    most, search = summary["most_copies_95"], summary.get("search")
    worst, told = _worst(found, key), summary.get("membership")
    parts = partial_copies(summary.get("partial"), rate_known=has_rate(summary))
    return [
        Field("Images judged", f"{judged:,} of {counts['listed']:,} listed"),
        Field("Complete", "yes" if summary["complete"] else "NO: something was not looked at"),
        Field("Not judged, or not compared", " ".join(left_out(summary)) or "nothing"),
        Field("What does not go together", _mismatches(summary)),
        Field("Images flagged", f"{flagged:,} ({flagged / judged:.2%})" if judged else None),
        Field("Volumes copied", copied_volumes(summary.get("volumes")) or "there are no volumes"),
        Field("Copies of a part", parts),
        Field("Copied", "".join(whom({"unnamed": 0} | subjects))),
        Field("Worst subject", worst),
        Field("False-alarm rate", _rate(calibration)),
        Field("Copies at most, of all images", None if most is None else f"{at_most(most)} (95 %)"),
        Field("Canary recall", _canaries(canaries)),
        Field("Search", searched(search) or "exact" if search else None),
        Field("Membership inference", membership(told) if told else "not measured: no hold-out"),
    ]


def _mismatches(summary: Mapping[str, Any]) -> str:
    """Say what keeps the method from fitting the two sets."""
    return " ".join(each["text"] for each in summary["mismatches"]) or "nothing was noticed"


def _worst(found: SetOfNight, key: bytes) -> str | None:
    """Name the subject whom most findings copy, by a pseudonym where there is a key."""
    counts: dict[str, int] = {}
    for each in found.findings:
        if each.state != GONE:
            whose = each.subject or each.training
            counts[whose] = counts.get(whose, 0) + 1
    if not counts:
        return "none is copied"
    name = max(counts, key=lambda each: (counts[each], each))
    shown = pseudonym(key, "subject", name) if key else name
    return f"{shown}: {counts[name]:,} findings"


def _rate(calibration: Mapping[str, Any] | None) -> str | None:
    if calibration is None or calibration["non_members"]["from"] == "bundled":
        return None
    rate, upper = calibration["false_alarm"], calibration["false_alarm_upper_95"]
    return f"{rate:.2g} of images of other people, at most {rate_at_most(upper)} (95 %)"


def _canaries(canaries: Mapping[str, Any] | None) -> str | None:
    if canaries is None:
        return None
    kinds = (f"{kind} {found}/{planted}" for kind, (found, planted) in canaries["by_kind"].items())
    return f"{canaries['found']:,} of {canaries['planted']:,}: {', '.join(kinds)}"


def _method(sets: Sequence[SetOfNight]) -> list[Field]:
    """Return how verdicts came about: the same for all sets of a night."""
    if not sets:
        return [Field("Method", None)]
    summary = sets[0].summary
    bounds, calibration = summary["bounds"], summary["calibration"]
    people = calibration and calibration["non_members"]
    fitted = people and (
        f"from {people['images']:,} images of non-members ({people['from']}) and "
        f"{calibration['planted']:,} planted copies; calibration {calibration['digest'][:12]}"
    )
    return [
        Field("Rule", summary["rule"]),
        Field("Thresholds", f"duplicate above {bounds['duplicate']:.4g}, similar above "
              f"{bounds['similar']:.4g}"),
        Field("How they were fitted", fitted or "fixed scores of arXiv:2509.16582"),
        Field("Encoder", summary["fingerprints"]["encoder"]),
        Field("Applicability", "scales within 15 %, turns within 15 degrees and quarter turns, "
              "flips, inverted greys, contrast; halves and quarters are looked for apart"),
        Field("Program", summary["versions"]["deepssim-scan"]),
    ]  # fmt: skip


def _decision(
    config: AuditConfig, history: History, sets: Sequence[SetOfNight], night: Night
) -> list[Field]:
    made = history.decisions()
    there = {each.key: each for found in sets for each in found.findings if each.state != GONE}
    readers = night.facts["readers"]
    reviewed = sum(len(made.get(key, {})) >= readers for key in there)
    copies = sum("copy" in made.get(key, {}).values() for key in there)
    of_these = {key: made[key] for key in there if key in made}
    told = [
        f"{' and '.join(each.readers)}: {each.same} of {each.findings}"
        + ("" if each.kappa is None else f", kappa {each.kappa:.2f}")
        for each in agreements(of_these)
    ]
    waived = sum(each.waiver == HOLDS for each in there.values())
    waivers = read_waivers(config.policy.waivers)
    held = (key for key, each in there.items() if each.waiver == HOLDS)
    who = sorted({waivers[key].who for key in held if key in waivers})
    return [
        Field("Policy", f"{night.state}: fail if {'; '.join(night.facts['fail_if']) or 'nothing'}"),
        Field("Findings reviewed", f"{reviewed:,} of {len(there):,} by {readers} readers; "
              f"{copies:,} called a copy"),
        Field("Agreement of readers", "; ".join(told) or ("no findings" if not there else None)),
        Field("Waivers", f"{waived:,}" + (f", by {', '.join(who)}" if who else "")),
        *_stated(config.dossier, "residual_risk", "conditions", "signer", "review_date"),
    ]  # fmt: skip
