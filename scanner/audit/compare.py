"""The findings of two nights, compared.

history, two nights -> Compared: what is new and what is gone, by synthetic set
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deepssim_scan.audit.findings import GONE, NEW, Finding
from deepssim_scan.audit.history import History, Night
from deepssim_scan.errors import InputError


@dataclass(frozen=True, slots=True)
class Compared:
    """The findings that the second of two nights has and the first has not, and the reverse.

    `sets` are those that both nights have, `alone` names those that one of them has, and `neither`
    those that none has, because they could not be queried.
    """

    first: int
    second: int
    sets: Mapping[str, Mapping[str, Sequence[Finding]]]
    alone: Sequence[str]
    neither: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """Return the same in values of JSON."""
        sets = {
            name: {state: [asdict(each) for each in found] for state, found in of_set.items()}
            for name, of_set in self.sets.items()
        }
        numbers = {"first": self.first, "second": self.second}
        others = {"in_one_alone": list(self.alone), "in_neither": list(self.neither)}
        return numbers | {"sets": sets} | others


def compared(history: History, first: int | None, second: int | None) -> Compared:
    """Compare two nights, by default the last two that were finished.

    Raises InputError where there are no two nights, none of a number that is given, or one that
    was not finished.
    """
    nights = _asked(history, first, second)
    there = [_findings(history, each) for each in nights]
    both = sorted(there[0].keys() & there[1].keys())
    sets = {name: _changes(there[0][name], there[1][name]) for name in both}
    alone = sorted(there[0].keys() ^ there[1].keys())
    failed = {name for each in nights for name in each.errors}
    neither = sorted(failed - there[0].keys() - there[1].keys())
    return Compared(nights[0].number, nights[1].number, sets, alone, neither)


def _asked(history: History, first: int | None, second: int | None) -> list[Night]:
    """Return the two nights that are asked for."""
    finished = [each.number for each in history.nights() if each.finished is not None]
    wanted = [first, second] if second is not None else [*finished[-2:]]
    if second is None and first is not None:
        wanted = [first, finished[-1]] if finished else []
    if len(wanted) < 2:
        raise InputError(
            f"{history.path}: holds {len(finished)} finished nights; two are compared."
        )
    nights = [history.night(int(number or 0)) for number in wanted]
    for each in nights:
        if each.finished is None:
            raise InputError(
                f"{history.path}: night {each.number} is not finished, so nothing can be said of "
                "its findings. Wait for the audit, or run it again where it was killed."
            )
    if second is None and nights[0].number == nights[1].number:
        raise InputError(
            f"{history.path}: night {first} is the last that was finished, so no later one can be "
            "compared with it. Name an earlier night."
        )
    return nights


def _findings(history: History, night: Night) -> dict[str, dict[str, Finding]]:
    return {
        found.name: {each.key: each for each in found.findings if each.state != GONE}
        for found in history.sets(night)
    }


def _changes(
    before: Mapping[str, Finding], after: Mapping[str, Finding]
) -> dict[str, list[Finding]]:
    return {
        NEW: [each for key, each in after.items() if key not in before],
        GONE: [each for key, each in before.items() if key not in after],
    }
