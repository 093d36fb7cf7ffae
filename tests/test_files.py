"""Files that are whole or absent, and names that are safe to show."""

import hashlib
import json
import os
import re
import stat
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deepssim_scan.errors import InputError
from deepssim_scan.files import replacing, replacing_folder, sha256, shown, write_json


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
    with replacing_folder(folder, "marker"):
        raise AssertionError("the block ran")


def _ours(folder, text="old"):
    folder.mkdir()
    (folder / "marker").write_text("")
    (folder / "content").write_text(text)


# One file.


@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_is_replaced_once_it_is_whole(tmp_path, before):
    path = tmp_path / "file"
    if before:
        path.write_text(before)
    with replacing(path) as partial:
        assert partial.parent == tmp_path
        partial.write_text("new")
        assert (path.read_text() if before else path.exists()) == (before or False)
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_row_38_a_file_is_private_from_its_first_byte(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    assert mode(path) == 0o666
    with replacing(path) as partial, partial.open("w") as file:
        assert mode(partial) == 0o600
        file.write("new")
    assert mode(path) == 0o600
    with replacing(path) as partial:  # a writer that makes the file anew
        partial.unlink()
        partial.write_text("newer")
    assert mode(path) == 0o600


def test_row_29_a_failed_write_keeps_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(Failed), replacing(path) as partial:
        partial.write_text("ne")
        raise Failed
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_row_30_what_a_killed_run_left_is_no_obstacle(tmp_path):
    path, other = tmp_path / "file", tmp_path / "other"
    other.write_text("a stranger's")
    with replacing(path) as partial:
        name = partial
        partial.write_text("new")
    name.symlink_to(other)
    with replacing(path) as partial:
        partial.write_text("newer")
    assert path.read_text() == "newer"
    assert not path.is_symlink()
    assert other.read_text() == "a stranger's"


def test_json_is_private_and_reads_back(tmp_path):
    value = {"b": [1, 2.5, None], "a": "Größe"}
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == value
    assert mode(tmp_path / "x.json") == 0o600


def test_sha256_is_that_of_the_bytes(tmp_path):
    data = os.urandom(300_000)
    (tmp_path / "file").write_bytes(data)
    assert sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


# A folder.


@pytest.mark.parametrize("before", ["absent", "empty", "ours"])
def test_a_folder_is_replaced_whole(tmp_path, before):
    path = tmp_path / "folder"
    if before == "empty":
        path.mkdir()
    if before == "ours":
        _ours(path)
        (path / "left over").write_text("")
    with replacing_folder(path, "marker") as folder:
        assert not list(folder.iterdir())
        assert mode(folder) == 0o700
        (folder / "content").write_text("new")
        if before == "ours":
            assert (path / "content").read_text() == "old"
    assert names(path) == ["content"]
    assert mode(path) == 0o700
    assert names(tmp_path) == ["folder"]


def test_a_folder_deep_down_is_made(tmp_path):
    path = tmp_path / "a" / "b"
    with replacing_folder(path, "marker") as folder:
        (folder / "content").write_text("new")
    assert (path / "content").read_text() == "new"


def test_row_29_a_failed_folder_keeps_what_was_there(tmp_path):
    _ours(tmp_path / "folder")
    with pytest.raises(Failed), replacing_folder(tmp_path / "folder", "marker") as folder:
        (folder / "content").write_text("ne")
        raise Failed
    assert (tmp_path / "folder" / "content").read_text() == "old"
    assert names(tmp_path) == ["folder"]


def test_row_29_a_failed_rename_brings_the_old_folder_back(tmp_path, monkeypatch):
    _ours(tmp_path / "folder")
    replace = Path.replace

    def failing(path, target):
        if path.name.endswith(".partial"):
            raise OSError("no space left")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", failing)
    with (
        pytest.raises(OSError, match="no space"),
        replacing_folder(tmp_path / "folder", "marker") as folder,
    ):
        (folder / "content").write_text("new")
    assert (tmp_path / "folder" / "content").read_text() == "old"
    assert names(tmp_path) == ["folder"]


def test_row_30_a_run_killed_between_its_renames_has_lost_nothing(tmp_path):
    path = tmp_path / "folder"
    _ours(tmp_path / ".folder.old")
    with pytest.raises(Failed), replacing_folder(path, "marker"):
        raise Failed
    assert (path / "content").read_text() == "old"
    assert names(tmp_path) == ["folder"]


def test_row_30_a_killed_runs_leftovers_are_removed(tmp_path):
    for name in ("folder", ".folder.old", ".folder.partial"):
        _ours(tmp_path / name, name)
    with replacing_folder(tmp_path / "folder", "marker") as folder:
        assert not list(folder.iterdir())
    assert names(tmp_path) == ["folder"]


def test_a_link_to_a_folder_is_followed(tmp_path):
    target, link = tmp_path / "disk" / "index", tmp_path / "link"
    target.parent.mkdir()
    _ours(target)
    link.symlink_to(target)
    for text in ("first", "second"):
        with replacing_folder(link, "marker") as folder:
            assert folder.parent == target.parent
            (folder / "content").write_text(text)
            (folder / "marker").write_text("")
        assert link.is_symlink()
        assert (target / "content").read_text() == text
    assert names(tmp_path) == ["disk", "link"]
    assert names(target.parent) == ["index"]


def test_a_strangers_folder_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="holds other files and no marker"):
        enter(tmp_path / "folder")
    assert (tmp_path / "folder" / "thesis.txt").read_text() == "precious"


def test_a_file_where_a_folder_goes_is_refused(tmp_path):
    (tmp_path / "folder").write_text("precious")
    with pytest.raises(InputError, match="is a file, and a folder is to be written"):
        enter(tmp_path / "folder")
    assert (tmp_path / "folder").read_text() == "precious"


# Names.

ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|([\\nrt]))", re.DOTALL)
SHORT = {b"\\": b"\\", b"n": b"\n", b"r": b"\r", b"t": b"\t"}


def undo(text):
    """Give the bytes of a name from how it is shown."""

    def one(match):
        byte, short, long, letter = match.groups()
        if byte:
            return bytes([int(byte, 16)])
        return SHORT[letter] if letter else chr(int(short or long, 16)).encode()

    return ESCAPE.sub(one, text.encode().removeprefix(b"./"))


@given(st.binary(min_size=1, max_size=30).filter(lambda name: not name.startswith(b"./")))
@example("\x81".encode())
@example(b"\x81")
@example(b"\\x81")
@example("\u00a0\u2028\U000e0001".encode())
@example(b"\xed\xb2\x80")  # a surrogate, encoded
def test_row_25_a_name_is_shown_safely_and_can_be_undone(name):
    text = shown(os.fsdecode(name))
    assert text.isprintable()
    assert not text.startswith(("=", "+", "-", "@"))
    assert text.encode()  # has no surrogate
    assert undo(text) == name


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=30))
def test_row_25_printable_names_stay_readable(name):
    text = shown(name)
    assert text.removeprefix("./") == name.removeprefix("./").replace("\\", "\\\\")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain/scan.png", "plain/scan.png"),
        ("=cmd|' /C calc'!A0", "./=cmd|' /C calc'!A0"),
        ("@SUM(A1)", "./@SUM(A1)"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("two\nlines", r"two\nlines"),
        ("a\\b", r"a\\b"),
        (os.fsdecode(b"\xff.png"), r"\xff.png"),
        ("\x85.png", r"\u0085.png"),
        ("evil\u202egnp.exe", r"evil\u202egnp.exe"),
    ],
)
def test_row_25_names(name, text):
    assert shown(name) == text
