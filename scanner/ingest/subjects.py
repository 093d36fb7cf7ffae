"""Whose image it is: the one place that decides.

    item, frame, patient id -> Subject

The first of these rules that says anything decides:

1. the subject that the manifest names, without spaces before and after it;
2. the regular expression, searched for in the path;
3. the patient id of a DICOM file, where there is a key to hash it under;
4. the file, where it holds several frames: a volume is one person's;
5. the folder, which is a person's in most data sets.

Rules 4 and 5 are guesses. An image that lies directly in the folder given has no subject: "".
Letters with marks are one name, composed or decomposed (NFC).
"""

import re
import unicodedata
from dataclasses import dataclass

from deepssim_scan.ingest.config import IngestConfig
from deepssim_scan.ingest.listing.item import Item


@dataclass(frozen=True, slots=True)
class Subject:
    """A person's name, hashed where there is a key, or ""; `known`, or guessed from a path."""

    name: str
    known: bool


def subject_of(item: Item, frame: str, patient: str, ingest: IngestConfig) -> Subject:
    """Decide the subject of one image of an item.

    `frame` is "" when the item holds a single image; `patient` is the DICOM patient id, hashed
    already, or "". The regular expression is searched for in the path of the item, in which a
    member follows its archive: "study.zip/p01/a.png".
    """
    path = f"{item.path}/{item.member}" if item.member else item.path
    named = item.subject or _matched(ingest.subject_regex, path)
    if patient and not named:
        return Subject(patient, known=True)
    name = named or (path if frame else path.rpartition("/")[0])
    name, options = unicodedata.normalize("NFC", name), ingest.read_options
    if name and options.subject_key:
        name = options.hashed(name.encode("utf-8", "surrogateescape"))
    return Subject(name, known=bool(named))


def _matched(regex: str | None, path: str) -> str:
    """Return the group, or all that the expression matched; "" when it matches nothing."""
    match = re.search(regex, path) if regex else None
    if match is None:
        return ""
    return (match[1] or "") if match.re.groups else match[0]
