"""What a night is decided to be, by the conditions of the policy.

quantities of each set, policy -> Decided
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deepssim_scan.audit.config.audit import Policy
from deepssim_scan.audit.config.conditions import Condition, Value

PASSED, WARNED, FAILED, INCOMPLETE = "passed", "warned", "failed", "incomplete"


@dataclass(frozen=True, slots=True)
class Broken:
    """A condition that holds for a set, or that cannot be told, and the quantities it names."""

    name: str
    condition: str
    known: bool
    values: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Decided:
    """What a night is: its state, and the conditions that failed it and that it warns of."""

    state: str
    failed: Sequence[Broken]
    warned: Sequence[Broken]


def decide(policy: Policy, sets: Mapping[str, Mapping[str, Value]]) -> Decided:
    """Decide a night by the quantities of its sets, by name.

    A night of which a set is not complete is incomplete, whatever else it is. A condition that
    cannot be told counts as one that holds.
    """
    failed, warned = (_broken(conditions, sets) for conditions in (policy.fail_if, policy.warn_if))
    state = FAILED if failed else WARNED if warned else PASSED
    if not all(values["complete"] for values in sets.values()):
        state = INCOMPLETE
    return Decided(state, failed, warned)


def _broken(
    conditions: Sequence[Condition], sets: Mapping[str, Mapping[str, Value]]
) -> list[Broken]:
    found = []
    for name, values in sets.items():
        for each in conditions:
            holds = each.decide(values)
            if holds is not False:
                named = {quantity: values[quantity] for quantity in sorted(each.quantities)}
                found.append(Broken(name, each.text, holds is not None, named))
    return found
