"""Audits, night after night, on real files: the state of every finding, and what is read for it."""

import errno
import json
import os
import re
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from PIL import Image

from deepssim_scan.audit import findings
from deepssim_scan.audit import history as histories
from deepssim_scan.audit import night as nights
from deepssim_scan.audit.compare import compared
from deepssim_scan.audit.config.audit import read_config
from deepssim_scan.audit.config.quantities import KINDS
from deepssim_scan.audit.findings import Finding
from deepssim_scan.audit.history import History, SetOfNight
from deepssim_scan.audit.night import Audited, audit
from deepssim_scan.audit.policy import Decided
from deepssim_scan.audit.review.opened import reviewing
from deepssim_scan.calibration import calibrate
from deepssim_scan.cli import console
from deepssim_scan.cli.commands.audit import _show, _table, diff, history
from deepssim_scan.errors import (
    Busy,
    Damaged,
    InputError,
    InputMissing,
    StoreMismatch,
    WriteFailed,
)
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.check import check
from deepssim_scan.progress import SILENT, Collected
from deepssim_scan.reporting.match import Match
from deepssim_scan.storage import files
from deepssim_scan.storage.publish import locked
from deepssim_scan.store import embed_listing, reread

RUN = RunContext("cpu", workers=0)

CONFIG = """\
[training]
images = "training"
index = "index"
adapt = "never"

[[synthetic]]
name = "first"
images = "generated/first"

[[synthetic]]
name = "second"
images = "generated/second"

[policy]
fail_if = ["duplicates > 0", "complete == false"]
warn_if = ["gone > 0"]
canaries = 1
min_canary_recall = 0.0
waivers = "waivers.toml"

[history]
path = "audits"
"""


