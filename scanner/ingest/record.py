"""What is known of one image: the one record that goes from the decoder to the catalog.

decode_item -> Decoded(ImageRecord, pixels) -> catalog row of the same ImageRecord
"""

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

from deepssim_scan.ingest.rejection import BLANK, Rejection

if TYPE_CHECKING:
    from deepssim_scan.ingest.pixels import Pixels

State = Literal["embedded", "rejected", "blank"]


_VOLUMES = "nifti:", "dicom:"  # how the modes begin of formats of volumes


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One file, or one frame of a file, and what became of it.

    `path` is relative to the folder, `member` a name inside an archive or "", `frame` one of
    the `frames` that the file or member holds, or "". Bytes that are not UTF-8 are kept by
    surrogateescape (os.fsdecode). `size` in bytes and `sha256` are of the bytes that were
    decoded, `mtime_ns` of the file on disk; they and `mode` are 0 or "" where the file did not get
    that far. `subject` tells people apart: a name, its hash where there is a key, or "". It was
    guessed from the file or folder unless `subject_known` (`subjects`). `reason` is None for an
    image that can be judged, otherwise the code of why it cannot (`rejection.REASONS`).
    """

    path: str
    member: str
    frame: str
    frames: int
    size: int
    mtime_ns: int
    sha256: str
    mode: str
    subject: str
    reason: str | None = None
    detail: str = ""
    subject_known: bool = False

    @property
    def state(self) -> State:
        """Whether the image was embedded, was rejected, or has nothing on it."""
        if self.reason is None:
            return "embedded"
        return "blank" if self.reason == BLANK else "rejected"

    @property
    def digest(self) -> str:
        """A short digest of the image's bytes and frame, by which an encoder knows it again."""
        return hashlib.sha256(f"{self.sha256} {self.frame}".encode()).hexdigest()[:12]

    @property
    def in_volume(self) -> bool:
        """Whether it is a slice of a volume: of a NIfTI file, or a DICOM file of several frames.

        An array, or a TIFF, of several images can as well hold images of several people.
        """
        return self.frames > 1 and self.mode.startswith(_VOLUMES)

    @property
    def key(self) -> tuple[str, str, str]:
        """Path, member and frame: no two images of a listing have the same."""
        return self.path, self.member, self.frame

    @property
    def name(self) -> str:
        """What reports call it: `path`, `path#axis=2,slice=87`, `path#member=a.png`.

        A `#` of the path, and a `,` of the member, are doubled, so that no two images of a listing
        have the same name.
        """
        member = f"member={self.member.replace(',', ',,')}" if self.member else ""
        inside = ",".join(part for part in (member, self.frame) if part)
        path = self.path.replace("#", "##")
        return f"{path}#{inside}" if inside else path


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """One frame: its record, and pixels (H', W') float32, standardised, unless it has a reason."""

    record: ImageRecord
    pixels: "Pixels | None"

    def __post_init__(self) -> None:
        if (self.pixels is None) == (self.record.reason is None):
            raise ValueError(f"{self.record.name!r} must have either pixels or a reason")

    def rejected(self, rejection: Rejection) -> Self:
        """Return the same image, rejected."""
        record = replace(self.record, reason=rejection.reason, detail=rejection.detail)
        return replace(self, record=record, pixels=None)
