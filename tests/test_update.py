"""An index that is there is updated: to the bytes of a new one, reading what changed alone."""

import os
import shutil
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from pictures import TINY
from PIL import Image
from test_rule import calibration

from deepssim_scan.calibration import calibrate
from deepssim_scan.calibration.calibration import Calibration
from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.network import Encoder
from deepssim_scan.imaging.names import KINDS
from deepssim_scan.ingest import pipeline
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.config.selection import Selection
from deepssim_scan.ingest.listing import list_images
from deepssim_scan.jobs import build_index as job
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.check import check
from deepssim_scan.jobs.config import IndexConfig
from deepssim_scan.jobs.identity import embedded
from deepssim_scan.jobs.update import there_before
from deepssim_scan.progress import Collected
from deepssim_scan.storage.publish import Job, Stage
from deepssim_scan.storage.records import write_json
from deepssim_scan.store import embed_listing
from deepssim_scan.store.config import EmbedConfig
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.store import Store
from deepssim_scan.store.unchanged import Unchanged

RUN = RunContext("cpu", workers=0)


def drawn(number, shape=(40, 40)):
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


def save(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawn(number)).save(path)


@pytest.fixture
def root(tmp_path):
    """Images of six people, a volume with a blank slice, an archive, and a file that is none."""
    for number in range(12):
        save(tmp_path / "training" / f"p{number // 2}" / f"{number:02d}.png", number)
    volume = drawn(50, (3, 40, 40)).astype(np.float32)
    volume[1] = 7
    np.save(tmp_path / "training" / "p2" / "volume.npy", volume)
    (tmp_path / "training" / "p3" / "bad.png").write_bytes(b"no image")
    with zipfile.ZipFile(tmp_path / "training" / "p4.zip", "w") as archive:
        for number in (4, 5):
            save(tmp_path / "member.png", 60 + number)
            archive.write(tmp_path / "member.png", f"{number}.png")
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "encoder", Encoder(TINY), {})
    return tmp_path


def build(root, index, run=RUN, **changed):
    config = IndexConfig(
        root / "encoder", embed=EmbedConfig(shard_rows=4), calibrate=False, adapt="never"
    )
    return build_index(root / "training", root / index, replace(config, **changed), run)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def change(training):
    """One image is another now, one is gone, one is new, and an archive has other members."""
    save(training / "p1" / "02.png", 100)
    (training / "p2" / "05.png").unlink()
    save(training / "p0" / "00b.png", 101)
    save(training / "member.png", 102)
    with zipfile.ZipFile(training / "p4.zip", "a") as archive:
        archive.write(training / "member.png", "6.png")
    (training / "member.png").unlink()


def test_an_update_ends_in_the_bytes_of_a_new_index(root):
    build(root, "index")
    change(root / "training")
    updated = build(root, "index")
    anew = build(root, "other", rebuild=True)
    assert anew.changes is None
    assert contents(root / "index") == contents(root / "other")
    found = updated.changes
    # 10 images and a volume of 3 slices are kept; the file that is none is kept as rejected.
    assert (found.kept, found.new, found.gone) == (10 + 3 + 1, 2 + 3, 1)
    assert check(root / "index").intact


def test_what_did_not_change_is_not_read(root, monkeypatch):
    build(root, "index")
    change(root / "training")
    read, exact = [], embed_listing.decoded
    monkeypatch.setattr(
        embed_listing,
        "decoded",
        lambda task: read.extend((i.path, i.member) for i in task.items) or exact(task),
    )
    build(root, "index")
    members = [("p4.zip", f"{number}.png") for number in (4, 5, 6)]
    assert read == [("p0/00b.png", ""), ("p1/02.png", ""), *members]


def test_without_a_change_nothing_is_read_and_nothing_changes(root, monkeypatch):
    build(root, "index")
    before = contents(root / "index")
    monkeypatch.setattr(embed_listing, "decoded", lambda task: iter(()))
    found = build(root, "index").changes
    assert (found.new, found.gone) == (0, 0)
    assert contents(root / "index") == before


