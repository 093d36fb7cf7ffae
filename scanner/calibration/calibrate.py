"""Calibrate an index on its own images.

    training images, each without its own subject -> null
    training images changed at random -> planted copies
    both, looked for as a query does -> decision statistic -> Calibration

No label is needed. What is looked for goes through the same views, search, registration and
measures as in a query, so that the rates hold for it.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from deepssim_scan.calibration.calibration import Calibration
from deepssim_scan.calibration.fit import FOLDS, cross_fitted, fit
from deepssim_scan.calibration.found import Found, Planted
from deepssim_scan.calibration.groups import Groups
from deepssim_scan.calibration.membership import MOST, Estimate, HeldOut, Side, told_apart
from deepssim_scan.calibration.null import NullDistribution
from deepssim_scan.calibration.partial import PartialCalibrator
from deepssim_scan.encoder.views import LATER
from deepssim_scan.errors import InputError
from deepssim_scan.execution.executor import sliced
from deepssim_scan.imaging.changes.planting import Originals, change
from deepssim_scan.imaging.names import KINDS
from deepssim_scan.ingest.pipeline import CHUNK
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.matching.candidates import NEAR, Rows
from deepssim_scan.matching.decision import LEAST_FOREGROUND
from deepssim_scan.matching.probe import Probe
from deepssim_scan.matching.statistic import FEATURES, Array, Statistic, features
from deepssim_scan.matching.views import NEVER, Views
from deepssim_scan.store.reread import Held, Reader
from deepssim_scan.store.store import Store

FEWEST = 20
"""Images of the null, at least, and planted copies that are found."""

FEWEST_TURNED = 200
"""Images that are turned and inverted, at least, to know how like others they are then."""

HoldOut = Sequence[tuple[Pixels, int]]
"""Images of people who are not in the training set, with the number of the subject of each."""

_NULL, _PLANTED = 1200, 40 * len(KINDS)  # images that are looked for, at most
_AGAIN = 200  # images that are looked for among others of their subjects, at most
_TURNED = 600  # images that are turned and inverted, at most
_BLOCK = 512  # images looked for at once
_VARIANTS = 256  # of an image under other subjects, at most
_LEFT_OUT = 0.02  # of a hold-out, at most, may look the same as a training image


@dataclass(frozen=True, slots=True)
class Calibrator:
    """Calibrates the index of a store; `reader` gives its images as the encoder wants them."""

    store: Store
    groups: Groups
    reader: Reader
    probe: Probe
    seed: int = 0

    def calibrate(self, holdout: HoldOut = ()) -> Calibration:
        """Calibrate on the training images, or with the null of `holdout`: images and subjects.

        Raises InputError when there are too few images, or they cannot be read any more.
        """
        rng = np.random.default_rng(self.seed)
        views = self._views(rng)
        return replace(self, probe=replace(self.probe, views=views))._calibrated(holdout, rng)

    def _calibrated(self, holdout: HoldOut, rng: np.random.Generator) -> Calibration:
        if holdout:
            (null, holdout), rows = self._hold_out(holdout), np.empty(0, np.int64)
            duplicates: tuple[tuple[str, str], ...] = ()
        else:
            null, duplicates, rows = self._non_members(_NULL, rng)
        pairs = len(duplicates)
        copies = f"{pairs:,} pairs are copies of each other or nearly so: keep one of each. "
        self._require_enough(null.group, "images of non-members", copies * bool(pairs))
        planted = self.plant(_PLANTED, rng)
        found = self.look_for(planted.images, self.groups.number[planted.sources])
        registered = np.isfinite(found.features).all(-1) & found.whole[:, None]
        hit = (found.rows == planted.sources[:, None]) & registered
        positive, of_whom = found.features[hit], found.group[hit.any(1)]
        self._require_enough(of_whom, "planted copies")
        judge = cross_fitted(null.features, positive, (null.group, of_whom))
        of_null, of_planted = (judge(each.features, each.group) for each in (null, found))
        lowest = float(_best(of_null).min())
        statistic = fit(null.features, positive)
        return Calibration(
            encoder=self.store.manifest.encoder,
            store=self.store.digest,
            gallery=self.store.rows,
            candidates=self.probe.candidates,
            tta_views=self.probe.views.count,
            enough=self.probe.views.enough,
            subjects="hold-out" if holdout else self.groups.origin,
            statistic=statistic,
            null=NullDistribution.of(_told(null, of_null, lowest), null.group, self.seed),
            planted=_by_kind(planted.kinds, found, of_planted, lowest),
            source_first=float((found.rows[:, 0] == planted.sources).mean()),
            duplicates=duplicates,
            holdout=self._embedded(holdout, rng) if holdout else None,
            members=self._members(statistic, null, rng) if holdout else None,
            same_patient=self._same_patient(statistic, min(_AGAIN, len(null.group) // 2), rng),
            partial=PartialCalibrator(self.reader, self.groups, self.seed).calibrate(holdout, rows),
        )

    def _views(self, rng: np.random.Generator) -> Views:
        """Find from which score on an image is not turned or inverted.

        It is the highest that training images have after they were turned or inverted.
        """
        count = self.probe.views.count
        images = [*self._read(self.groups.some(_TURNED, rng)).values()]
        asked = np.ones((len(images), count), bool)
        asked[:, 0] = False
        if count == 1 or len(images) < FEWEST_TURNED:
            return Views(count)
        rows = self.probe.embedder.embed_views(lambda part: Held(images[part]), asked)[:, 1:]
        flat = self.probe.shown.search.search(
            np.ascontiguousarray(rows).reshape(-1, rows.shape[2]), 1
        )
        best = flat.scores.reshape(rows.shape[:2]).max(0)
        highest = [best[[v - 1 for v in views if v < count]] for views in LATER]
        turned, inverted = (float(each.max(initial=-1)) if len(each) else NEVER for each in highest)
        return Views(count, (turned, inverted))

    def plant(self, count: int, rng: np.random.Generator) -> Planted:
        """Change training images, of as many subjects as there are, at random."""
        sources = np.resize(rng.permutation(self.groups.some(count, rng)), count)
        kinds = rng.permutation(np.arange(count) % len(KINDS))
        images = self._read(np.unique(sources))
        there = np.isin(sources, list(images))
        sources, kinds = sources[there], kinds[there]
        parts, seed = [*sliced(len(sources), CHUNK)], int(rng.integers(1 << 31))
        tasks = (
            Originals([images[row] for row in sources[part].tolist()], kinds[part], seed + number)
            for number, part in enumerate(parts)
        )
        with closing(self.reader.run.map(change, tasks)) as answers:
            copies = [each for answer in answers for _, each in sorted(answer.arrays.items())]
        return Planted(copies, kinds, sources)

    def look_for(
        self, images: Sequence[Pixels], group: Rows, left_out: Sequence[Rows] | None = None
    ) -> Found:
        """Look for images, a block at a time."""
        progress, parts = self.reader.run.progress, []
        for start in range(0, len(images), _BLOCK):
            block = slice(start, start + _BLOCK)
            part = self.probe.look_for(images[block], left_out and left_out[block])
            matches = part.candidates
            known = part.evidence.correlation, part.evidence.measures
            values = features(matches.scores, *known, self.probe.shown.of(matches.rows))
            parts.append((matches.rows, values, ~(part.evidence.foreground < LEAST_FOREGROUND)))
            progress("images looked for", min(start + _BLOCK, len(images)), len(images))
        fewest = min((rows.shape[1] for rows, _, _ in parts), default=0)
        none = np.empty((0, 0, len(FEATURES)))
        parts = parts or [(none[..., 0].astype(np.int64), none, none[..., 0] > 0)]
        rows, values, decidable = (
            np.concatenate([each[:, :fewest] for each in every])
            for every in zip(*parts, strict=True)
        )
        return Found(rows, values, decidable, group)

    def _non_members(
        self, most: int, rng: np.random.Generator
    ) -> tuple[Found, tuple[tuple[str, str], ...], Rows]:
        """Look for training images without the images of their own subjects.

        Those that are copies of another subject's image are no non-members, and those of nearly the
        same image are looked for without that subject, too: all are named. The rows of the other
        non-members are returned, too: no other subject has nearly the same regions.
        """
        images = self._read(self.groups.some(most, rng, self._not_seen()))
        beside = self._searchable({row: self.groups.beside(row) for row in sorted(images)})
        unnamed = "No subjects are known: say who is who (--subject-regex, --manifest). "
        unnamed *= not self.groups.subjects
        self._require_enough(self.groups.number[[*beside]], "images of non-members", unnamed)
        found, rows = self._without(images, beside)
        pairs = {
            tuple(sorted((int(rows[query]), int(found.rows[query, column]))))
            for query, column in np.argwhere(found.same | found.near)
        }
        names = tuple((a, b) for a, b in (self.store.paths(np.array(p)) for p in sorted(pairs)))
        apart, near = found.whole & ~found.same.any(1), found.near.any(1)
        nobody = found.only(apart & ~near)
        further = self._searchable(
            {row: np.union1d(beside[row], out) for row, out in self._near(rows[apart & near])}
        )
        alone = rows[apart & ~near]
        if not further:
            return nobody, names, alone
        second, _ = self._without(images, further)
        kept = second.whole & ~second.same.any(1) & ~second.near.any(1)
        return Found.joined([nobody, second.only(kept)]), names, alone

    def _without(self, images: dict[int, Pixels], left_out: dict[int, Rows]) -> tuple[Found, Rows]:
        """Look for training images without some rows; return what was found, and of which rows."""
        rows, pixels = np.array([*left_out], np.int64), [images[row] for row in left_out]
        found = self.look_for(pixels, self.groups.number[rows], [*left_out.values()])
        return found, rows

    def _searchable(self, left_out: dict[int, Rows]) -> dict[int, Rows]:
        """Return those of whom as many candidates are left as an image of a query has."""
        most = self.store.rows - self.probe.candidates
        return {row: out for row, out in left_out.items() if len(out) <= most}

    def _near(self, rows: Rows) -> Iterator[tuple[int, Rows]]:
        """Give of each row those that may show the same person as nearly the same images."""
        if not len(rows):
            return
        search = self.probe.shown.search
        found = search.search(search.vectors_at(rows), _VARIANTS)
        for row, some, scores in zip(rows.tolist(), found.rows, found.scores, strict=True):
            near = some[scores >= NEAR].tolist()
            yield row, np.unique(np.concatenate([*map(self.groups.beside, near)]))

    def _members(
        self, statistic: Statistic, holdout: Found, rng: np.random.Generator
    ) -> Estimate | None:
        """Look for training images without their own subjects, which a hold-out stands for.

        Return the chance that one of them has a higher statistic than one of the hold-out.
        """
        try:
            found, _, _ = self._non_members(_AGAIN, rng)
        except InputError:  # too few images to look for
            return None
        sides = [Side(_best(statistic.of(of.features)), of.group) for of in (found, holdout)]
        return told_apart(sides[0], sides[1], self.seed)

    def _same_patient(
        self, statistic: Statistic, most: int, rng: np.random.Generator
    ) -> tuple[float | None, ...]:
        """Look for images among the others of their subjects, and all else.

        Return the statistic of the best image of the same subject. An image that is there twice is
        left out.
        """
        if not self.groups.subjects:
            return ()
        several = np.flatnonzero(np.bincount(self.groups.number)[self.groups.number] > 1)
        images = self._read(self.groups.some(most, rng, several))
        if not images:
            return ()
        rows = np.array(sorted(images), np.int64)
        itself = [rows[at : at + 1] for at in range(len(rows))]
        found = self.look_for([images[row] for row in rows], self.groups.number[rows], itself)
        own = found.decidable & (self.groups.number[found.rows] == found.group[:, None])
        best = _best(np.where(own, statistic.of(found.features), np.nan))[~found.same.any(1)]
        return tuple(None if np.isnan(value) else float(value) for value in best)

    def _embedded(self, holdout: HoldOut, rng: np.random.Generator) -> HeldOut:
        """Embed hold-out images, against which members are told apart (`membership`)."""
        some = [holdout[at] for at in np.sort(rng.permutation(len(holdout))[:MOST]).tolist()]
        rows = self.probe.embedder.embed_pixels([pixels for pixels, _ in some])
        return HeldOut(rows, np.array([subject for _, subject in some], np.int64))

    def _not_seen(self) -> Rows:
        """Return the rows of groups that the encoder was not trained on; all, where it saw all."""
        left = self.groups.unseen(self.store, self.probe.embedder.loaded.seen)
        certain = np.flatnonzero(self.groups.certain)
        if _enough(self.groups.number[left]) or len(left) == len(certain):
            return left
        self.reader.run.progress.warn(
            f"The encoder was trained on images of nearly all subjects of {self.store.folder}. It "
            "tells them apart better than others, so more non-members may be flagged than is said. "
            "Give --holdout, or an encoder that was trained on others or on a part of them."
        )
        return certain

    def _hold_out(self, images: HoldOut) -> tuple[Found, HoldOut]:
        """Look for hold-out images; return what was found of those that take part, and them.

        A few that look the same as a training image, or nearly so, are left out with a warning, as
        slices at the top of two heads. Raises InputError where they are more.
        """
        subjects = np.array([subject for _, subject in images], np.int64)
        found = self.look_for([pixels for pixels, _ in images], subjects)
        pairs = found.same | found.near
        alike = pairs.any(1)
        if alike.any():
            (copied,) = self.store.paths(found.rows[pairs][:1])
            what = f"{alike.sum()} of {len(images)} hold-out images look the same as training "
            what += f"images, or nearly so, for instance as {copied!r}"
            if alike.mean() > _LEFT_OUT:
                raise InputError(f"{what}. Leave them out: a hold-out shows other people.")
            self.reader.run.progress.warn(f"{what}. They take no part.")
        taken = [images[at] for at in np.flatnonzero(~alike).tolist()]
        return found.only(found.whole & ~alike), taken

    def _read(self, rows: Rows) -> dict[int, Pixels]:
        """Read training images again; those that are gone or have changed are warned of."""
        images = dict(self.reader.pixels(rows.tolist()))
        if missing := len(rows) - len(images):
            self.reader.run.progress.warn(
                f"{missing:,} of {len(rows):,} training images drawn are gone or have changed "
                "since they were indexed, and take no part."
            )
        return images

    def _require_enough(self, group: Rows, what: str, advice: str = "") -> None:
        """Raise InputError where there are too few images; `group` (Q,) is that of each."""
        if not _enough(group):
            raise InputError(
                f"{self.store.manifest.source['folder']}: there are {len(group)} {what} of "
                f"{len(np.unique(group))} subjects or runs of files, and a calibration needs "
                f"{FEWEST} of more than one. {advice}Give more training images, or a hold-out "
                "(`deepssim-scan calibrate --holdout DIR`)."
            )


def _enough(group: Rows) -> bool:
    """Tell whether images of groups (Q,) are enough to calibrate on, in more than one fold."""
    return len(group) >= FEWEST and len(np.unique(group % FOLDS)) > 1


def _best(statistics: Array) -> Array:
    """Return the greatest statistic (Q,) of the candidates (Q, n) that have one."""
    best: Array = np.fmax.reduce(statistics, axis=1)
    return best


def _told(found: Found, statistics: Array, lowest: float) -> Array:
    """Return the best statistic (Q,) of candidates (Q, n); undecidable ones have the lowest."""
    return _best(np.where(found.decidable, statistics, lowest))


def _by_kind(
    kinds: Rows, found: Found, statistics: Array, lowest: float
) -> dict[str, tuple[float, ...]]:
    """Return the best statistic (Q, n) of each planted copy that was looked at, by kind (Q,)."""
    best = _told(found, statistics, lowest)
    return {
        name: tuple(best[found.whole & (kinds == kind)].tolist()) for kind, name in enumerate(KINDS)
    }
