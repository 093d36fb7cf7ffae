"""Libraries that few files need, loaded when the first such file comes.

No file is charged with that: the timer of `isolated` stands still meanwhile.
"""

import signal
from functools import cache
from importlib import import_module


@cache
def load(*modules: str) -> None:
    """Load modules by their names, without counting the time that it takes as that of a file."""
    left, _ = signal.setitimer(signal.ITIMER_PROF, 0)
    try:
        for name in modules:
            import_module(name)
    finally:
        signal.setitimer(signal.ITIMER_PROF, left)
