"""Folders that are whole or absent, made by one writer, and gone on with after a kill."""

import os
import signal
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deepssim_scan.errors import Busy, Damaged, InputError, Unfinished, WriteFailed
from deepssim_scan.storage import publish
from deepssim_scan.storage.layout import REPORT_FILES
from deepssim_scan.storage.publish import Job, Stage, publishing, read_job, refuse_foreign
from deepssim_scan.storage.records import write_json

FIRST = Stage("first", {"size": 1}, {"images": "abc"}, ("content",))
SECOND = Stage("second", {}, {"threshold": 0.5}, ("other",))
JOB = Job("test", (FIRST, SECOND))
NAMES = ("content", "other")


class Failed(Exception):
    """What a block raises in these tests."""


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def _open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def enter(folder):
    with publishing(folder, NAMES, JOB):
        raise AssertionError("the block ran")


def _ours(folder, text="old"):
    folder.mkdir()
    write_json(folder / "job.json", {"command": "test"})
    (folder / "content").write_text(text)


@pytest.mark.parametrize("before", ["absent", "empty", "ours"])
def test_a_folder_is_replaced_whole(tmp_path, before):
    path = tmp_path / "folder"
    if before == "empty":
        path.mkdir()
    if before == "ours":
        _ours(path)
        (path / "other").write_text("")
    with publishing(path, NAMES, JOB) as folder:
        assert names(folder) == ["job.json"]
        assert mode(folder) == 0o700
        (folder / "content").write_text("new")
        if before == "ours":
            assert (path / "content").read_text() == "old"
    assert names(path) == ["content", "job.json"]
    assert mode(path) == 0o700
    assert names(tmp_path) == ["folder"]


def test_what_was_renamed_into_a_folder_is_flushed_before_it_is_published(tmp_path, monkeypatch):
    path, flushed = tmp_path / "folder", []

    def note(folder):
        flushed.append((folder, path.exists()))

    with publishing(path, NAMES, JOB) as folder:
        (tmp_path / "content").write_text("new")
        (tmp_path / "content").rename(folder / "content")
        monkeypatch.setattr(publish, "flush", note)
    assert flushed == [(folder, False), (tmp_path, True)]


def test_a_folder_deep_down_is_made(tmp_path):
    path = tmp_path / "a" / "b"
    with publishing(path, NAMES, JOB) as folder:
        (folder / "content").write_text("new")
    assert (path / "content").read_text() == "new"


def fail(path, job=JOB, error=Failed):
    """Write half of a folder, and stop."""
    with pytest.raises(error), publishing(path, NAMES, job) as folder:
        (folder / "content").write_text("ne")
        raise error


@pytest.mark.parametrize("error", [Failed, KeyboardInterrupt])
def test_row_30_the_same_job_goes_on_with_what_a_run_left(tmp_path, error):
    _ours(tmp_path / "folder")
    fail(tmp_path / "folder", error=error)
    assert (tmp_path / "folder" / "content").read_text() == "old"
    assert names(tmp_path) == [".folder.partial", "folder"]
    with publishing(tmp_path / "folder", NAMES, Job("test", (FIRST, SECOND))) as folder:
        assert (folder / "content").read_text() == "ne"
        (folder / "content").write_text("new")
    assert (tmp_path / "folder" / "content").read_text() == "new"
    assert names(tmp_path) == ["folder"]


class Said(list):
    """Progress that keeps what it was told."""

    def __call__(self, *_):
        pass

    warn = list.append


def test_row_51_other_options_are_named_and_nothing_is_lost(tmp_path):
    fail(tmp_path / "folder")
    other = Job("test", (replace(FIRST, options={"size": 2, "deep": {"a": 1}}), SECOND))
    with (
        pytest.raises(Unfinished, match=r"deep was None, is .*size was 1, is 2.*--restart"),
        publishing(tmp_path / "folder", NAMES, other),
    ):
        raise AssertionError("the block ran")
    with publishing(tmp_path / "folder", NAMES, JOB) as folder:
        assert (folder / "content").read_text() == "ne"


