"""How far readers agree on findings.

decisions by finding and reader -> Cohen's kappa of each two readers
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

DECISIONS = ("copy", "no copy", "unsure")
"""What a reader can decide on a finding."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two readers, on how many findings both decided, and Cohen's kappa.

    kappa is None where chance alone explains all: both said the same of every finding.
    """

    readers: tuple[str, str]
    findings: int
    same: int
    kappa: float | None


def agreements(decisions: Mapping[str, Mapping[str, str]]) -> list[Agreement]:
    """Return how far each two readers agree who decided on a finding in common.

    `decisions` are by finding, by reader. Source: Cohen (1960, doi:10.1177/001316446002000104).
    """
    readers = sorted({reader for of_finding in decisions.values() for reader in of_finding})
    found = []
    for one, other in combinations(readers, 2):
        pairs = [
            (each[one], each[other]) for each in decisions.values() if one in each and other in each
        ]
        if pairs:
            same = sum(first == second for first, second in pairs)
            found.append(Agreement((one, other), len(pairs), same, _kappa(pairs)))
    return found


def _kappa(pairs: list[tuple[str, str]]) -> float | None:
    count = len(pairs)
    first, second = (Counter(side) for side in zip(*pairs, strict=True))
    chance = sum(first[each] * second[each] for each in first) / count**2
    observed = sum(one == other for one, other in pairs) / count
    return None if chance == 1 else (observed - chance) / (1 - chance)
