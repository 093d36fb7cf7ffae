"""How images become the rows of a store."""

from dataclasses import dataclass

from deepssim_scan.errors import InputError


@dataclass(frozen=True, slots=True)
class EmbedConfig:
    """How many images go through the network at once, and how many rows are one Zarr chunk."""

    batch: int = 64
    shard_rows: int = 4096

    def __post_init__(self) -> None:
        for name in ("batch", "shard_rows"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be >= 1, found {getattr(self, name)}")
