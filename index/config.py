"""How the training embeddings are indexed; loads no library."""

from dataclasses import dataclass

from deepssim_scan.errors import InputError

TYPES = ("auto", "flat", "ivf", "ivfpq", "hnsw")
"""Types of index by name; any other word is taken for a factory string of FAISS."""

FLAT = "Flat"
"""What FAISS calls the type that is searched exactly."""

RECALL = 0.999


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """The type of an index, and the share of best matches that an approximate one is to find."""

    kind: str = "auto"
    recall: float = RECALL

    def __post_init__(self) -> None:
        if not self.kind:
            raise InputError("index type must be one of " + ", ".join(TYPES))
        if not 0 < self.recall < 1:
            raise InputError(f"recall must be between 0 and 1, found {self.recall}")
