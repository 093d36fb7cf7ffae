"""Labelled pairs of a training and a synthetic image, from a CSV.

    labelled.csv -> Labelled: names, and labels (P,), indices in LABELS

Two forms are read. Ours has the columns training, synthetic and label: paths in the two folders,
and different, similar or duplicate. The reference's (arXiv:2509.16582) has real_key, synth_key and
label: a key is UID___name for a file UID/name, and 0 is different, 1 duplicate, 2 similar.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.errors import InputError, InputMissing
from deepssim_scan.matching.decision import VERDICTS

LABELS = VERDICTS[:3]
"""Different, similar, duplicate: a label is an index here, as a verdict is."""

_OURS, _REFERENCE = ("training", "synthetic", "label"), ("real_key", "synth_key", "label")
_NUMBERS = {"0": "different", "1": "duplicate", "2": "similar"}
_SEPARATOR = "___"


@dataclass(frozen=True, slots=True)
class Labelled:
    """Pairs: the names of the training and of the synthetic image of each, labels (P,)."""

    training: tuple[str, ...]
    synthetic: tuple[str, ...]
    labels: NDArray[np.int64]


def read_labelled(path: Path) -> Labelled:
    """Read labelled pairs.

    Raises InputMissing when the file is not there, InputError, with the line, for what is none.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(_rows(path, csv.DictReader(file)))
    except FileNotFoundError as error:
        raise InputMissing(f"{path}: there is no such file. Check the path.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a CSV: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: is no CSV in UTF-8: {error}") from error
    if not rows:
        raise InputError(f"{path}: has no pairs.")
    training, synthetic, labels = zip(*rows, strict=True)
    return Labelled(training, synthetic, np.array(labels, np.int64))


def _rows(path: Path, reader: "csv.DictReader[str]") -> Iterator[tuple[str, str, int]]:
    columns = _columns(path, reader.fieldnames or ())
    labels: dict[tuple[str, str], str] = {}
    for row in reader:
        values = [(row[column] or "").strip() for column in columns]
        label = _NUMBERS.get(values[2], values[2])
        if not all(values) or label not in LABELS:
            raise InputError(
                f"{path}, line {reader.line_num}: wanted a training image, a synthetic image and "
                f"one of {', '.join(LABELS)} (or 0, 2, 1), found {values}."
            )
        if columns == _REFERENCE:
            values = [value.replace(_SEPARATOR, "/", 1) for value in values]
        if (before := labels.setdefault((values[0], values[1]), label)) != label:
            raise InputError(
                f"{path}, line {reader.line_num}: labels the pair {values[0]}, {values[1]} "
                f"{label}, and a line above {before}. Keep one of the two."
            )
        yield values[0], values[1], LABELS.index(label)


def _columns(path: Path, found: Sequence[str]) -> tuple[str, ...]:
    for columns in (_OURS, _REFERENCE):
        if set(columns) <= set(found):
            return columns
    raise InputError(
        f"{path}: has the columns {', '.join(found) or 'none'}; wanted {', '.join(_OURS)} "
        f"or {', '.join(_REFERENCE)}."
    )


def resolved(names: Sequence[str], there: Sequence[str], folder: Path) -> NDArray[np.int64]:
    """Return for each name its index among the images that are there, by name or without suffix.

    Raises InputError where one is not there, or two files have a name without suffix.
    """
    index = {name: number for number, name in enumerate(there)}
    stems: Mapping[str, list[int]] = {}
    for number, name in enumerate(there):
        stems.setdefault(name.rpartition(".")[0], []).append(number)  # type: ignore[attr-defined]
    found = []
    for name in names:
        numbers = [index[name]] if name in index else stems.get(name, [])
        if len(numbers) != 1:
            what = f"{len(numbers)} images have this name" if numbers else "there is no such image"
            raise InputError(f"{folder}: {name}: {what}, or it could not be read.")
        found += numbers
    return np.array(found, np.int64)
