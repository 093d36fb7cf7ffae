"""DICOM: every frame as its modality meant it, and nothing of the patient.

    stored samples -> modality LUT or rescale -> window, when asked -> MONOCHROME1 negated -> filled

- Rescaling and windows are the frame's own: its functional groups', those shared by all frames, or
  the file's. A window clips; its values stay in the rescaled unit.
- Padding (PS3.3 C.7.5.1.1.2) becomes background: the least of the other values.
- Colour and palettes become luminance, at their own depth.
- Only the tags that say what the samples mean are read, and all where a file is looked through for
  further images. No value of any tag leaves this package,
  except a keyed hash of the patient id: errors name neither values nor pydicom's messages, which
  quote them.
- What is compressed is decoded by pylibjpeg, or where that is not installed by another. Where two
  decoders of one lossy syntax differ, they do by a grey level or two.
- A data set without preamble or without a transfer syntax is read where its first element tells
  how it was written.
"""

from collections.abc import Iterator

from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.decode.dicom_samples import stored_frames
from deepssim_scan.ingest.decode.dicom_tags import (
    GREY,
    is_dicom,
    layout_of,
    read_tags,
    subject_hash,
)
from deepssim_scan.ingest.decode.dicom_values import colour, grey, padding_of
from deepssim_scan.ingest.decode.loading import load
from deepssim_scan.ingest.decode.values import Frame
from deepssim_scan.ingest.rejection import Rejected

__all__ = ["frames", "is_dicom"]

_MODULES = "pydicom.filereader", "pydicom.pixels.decoders.base", "pydicom.pixels.processing"
_PROGRAMS = (
    b"MZ",
    b"\x7fELF",
    b"#!",
    b"\xfe\xed\xfa\xce",  # Mach-O: 32 and 64 bits, either byte order, and fat
    b"\xfe\xed\xfa\xcf",
    b"\xce\xfa\xed\xfe",
    b"\xcf\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",
    b"\xca\xfe\xba\xbf",
)


def frames(data: bytes, options: ReadOptions) -> Iterator[Frame]:
    """Give every frame; each step must run without warnings and logs, which quote tags."""
    if data.startswith(_PROGRAMS):
        raise Rejected("executable", "the preamble is the start of a program")
    load(*_MODULES)
    tags = read_tags(data)
    layout = layout_of(tags)
    layout.check(options.max_pixels)
    subject, padding = subject_hash(tags, options), padding_of(tags)
    for number, (stored, photometric) in enumerate(stored_frames(tags, layout)):
        if layout.photometric in GREY:
            pixels = grey(tags, stored, number, padding, options)
        else:
            pixels = colour(tags, stored, photometric)
        name = f"frame={number}" if layout.count > 1 else ""
        mode = f"dicom:{layout.photometric}:{stored.dtype.name}"
        yield Frame(name, mode, pixels, subject)