class Interrupting:
    """Interrupts the run when so many files are done."""

    def __init__(self, files):
        self._files = files

    def __call__(self, stage, done, total, note=""):
        if done >= self._files:
            raise KeyboardInterrupt

    def warn(self, text): ...


@pytest.mark.parametrize("files", [4, 12, 17])
def test_an_update_that_was_interrupted_counts_what_changed_as_one_that_was_not(
    root, monkeypatch, files
):
    monkeypatch.setattr(embed_listing, "chunks", partial(pipeline.chunks, most=4))
    build(root, "index")
    shutil.copytree(root / "index", root / "other")
    change(root / "training")
    wanted = build(root, "other").changes
    with pytest.raises(KeyboardInterrupt):
        build(root, "index", replace(RUN, progress=Interrupting(files)))
    assert build(root, "index").changes == wanted
    assert contents(root / "index") == contents(root / "other")


def test_a_rebuild_reads_what_an_interrupted_update_had_taken(root, monkeypatch):
    monkeypatch.setattr(embed_listing, "chunks", partial(pipeline.chunks, most=4))
    path = root / "training" / "p0" / "02.npy"
    np.save(path, drawn(1))
    status = path.stat()
    build(root, "index")
    np.save(path, drawn(2))  # of the same size; and of the same time:
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(KeyboardInterrupt):
        build(root, "index", replace(RUN, progress=Interrupting(12)))
    build(root, "index", rebuild=True)
    build(root, "other")
    assert contents(root / "index") == contents(root / "other")


def test_a_file_of_another_time_is_read_again(root):
    build(root, "index")
    path = root / "training" / "p0" / "00.png"
    save(path, 200)
    os.utime(path, ns=(1, 1))
    assert build(root, "index").changes.new == 1
    build(root, "other")
    assert contents(root / "index") == contents(root / "other")


@pytest.mark.parametrize(
    "changed",
    [
        {"ingest": IngestConfig(read_options=ReadOptions(max_pixels=2000))},
        {"ingest": IngestConfig(Selection(exclude=("p0/*",)))},
        {"ingest": IngestConfig(subject_regex="p([0-9])")},
        {"embed": EmbedConfig(shard_rows=5)},
        {"rebuild": True},
    ],
    ids=["pixels", "exclude", "subjects", "shards", "rebuild"],
)
def test_with_other_options_an_index_is_built_anew(root, changed):
    build(root, "index")
    assert build(root, "index", **changed).changes is None


def test_with_another_encoder_or_a_damaged_store_an_index_is_built_anew(root):
    build(root, "index")
    chunk = root / "index" / "store" / "embeddings.zarr" / "c.0.0"
    chunk.write_bytes(bytes(len(chunk.read_bytes())))
    assert build(root, "index").changes is None
    checkpoint.save(root / "encoder", Encoder(TINY), {})
    assert build(root, "index").changes is None


def test_from_a_store_of_another_encoder_nothing_is_taken(root):
    build(root, "index")
    shutil.copy(root / "encoder", root / "given")
    checkpoint.save(root / "encoder", Encoder(TINY), {})
    build(root, "other")
    shutil.rmtree(root / "index" / "store")
    shutil.copytree(root / "other" / "store", root / "index" / "store")
    shutil.copy(root / "given", root / "encoder")
    assert build(root, "index").changes is None
    build(root, "anew")
    assert contents(root / "index") == contents(root / "anew")


@pytest.mark.parametrize("other", ["store", "encoder"])
def test_the_calibration_of_another_index_is_not_kept(root, other):
    build(root, "index", calibrate=True)
    made = replace(Calibration.read(root / "index"), subjects="runs", planted={"identity": (2.0,)})
    made.write(root / "index")
    assert build(root, "index", calibrate=True).calibration.planted == made.planted  # its own is
    replace(made, **{other: "ab" * 32}).write(root / "index")
    found = build(root, "index", calibrate=True).calibration
    assert found.planted != made.planted
    assert check(root / "index").intact