def test_row_51_another_command_is_named(tmp_path):
    fail(tmp_path / "folder")
    with (
        pytest.raises(Unfinished, match="command was test, is other"),
        publishing(tmp_path / "folder", NAMES, replace(JOB, command="other")),
    ):
        raise AssertionError("the block ran")


def test_row_51_restart_drops_what_was_left(tmp_path):
    fail(tmp_path / "folder")
    other = Job("test", (replace(FIRST, options={"size": 2}), SECOND))
    with publishing(tmp_path / "folder", NAMES, other, restart=True) as folder:
        assert names(folder) == ["job.json"]


def test_other_images_begin_anew_and_that_is_said(tmp_path):
    fail(tmp_path / "folder")
    said = Said()
    other = Job("test", (replace(FIRST, inputs={"images": "xyz"}), SECOND))
    with publishing(tmp_path / "folder", NAMES, other, progress=said) as folder:
        assert names(folder) == ["job.json"]
    assert len(said) == 1
    assert "It begins anew" in said[0]


def test_what_was_not_made_anew_is_not_gone_on_with_where_all_must_be(tmp_path):
    said, path = Said(), tmp_path / "folder"
    fail(path)
    with (
        pytest.raises(Failed),
        publishing(path, NAMES, JOB, anew=True, progress=said) as folder,
    ):
        assert not (folder / "content").exists()
        (folder / "content").write_text("half")
        raise Failed
    with publishing(path, NAMES, JOB, anew=True, progress=said) as folder:
        assert (folder / "content").read_text() == "half"
    assert names(path) == ["content", "job.json"]
    assert len(said) == 1
    assert "It begins anew" in said[0]


def test_what_was_made_anew_in_part_and_gone_on_with_otherwise_is_no_more(tmp_path):
    path = tmp_path / "folder"
    for anew in (True, False):
        with pytest.raises(Failed), publishing(path, NAMES, JOB, anew=anew) as folder:
            (folder / "content").write_text("half")
            raise Failed
    with publishing(path, NAMES, JOB, anew=True) as folder:
        assert not (folder / "content").exists()


def test_other_options_are_named_where_all_is_made_anew(tmp_path):
    fail(tmp_path / "folder")
    other = Job("test", (replace(FIRST, options={"size": 2}), SECOND))
    with (
        pytest.raises(Unfinished, match="size was 1, is 2"),
        publishing(tmp_path / "folder", NAMES, other, anew=True),
    ):
        raise AssertionError("the block ran")


def test_row_52_a_later_stage_that_differs_keeps_the_first(tmp_path):
    with pytest.raises(Failed), publishing(tmp_path / "folder", NAMES, JOB) as folder:
        (folder / "content").write_text("first")
        (folder / "other").write_text("second")
        raise Failed
    other = Job("test", (FIRST, replace(SECOND, inputs={"threshold": 0.6})))
    with publishing(tmp_path / "folder", NAMES, other) as folder:
        assert names(folder) == ["content", "job.json"]
    assert read_job(tmp_path / "folder") == other.record()


@pytest.mark.parametrize("text", ["", "{}", None])
def test_row_30_what_no_job_is_known_of_is_cleared(tmp_path, text):
    fail(tmp_path / "folder")
    job = tmp_path / ".folder.partial" / "job.json"
    job.unlink() if text is None else job.write_text(text)
    with publishing(tmp_path / "folder", NAMES, JOB) as folder:
        assert names(folder) == ["job.json"]


def test_an_input_that_fails_leaves_nothing(tmp_path):
    _ours(tmp_path / "folder")
    fail(tmp_path / "folder", error=InputError)
    assert names(tmp_path) == ["folder"]
    assert (tmp_path / "folder" / "content").read_text() == "old"


def test_row_29_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path):
    _ours(tmp_path / "folder")
    with (
        pytest.raises(WriteFailed, match=r"No space left on device .*is intact") as caught,
        publishing(tmp_path / "folder", NAMES, JOB) as folder,
    ):
        (folder / "content").write_text("ne")
        raise OSError(28, "No space left on device", str(folder / "content"))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "folder" / "content").read_text() == "old"
    assert (tmp_path / ".folder.partial" / "content").read_text() == "ne"


