"""How much time and memory one file may take."""

from dataclasses import dataclass

from deepssim_scan.errors import InputError

_LEAST_MEMORY = 1 << 28


@dataclass(frozen=True, slots=True)
class Limits:
    """How much time and memory one file may take.

    `max_seconds`: time that one file, or the list of one archive, may compute; it may wait for four
    times as long, as for a disk. `max_memory`: bytes
    of address space of a worker process, above what it starts with; not enforced where there is
    no /proc.
    """

    max_seconds: float = 60.0
    max_memory: int = 4 << 30

    def __post_init__(self) -> None:
        if not 0 < self.max_seconds <= 1e6:
            raise InputError(f"max_seconds ({self.max_seconds}) must be above 0 and at most 1e6")
        if self.max_memory < _LEAST_MEMORY:
            raise InputError(f"max_memory ({self.max_memory}) must be >= {_LEAST_MEMORY} bytes")
