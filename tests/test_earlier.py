"""A query whose report is in place: the report of a new one, reading what changed alone."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from pictures import drawn
from PIL import Image

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.architecture import SMALL
from deepssim_scan.encoder.network import Encoder
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs import identity
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig, QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import CanaryConfig, EvidenceConfig, VerdictConfig
from deepssim_scan.store import embed_listing, reread
from deepssim_scan.store.config import EmbedConfig
from deepssim_scan.store.embed_listing import Embedder

RUN = RunContext("cpu", workers=0)
NIGHT = QueryConfig(embed=EmbedConfig(shard_rows=4), canaries=CanaryConfig(0))


def index(root):
    """Index the training images, calibrated with as few images as can be."""
    build_index(root / "training", root / "index", IndexConfig(adapt="never"), RUN)


@pytest.fixture(scope="module")
def first_night(people, tmp_path_factory):
    """A training set, its index, ten synthetic images, of which three are copies, and a report."""
    root, kept = (tmp_path_factory.mktemp(name) for name in ("night", "kept"))
    shutil.copytree(people / "training", root / "training")
    index(root)
    for number in range(3):
        image = Image.open(root / "training" / f"s{number:02d}" / "1.png")
        save(image.rotate(90 * number), root / "synthetic" / f"{number}.png")
    for number in range(7):
        save(Image.fromarray(drawn(number, 64)), root / "synthetic" / f"other{number}.png")
    query(root / "synthetic", root / "index", root / "report", NIGHT, RUN)
    shutil.copytree(root, kept, dirs_exist_ok=True)
    return root, kept


@pytest.fixture
def night(first_night):
    """The same, whatever the test before did to it."""
    root, kept = first_night
    shutil.rmtree(root)
    shutil.copytree(kept, root)
    return root


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG")


def asked(root, report, config=NIGHT):
    query(root / "synthetic", root / "index", root / report, config, RUN)
    return contents(root / report)


def contents(report):
    """The files of a report, but for job.json, and the summary without times."""
    files = {
        str(path.relative_to(report)): path.read_bytes()
        for path in report.rglob("*")
        if path.is_file()
    }
    job, summary = (json.loads(files.pop(name)) for name in ("job.json", "summary.json"))
    made = summary["made"].encode()
    assert files["report.html"].count(made) == 1
    files["report.html"] = files["report.html"].replace(made, b"")
    for each in ("seconds", "checksum", "made"):
        del summary[each]
    for each in ("job.json", "report.html"):
        summary["files"].pop(each)
    return files, summary, job["stages"]


@pytest.fixture
def read(monkeypatch):
    """Collect the names of all files that are decoded, by their folder."""
    names, exact = [], embed_listing.decoded

    def decoded(task):
        names.extend((task.folder.name, item.path) for item in task.items)
        return exact(task)

    for module in (embed_listing, reread):
        monkeypatch.setattr(module, "decoded", decoded)
    return names


def change(synthetic):
    """One image is another now, one is gone, one has another name, and one is new."""
    save(Image.fromarray(drawn(50, 64)), synthetic / "other1.png")
    (synthetic / "other2.png").unlink()
    (synthetic / "other3.png").rename(synthetic / "renamed.png")
    save(Image.fromarray(drawn(51, 64)), synthetic / "0new.png")


def test_a_report_on_changed_images_has_the_bytes_of_a_new_one(night):
    change(night / "synthetic")
    assert asked(night, "report") == asked(night, "new")


def test_images_that_did_not_change_are_not_read(night, read):
    change(night / "synthetic")
    asked(night, "report")
    changed = {"other1.png", "renamed.png", "0new.png"}
    assert {name for folder, name in read if folder == "synthetic"} == changed
    # Embedded, perhaps looked at in other views, and registered; but for the one renamed, whose
    # views and evidence are those of before.
    assert [name for _, name in read].count("renamed.png") == 1
    assert [name for _, name in read].count("0new.png") >= 2


def test_a_rebuilt_report_takes_nothing_and_is_the_same(night, read):
    before = contents(night / "report")
    assert asked(night, "report", replace(NIGHT, rebuild=True)) == before
    assert len({name for folder, name in read if folder == "synthetic"}) == 10


def test_evidence_of_other_code_is_not_taken(night, read, monkeypatch):
    monkeypatch.setattr(identity, "versions", lambda: {"code": "another"})
    asked(night, "report")
    assert len({name for folder, name in read if folder == "synthetic"}) == 10


def test_without_a_change_nothing_is_read(night, read):
    before = contents(night / "report")
    assert asked(night, "report") == before
    assert not read


def test_after_the_training_set_changed_the_report_is_that_of_a_new_one(night, read):
    shutil.rmtree(night / "training" / "s01")
    index(night)
    read.clear()
    updated, again = asked(night, "report"), {name for where, name in read if where == "synthetic"}
    fresh = asked(night, "new")
    assert updated == fresh
    assert "s01" not in (night / "report" / "flagged.csv").read_text()
    # Those alone are read whose candidates are others now: what was a copy is among them.
    assert "1.png" in again
    assert len(again) < 10


def test_rows_of_another_encoder_are_not_taken(night, tmp_path):
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "other", Encoder(SMALL), {})
    embedder = Embedder(checkpoint.load(tmp_path / "other"), NIGHT.ingest, NIGHT.embed, RUN)
    listing = identity.list_for_store(night / "synthetic", NIGHT.ingest, RUN)
    shutil.rmtree(night / "report" / "synthetic")
    embedder.embed(listing, night / "report" / "synthetic")
    assert asked(night, "report") == asked(night, "new")


@pytest.mark.parametrize("damaged", ["00000001.parquet", "00000000.images.parquet"])
def test_what_is_damaged_is_not_taken(night, damaged):
    change(night / "synthetic")
    path = night / "report" / "evidence" / damaged
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert asked(night, "report") == asked(night, "new")


@pytest.mark.parametrize(
    "changed",
    [
        {"evidence": EvidenceConfig(candidates=4)},
        {"evidence": EvidenceConfig(tta_views=2)},
        {"verdict": VerdictConfig(top_k=9)},
        {"embed": EmbedConfig(shard_rows=3)},
    ],
)
def test_with_other_options_the_report_is_that_of_a_new_one(night, changed):
    config = replace(NIGHT, **changed)
    assert asked(night, "report", config) == asked(night, "new", config)


def test_a_pair_that_could_not_be_verified_is_looked_at_again(night):
    hidden = night / "hidden"
    (night / "training" / "s01").rename(hidden)
    save(Image.open(hidden / "0.png"), night / "synthetic" / "0new.png")
    _, summary, _ = asked(night, "report")
    assert summary["verification"]["not_registered"] > 0
    hidden.rename(night / "training" / "s01")
    save(Image.fromarray(drawn(53, 64)), night / "synthetic" / "0newer.png")
    assert asked(night, "report") == asked(night, "new")