@pytest.fixture(scope="module", autouse=True)
def _null():
    """Of so many non-members none has a region that is like another one's by chance."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "_NULL", 80)
        yield


@pytest.fixture(scope="module")
def first_night(people, tmp_path_factory):
    """A training set of 40 people, two synthetic sets of none of them, and their first audit."""
    root, kept = (tmp_path_factory.mktemp(name) for name in ("audit", "kept"))
    for name in (f"s{number:02d}" for number in range(40)):
        shutil.copytree(people / "training" / name, root / "training" / name)
    for number in range(40, 46):
        name = "first" if number < 43 else "second"
        (root / "generated" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy2(
            people / "training" / f"s{number}" / "1.png",
            root / "generated" / name / f"{number}.png",
        )
    (root / "audit.toml").write_text(CONFIG)
    (root / "waivers.toml").write_text("")
    audited(root)
    shutil.copytree(root, kept, dirs_exist_ok=True)
    return root, kept


@pytest.fixture
def root(first_night):
    """The same, whatever the test before did to it."""
    root, kept = first_night
    shutil.rmtree(root)
    shutil.copytree(kept, root)
    return root


def audited(root, **options):
    return audit(read_config(root / "audit.toml"), RUN, **options)


def plant(root, subject, name, angle=5):
    """Put a copy of a training image among the synthetic images."""
    image = Image.open(root / "training" / subject / "1.png")
    image.rotate(angle).save(root / "generated" / "first" / name)


def waive(root, finding, until):
    text = f'[[waiver]]\nfinding = "{finding}"\nwho = "w"\nwhy = "y"\nuntil = {until}\n'
    (root / "waivers.toml").write_text(text)


def states(found, name="first"):
    (of_set,) = [each for each in found.sets if each.name == name]
    return {each.synthetic: (each.state, each.waiver) for each in of_set.findings}


def days(number):
    return (datetime.now(UTC) + timedelta(number)).date()


@pytest.fixture
def read(monkeypatch):
    """Collect the files that are decoded."""
    names, exact = [], embed_listing.decoded

    def decoded(task):
        names.extend(str(task.folder / item.path) for item in task.items)
        return exact(task)

    for module in (embed_listing, reread):
        monkeypatch.setattr(module, "decoded", decoded)
    return names


def test_nights_of_a_changing_set(root, read):
    # The second night: a copy appears.
    plant(root, "s03", "copy.png")
    found = audited(root)
    assert found.decided.state == "failed"
    assert states(found) == {"copy.png": ("new", "")}
    assert [each.condition for each in found.decided.failed] == ["duplicates > 0"]
    (finding,) = found.sets[0].findings
    # The third: it is waived, has another name, and an image is gone.
    waive(root, finding.key, days(0))
    first = root / "generated" / "first"
    (first / "copy.png").rename(first / "a-copy.png")
    (first / "40.png").unlink()
    found = audited(root)
    assert states(found) == {"a-copy.png": ("persisting", "holds")}
    assert found.sets[0].findings[0].key == finding.key
    assert found.decided.state == "passed"
    # The fourth: the waiver has expired.
    waive(root, finding.key, days(-1))
    found = audited(root)
    assert states(found) == {"a-copy.png": ("persisting", "expired")}
    assert found.decided.state == "failed"
    # The fifth: whom it copies withdraws, and the waiver is an orphan.
    shutil.rmtree(root / "training" / "s03")
    read.clear()
    found = audited(root)
    assert states(found) == {"a-copy.png": ("gone", "expired")}
    assert found.decided.state == "warned"
    assert [each.finding for each in found.orphans] == [finding.key]
    assert check(root / "index", without=["s03"]).intact
    # Of the synthetic images, those alone are read whose candidates are others now.
    assert str(first / "a-copy.png") in read
    assert len({name for name in read if "/generated/" in name}) < 6
    # The sixth: nothing is left of it.
    assert states(audited(root)) == {}


@pytest.mark.parametrize("how", ["updated", "made anew", "killed"])
def test_training_images_that_are_gone_are_told(root, monkeypatch, capsys, how):
    (root / "audit.toml").write_text(CONFIG.replace('warn_if = ["gone > 0"]\n', ""))
    plant(root, "s03", "copy.png")
    plant(root, "s04", "other.png")
    found = audited(root)
    assert [each.quantities["training_gone"] for each in found.sets] == [0, 0]
    keys = {each.synthetic: each.key for each in found.sets[0].findings}
    before = len([*(root / "training").rglob("*.png")])
    for name in ("s03", *(f"s{number}" for number in range(30, 40))):
        (root / "training" / name).rename(root / f"unmounted-{name}")
    (root / "generated" / "first" / "other.png").unlink()
    there = len([*(root / "training").rglob("*.png")])

    def killed(*_):
        raise KeyboardInterrupt

    if how == "killed":
        with monkeypatch.context() as patch:
            patch.setattr(nights, "decide", killed)
            with pytest.raises(KeyboardInterrupt):
                audited(root)
    found = audited(root, rebuild=how == "made anew")
    for each in found.sets:
        told = each.quantities["training_indexed"], each.quantities["training_gone"]
        assert told == (there, before - there)
    assert states(found) == {"copy.png": ("gone", ""), "other.png": ("gone", "")}
    assert found.decided.state == "warned"
    told = json.loads((root / "audits" / "nights" / "000003" / "night.json").read_text())
    assert (told["training_image_gone"], told["index"]["gone"]) == (
        [keys["copy.png"]],
        before - there,
    )
    _show(found)
    printed = capsys.readouterr().err
    assert f"{before - there} training images of the last night are gone" in printed
    assert f"Findings that are gone with them: {keys['copy.png']}\n" in printed
    found = audited(root)
    assert (found.gone, found.left, found.decided.state) == (0, (), "passed")


def test_a_finding_that_went_with_its_training_image_is_told_when_its_set_is_back(root, capsys):
    plant(root, "s03", "copy.png")
    (finding,) = audited(root).sets[0].findings
    shutil.rmtree(root / "training" / "s03")
    (root / "generated" / "first").rename(root / "unmounted")
    found = audited(root)
    assert (found.gone, found.left, list(found.errors)) == (3, (), ["first"])
    (root / "unmounted").rename(root / "generated" / "first")
    found = audited(root)
    assert states(found) == {"copy.png": ("gone", "")}
    assert (found.gone, found.left) == (0, (finding.key,))
    told = json.loads((root / "audits" / "nights" / "000004" / "night.json").read_text())
    assert told["training_image_gone"] == [finding.key]
    _show(found)
    printed = capsys.readouterr().err
    assert f"Findings that are gone with their training images: {finding.key}\n" in printed


@pytest.mark.parametrize("anew", [False, True])
def test_training_images_that_others_replace_are_gone_and_renamed_ones_are_not(root, anew):
    plant(root, "s03", "copy.png")
    (finding,) = audited(root).sets[0].findings
    for number in range(3):
        path = root / "training" / "s03" / f"{number}.png"
        image = Image.open(path).transpose(Image.Transpose.FLIP_TOP_BOTTOM).resize((96, 128))
        image.save(root / "training" / "s05" / f"another-{number}.png")
        path.unlink()
    (root / "training" / "s06").rename(root / "training" / "s006")
    Image.open(root / "training" / "s07" / "0.png").rotate(1).save(
        root / "training" / "s07" / "0.png"
    )
    found = audited(root, rebuild=anew)
    assert (found.gone, found.left, found.index.indexed) == (3, (finding.key,), 120)
    assert audited(root, rebuild=anew).gone == 0


def test_what_a_night_leaves_is_flushed_before_it_is_finished(root, monkeypatch):
    folder, flush, finish, flushed = root / "audits" / "nights", files.flush, History.finish, []

    def note(path):
        flushed.append(path)
        flush(path)

    def note_before(history, night):
        assert {folder, folder / "000002"} <= {*flushed}
        finish(history, night)
        flushed.append("finished")

    monkeypatch.setattr(files, "flush", note)
    monkeypatch.setattr(History, "finish", note_before)
    audited(root)
    assert "finished" in flushed


def test_a_night_that_rebuilds_reads_what_kept_its_size_and_time(root):
    path = root / "generated" / "first" / "40.png"

    def put(image):
        path.write_bytes(image.read_bytes().ljust(50_000, b"\0"))
        os.utime(path, ns=(10**18, 10**18))

    put(path)
    assert states(audited(root)) == {}
    put(root / "training" / "s03" / "1.png")
    assert states(audited(root)) == {}
    assert states(audited(root, rebuild=True)) == {"40.png": ("new", "")}


def test_a_waiver_answers_for_its_subject_alone(root):
    Image.open(root / "training" / "s03" / "1.png").rotate(2).save(
        root / "training" / "s04" / "too.png"
    )
    plant(root, "s03", "copy.png", 1)
    (finding,) = audited(root).sets[0].findings
    waive(root, finding.key, days(1))
    found = audited(root)
    one, other = found.sets[0].findings
    assert (one.key, one.state, one.waiver) == (finding.key, "persisting", "holds")
    assert (other.synthetic, other.state, other.waiver) == ("copy.png", "new", "")
    assert {one.subject, other.subject} == {"s03", "s04"}
    values = found.sets[0].quantities
    assert (values["flagged"], values["duplicates"], values["waived"]) == (1, 1, 1)
    assert found.decided.state == "failed"
    assert not found.orphans
    page = (root / "audits" / "nights" / "000003" / "first.html").read_text()
    assert page.count(other.key) == page.count(one.key) > 0


@pytest.mark.parametrize("subjects", [("p", "q"), ("p", "p"), ("", "")])
def test_a_waived_image_counts_once_though_what_it_copies_is_there_twice(monkeypatch, subjects):
    key = "ab" * 8
    both = [
        Match("s.png", rank, f"{rank}.png", 0.9, "duplicate", subject=subject, finding=key)
        for rank, subject in enumerate(subjects, 1)
    ]
    monkeypatch.setattr(findings, "duplicates_of", lambda *_: {-1: both})
    for held in ({key}, set()):
        (found,) = findings.asked_about(Path(), both[:1], held)
        assert (found.training, found.images) == ("1.png", 1)


def test_what_did_not_change_is_not_read(root, read):
    shutil.copy2(root / "training" / "s01" / "0.png", root / "training" / "s01" / "3.png")
    plant(root, "s05", "copy.png")
    audited(root)
    read.clear()
    found = audited(root)
    synthetic = [name for name in read if "/generated/" in name]
    # Of the training images, canaries alone are read: one copy a set, and its candidates.
    assert synthetic == []
    assert found.index.changes.new == 0
    assert states(found) == {"copy.png": ("persisting", "")}


def test_all_nights_are_on_one_page_with_links_to_each(root):
    plant(root, "s03", "copy.png")
    audited(root)
    page = (root / "audits" / "trend.html").read_text()
    links = re.findall(r'href="([^"]+)"', page)
    assert len(links) == 4
    assert all((root / "audits" / each).is_file() for each in links)
    assert "The last night, 2, " in page
    assert re.search(r"<td>2</td>.*<td>failed</td>\n.*first</a></td>\n(.*\n){2}.*>1<", page)


def test_a_set_that_was_not_audited_is_among_the_nights(root, capsys):
    shutil.rmtree(root / "generated" / "first")
    errors = audited(root).errors
    page = (root / "audits" / "trend.html").read_text()
    (row,) = re.findall(r"<tr><td>2</td>[^/]*</td><td>incomplete</td>\n.*not audited.*\n.*", page)
    assert "first (not audited)" in row
    assert "href" not in row
    assert "unknown" in row
    assert page.count("<tr><td>2</td>") == page.count("<tr><td>1</td>") == 2
    history(config=root / "audit.toml", json=True)
    first, second = json.loads(capsys.readouterr().out)["nights"]
    assert (first["errors"], list(first["sets"])) == ({}, ["first", "second"])
    assert (second["errors"], list(second["sets"])) == (errors, ["second"])
    history(config=root / "audit.toml")
    assert any("first(notaudited)" in each for each in column_texts(capsys.readouterr().out))


def test_two_nights_are_compared_and_listed(root):
    plant(root, "s03", "copy.png")
    second = audited(root)
    (root / "generated" / "first" / "copy.png").unlink()
    plant(root, "s04", "other.png")
    audited(root)
    with History(root / "audits") as history:
        assert [each.state for each in history.nights()] == ["passed", "failed", "failed"]
        changes = compared(history, None, None).sets["first"]
        assert [each.synthetic for each in changes["new"]] == ["other.png"]
        assert [each.synthetic for each in changes["gone"]] == ["copy.png"]
        assert not any(compared(history, 1, 1).sets["second"].values())
        whole = compared(history, 1, None)
        assert (whole.first, whole.second) == (1, 3)
        assert history.set(2, "first").findings == second.sets[0].findings
        with pytest.raises(InputError, match="holds no night 9"):
            compared(history, 1, 9)


def test_a_night_that_was_killed_is_gone_on_with(root, monkeypatch):
    plant(root, "s03", "copy.png")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(nights, "decide", killed)
        with pytest.raises(KeyboardInterrupt):
            audited(root)
    with History(root / "audits") as history:
        assert [each.state for each in history.nights()] == ["passed", "running"]
    monkeypatch.setattr(histories, "now", lambda: "2099-01-01T01:30:00+00:00")
    found = audited(root)
    assert found.night.started == "2099-01-01T01:30:00+00:00"
    assert (found.night.number, found.went_on) == (2, True)
    assert states(found) == {"copy.png": ("new", "")}
    with History(root / "audits") as history:
        assert [each.state for each in history.nights()] == ["passed", "failed"]


def test_a_set_that_is_not_there_makes_the_night_incomplete_and_spares_the_others(root):
    shutil.rmtree(root / "generated" / "first")
    found = audited(root)
    assert found.decided.state == "incomplete"
    assert list(found.errors) == ["first"]
    assert [each.name for each in found.sets] == ["second"]
    assert "no such folder" in found.errors["first"]
    told = json.loads((root / "audits" / "nights" / "000002" / "night.json").read_text())
    assert told["state"] == "incomplete"
    assert told["errors"]["first"] == found.errors["first"]
    unmounted = CONFIG.replace("generated/first", "n" * 300)  # the system cannot look at it
    (root / "audit.toml").write_text(unmounted)
    found = audited(root)
    assert (list(found.errors), found.decided.state) == (["first"], "incomplete")
    assert "cannot be listed" in found.errors["first"]


def test_a_set_that_was_not_queried_keeps_its_waivers_and_is_told_when_it_is_left_out(root):
    plant(root, "s03", "copy.png")
    waive(root, audited(root).sets[0].findings[0].key, days(1))
    (root / "generated" / "first").rename(root / "unmounted")
    found = audited(root)
    assert (list(found.errors), found.orphans) == (["first"], ())
    start, stop = (CONFIG.index(f'[[synthetic]]\nname = "{name}"') for name in ("first", "second"))
    (root / "audit.toml").write_text(CONFIG[:start] + CONFIG[stop:])
    found = audited(root)
    assert (found.dropped, len(found.orphans)) == (("first",), 1)
    assert audited(root).dropped == ()


def test_the_configuration_decides_after_a_night_was_killed(root, monkeypatch):
    plant(root, "s03", "copy.png")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("deepssim_scan.jobs.query.run.write_left_out", killed)
        with pytest.raises(KeyboardInterrupt):
            audited(root)
    text = CONFIG.replace('images = "generated/first"', 'images = "generated/first"\naxis = 1')
    (root / "audit.toml").write_text(text)
    assert states(audited(root)) == {"copy.png": ("new", "")}


def test_one_audit_at_a_time(root):
    with locked((root / "audits").resolve()), pytest.raises(Busy, match="is being written by"):
        audited(root)


def test_old_nights_are_forgotten_and_decisions_are_not(root):
    with History(root / "audits") as history:
        history.decide("0123456789abcdef", "reader", "copy", blinded=True)
        (night,) = history.nights()
        history.finish(replace(night, finished="2020-01-01T00:00:00+00:00"))
    audited(root)
    with History(root / "audits") as history:
        assert [each.number for each in history.nights()] == [2]
        assert history.decisions() == {"0123456789abcdef": {"reader": "copy"}}
    assert [each.name for each in (root / "audits" / "nights").iterdir()] == ["000002"]


def test_what_forgotten_nights_left_is_removed_though_a_run_was_killed_meanwhile(root):
    folder = root / "audits" / "nights"
    for name in ("000000", "0", "notes"):
        (folder / name).mkdir()
    audited(root)
    assert sorted(each.name for each in folder.iterdir()) == ["0", "000001", "000002", "notes"]


def test_a_history_that_cannot_be_written_to_is_read(tmp_path, monkeypatch):
    with History(tmp_path, begin=True) as history:
        history.begin()

    def refused(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "chmod", refused)
    with History(tmp_path) as history:
        assert [each.state for each in history.nights()] == ["running"]


def test_a_full_disk_is_told_though_sqlite_rolled_back_itself(tmp_path):
    with History(tmp_path, begin=True) as history:
        with pytest.raises(WriteFailed, match="disk is full"), history._changing():
            history._database.execute("ROLLBACK")  # as SQLite does
            full = sqlite3.OperationalError("database or disk is full")
            full.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise full
        assert history.nights() == []


def test_nights_without_a_set_in_common_are_not_said_to_be_the_same(tmp_path, capsys):
    with History(tmp_path / "audits", begin=True) as history:
        for name in ("old", "new"):
            night, _ = history.begin()
            history.put(night, SetOfNight(name, {}, {}, [1], []))
            history.finish(replace(night, finished=night.started, state="passed"))
    (tmp_path / "audit.toml").write_text(CONFIG)
    diff(config=tmp_path / "audit.toml")
    assert "Nothing was compared" in capsys.readouterr().out


def test_a_set_that_neither_night_could_query_is_told_by_their_comparison(tmp_path, capsys):
    with History(tmp_path / "audits", begin=True) as history:
        for _ in range(2):
            night, _ = history.begin()
            history.put(night, SetOfNight("first", {}, {}, [1], []))
            facts = {"errors": {"second": "its folder is gone"}}
            history.finish(replace(night, finished=night.started, state="incomplete", facts=facts))
        changes = compared(history, None, None)
    assert (list(changes.alone), list(changes.neither)) == ([], ["second"])
    assert changes.as_json()["in_neither"] == ["second"]
    (tmp_path / "audit.toml").write_text(CONFIG)
    diff(config=tmp_path / "audit.toml")
    assert "second: could not be queried in either night" in capsys.readouterr().err


def test_a_night_is_not_compared_with_itself_unasked_nor_with_one_that_was_killed(tmp_path):
    with History(tmp_path, begin=True) as database:
        for _ in range(2):
            night, _ = database.begin()
            database.put(night, SetOfNight("ldm", {}, {}, [1], []))
            database.finish(replace(night, finished=night.started, state="passed"))
        night, _ = database.begin()
        database.put(night, SetOfNight("ldm", {}, {}, [1], []))
        with pytest.raises(InputError, match="night 2 is the last that was finished"):
            compared(database, 2, None)
        for numbers in ((1, 3), (3, 1), (3, None)):
            with pytest.raises(InputError, match="night 3 is not finished"):
                compared(database, *numbers)
        assert compared(database, 1, None).second == 2


def test_the_last_night_of_a_set_is_kept_while_it_cannot_be_queried(tmp_path):
    finding = Finding("ab" * 8, "new", "", "s.png", "t.png", "p", 0.9, None, None)
    with History(tmp_path, begin=True) as history:
        for ago in (9, 8, 7, 6, 0):
            night, _ = history.begin()
            for name in {9: ("ldm", "old"), 8: ("ldm", "old"), 0: ()}.get(ago, ("gan",)):
                history.put(night, SetOfNight(name, {}, {}, [1], [finding]))
            then = datetime.now(UTC) - timedelta(ago)
            finished = then.isoformat(timespec="seconds")
            history.finish(replace(night, finished=finished, state="incomplete", facts={}))
        assert history.forget(5, ["ldm", "gan"]) == [1, 3]
        night, _ = history.begin()
        assert history.last("ldm", night).findings == [finding]
        assert history.last("gan", night).findings == [finding]
        assert history.forget(5, ["gan"]) == [2]
        assert history.last("old", night) is None


def test_no_figure_is_cut_in_a_table_of_80_columns(tmp_path, capsys):
    name, many = "n" * 40, {"judged": 1_234_567, "duplicates": 765_432}
    quantities = dict.fromkeys(("new", "persisting", "gone", "waived", "similar", "rejected"), 123)
    found = SetOfNight(name, {}, quantities | many, [1], [])
    with History(tmp_path / "audits", begin=True) as database:
        night, _ = database.begin()
        database.put(night, found)
        database.finish(replace(night, finished=night.started, state="incomplete"))
    (tmp_path / "audit.toml").write_text(CONFIG)
    history(config=tmp_path / "audit.toml")
    listed = column_texts(capsys.readouterr().out)
    assert {"1", night.started, "incomplete", name, "1,234,567", "765,432", "123"} <= listed
    console.output.print(_table(SimpleNamespace(night=night, sets=[found])))
    assert {"duplicates", "rejected", name, "1,234,567", "765,432"} <= column_texts(
        capsys.readouterr().out
    )


def test_what_keeps_a_night_from_being_clean_is_printed_whatever_the_policy(capsys):
    unfit = {"code": "polarity_differs", "text": "Greys are inverted.", "advice": "Invert them."}
    quantities = dict.fromkeys(KINDS, 0)
    sets = [
        SetOfNight("clean", {"mismatches": [], "counts": {"undecidable": 0}}, quantities, [1], []),
        SetOfNight(
            "open", {"mismatches": [unfit], "counts": {"undecidable": 3}}, quantities, [1], []
        ),
    ]
    index, night = None, histories.Night(1, "now", "now", "passed", {})
    decided = Decided("passed", [], [])
    _show(Audited(night, False, index, 0, sets, (), {}, (), (), (), decided))
    printed = capsys.readouterr()
    assert "Night 1: passed" in printed.out
    assert printed.err.splitlines() == [
        "open: Greys are inverted. Invert them. (polarity_differs)",
        "open: 3 images have next to nothing on them that can be compared. "
        "Any of these may be a copy.",
    ]


def column_texts(printed):
    """Return the columns of a table that was printed, each joined from its lines, and its head."""
    cells = {""}
    for part in re.split("\n[┏┡└].*", printed):
        rows = [re.split("[│┃]", line)[1:-1] for line in part.splitlines() if line[:1] in "│┃"]
        assert all(len(line) <= 80 for line in part.splitlines())
        columns = zip(*[row for row in rows if row], strict=True)
        cells |= {"".join(cell.strip() for cell in column) for column in columns}
    return cells


def test_a_history_of_another_format_is_refused(root):
    path = root / "audits" / "history.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreMismatch, match="a history of format 99"):
        audited(root)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE decisions SET decision = 'no copy'",
        "UPDATE findings SET waiver = 'a phantom'",
        "DELETE FROM findings WHERE number = 1",
        "UPDATE nights SET night = 7",
        "UPDATE content SET sha256 = 'f00'",
        "DROP TABLE content",
        "DROP INDEX of_finding",
    ],
)
def test_a_history_of_which_a_row_was_changed_is_damaged(tmp_path, damage):
    findings = [Finding(n * 16, "new", "", n, "t.png", "p", 0.9, None, None) for n in "abc"]
    with History(tmp_path, begin=True) as history:
        night, _ = history.begin()
        history.put(night, SetOfNight("ldm", {}, {}, [1], findings))
        history.decide("a" * 16, "reader", "copy", blinded=True)
    with History(tmp_path) as history:
        assert history.set(1, "ldm").findings == findings
    with closing(sqlite3.connect(tmp_path / "history.sqlite", isolation_level=None)) as database:
        assert database.execute(damage).rowcount != 0
    with pytest.raises(Damaged, match=r"Restore it, or begin another history\."):
        History(tmp_path)


def test_an_emptied_history_is_damaged_and_one_that_a_power_cut_left_is_begun(root, tmp_path):
    path = root / "audits" / "history.sqlite"
    path.write_bytes(b"")
    for begin in (False, True):
        with pytest.raises(Damaged, match=r"history\.sqlite: is empty\. Restore it, or begin"):
            History(path.parent, begin=begin)
    assert path.read_bytes() == b""
    (tmp_path / "history.sqlite").touch()
    with History(tmp_path, begin=True) as history:
        assert history.nights() == []


def test_a_history_of_which_the_nights_alone_are_there_is_not_begun_anew(root):
    """What readers decided would be lost, and what its first nights left be replaced."""
    (root / "audits" / "history.sqlite").unlink()
    for _ in range(2):
        with pytest.raises(Damaged, match=r"history\.sqlite: is gone, .* Restore it"):
            audited(root)
    assert (root / "audits" / "nights" / "000001" / "night.json").is_file()


def test_a_history_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InputMissing, match="no history yet"):
        History(tmp_path / "audits")
    assert not (tmp_path / "audits").exists()


def test_holdout_images_make_the_null(root, people, monkeypatch):
    for number in range(46, 59):
        shutil.copytree(people / "training" / f"s{number}", root / "holdout" / f"s{number}")
    text = CONFIG.replace('index = "index"', 'index = "index"\nholdout = "holdout"')
    (root / "audit.toml").write_text(text)
    found = audited(root)
    people = found.sets[0].summary["calibration"]["non_members"]
    assert (people["from"], people["images"], people["subjects"]) == ("hold-out", 39, 13)
    with monkeypatch.context() as patch:
        patch.delattr(nights, "calibrate")  # which an unchanged hold-out does not need
        assert audited(root).sets[0].summary["calibration"]["non_members"] == people
    shutil.rmtree(root / "holdout" / "s46")
    people = audited(root).sets[0].summary["calibration"]["non_members"]
    assert (people["from"], people["subjects"]) == ("hold-out", 12)
    (root / "audit.toml").write_text(CONFIG)
    assert audited(root).sets[0].summary["calibration"]["non_members"]["from"] != "hold-out"


def test_holdout_images_that_arrive_in_a_night_are_calibrated_with_in_the_next(
    root, people, monkeypatch
):
    def put(number):
        name = f"s{number}"
        shutil.copytree(people / "training" / name, root / "holdout" / name, dirs_exist_ok=True)

    for number in range(46, 58):
        put(number)
    text = CONFIG.replace('index = "index"', 'index = "index"\nholdout = "holdout"')
    (root / "audit.toml").write_text(text)
    exact = nights.query
    with monkeypatch.context() as patch:
        patch.setattr(nights, "query", lambda *arguments: put(58) or exact(*arguments))
        found = audited(root)
    assert found.sets[0].summary["calibration"]["non_members"]["subjects"] == 12
    found = audited(root)
    assert found.sets[0].summary["calibration"]["non_members"]["subjects"] == 13


def test_a_night_leaves_a_page_of_each_set_and_test_cases(root):
    plant(root, "s03", "copy.png")
    audited(root)
    (root / "generated" / "first" / "copy.png").unlink()
    plant(root, "s04", "other.png")
    shutil.rmtree(root / "generated" / "second")
    found = audited(root)
    folder = root / "audits" / "nights" / "000003"
    assert sorted(path.name for path in folder.iterdir()) == [
        "first.html",
        "junit.xml",
        "night.json",
    ]
    page = (folder / "first.html").read_text()
    assert "first, night 3" in page
    assert "first: duplicates &gt; 0 (duplicates = 1)" in page
    assert "1 findings of the last night are no more" in page
    assert '"state"' in page
    suites = ElementTree.parse(folder / "junit.xml").getroot()  # noqa: S314 - ours
    told = {
        suite.get("name"): [
            [case.get("name"), *(f"{each.tag}: {each.get('message')}" for each in case)]
            for case in suite
        ]
        for suite in suites
    }
    assert told == {
        "first": [
            ["queried"],
            ["complete"],
            ["duplicates > 0", "failure: first: duplicates > 0 (duplicates = 1)"],
            ["complete == false"],
        ],
        "second": [
            ["queried", f"error: {found.errors['second']}"],
            ["complete"],
            ["duplicates > 0", "failure: second: whether 'duplicates > 0' holds cannot be told"],
            ["complete == false", "failure: second: complete == false (complete = false)"],
        ],
    }


def test_pictures_and_pseudonyms_are_as_the_configuration_says(root):
    plant(root, "s03", "copy.png")
    audited(root)
    page = root / "audits" / "nights" / "000002" / "first.html"
    assert "copy.png" in page.read_text()
    assert "data:image/png" not in page.read_text()
    (root / "names.key").write_bytes(bytes(range(32)))
    text = CONFIG + '[report]\nthumbnails = true\npseudonyms = "names.key"\n'
    (root / "audit.toml").write_text(text)
    audited(root)
    page = root / "audits" / "nights" / "000003" / "first.html"
    assert page.read_text().count("data:image/png") == 6
    (root / "generated" / "first" / "copy.png").rename(root / "copy.png")
    plant(root, "s04", "other.png")
    found = audited(root)
    keys = [each.key for each in found.sets[0].findings]
    assert [each.state for each in found.sets[0].findings] == ["new", "gone"]
    pages = [page, page.parents[1] / "000004" / "first.html"]
    for each in (*pages, root / "audits" / "reports" / "first" / "report.html"):
        for name in ("copy.png", "other.png", "s03", "s04", *keys):
            assert name not in each.read_text()
    shown = re.findall("finding-[0-9a-f]{12}", pages[1].read_text())
    assert (len({*shown}), '"new"' in pages[1].read_text()) == (2, True)
    flagged = root / "audits" / "reports" / "first" / "flagged.csv"
    assert keys[0] in flagged.read_text()


def test_what_readers_decided_counts_for_the_policy(root):
    plant(root, "s03", "copy.png")
    (root / "audit.toml").write_text(CONFIG.replace("duplicates > 0", "confirmed > 0"))
    found = audited(root)
    assert found.decided.state == "passed"
    assert found.sets[0].quantities["unreviewed"] == 1
    key = found.sets[0].findings[0].key
    with History(root / "audits") as history:
        for reader, decision in (("copy", "no copy"), ("B", "unsure")):
            history.decide(key, reader, decision, blinded=False)
    found = audited(root)
    assert (found.sets[0].quantities["unreviewed"], found.decided.state) == (0, "passed")
    with History(root / "audits") as history:
        history.decide(key, "B", "copy", blinded=False)
    assert audited(root).decided.state == "failed"


def test_a_reader_is_one_however_the_name_was_typed(root):
    plant(root, "s03", "copy.png")
    config = read_config(root / "audit.toml")
    key = audited(root).sets[0].findings[0].key
    body = {"finding": key, "decision": "copy"}
    with reviewing(config, "Jos\u00e9 M", SILENT, blinded=True) as review:
        assert review.decide(body)
    for name in (" Jos\u00e9  M", "Jose\u0301 M "):
        with reviewing(config, name, SILENT, blinded=True) as review:
            assert not review.cases
    with (
        pytest.raises(InputError, match="must have a name"),
        reviewing(config, " ", SILENT, blinded=True),
    ):
        pass


def test_a_set_that_was_not_queried_since_the_index_changed_keeps_no_other_from_readers(root):
    plant(root, "s03", "copy.png")
    audited(root)
    shutil.rmtree(root / "generated" / "second")
    shutil.rmtree(root / "training" / "s09")
    audited(root)
    told = Collected()
    with reviewing(read_config(root / "audit.toml"), "A", told, blinded=False) as review:
        assert [case.match.synthetic for case in review.cases.values()] == ["copy.png"]
    (text,) = told.warnings
    assert text.startswith("second: is left out: ")


def test_a_set_that_was_not_audited_is_told_and_not_compared(root):
    plant(root, "s03", "copy.png")
    audited(root)
    shutil.rmtree(root / "generated" / "first")
    audited(root)
    with History(root / "audits") as history:
        changes = compared(history, None, None)
    assert list(changes.alone) == ["first"]
    assert changes.sets == {"second": {"new": [], "gone": []}}
    first, second, rest = (
        CONFIG.index('[[synthetic]]\nname = "first"'),
        CONFIG.index('[[synthetic]]\nname = "second"'),
        CONFIG.index("[policy]"),
    )
    (root / "generated" / "first").mkdir()
    plant(root, "s03", "copy.png")
    (root / "audit.toml").write_text(CONFIG[:second] + CONFIG[rest:])
    assert audited(root).dropped == ("second",)
    (root / "audit.toml").write_text(CONFIG[:first] + CONFIG[second:])
    assert audited(root).dropped == ("first",)


def test_a_night_of_which_something_was_not_read_fails_in_junit(root):
    (root / "generated" / "first" / "bad.png").write_bytes(b"no image")
    changed = CONFIG.replace(', "complete == false"', r', "flagged >\f 9 \u001c"')
    (root / "audit.toml").write_text(changed)
    assert audited(root).decided.state == "incomplete"
    told = (root / "audits" / "nights" / "000002" / "junit.xml").read_text()
    assert told.count("something was not looked at") == 1
    suites = ElementTree.fromstring(told)  # noqa: S314 - our own file
    cases = [each.get("name") for each in suites.iter("testcase")]
    assert cases == ["queried", "complete", "duplicates > 0", "flagged >  9  "] * 2
