"""The work of a query, in the folder that becomes its report.

listing -> store -> evidence -> verdicts -> tables, summary.json
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from deepssim_scan.calibration.canaries import Canaries, count_canaries
from deepssim_scan.calibration.found import Planted
from deepssim_scan.calibration.rates import false_discovery, most_copies
from deepssim_scan.calibration.rule import CalibratedRule, Rule
from deepssim_scan.errors import InputError, InputMissing
from deepssim_scan.index.recall import SAMPLE
from deepssim_scan.ingest.listing import Listing
from deepssim_scan.ingest.listing.manifest_csv import read_manifest
from deepssim_scan.jobs.config import QueryConfig
from deepssim_scan.jobs.gallery import Gallery
from deepssim_scan.jobs.identity import context_of, versions
from deepssim_scan.jobs.query.earlier import EarlierReport
from deepssim_scan.jobs.query.gathering import Gathering
from deepssim_scan.jobs.query.page import pictures_of, write_distributions, write_page
from deepssim_scan.jobs.query.proof.applicability import Fitting
from deepssim_scan.jobs.query.proof.membership import membership_of
from deepssim_scan.jobs.query.proof.partial import Looking, Partials
from deepssim_scan.jobs.query.proof.rarity import with_rarity
from deepssim_scan.jobs.query.proof.sampling import read_kept
from deepssim_scan.jobs.query.proof.searching import Copies, Searched, searched
from deepssim_scan.jobs.query.proof.volumes import Volumes, aligned, volumes_of
from deepssim_scan.matching.cache import part_files
from deepssim_scan.matching.evidence import RULE
from deepssim_scan.matching.parts import Part, read_part
from deepssim_scan.matching.views import Views
from deepssim_scan.reporting.matches import JudgedPairs, MatchCounts, write_flagged, writing_matches
from deepssim_scan.reporting.partial import write_partial
from deepssim_scan.reporting.pictures import Pictures
from deepssim_scan.reporting.provenance import provenance
from deepssim_scan.reporting.subjects import write_subjects
from deepssim_scan.reporting.tables import write_left_out
from deepssim_scan.reporting.volumes import write_volumes
from deepssim_scan.storage.files import sha256
from deepssim_scan.storage.layout import (
    EVIDENCE,
    JOB,
    JUDGED_FILES,
    REGIONS,
    SEEN,
    SUMMARY,
    SYNTHETIC,
)
from deepssim_scan.storage.records import write_json
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.reread import Reader
from deepssim_scan.store.store import Store


@dataclass(frozen=True, slots=True)
class QueryRun:
    """What a query goes by, and the folder that it writes to."""

    folder: Path
    gallery: Gallery
    embedder: Embedder
    rule: Rule
    config: QueryConfig
    earlier: EarlierReport

    def work(self, listing: Listing) -> None:
        """Embed, search, verify, judge, and write all that the report holds, summary.json last.

        Few images are searched exactly: a sample that tells recall would be all of them.
        """
        started, before = time.monotonic(), self.earlier.unchanged
        self.embedder.embed(listing, self.folder / SYNTHETIC, "synthetic images", before)
        search, seconds = self.gallery.search, time.monotonic() - started
        with Store.open(self.folder / SYNTHETIC) as store:
            exact = search.exact() if store.rows <= SAMPLE else search
        of_few = replace(self, gallery=replace(self.gallery, search=exact))
        of_few._look_for(listing, seconds)

    def _look_for(self, listing: Listing, embedding: float) -> None:
        """Search, verify, judge, and write; `embedding` are the seconds that it took."""
        embedded = time.monotonic()
        with Store.open(self.folder / SYNTHETIC) as store:
            self._gathering(store).gather(store, listing)
            searched = time.monotonic()
            counts, pairs = self._judge(store)
            write_left_out(self.folder, store)
            write_flagged(self.folder, counts.flagged)
            write_subjects(self.folder, with_rarity(counts.subjects, self.gallery))
            volumes = self._volumes(store, listing, counts)
            write_volumes(self.folder, volumes.copied)
            reader = Reader(store, listing, RULE, self.embedder.run)
            fit = self._fitting(store).mismatches(reader, counts.flagged)
            partial = self._partials(store, listing, counts)
            write_partial(self.folder, partial.copies)
            summary = self._summary(store, counts, pairs) | {
                "volumes": volumes.as_json(),
                "partial": partial.summary,
                "mismatches": [asdict(each) for each in fit],
            }
            judged = time.monotonic()
            summary |= {
                "provenance": self._provenance(store, counts),
                "ignored": listing.ignored,
                "excluded": listing.excluded,
                "seconds": {
                    "embed": round(embedding, 3),
                    "search": round(searched - embedded, 3),
                    "judge": round(judged - searched, 3),
                },
                "made": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            write_distributions(self.folder, self.rule)
            pictures = self._pictures(store, listing, counts)
        write_page(self.folder, summary, counts, self.config.page, pictures)
        write_json(self.folder / SUMMARY, summary | {"files": self._digests()})

    def _gathering(self, store: Store) -> Gathering:
        training = self.gallery.store
        return Gathering(
            self.folder / EVIDENCE,
            self.gallery,
            self.embedder,
            self.views,
            self.config,
            context_of(self.embedder, training, store),
            self.earlier.cache(self.embedder.loaded.architecture.dimension),
        )

    def _partials(self, store: Store, listing: Listing, counts: MatchCounts) -> Partials:
        """Look for images of which a part copies a training image, beside those flagged."""
        rule = self.embedder.loaded.architecture.standardisation
        context = context_of(self.embedder, self.gallery.store, store)
        file = self.folder / EVIDENCE / REGIONS
        looking = Looking(self.gallery, self.rule, context, file, self.earlier.regions)
        flagged = {match.synthetic_row for match in counts.flagged}
        return looking.partials(Reader(store, listing, rule, self.embedder.run), flagged)

    def _fitting(self, store: Store) -> Fitting:
        file = self.folder / EVIDENCE / SEEN
        kept = self.earlier.seen() | read_kept(file)
        context = context_of(self.embedder, self.gallery.store, store)
        return Fitting(self.gallery, self.embedder, self.rule, context, kept, file)

    @property
    def views(self) -> Views:
        """The views in which images are looked at."""
        return Views(self.config.evidence.tta_views, self.rule.enough)

    def _judge(self, store: Store) -> tuple[MatchCounts, dict[str, int]]:
        """Judge every pair, and write matches.parquet; return what was counted of it."""
        pairs = dict.fromkeys(("registered", "not_registered"), 0)
        with writing_matches(self.folder) as out:
            for number, shard in enumerate(store.table):
                files = part_files(self.folder / EVIDENCE, number)
                part = read_part(files.evidence, shard.rows)
                pairs["not_registered"] += part.unverified(self.config.evidence.candidates)
                pairs["registered"] += int(np.count_nonzero(~part.evidence.missing))
                out.add(self._judged(store, shard.first, part))
        return out.counts, pairs

    def _provenance(self, store: Store, counts: MatchCounts) -> dict[str, Any]:
        """Count flagged images by the further columns of the manifest, where there is one."""
        manifest = self.config.ingest.selection.manifest
        if manifest is None:
            return {}
        try:
            columns = dict(read_manifest(manifest))
        except (InputError, InputMissing) as error:  # it was there when the run began
            self.embedder.run.progress.warn(f"No counts by the columns of the manifest: {error}")
            return {}
        for each in columns.values():
            each.pop("subject", None)
        paths = [record.path for record in store.embedded()]
        return provenance(columns, paths, [paths[each.synthetic_row] for each in counts.flagged])

    def _pictures(
        self, store: Store, listing: Listing, counts: MatchCounts
    ) -> Sequence[Pictures | None]:
        """Draw the strongest findings, if they are to be shown."""
        if not self.config.page.thumbnails or self.gallery.files is None:
            return ()
        synthetic = Reader(store, listing, RULE, self.embedder.run)
        training = Reader(self.gallery.store, self.gallery.files, RULE, self.embedder.run)
        return pictures_of(counts.findings, synthetic, training)

    def _volumes(self, store: Store, listing: Listing, counts: MatchCounts) -> Volumes:
        """Find the synthetic volumes that are copies, and align them if that is possible."""
        training, run = self.gallery.store, self.embedder.run
        found = volumes_of(store, training, counts.flagged, self.rule)
        if self.gallery.files is None:
            return found
        ours = Reader(store, listing, RULE, run)
        theirs = Reader(training, self.gallery.files, RULE, run)
        return replace(found, copied=aligned(found.copied, ours, theirs))

    def _judged(self, store: Store, first: int, part: Part) -> JudgedPairs:
        """Judge the pairs of one shard, and keep the strongest of each image."""
        count = self.config.evidence.candidates
        whose = self.gallery.shown.of_verified(part.candidates.rows, count)
        judged = self.rule.judge(part, whose)
        order = judged.order[:, : self.config.verdict.top_k]
        rows = np.take_along_axis(part.candidates.rows, order, 1)
        unique, indices = np.unique(rows, return_inverse=True)
        there = self.gallery.store.records_at(unique.tolist())
        known = [self.gallery.as_told(each) for each in there]
        return JudgedPairs(
            first,
            store.records_at(range(first, first + len(rows))),
            [known[index] for index in indices.ravel()],
            part.candidates.reordered(order),
            judged.reordered(order),
            part.evidence.reordered(order),
        )

    def _searched(self, store: Store, planted: Planted | None) -> Searched:
        """Tell how many of the best matches are found."""
        search, evidence = self.gallery.search, self.config.evidence
        copies = None
        if planted is not None and not search.is_exact:
            copies = Copies(self.embedder.embed_pixels(planted.images), planted.sources)
        return searched(search, store, copies, evidence.candidates, evidence.min_recall)

    def _canaries(self) -> tuple[Canaries | None, Planted | None]:
        """Plant copies of training images, and count those that are found."""
        config = self.config.canaries
        if not config.count or not isinstance(self.rule, CalibratedRule):
            return None, None
        if self.gallery.files is None:  # gone: there is nothing to plant
            return Canaries({}, {}, 1.0 if config.least is None else config.least), None
        calibrator = self.gallery.calibrator(
            self.embedder, self.config.evidence.candidates, self.views
        )
        seed = int(self.gallery.store.digest[:8], 16)
        planted = calibrator.plant(config.count, np.random.default_rng(seed))
        found = calibrator.look_for(planted.images, self.gallery.groups.number[planted.sources])
        return count_canaries(planted, found, self.rule, config.least), planted

    def _summary(self, store: Store, counts: MatchCounts, pairs: dict[str, int]) -> dict[str, Any]:
        """Return what summary.json says of a finished search."""
        judged, training = sum(counts.verdicts.values()), self.gallery.store
        if judged != store.rows:
            raise InputError(
                f"{self.folder}: {store.rows} images were embedded and {judged} judged: every one "
                "must have a verdict."
            )
        verify, unlooked = self.config.evidence.verify, store.rejected_count
        unlooked += training.rejected_count + (pairs["not_registered"] if verify else 0)
        canaries, planted = self._canaries()
        search = self._searched(store, planted)
        passed = search.passed and (canaries is None or canaries.passed)
        return {
            "complete": unlooked == 0 and passed,
            "counts": _counts(store, training, counts.verdicts),
            "subjects": {
                "training": self.gallery.groups.people,
                "flagged": len(counts.subjects),
                "unnamed": sum(not each.named for each in counts.subjects),
            },
            "rates": {verdict: n / store.rows for verdict, n in counts.verdicts.items()},
            "rule": self.config.verdict.rule if verify else "reference",
            "bounds": asdict(self.rule.bounds),
            "calibration": _calibration(self.rule, counts.verdicts["duplicate"], judged),
            "canaries": canaries and canaries.as_json(),
            "search": search.as_json(),
            "membership": membership_of(self.gallery, self.embedder, self.rule, store),
            "most_copies_95": _most_copies(canaries, counts.verdicts),
            "verification": pairs if verify else None,
            "candidates": min(self.config.evidence.candidates, training.rows),
            "top_k": min(self.config.verdict.top_k, training.rows),
            "top_k_asked": self.config.verdict.top_k,
            "tta_views": self.config.evidence.tta_views,
            "views": counts.views,
            "fingerprints": {
                "encoder": self.embedder.loaded.fingerprint,
                "training": training.digest,
                "synthetic": store.digest,
            },
            "versions": versions(),
        }

    def _digests(self) -> dict[str, str]:
        """Return the SHA-256 of every file of the report, but of the store, which has its own."""
        parts = sorted((self.folder / EVIDENCE).glob("*.parquet"))
        names = [*JUDGED_FILES, JOB, *(f"{EVIDENCE}/{part.name}" for part in parts)]
        return {name: sha256(self.folder / name) for name in names}


def _counts(store: Store, training: Store, verdicts: Mapping[str, int]) -> dict[str, int]:
    """Count the images of both sides by what became of them."""
    return {
        "listed": store.listed,
        "judged": store.rows,
        "rejected": store.rejected_count,
        "blank": store.blank_count,
        **verdicts,
        "training_indexed": training.rows,
        "training_rejected": training.rejected_count,
    }


def _calibration(rule: Rule, flagged: int, judged: int) -> dict[str, Any] | None:
    """Return what summary.json says of the calibration, and of this run's false alarms."""
    if not isinstance(rule, CalibratedRule):
        return None
    null = rule.calibration.null
    upper = null.upper_bound(rule.bounds.duplicate, 0.975)
    discovery = false_discovery(flagged, judged, rule.rate, upper)
    return rule.calibration.summary(rule.rate) | {
        "expected_false_alarms": discovery.expected_false_alarms,
        "false_discovery": discovery.rate,
        "false_discovery_upper_95": discovery.upper,
    }


def _most_copies(canaries: Canaries | None, verdicts: Mapping[str, int]) -> float | None:
    """Bound the share of copies, of which any image that is undecidable may be one."""
    if canaries is None:
        return None
    judged, unknown = sum(verdicts.values()), verdicts["undecidable"]
    told = judged - unknown
    return (most_copies(verdicts["duplicate"], told, *canaries.count) * told + unknown) / judged
