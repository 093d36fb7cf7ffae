"""Files that are whole or absent, and names that are safe to show."""

import hashlib
import io
import os
import re
import stat

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deepssim_scan.errors import Damaged
from deepssim_scan.storage import files
from deepssim_scan.storage.files import (
    copy,
    flush,
    link,
    make_folder,
    make_private,
    replacing,
    sha256,
    shown,
)


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


# One file.


@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_is_replaced_once_it_is_whole(tmp_path, before):
    path = tmp_path / "file"
    if before:
        path.write_text(before)
    with replacing(path) as file:
        file.write(b"ne")
        file.write(b"w")
        assert (path.read_text() if before else path.exists()) == (before or False)
        assert file.sha256 == hashlib.sha256(b"new").hexdigest()
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_row_38_a_file_is_private_from_its_first_byte(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    assert mode(path) == 0o666
    with replacing(path) as file:
        assert [mode(each) for each in tmp_path.iterdir() if each != path] == [0o600]
        file.write(b"new")
    assert mode(path) == 0o600


def test_row_29_a_failed_write_keeps_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(Failed), replacing(path) as file:
        file.write(b"ne")
        raise Failed
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_row_33_bytes_that_the_disk_lost_are_noticed(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.ftruncate(descriptor, 2))
    with pytest.raises(Damaged, match="was written"), replacing(path) as file:
        file.write(b"whole")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_row_30_what_a_killed_run_left_is_no_obstacle(tmp_path):
    path, other = tmp_path / "file", tmp_path / "other"
    other.write_text("a stranger's")
    (tmp_path / ".file.partial").symlink_to(other)
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"
    assert not path.is_symlink()
    assert other.read_text() == "a stranger's"


def test_text_and_copies_go_the_same_way(tmp_path):
    with replacing(tmp_path / "a") as file, io.TextIOWrapper(file, "utf-8") as text:
        text.write("Größe")
    copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == "Größe".encode()
    assert mode(tmp_path / "b") == 0o600


def test_the_names_of_new_folders_are_flushed(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(files, "flush", flushed.append)
    for _ in range(2):
        make_folder(tmp_path / "a" / "b", 0o700)
    assert flushed == [tmp_path, tmp_path / "a"]
    assert mode(tmp_path / "a" / "b") == 0o700


def test_row_38_a_folder_is_made_private(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").touch()
    make_private(tmp_path / "a")
    assert (mode(tmp_path / "a"), mode(tmp_path / "a" / "b")) == (0o700, 0o600)
    flush(tmp_path / "a")


def test_sha256_is_that_of_the_bytes(tmp_path):
    data = os.urandom(300_000)
    (tmp_path / "file").write_bytes(data)
    assert sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


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


@pytest.mark.parametrize("linked", [True, False])
def test_a_folder_is_linked_or_copied(tmp_path, monkeypatch, linked):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "x").write_bytes(b"content")
    if not linked:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "no links")))
    link(tmp_path / "a", tmp_path / "b")
    made = tmp_path / "b" / "deep" / "x"
    assert made.read_bytes() == b"content"
    assert made.samefile(tmp_path / "a" / "deep" / "x") == linked
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    (tmp_path / "a" / "deep" / "x").unlink()
    assert made.read_bytes() == b"content"
