"""How images become the rows of a store."""

from dataclasses import dataclass

from deepssim_scan.errors import InputError


@dataclass(frozen=True, slots=True)
class EmbedConfig:
    """How many rows are one Zarr chunk."""

    shard_rows: int = 4096

    def __post_init__(self) -> None:
        if self.shard_rows < 1:
            raise InputError(f"shard_rows must be >= 1, found {self.shard_rows}")
