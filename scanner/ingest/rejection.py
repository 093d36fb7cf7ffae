"""Why an image has no embedding: a code, and one line for a person."""

from dataclasses import dataclass

from deepssim_scan.errors import InputError

BLANK = "blank"
"""The reason of a frame with nothing on it. It is no rejection: a run with blanks is complete."""

REASONS: dict[str, str] = {
    "bad-archive": "an archive that cannot be read whole, or a member of one that has to be "
    "refused",
    "bad-array": "NPY, NPZ or NIfTI whose samples are not planes of real numbers, exactly as long "
    "as the header says",
    BLANK: "constant, as a frame beside others that are not: the end slices of a volume",
    "changed": "the file changed while it was read",
    "constant": "one grey value, or so near to it that the standardised image would be noise",
    "damaged": "a known format that does not decode whole: truncated, a wrong checksum, or corrupt",
    "decoder-crashed": "the process that decoded it died, and a fresh one died again",
    "decoder-timeout": "decoding took longer than the limit",
    "embedding": "the encoder gave a zero or non-finite embedding",
    "empty-file": "no bytes",
    "executable": "a DICOM file whose preamble is a program",
    "no-decoder": "DICOM, compressed in a way that no installed package decodes",
    "no-pixels": "DICOM without pixel data, or a volume or NPZ of which nothing is selected",
    "not-a-file": "a FIFO, device, socket or folder under an image's name",
    "not-finite": "holds NaN, an infinity, or a value beyond float32",
    "outside-folder": "a link or path that leaves the folder given, or a link to a hidden folder",
    "too-large": "more bytes, pixels, frames or memory than the limit",
    "too-small": "fewer pixels a side than an encoder without a fixed size can take",
    "unknown-format": "not PNG, JPEG, TIFF, GIF, NPY, NPZ, NIfTI or DICOM by its content, whatever "
    "its name",
    "unreadable": "the operating system refused to read it",
    "unsupported": "a known format with samples that would not survive decoding unchanged, or more "
    "axes than a volume has",
    "vanished": "was listed, and is no longer there",
}


MAY_PASS = frozenset(
    (
        *("changed", "decoder-crashed", "decoder-timeout", "embedding", "too-large"),
        *("unreadable", "vanished"),
    )
)
"""Reasons that depend on the limits, the machine or the moment: another try may succeed."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an image has no embedding: a code of REASONS, and one line with no path in it."""

    reason: str
    detail: str

    def __post_init__(self) -> None:
        if self.reason not in REASONS:
            raise ValueError(f"reason {self.reason!r} is not one of {', '.join(REASONS)}")


class Rejected(InputError):
    """One file cannot be judged; `rejection` says why."""

    def __init__(self, reason: str, detail: str) -> None:
        """Keep the first 200 characters of the detail's first line."""
        self.rejection = Rejection(reason, (detail.splitlines() or [""])[0][:200])
        super().__init__(f"{reason}: {self.rejection.detail}")
