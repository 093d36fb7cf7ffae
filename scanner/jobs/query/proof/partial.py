"""Synthetic images that copy a part of a training image.

thumbnails of both sides, calibration of regions -> PartialCopy -> partial.parquet, summary.json

What is flagged as a whole is no partial copy. What was found of an image is kept, and found again
by a later run while neither the image nor the training set has changed.
"""

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deepssim_scan.calibration.rates import clopper_pearson
from deepssim_scan.calibration.rule import CalibratedRule, Rule
from deepssim_scan.errors import Damaged
from deepssim_scan.execution.executor import sliced
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.jobs.gallery import Gallery
from deepssim_scan.matching.identity import SIZE, Context, Digests, found_among
from deepssim_scan.matching.looked import digest_column, digests_of
from deepssim_scan.matching.regions import Regions, are_few_enough, boxes, look_for, regions_of
from deepssim_scan.reporting.partial import PartialCopy
from deepssim_scan.storage.files import shown
from deepssim_scan.storage.parquet import row_groups, writing
from deepssim_scan.store.reread import Reader

_GROUP = 1 << 16  # images of a row group
_NAMES = "statistic", "rows", "corner", "mirrored", "correlation"
_COLUMNS = pa.schema(
    [
        ("image", pa.binary(SIZE)),
        ("statistic", pa.float64()),
        ("rows", pa.int64()),
        ("corner", pa.int64()),
        ("mirrored", pa.bool_()),
        ("correlation", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Partials:
    """The partial copies among images, and what summary.json says of them; None: not looked for."""

    copies: list[PartialCopy]
    summary: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Looking:
    """What partial copies are looked for with.

    `context` is what makes thumbnails what they are. `file` keeps what was found, and `earlier` is
    that of the report that is in place.
    """

    gallery: Gallery
    rule: Rule
    context: Context
    file: Path
    earlier: Path | None

    def partials(self, reader: Reader, flagged: Collection[int]) -> Partials:
        """Look for partial copies among the images of a store, but for `flagged` rows."""
        rule = self.rule
        if not isinstance(rule, CalibratedRule):
            return Partials([], None)
        made = rule.calibration.partial
        if made is None or not are_few_enough(self.gallery.store):
            return Partials([], None)
        found, rate = self._found(reader), made.rate(rule.rate)
        whole = np.isin(np.arange(reader.store.rows), [*flagged])
        known = np.isfinite(found.statistic) & ~whole
        p_values = np.ones(len(known))
        p_values[known] = made.null.p_values(found.statistic[known])
        bound = made.null.threshold(rate)
        upper = made.null.upper_bound(bound)
        above = np.flatnonzero(known & (found.statistic > bound))
        order = above[np.argsort(-found.statistic[above], kind="stable")]
        copies = self._copies(reader, found.only(order), order, p_values[order])
        return Partials(
            copies,
            {
                "looked_for": int(known.sum()),
                "flagged": len(copies),
                "subjects": len({each.subject or each.training for each in copies}),
                "false_alarm": rate,
                "false_alarm_upper_95": upper,
                "expected_false_alarms": rate * int(known.sum()),
                "beyond_chance": clopper_pearson(len(copies), int(known.sum()))[0] > upper,
                "sensitivity": made.sensitivity(rate),
            },
        )

    def _found(self, reader: Reader) -> Regions:
        """Look for the best region of every image that an earlier run has not looked for."""
        store, training = reader.store, self.gallery.store
        of = {"training": training.digest, "groups": self.gallery.groups.origin}
        digests = replace(self.context, looks=self.context.looks | of).of_images(store.embedded())
        found, again = Regions.none(store.rows), np.ones(store.rows, bool)
        for path in (self.earlier, self.file):
            for theirs, values in _read(path):
                mine, at = found_among(digests, theirs, np.argsort(theirs, kind="stable"))
                found.put(mine, [column[at] for column in values])
                again[mine] = False
        if again.any():
            self._look(reader, found, again)
        with writing(self.file, _COLUMNS) as out:
            for part in sliced(store.rows, _GROUP):
                out.write_table(_table(digests[part], found.only(part)))
        return found

    def _look(self, reader: Reader, found: Regions, again: NDArray[np.bool_]) -> None:
        search = regions_of(self.gallery.store, self.gallery.groups.number)
        progress, total = reader.run.progress, int(again.sum())
        for first, small in reader.store.thumbnails():
            rows = first + np.flatnonzero(again[first : first + len(small)])
            if len(rows):
                found.put(rows, look_for(search, small[rows - first], reader.run).columns)
            done = int(again[: first + len(small)].sum())
            progress("regions looked for", done, total)

    def _copies(
        self, reader: Reader, found: Regions, rows: NDArray[np.int64], p_values: NDArray[np.float64]
    ) -> list[PartialCopy]:
        """Return the partial copies, with their boxes in pixels."""
        ours = reader.store.records_at(rows.tolist())
        records = self.gallery.store.records_at(found.rows.tolist())
        theirs = [self.gallery.as_told(each) for each in records]
        native = replace(reader, rule=Standardisation(size=None))
        shapes = {row: image.shape for row, image in native.pixels(rows.tolist())}
        square = reader.rule.size is not None
        made = zip(rows.tolist(), ours, theirs, p_values.tolist(), boxes(found), strict=True)
        return [
            PartialCopy(
                row,
                shown(one.name),
                shown(other.name),
                shown(other.subject),
                p_value,
                float(found.correlation[number]),
                bool(found.mirrored[number]),
                *(_pixels(box, shapes[row], square=square) if row in shapes else ()),
            )
            for number, (row, one, other, p_value, box) in enumerate(made)
        ]


def _pixels(
    box: tuple[float, float, float, float], shape: tuple[int, ...], *, square: bool
) -> list[int]:
    """Return a box in pixels of an image (H, W), of shares of it or of the square about it."""
    height, width = shape
    sides = (max(shape),) * 2 if square else (width, height)
    within = []
    for number, share in enumerate(box):
        length, side = (width, height)[number % 2], sides[number % 2]
        within.append(int(np.clip(round(share * side - (side - length) / 2), 0, length)))
    return within


def _table(images: Digests, found: Regions) -> pa.Table:
    """Return what was found of images, by their digests."""
    return pa.Table.from_arrays(
        [digest_column(images), *map(pa.array, found.columns)], schema=_COLUMNS
    )


def _read(path: Path | None) -> Iterator[tuple[Digests, list[NDArray[Any]]]]:
    """Give what was found of images, by their digests; nothing, from where it is damaged on."""
    if path is None or not path.is_file():
        return
    with suppress(Damaged):
        for table in row_groups(path, _COLUMNS):
            yield digests_of(table["image"]), [table[name].to_numpy() for name in _NAMES]
