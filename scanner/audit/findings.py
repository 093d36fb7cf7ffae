"""Findings: a flagged image and the training image that it copies, from night to night.

flagged matches of a night, those of the last one, waivers -> Finding, each in its state

A finding is known by the contents of its two images. So it stays the same when files are renamed.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date

from deepssim_scan.audit.config.waivers import Waiver
from deepssim_scan.reporting.match import Match

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


def findings_of(
    flagged: Iterable[Match], last: Mapping[str, Finding], waivers: Mapping[str, Waiver], now: date
) -> list[Finding]:
    """Return the findings of a night, the strongest first, then those that are gone.

    `last` are those of the last night, and `waivers` all that there are, by key.
    """
    found = [
        Finding(
            key := str(match.finding),
            PERSISTING if key in last else NEW,
            _waiver(waivers.get(key), now),
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


def _waiver(waiver: Waiver | None, now: date) -> str:
    if waiver is None:
        return ""
    return HOLDS if waiver.until >= now else EXPIRED


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
