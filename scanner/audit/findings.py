"""Findings: a flagged image and the training image that it copies, from night to night.

flagged matches of a night, those of the last one, waivers -> Finding, each in its state

A finding is known by the contents of its two images. So it stays the same when files are renamed.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from deepssim_scan.audit.config.waivers import Waiver
from deepssim_scan.reporting.match import Match, strongest_of_each
from deepssim_scan.reporting.matches import duplicates_of

NEW, PERSISTING, GONE = "new", "persisting", "gone"
HOLDS, EXPIRED = "holds", "expired"


@dataclass(frozen=True, slots=True)
class Finding:
    """A flagged image of a synthetic set in one night.

    `key` stands for the contents of the two images. `state` is "new", "persisting" or, where the
    last night had it and this one has not, "gone". `waiver` is "holds", "expired" or "".
    """

    key: str
    state: str
    waiver: str
    synthetic: str
    training: str
    subject: str
    score: float
    ssim: float | None
    p_value: float | None


def asked_about(report: Path, flagged: Sequence[Match], held: Collection[str]) -> list[Match]:
    """Return the matches that are findings: of each flagged image the first that is not waived.

    Slices of one volume are one finding, for which the strongest stands.

    `held` are the findings whose waivers hold; they stay among the findings. A waiver answers for
    the subject of its training image. Where the image copies another subject, too, its match with
    that one is a finding as well.
    """
    waived = [match.synthetic_row for match in flagged if match.finding in held]
    every = duplicates_of(report, waived) if waived else {}
    return strongest_of_each(
        [
            each
            for match in flagged
            for each in _up_to_first(every.get(match.synthetic_row, [match]), held)
        ]
    )


def _up_to_first(matches: Sequence[Match], held: Collection[str]) -> Iterator[Match]:
    """Give the waived matches of an image, and the first of a subject that none answers for.

    Each finding is given once: two subjects may have the same training image.
    """
    answered, given = set[str](), set[str | None]()
    for match in matches:
        whose = match.subject or match.training
        if match.finding in held:
            if whose not in answered and match.finding not in given:
                yield match
            answered.add(whose)
            given.add(match.finding)
        elif whose not in answered:
            yield match
            return


def holding(waivers: Mapping[str, Waiver], today: date) -> set[str]:
    """Return the findings whose waivers hold on a day, the last one of a waiver included."""
    return {key for key, waiver in waivers.items() if waiver.until >= today}


def findings_of(
    flagged: Iterable[Match],
    last: Mapping[str, Finding],
    waivers: Collection[str],
    held: Collection[str],
) -> list[Finding]:
    """Return the findings of a night, the strongest first, then those that are gone.

    `last` are those of the last night, `waivers` the findings that have one, and `held` those whose
    waivers hold.
    """
    found = [
        Finding(
            key := str(match.finding),
            PERSISTING if key in last else NEW,
            HOLDS if key in held else EXPIRED if key in waivers else "",
            match.synthetic,
            match.training,
            match.subject,
            match.score,
            match.ssim,
            match.p_value,
        )
        for match in flagged
    ]
    there = {each.key for each in found}
    gone = [replace(each, state=GONE) for key, each in last.items() if key not in there]
    return found + gone


def counts_of(
    findings: Collection[Finding], decisions: Mapping[str, Mapping[str, str]], readers: int
) -> dict[str, int]:
    """Count the findings in each state that a policy can name; those that are waived once alone.

    `decisions` are those of readers on each finding: by its key, by reader.
    """
    there = [each for each in findings if each.state != GONE]
    asked = [each for each in there if each.waiver != HOLDS]
    states = Counter(each.state for each in asked)
    made = [decisions.get(each.key, {}) for each in asked]
    return {
        "new": states[NEW],
        "persisting": states[PERSISTING],
        "gone": len(findings) - len(there),
        "waived": len(there) - len(asked),
        "expired_waivers": sum(each.waiver == EXPIRED for each in there),
        "unreviewed": sum(len(each) < readers for each in made),
        "confirmed": sum("copy" in each.values() for each in made),
    }