def adapted(root, seen):
    """An index whose encoder is one that was adapted to the images with these digests."""
    given = checkpoint.load(root / "encoder")
    torch.manual_seed(1)
    facts = {"started_from": given.fingerprint, "seen": seen}
    checkpoint.save(root / "adapted", Encoder(TINY), facts)
    shutil.copy(root / "encoder", root / "given")
    shutil.copy(root / "adapted", root / "encoder")
    build(root, "index")
    return given


def job_of(root, listing, given):
    embedder = Embedder(given, config=EmbedConfig(shard_rows=4), run=RUN)
    stages = (
        embedded(listing, embedder, "store"),
        Stage("calibrated", {}, {"calibrate": False, "adapt": "never"}),
    )
    return Job("build-index", stages)


def test_an_encoder_that_has_seen_what_is_gone_is_not_kept(root):
    with Store.open(index_of(root)) as store:
        digests = {record.path: record.digest for record in store.embedded()}
    given = adapted(root, [digests["p0/00.png"], digests["p5/11.png"]])
    listing = list_images(root / "training")
    record = job_of(root, listing, given).record()
    write_json(root / "index" / "job.json", record)  # as if this run had adapted it

    def found():
        listing = list_images(root / "training")
        there = there_before(
            root / "index", job_of(root, listing, given), listing, given, IngestConfig()
        )
        with there or nullcontext():
            return there

    kept = found()
    assert kept.adapted
    assert kept.encoder.fingerprint == checkpoint.load(root / "adapted").fingerprint
    (root / "training" / "p5" / "10.png").unlink()
    assert found() is not None
    (root / "training" / "p5" / "11.png").unlink()
    assert found() is None


def index_of(root):
    build(root, "first")
    return root / "first" / "store"


def test_a_calibration_is_kept_while_few_files_change_and_none_is_gone(root, monkeypatch):
    build(root, "index")
    listing = list_images(root / "training")
    with Store.open(root / "index" / "store") as store:
        unchanged = Unchanged(store, IngestConfig())
        found = unchanged.changes(listing)
        unchanged.close()
    assert (found.new, found.gone, found.before) == (0, 0, 12 + 1 + 1 + 2)
    made = []
    exact = job.calibrated_if_large
    monkeypatch.setattr(job, "calibrated_if_large", lambda *given: made.append(1) or exact(*given))
    monkeypatch.setattr(calibrate, "_PLANTED", 10 * len(KINDS))  # of which a few are found

    def calibrations():
        made.clear()
        build(root, "calibrated", calibrate=True)
        return len(made)

    for number in range(30):
        save(root / "training" / "more" / f"{number}.png", 300 + number)
    assert calibrations() == 1
    assert calibrations() == 0
    save(root / "training" / "more" / "30.png", 330)
    assert calibrations() == 0
    assert check(root / "calibrated").intact
    save(root / "training" / "more" / "31.png", 331)
    assert calibrations() == 0
    save(root / "training" / "more" / "32.png", 332)
    assert calibrations() == 1  # by now, more changed than may: of each update, only one file
    for number in range(33, 42):
        save(root / "training" / "more" / f"{number}.png", 300 + number)
    assert calibrations() == 1
    (root / "training" / "more" / "7.png").unlink()
    assert calibrations() == 1


def test_without_calibrating_the_calibration_that_holds_is_kept_and_another_is_told_of(root):
    build(root, "index")
    made = replace(calibration(planted={"identity": (2.0,) * 40}), subjects="hold-out")
    with Store.open(root / "index" / "store") as store:
        ours = store.manifest.encoder, store.digest
    replace(made, encoder=ours[0], store=ours[1]).write(root / "index")
    told = Collected()
    kept = build(root, "index", replace(RUN, progress=told)).calibration
    assert (kept.subjects, kept.planted) == (made.subjects, made.planted)
    assert check(root / "index").intact
    (root / "training" / "p0" / "00.png").unlink()
    assert build(root, "index", replace(RUN, progress=told)).calibration is None
    (warning,) = told.warnings
    assert "does not hold for these images" in warning


