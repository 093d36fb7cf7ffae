"""What is fuzzed holds on the inputs that fuzzing begins with, and on all that it ever found."""

import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "fuzz"
sys.path.insert(0, str(FUZZ))
import targets  # noqa: E402


@pytest.mark.parametrize("name", targets.TARGETS)
def test_what_was_once_a_finding_is_none(name):
    seeds = targets.seeds_of(name, FUZZ / "seeds")
    assert seeds
    for seed in seeds:
        targets.TARGETS[name].check(seed)
        targets.TARGETS[name].check(seed[: len(seed) // 2])
