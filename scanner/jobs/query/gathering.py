"""Gathers what a query judges by, a file a shard of synthetic images.

    store of synthetic images -> test-time views -> candidates -> evidence -> evidence/*.parquet

What an earlier report has of the same images, and of the same images and candidates, is taken from
there: neither is read again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.errors import Damaged, InputError
from deepssim_scan.index.rescore import Matches
from deepssim_scan.ingest.listing import Listing
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.jobs.config import QueryConfig
from deepssim_scan.jobs.gallery import Gallery
from deepssim_scan.matching.cache import EvidenceCache, PartFiles, part_files
from deepssim_scan.matching.candidates import followed, propose
from deepssim_scan.matching.evidence import RULE, Evidence
from deepssim_scan.matching.identity import Context, Digests
from deepssim_scan.matching.looked import Looked, write_looked
from deepssim_scan.matching.parts import Part, read_part, write_part
from deepssim_scan.matching.views import Views
from deepssim_scan.store.array import Vectors
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.reread import Reader, Wanted
from deepssim_scan.store.store import Store


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard of synthetic images: its number, first row, rows (n, D), records, and digests."""

    number: int
    first: int
    rows: Vectors
    records: Sequence[ImageRecord]
    images: Digests


@dataclass(frozen=True, slots=True)
class Gathering:
    """What evidence is gathered with, and the folder that its files are written to."""

    folder: Path
    gallery: Gallery
    embedder: Embedder
    views: Views
    config: QueryConfig
    context: Context
    cache: EvidenceCache

    def gather(self, store: Store, listing: Listing) -> None:
        """Search and verify a shard at a time, and keep what was found of each.

        What an interrupted run found is kept, but for pairs that it could not verify.
        """
        self.folder.mkdir(mode=0o700, exist_ok=True)
        reader = Reader(store, listing, RULE, self.embedder.run)
        progress, done = self.embedder.run.progress, 0
        progress("searched", 0, store.rows)
        for shard in self._shards(store):
            files = part_files(self.folder, shard.number)
            if not self._is_whole(files, len(shard.rows)):
                self._write(files, shard, reader)
            done += len(shard.rows)
            progress("searched", done, store.rows)

    def _shards(self, store: Store) -> Iterator[Shard]:
        for number, (first, rows) in enumerate(store.shards()):
            records = [each for each in store.records_of(store.table[number]) if not each.reason]
            yield Shard(number, first, rows, records, self.context.of_images(records))

    def _write(self, files: PartFiles, shard: Shard, reader: Reader) -> None:
        """Search and verify a shard, and write what was found."""
        views, looked, unseen = self._in_views(shard, reader)
        candidates = self._candidates(views)
        count = min(self.config.evidence.candidates, candidates.rows.shape[1])
        first = candidates.part(slice(None), count)
        digests = self._digests(shard, first)
        evidence = Evidence.none(candidates.rows.shape)
        if self.config.evidence.verify and self.gallery.files is not None:
            evidence.put(slice(None), self._verified(shard, reader, first, digests))
            evidence.forget(unseen)
        else:
            _require_seen(reader.store, shard.first, unseen)
        write_looked(files.looked, Looked(shard.images, digests, looked))
        write_part(files.evidence, Part(candidates, evidence))

    def _in_views(self, shard: Shard, reader: Reader) -> tuple[Vectors, Vectors, NDArray[np.bool_]]:
        """Return the rows of a shard in all views (n, V, D), and which images are gone (n,).

        Between them are those rows (n, V, D) alone that were embedded for it.
        """
        best = self.gallery.search.search(shard.rows, 1).scores[:, 0]
        rule = self.embedder.loaded.architecture.standardisation
        read = replace(reader, rule=rule)
        shape = len(shard.rows), self.views.count, shard.rows.shape[1]
        looked = np.full(shape, np.nan, np.float32)

        def embed(numbers: NDArray[np.int64], asked: NDArray[np.bool_]) -> Vectors:
            found = self.cache.views(shard.images[numbers])[:, : self.views.count]
            wanted = asked & np.isnan(found).any(2)
            again = np.flatnonzero(wanted.any(1))
            images = _images(read, shard, numbers[again])
            new = self.embedder.embed_views(images, wanted[again])
            found[again] = np.where(wanted[again][..., None], new, found[again])
            looked[numbers] = np.where(asked[..., None], found, np.nan)
            return found

        views, unseen = self.views.complete(shard.rows, best, embed)
        return views, looked, unseen

    def _candidates(self, views: Vectors) -> Matches:
        """Propose the candidates of some images, and what the report lists besides."""
        found = propose(self.gallery.shown, views, self.config.evidence.candidates)
        return followed(self.gallery.search, views, found, self.config.verdict.top_k)

    def _digests(self, shard: Shard, candidates: Matches) -> Digests:
        rows = np.unique(candidates.rows).tolist()
        training = dict(zip(rows, self.gallery.store.records_at(rows), strict=True))
        subjects = self.gallery.shown.of(candidates.rows)
        return self.context.of_candidates(shard.records, candidates, training, subjects)

    def _verified(
        self, shard: Shard, reader: Reader, candidates: Matches, digests: Digests
    ) -> Evidence:
        """Return the evidence of the candidates (n, c) of each image of a shard."""
        run, count = self.embedder.run, candidates.rows.shape[1]
        known, found = self.cache.evidence(digests, count)
        again = np.flatnonzero(~known)
        before = shard.first + len(known) - len(again)

        def done(images: int) -> None:
            total = reader.store.rows * count
            run.progress("pairs registered", (before + images) * count, total)

        images, some = _images(reader, shard, again), candidates.part(again)
        subjects = self.gallery.shown.of(some.rows)
        found.put(again, self.gallery.verifier(run).gather(images, some, subjects, done))
        return found

    def _is_whole(self, files: PartFiles, queries: int) -> bool:
        """Tell whether a part is there, with all evidence that was asked for."""
        try:
            part = read_part(files.evidence, queries) if files.evidence.is_file() else None
        except Damaged:
            return False
        if part is None:
            return False
        return not (
            self.config.evidence.verify and part.unverified(self.config.evidence.candidates)
        )


def _images(reader: Reader, shard: Shard, numbers: NDArray[np.int64]) -> Callable[[slice], Wanted]:
    """Return what gives the images of a slice of the numbers of a shard."""
    return lambda part: reader.wanted((shard.first + numbers[part]).tolist())


def _require_seen(store: Store, first: int, unseen: NDArray[np.bool_]) -> None:
    """Raise InputError where images could not be looked at in all views."""
    if unseen.any():
        gone = store.paths(first + np.flatnonzero(unseen))
        raise InputError(
            f"{store.manifest.source['folder']}: {len(gone)} images are gone or have changed since "
            f"they were embedded, the first {gone[0]!r}. Run the same command again."
        )