def test_row_29_a_failed_rename_brings_the_old_folder_back(tmp_path, monkeypatch):
    _ours(tmp_path / "folder")
    replace = Path.replace

    def failing(path, target):
        if path.name.endswith(".partial") and path.is_dir():
            raise OSError(28, "no space left")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", failing)
    with (
        pytest.raises(WriteFailed, match="no space"),
        publishing(tmp_path / "folder", NAMES, JOB) as folder,
    ):
        (folder / "content").write_text("new")
    assert (tmp_path / "folder" / "content").read_text() == "old"
    assert names(tmp_path) == [".folder.partial", "folder"]


def test_row_30_a_run_killed_between_its_renames_has_lost_nothing(tmp_path):
    path = tmp_path / "folder"
    _ours(tmp_path / ".folder.old")
    fail(path)
    assert (path / "content").read_text() == "old"
    assert names(tmp_path) == [".folder.partial", "folder"]


def test_row_30_a_killed_runs_leftovers_are_removed(tmp_path):
    for name in ("folder", ".folder.old", ".folder.partial"):
        _ours(tmp_path / name, name)
    with publishing(tmp_path / "folder", NAMES, JOB) as folder:
        assert names(folder) == ["job.json"]
    assert names(tmp_path) == ["folder"]


# One writer.

