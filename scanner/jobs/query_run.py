"""The work of a query, in the folder that becomes its report.

listing -> store -> candidates and evidence, a file a shard -> verdicts -> tables, summary.json
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepssim_scan.encoder.thresholds import Thresholds
from deepssim_scan.errors import Damaged, InputError
from deepssim_scan.imaging.devices import BatchRunner, pick_device
from deepssim_scan.index.flat import TrainingIndex
from deepssim_scan.ingest.listing import Listing
from deepssim_scan.jobs.config import QueryConfig
from deepssim_scan.jobs.identity import versions
from deepssim_scan.matching.decision import judge, strongest_first
from deepssim_scan.matching.evidence import RULE, Evidence, Verifier
from deepssim_scan.matching.parts import Part, read_part, write_part
from deepssim_scan.reporting.matches import JudgedPairs, MatchCounts, write_flagged, writing_matches
from deepssim_scan.reporting.tables import write_left_out
from deepssim_scan.storage.files import sha256
from deepssim_scan.storage.layout import (
    BLANK,
    EVIDENCE,
    FLAGGED,
    JOB,
    MATCHES,
    REJECTED,
    SUMMARY,
    SYNTHETIC,
)
from deepssim_scan.storage.records import write_json
from deepssim_scan.store.array import Vectors
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.reread import Reader
from deepssim_scan.store.store import Store


def depth(config: QueryConfig) -> int:
    """Return how many candidates are proposed: those to verify, and those to report."""
    return max(config.evidence.candidates, config.verdict.top_k)


@dataclass(frozen=True, slots=True)
class QueryRun:
    """What a query goes by, and the folder that it writes to."""

    folder: Path
    training: Store
    search: TrainingIndex
    gallery: Listing | None
    embedder: Embedder
    thresholds: Thresholds
    config: QueryConfig

    def work(self, listing: Listing) -> None:
        """Embed, search, verify, judge, and write all that the report holds, summary.json last."""
        started = time.monotonic()
        self.embedder.embed(listing, self.folder / SYNTHETIC, "synthetic images")
        embedded = time.monotonic()
        with Store.open(self.folder / SYNTHETIC) as store:
            self._gather(store, listing)
            searched = time.monotonic()
            counts, pairs = self._judge(store)
            write_left_out(self.folder, store)
            write_flagged(self.folder, counts.flagged)
            judged = time.monotonic()
            seconds = {
                "embed": round(embedded - started, 3),
                "search": round(searched - embedded, 3),
                "judge": round(judged - searched, 3),
            }
            summary = self._summary(store, counts, pairs)
        summary |= {
            "ignored": listing.ignored,
            "excluded": listing.excluded,
            "seconds": seconds,
        }
        write_json(self.folder / SUMMARY, summary)

    def _gather(self, store: Store, listing: Listing) -> None:
        """Search and verify a shard at a time, and keep what was found of each.

        What an interrupted run found is kept, but for pairs that it could not verify.
        """
        (self.folder / EVIDENCE).mkdir(mode=0o700, exist_ok=True)
        verifier = self._verifier(store, listing)
        progress, done = self.embedder.run.progress, 0
        progress("searched", 0, store.rows)
        for path, first, rows in self._shards(store):
            if not self._is_whole(path, len(rows)):
                views = store.manifest.by_view(rows)
                candidates = self.search.search_views(views, depth(self.config))
                evidence = Evidence.none(candidates.rows.shape)
                if verifier is not None:
                    self._verify(verifier, first, store.rows, candidates.rows, evidence)
                write_part(path, Part(candidates, evidence))
            done += len(rows)
            progress("searched", done, store.rows)

    def _verifier(self, store: Store, listing: Listing) -> Verifier | None:
        if self.gallery is None:
            return None
        run = self.embedder.run
        sides = Reader(store, listing, RULE, run), Reader(self.training, self.gallery, RULE, run)
        runner = BatchRunner(pick_device(run.device), "registration", run.progress)
        return Verifier(*sides, runner)

    def _verify(
        self, verifier: Verifier, first: int, total: int, rows: np.ndarray, evidence: Evidence
    ) -> None:
        """Gather the evidence of the first candidates of each image of a shard."""
        count = min(self.config.evidence.candidates, rows.shape[1])
        progress = self.embedder.run.progress

        def done(pairs: int) -> None:
            progress("pairs registered", first * count + pairs, total * count)

        evidence.take(verifier.gather(first, rows[:, :count], done))

    def _is_whole(self, path: Path, queries: int) -> bool:
        """Tell whether a part is there, with all evidence that was asked for."""
        try:
            part = read_part(path, queries) if path.is_file() else None
        except Damaged:
            return False
        if part is None:
            return False
        return not (
            self.config.evidence.verify and part.unverified(self.config.evidence.candidates)
        )

    def _shards(self, store: Store) -> Iterator[tuple[Path, int, Vectors]]:
        """Give each shard: where its evidence is kept, its first row, and its rows."""
        for number, (first, rows) in enumerate(store.shards()):
            yield self.folder / EVIDENCE / f"{number:08d}.parquet", first, rows

    def _judge(self, store: Store) -> tuple[MatchCounts, dict[str, int]]:
        """Judge every pair, and write matches.parquet; return what was counted of it."""
        pairs = dict.fromkeys(("registered", "ssim_confirmed", "not_registered"), 0)
        with writing_matches(self.folder) as out:
            for number, shard in enumerate(store.table):
                part = read_part(self.folder / EVIDENCE / f"{number:08d}.parquet", shard.rows)
                missing = part.unverified(self.config.evidence.candidates)
                ssim = part.evidence.ssim
                pairs["not_registered"] += missing
                pairs["registered"] += int(np.isfinite(ssim).sum())
                pairs["ssim_confirmed"] += int((ssim > np.float32(self.thresholds.ssim)).sum())
                out.add(self._judged(store, shard.first, part))
        return out.counts, pairs

    def _judged(self, store: Store, first: int, part: Part) -> JudgedPairs:
        """Judge the pairs of one shard, and keep the strongest of each image."""
        scores, ssim = part.candidates.scores, part.evidence.ssim
        verdicts = judge(scores, self.thresholds, ssim)
        order = strongest_first(verdicts, ssim, scores)[:, : self.config.verdict.top_k]
        rows = np.take_along_axis(part.candidates.rows, order, 1)
        unique, indices = np.unique(rows, return_inverse=True)
        known = self.training.records_at(unique.tolist())
        records = [known[index] for index in indices.ravel()]
        return JudgedPairs(
            store.paths(np.arange(first, first + len(rows))),
            [record.name for record in records],
            [record.subject for record in records],
            np.take_along_axis(scores, order, 1),
            np.take_along_axis(verdicts, order, 1),
            part.evidence.reordered(order),
            self.thresholds.ssim,
        )

    def _summary(self, store: Store, counts: MatchCounts, pairs: dict[str, int]) -> dict[str, Any]:
        """Return what summary.json says of a finished search."""
        judged = sum(counts.verdicts.values())
        if judged != store.rows:
            raise InputError(
                f"{self.folder}: {store.rows} images were embedded and {judged} judged: every one "
                "must have a verdict."
            )
        verify, rejected = self.config.evidence.verify, self.training.rejected_count
        unlooked = store.rejected_count + rejected + (pairs["not_registered"] if verify else 0)
        return {
            "complete": unlooked == 0,
            "counts": {
                "listed": store.listed,
                "judged": store.rows,
                "rejected": store.rejected_count,
                "blank": store.blank_count,
                **counts.verdicts,
                "training_indexed": self.training.rows,
                "training_rejected": rejected,
            },
            "subjects": {
                "training": self.training.subject_count,
                "flagged": len({match.subject for match in counts.flagged} - {""}),
            },
            "rates": {verdict: n / store.rows for verdict, n in counts.verdicts.items()},
            "thresholds": asdict(self.thresholds),
            "verification": pairs if verify else None,
            "candidates": min(self.config.evidence.candidates, self.training.rows),
            "top_k": min(self.config.verdict.top_k, self.training.rows),
            "top_k_asked": self.config.verdict.top_k,
            "tta_views": self.config.evidence.tta_views,
            "fingerprints": {
                "encoder": self.embedder.loaded.fingerprint,
                "training": self.training.digest,
                "synthetic": store.digest,
            },
            "files": self._digests(),
            "versions": versions(),
        }

    def _digests(self) -> dict[str, str]:
        """Return the SHA-256 of every file of the report, but of the store, which has its own."""
        parts = sorted((self.folder / EVIDENCE).glob("*.parquet"))
        names = [
            MATCHES,
            FLAGGED,
            REJECTED,
            BLANK,
            JOB,
            *(f"{EVIDENCE}/{part.name}" for part in parts),
        ]
        return {name: sha256(self.folder / name) for name in names}