def test_a_calibration_is_made_anew_where_people_are_told_apart_in_another_way(root, monkeypatch):
    """From 20 folders on, a folder is taken for a person; before, files were runs."""
    shutil.rmtree(root / "training")
    for number in range(57):
        save(root / "training" / f"p{number // 3}" / f"{number}.png", number)
    made = []
    exact = job.calibrated_if_large
    monkeypatch.setattr(job, "calibrated_if_large", lambda *given: made.append(1) or exact(*given))
    assert build(root, "index", calibrate=True).calibration.subjects == "runs"
    save(root / "training" / "p0" / "more.png", 57)
    assert build(root, "index", calibrate=True).calibration.subjects == "runs"
    assert len(made) == 1
    save(root / "training" / "p19" / "more.png", 58)
    assert build(root, "index", calibrate=True).calibration.subjects == "guessed"
    assert len(made) == 2


def adapting(monkeypatch, calibrations):
    """Adapt to another encoder at once, with calibrations in turn; return those still to come."""
    answers = iter(calibrations)
    monkeypatch.setattr(job, "calibrated_if_large", lambda *_: next(answers))

    def adapted_to(listing, loaded, ingest, run, out):
        torch.manual_seed(1)
        checkpoint.save(out, Encoder(TINY), {"started_from": loaded.fingerprint})
        return checkpoint.load(out)

    monkeypatch.setattr(job, "adapt", adapted_to)
    return answers


@pytest.mark.parametrize("adapt", ["auto", "always"])
def test_an_adapted_encoder_of_which_too_little_is_unseen_to_calibrate_is_not_kept(
    root, monkeypatch, adapt
):
    """What it finds of the pseudo-subjects of the bundled calibration says nothing of these."""
    found = replace(calibration(planted={"identity": (2.0, -9.0) * 20}), subjects="runs")
    better = replace(calibration(planted={"identity": (2.0,) * 40}), subjects="bundled")
    answers = adapting(monkeypatch, [found, better])
    made = build(root, "index", calibrate=True, adapt=adapt)
    assert next(answers, None) is None
    assert made.calibration.subjects == "runs"
    assert made.encoder == checkpoint.load(root / "encoder").fingerprint


def test_a_kill_while_the_store_of_before_is_removed_is_gone_on_from(root, monkeypatch):
    found = replace(calibration(planted={"identity": (2.0, -9.0) * 20}), subjects="runs")
    better = replace(calibration(planted={"identity": (2.0,) * 40}), subjects="runs")
    adapting(monkeypatch, [found, better] * 2)
    exact = shutil.rmtree

    def killed(path, *given, **named):
        if "store" not in path.name:
            return exact(path, *given, **named)
        (path / "embeddings.zarr" / "c.0.0").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        build(root, "index", calibrate=True, adapt="always")
    made = build(root, "index", calibrate=True, adapt="always")
    assert made.encoder != checkpoint.load(root / "encoder").fingerprint
    with Store.open(root / "index" / "store") as store:
        store.verify()
        assert store.manifest.encoder == made.encoder


def test_of_a_subject_that_was_removed_nothing_is_left(root):
    build(root, "index")
    left = check(root / "index", without=["p1"]).problems
    assert {problem.where.rpartition("/")[2] for problem in left} == {"catalog.sqlite"}
    assert "names p1" in left[0].what
    assert check(root / "index", without=["p"]).intact  # no name is a part of another one
    shutil.rmtree(root / "training" / "p1")
    build(root, "index")
    assert check(root / "index", without=["p1"]).intact
    assert not check(root / "index", without=["p3"]).intact


def test_an_encoder_that_was_adapted_to_images_that_are_gone_is_told(root):
    adapted(root, ["0123456789ab"])
    (problem,) = check(root / "index", without=["nobody"]).problems
    assert problem.what == "was adapted to 1 images that are gone"