HOLD = """
import sys
from dataclasses import replace
from pathlib import Path
from deepssim_scan.storage.publish import Job, publishing
from deepssim_scan.storage.records import write_json
with publishing(Path(sys.argv[1]), ["content"], Job("held", ())):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that is writing tmp_path/folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "folder")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_row_31_the_second_writer_is_told_who_holds_it(tmp_path, holder):
    wanted = f"is being written by process {holder.pid} on {socket.gethostname()}"
    with pytest.raises(Busy, match=wanted):
        enter(tmp_path / "folder")
    with publishing(tmp_path / "other", NAMES, JOB):
        pass


def test_row_31_a_killed_writer_holds_nothing(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert names(tmp_path) == [".folder.lock", ".folder.partial"]
    with publishing(tmp_path / "folder", NAMES, Job("held", ())):
        pass
    assert names(tmp_path) == ["folder"]


def test_row_31_a_holder_that_has_not_yet_said_who_it_is(tmp_path, holder):
    (tmp_path / ".folder.lock").write_text("")
    with pytest.raises(Busy, match="is being written by another process"):
        enter(tmp_path / "folder")


def test_a_link_to_a_folder_is_followed(tmp_path):
    target, link = tmp_path / "disk" / "index", tmp_path / "link"
    target.parent.mkdir()
    _ours(target)
    link.symlink_to(target)
    for text in ("first", "second"):
        with publishing(link, NAMES, JOB) as folder:
            assert folder.parent == target.parent
            (folder / "content").write_text(text)
        assert link.is_symlink()
        assert (target / "content").read_text() == text
    assert names(tmp_path) == ["disk", "link"]
    assert names(target.parent) == ["index"]


@pytest.mark.parametrize(
    "files",
    [
        {"thesis.txt": "precious"},
        {"content": "precious"},
        {"content": "precious", "job.json": "{}"},
        {"content": "precious", "job.json": None, "notes": "precious"},
        {"content": "precious", "job.json": None, ".hidden": "precious"},
    ],
)
def test_a_folder_that_is_not_all_ours_is_refused(tmp_path, files):
    """Also one under our names, and one of ours to which somebody added a file."""
    path = tmp_path / "folder"
    path.mkdir()
    for name, text in files.items():
        write_json(path / name, JOB.record()) if text is None else (path / name).write_text(text)
    before = {each.name: each.read_bytes() for each in path.iterdir()}
    with pytest.raises(InputError, match="so it is not replaced"):
        enter(path)
    assert {each.name: each.read_bytes() for each in path.iterdir()} == before


@pytest.mark.parametrize(
    "added", ["store/notes.txt", "store/deep/down/notes.txt", "store/folder/", "store/a.bin"]
)
def test_row_47_a_users_file_is_found_anywhere_inside(tmp_path, added):
    path, patterns = tmp_path / "folder", ("content", "store/*.json", "store/rows/c.*.0")
    _ours(path)
    (path / "store" / "rows").mkdir(parents=True)
    (path / "store" / "rows" / "c.11.0").touch()
    (path / "store" / "store.json").touch()
    refuse_foreign(path, patterns)
    (path / added).parent.mkdir(parents=True, exist_ok=True)
    (path / added).mkdir() if added.endswith("/") else (path / added).write_text("precious")
    with pytest.raises(InputError, match=r"holds store/.*so it is not replaced"):
        refuse_foreign(path, patterns)


@pytest.mark.parametrize("name", ["my-notes.parquet", "1.parquet", "2026-notes.parquet"])
def test_row_47_no_file_in_a_report_passes_for_evidence(tmp_path, name):
    path = tmp_path / "report"
    _ours(path)
    (path / "content").unlink()
    (path / "evidence").mkdir()
    written = ("00000000", "00000012", "00000012.images", "seen", "regions")
    for each in written:
        (path / "evidence" / f"{each}.parquet").touch()
    refuse_foreign(path, REPORT_FILES)
    (path / "evidence" / name).write_text("precious")
    with pytest.raises(InputError, match=f"holds evidence/{name}, so it is not replaced"):
        refuse_foreign(path, REPORT_FILES)


def test_what_is_added_while_the_folder_is_made_is_not_lost(tmp_path):
    path = tmp_path / "folder"
    _ours(path)
    with pytest.raises(InputError, match="holds thesis"), publishing(path, NAMES, JOB):
        (path / "thesis.txt").write_text("precious")
    assert names(path) == ["content", "job.json", "thesis.txt"]


def test_a_mount_point_is_refused_at_once(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "folder")
    with pytest.raises(InputError, match="is a mount point"):
        enter(tmp_path / "folder")


def test_what_was_begun_and_is_damaged_is_cleared(tmp_path):
    fail(tmp_path / "folder", error=Damaged)
    assert names(tmp_path) == []


def test_a_file_where_a_folder_goes_is_refused(tmp_path):
    (tmp_path / "folder").write_text("precious")
    with pytest.raises(InputError, match="is a file, and a folder is to be written"):
        enter(tmp_path / "folder")
    assert (tmp_path / "folder").read_text() == "precious"


@pytest.mark.parametrize("name", [".folder.partial", ".folder.old", ".folder.lock"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_link_that_was_planted_is_refused_and_what_it_leads_to_is_intact(tmp_path, name, whole):
    """As another user may do who can write to the folder beside."""
    victim = tmp_path / "victim"
    if name.endswith("lock"):
        victim.write_text("precious")
    else:
        _ours(victim, "precious")
        if whole:
            write_json(victim / "job.json", JOB.record())
    (tmp_path / name).symlink_to(victim)
    with pytest.raises(InputError, match=r"is a link.* Remove it"):
        enter(tmp_path / "folder")
    content = victim if victim.is_file() else victim / "content"
    assert content.read_text() == "precious"


def test_a_second_name_of_a_file_is_no_lock(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.link(victim, tmp_path / ".folder.lock")
    with pytest.raises(InputError, match="is a second name of another file"):
        enter(tmp_path / "folder")
    assert victim.read_text() == "precious"


def test_row_31_a_writer_who_is_another_user_holds_the_lock(tmp_path, holder, monkeypatch):
    us = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: us + 1)
    with pytest.raises(Busy, match=f"is being written by process {holder.pid}"):
        enter(tmp_path / "folder")


@pytest.mark.parametrize("name", [".folder.partial", ".folder.old"])
def test_a_folder_of_another_user_is_not_gone_on_with(tmp_path, name, monkeypatch):
    """One that is there as a killed run leaves it: it would be filled under the other's eyes."""
    _ours(tmp_path / name)
    write_json(tmp_path / name / "job.json", JOB.record())
    us = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: us + 1)
    with pytest.raises(InputError, match=f"is of user {us}, and this is where a run keeps"):
        enter(tmp_path / "folder")
    assert names(tmp_path) == [name]
