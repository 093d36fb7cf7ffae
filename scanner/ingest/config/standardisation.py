"""The rule by which pixels become an encoder's input: a value that loads without NumPy."""

from dataclasses import dataclass

from deepssim_scan.errors import InputError


@dataclass(frozen=True, slots=True)
class Standardisation:
    """How pixels become an encoder's input; recorded in the checkpoint.

    `size`: the side of the square that the image is fitted into, aspect kept, in pixels; or
    None, the reference's rule: never resized, only z-scored.
    `pad`: what fills the square beside the image. "darkest", the only rule, is the least grey of
    the scaled image, which hardly changes when what the image shows is moved.
    """

    size: int | None = 128
    pad: str = "darkest"

    def __post_init__(self) -> None:
        whole = isinstance(self.size, int) and not isinstance(self.size, bool)
        if self.size is not None and not (whole and 8 <= self.size <= 4096):
            raise InputError(f"size ({self.size!r}) must be None or a whole number from 8 to 4096")
        if self.pad != "darkest":
            raise InputError(f"pad ({self.pad!r}) must be 'darkest'")
