"""Each test is named after its row in the table of bad inputs, where it has one.

Real folders, links, FIFOs, sockets, archives. What a file holds is decided by PNG bytes or by
bytes that begin like a format; nothing is decoded here.
"""

import bz2
import csv
import gzip
import io
import lzma
import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deepssim_scan.errors import InputError, InputMissing
from deepssim_scan.ingest.archives import read_member
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.config.limits import Limits
from deepssim_scan.ingest.config.selection import Selection
from deepssim_scan.ingest.listing import list_images
from deepssim_scan.ingest.listing.formats import CONTAINERS, FOREIGN, PACKED, SUFFIXES
from deepssim_scan.ingest.rejection import REASONS
from deepssim_scan.storage.records import write_json

NOISE = np.random.default_rng(7).integers(0, 256, (9, 7)).astype(np.uint8)
HERE = RunContext("cpu", workers=0)


def list_here(folder, selection=Selection()):
    """List a folder in this process, its archives too."""
    return list_images(folder, selection, HERE)


def saved(form):
    stream = io.BytesIO()
    Image.fromarray(NOISE).save(stream, form)
    return stream.getvalue()


PNG = saved("PNG")


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def fill(folder, *names, data=PNG):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def zipped(content, method=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return stream.getvalue()


def tarred(content, *extra):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in extra:
            archive.addfile(info)
    return stream.getvalue()


def why(items):
    return {
        (item.path, item.member) if item.member else item.path: item.rejection
        and item.rejection.reason
        for item in items
    }


def listed(folder, *include, manifest=None):
    return why(list_here(folder, Selection(include, manifest)).files)


def manifest(folder, text):
    data = text if isinstance(text, bytes) else os.fsencode(text)
    (folder / ".list.csv").write_bytes(data)
    return folder / ".list.csv"


def test_row_19_links_that_leave_the_folder(tmp_path):
    folder = tmp_path / "in"
    fill(tmp_path, "in/a.png", "in/sub/b.png", "out/c.png", "in-beside/d.png", "out/IM1")
    (folder / "leaves.png").symlink_to(tmp_path / "out/c.png")
    (folder / "beside.png").symlink_to("../in-beside/d.png")
    (folder / "stays.png").symlink_to("sub/b.png")
    (folder / "leaving").symlink_to(tmp_path / "out")
    (folder / "staying").symlink_to("sub")
    (folder / "nothing.png").symlink_to("absent.png")
    (folder / "IM1").symlink_to(tmp_path / "out/IM1")  # cannot be looked into: may be an image
    (folder / ".hidden").symlink_to(tmp_path / "out")
    assert listed(folder) == {
        "a.png": None,
        "sub/b.png": None,
        "stays.png": None,
        "leaves.png": "outside-folder",
        "beside.png": "outside-folder",
        "leaving": "outside-folder",
        "IM1": "outside-folder",
        "nothing.png": "vanished",
    }
    assert list_here(folder).ignored == 2  # "staying" and ".hidden"
    assert listed(folder, "*.png") == {
        "a.png": None,
        "stays.png": None,
        "leaves.png": "outside-folder",
        "beside.png": "outside-folder",
        "leaving": "outside-folder",
        "nothing.png": "vanished",
    }


def test_row_19_the_folder_itself_may_be_a_link(tmp_path):
    fill(tmp_path, "real/a.png")
    (tmp_path / "link").symlink_to("real")
    assert listed(tmp_path / "link") == {"a.png": None}


def test_row_19_a_link_to_a_hidden_folder_is_not_passed_over(tmp_path):
    fill(tmp_path, "a.png", ".versions/12/b.png", "sub/.old/c.png", "sub/d.png")
    (tmp_path / "current").symlink_to(".versions/12")
    (tmp_path / "sub" / "old").symlink_to(".old")
    (tmp_path / "again").symlink_to("current")
    (tmp_path / "shown").symlink_to("sub")
    (tmp_path / "here").symlink_to(".")
    (tmp_path / "one.png").symlink_to(".versions/12/b.png")  # a link to a file is a file
    (tmp_path / ".latest").symlink_to(".versions/12")
    expected = {"a.png": None, "sub/d.png": None, "one.png": None}
    links = dict.fromkeys(["current", "sub/old", "again"], "outside-folder")
    assert listed(tmp_path) == expected | links
    without = list_here(tmp_path, Selection(exclude=("current", "again", "**/old")))
    assert why(without.files) == expected


OURS = {
    "index": ("index.json", "flat.faiss", "rejected.csv", "store/store.json"),
    "report": ("summary.json", "distribution.png", "evidence/00000000.parquet"),
}


@pytest.mark.parametrize("kind", OURS)
def test_images_beside_an_index_or_a_report_of_ours_are_listed(tmp_path, kind):
    fill(tmp_path, "a.png", *(f"run/{name}" for name in OURS[kind]))
    write_json(tmp_path / "run" / "job.json", {"command": "x"})
    fill(tmp_path, "run/store/embeddings.zarr/zarr.json", "run/store/embeddings.zarr/c.0.0")
    if kind == "report":
        (tmp_path / "run" / "store").rename(tmp_path / "run" / "synthetic")
    listing = list_here(tmp_path)
    assert (why(listing.files), listing.ignored) == ({"a.png": None}, 1)
    others = ["run/x.png", "run/more/y.png", "run/more/.h.png", "run/x.h5", "run/notes.txt"]
    inner = "store" if kind == "index" else "synthetic"
    fill(tmp_path, *others, f"run/{inner}/z.png", data=b"text")
    fill(tmp_path, "run/x.png", "run/more/y.png", f"run/{inner}/z.png")
    listing = list_here(tmp_path)
    images = dict.fromkeys(["a.png", "run/x.png", "run/more/y.png", f"run/{inner}/z.png"])
    assert why(listing.files) == images | {"run/x.h5": "unsupported"}
    assert listing.ignored == 3  # what is ours, .h.png, notes.txt
    listing = list_here(tmp_path, Selection(("run/*.png",)))
    assert why(listing.files) == {"run/x.png": None}


def test_what_marks_a_folder_may_be_a_link(tmp_path):
    """As in a data set of DataLad or DVC, whose files are links."""
    fill(tmp_path, "a.png", "kept/array", "run/distribution.png", "array/c/0/0")
    write_json(tmp_path / "kept" / "job", {"command": "x"})
    links = {"run/job.json": "job", "run/summary.json": "job", "array/zarr.json": "array"}
    for link, target in links.items():
        (tmp_path / link).symlink_to(f"../kept/{target}")
    found = why(list_here(tmp_path, Selection(exclude=("kept/*",))).files)
    assert found == {"a.png": None, "array": "unsupported"}


def test_a_folder_of_ours_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    fill(tmp_path, "a.png", *(f"run/{name}" for name in OURS["report"]))
    write_json(tmp_path / "run" / "job.json", {"command": "x"})
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "evidence":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert listed(tmp_path) == {"a.png": None, "run/evidence": "unreadable"}


def test_row_20_link_loops_end(tmp_path):
    fill(tmp_path, "a.png")
    (tmp_path / "up").symlink_to(".")
    (tmp_path / "self.png").symlink_to("self.png")
    assert listed(tmp_path) == {"a.png": None, "self.png": "unreadable"}


def test_row_21_fifo_socket_and_folder(tmp_path, monkeypatch):
    fill(tmp_path, "a.png", "folder.png/b.png", "DICOMDIR/c.png")
    os.mkfifo(tmp_path / "fifo.png")
    os.mkfifo(tmp_path / "fifo")  # by its name no image, and it holds none
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.zip")
        assert listed(tmp_path) == {
            "a.png": None,
            "DICOMDIR/c.png": None,
            "folder.png/b.png": None,
            "fifo.png": "not-a-file",
            "socket.zip": "not-a-file",
        }
        assert list_here(tmp_path).ignored == 1
        names = manifest(tmp_path, "path\nfifo.png\nsocket.zip\nfolder.png\nfifo\n")
        assert set(listed(tmp_path, manifest=names).values()) == {"not-a-file"}


def test_row_21_a_device_is_not_opened(tmp_path, monkeypatch):
    names = manifest(tmp_path, "path\nzero\nnull\n")
    opened = os.open

    def watch(path, flags, *options):
        assert not os.fspath(path).startswith("/dev/")
        return opened(path, flags, *options)

    monkeypatch.setattr(os, "open", watch)
    assert listed(Path("/dev"), manifest=names) == {"null": "not-a-file", "zero": "not-a-file"}


def test_row_22_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    fill(tmp_path, "a.png", "closed/b.png")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert listed(tmp_path) == {"a.png": None, "closed": "unreadable"}
    with pytest.raises(InputError, match="Permission denied"):
        list_here(tmp_path / "closed")


def test_row_22_a_folder_that_cannot_be_looked_at_is_named(tmp_path):
    folder = tmp_path / ("n" * 300)  # the system refuses it, as it does a mount that is gone
    with pytest.raises(InputError, match="n: cannot be listed: File name too long"):
        list_images(folder)


def test_row_22_a_file_that_cannot_be_looked_into_is_not_passed_over(tmp_path, monkeypatch):
    fill(tmp_path, "a.png", "IM1", "notes.txt")
    opened = os.open

    def refuse(path, flags, *options):
        if Path(path).name == "IM1":
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, *options)

    monkeypatch.setattr(os, "open", refuse)
    assert listed(tmp_path) == {"a.png": None, "IM1": "unreadable", "notes.txt": None}
    fill(tmp_path, "notes.txt", data=b"text")
    assert listed(tmp_path) == {"a.png": None, "IM1": "unreadable"}


def test_row_24_one_name_in_two_folders_and_two_archives(tmp_path):
    fill(tmp_path, "b/image.png", "a/image.png")
    for name in ("b.zip", "a.zip"):
        fill(tmp_path, name, data=zipped({"image.png": PNG}))
    files = [(item.path, item.member) for item in list_here(tmp_path).files]
    assert files == [
        ("a.zip", "image.png"),
        ("a/image.png", ""),
        ("b.zip", "image.png"),
        ("b/image.png", ""),
    ]


ODD = [b"=cmd", b"@x", b"<script>", b"\x1b[31m", b"new\nline", b"\xff not utf-8", b'"', b"a,b"]
ODD += ["\N{GRINNING FACE}".encode(), b"b" * 251]  # before 0xff in bytes, after it as a string


def test_row_25_any_name(tmp_path):
    for name in ODD:
        (tmp_path / os.fsdecode(name + b".png")).write_bytes(PNG)
    expected = sorted(name + b".png" for name in ODD)
    assert [os.fsencode(item.path) for item in list_here(tmp_path).files] == expected
    text = io.StringIO()
    csv.writer(text).writerows([["path"], *([os.fsdecode(name)] for name in reversed(expected))])
    files = list_here(tmp_path, Selection(manifest=manifest(tmp_path, text.getvalue()))).files
    assert [os.fsencode(item.path) for item in files] == expected
    assert not any(item.rejection for item in files)


def test_row_25_any_name_of_a_member(tmp_path):
    names = sorted(name + b".png" for name in ODD)
    fill(tmp_path, "a.tar", data=tarred({os.fsdecode(name): PNG for name in reversed(names)}))
    files = list_here(tmp_path).files
    assert [os.fsencode(item.member) for item in files] == names
    assert {item.path for item in files} == {"a.tar"}


def test_row_26_nothing_to_read(tmp_path):
    with pytest.raises(InputMissing, match="no such folder"):
        list_here(tmp_path / "absent")
    with pytest.raises(InputError, match=r"no image to read \(0 other"):
        list_here(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"no image to read \(1 other.*--include"):
        list_here(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        list_here(tmp_path / "notes.txt")
    fill(tmp_path, "a.png")
    with pytest.raises(InputError, match=r"no image to read \(2 other"):
        list_here(tmp_path, Selection(("*.tif",)))
    fill(tmp_path, "a.png", data=b"no image")
    (tmp_path / "a.png").rename(tmp_path / "a")
    fill(tmp_path, "a.zip", data=zipped({"notes.txt": b"x", "more.txt": b"y"}))
    fill(tmp_path, "b.zip", data=zipped({}))
    with pytest.raises(InputError, match=r"no image to read \(5 other"):
        list_here(tmp_path)


def test_what_is_listed_and_what_is_counted(tmp_path):
    names = ["A.PNG", "b.JPeG", "c.tif", "d.npy", "e.nii", "f.nii.gz", "g.tiff", "h.jpg"]
    names += ["i.gif", "j.npz", "k.dcm", "l.DICOM", "m.ima", "B/a.png"]
    fill(tmp_path, *names)
    fill(tmp_path, "x.gz", "png", "y.txt", data=b"text")
    fill(tmp_path, ".h.png", ".hidden/z.png", ".hidden/more.png", "DICOMDIR", "B/DICOMDIR")
    listing = list_here(tmp_path)
    assert [item.path for item in listing.files] == sorted(names)
    assert listing.ignored == 7


@pytest.mark.parametrize("suffix", [*FOREIGN, *PACKED])
def test_images_and_archives_that_are_not_read_are_not_passed_over(tmp_path, suffix):
    fill(tmp_path, "a.png", "B" + suffix.upper(), data=b"x")
    expected = "unknown-format" if suffix in PACKED else None  # the decoder says so otherwise
    assert listed(tmp_path) == {"a.png": None, "B" + suffix.upper(): expected}


def compressed():
    """A tar compressed in other ways, or the first bytes of one, as each format says them."""
    tar = tarred({"x.png": PNG})
    names = ("s.tbz", "s.tb2", "s.tzst", "s.tlz", "s.taz", "s.tar.lzma", "s.tar.lz4", "s.tar.lz")
    yield from ((name, b"x") for name in (*names, "s.tar.br", "s.tar.zst", "x.png.lz4"))
    yield from ((name, b"x") for name in ("x.zip.001", "x.zip.002", "x.7z.001", "x.TAR.001"))
    yield from (("samples", bz2.compress(tar, level)) for level in (1, 9))
    yield "samples", lzma.compress(tar)
    for magic in (0xFD2FB528, 0x184D2204):  # RFC 8878, LZ4 frame format 1.6
        yield "samples", struct.pack("<I", magic) + tar
    yield "samples", b"LZIP\1" + tar
    yield "samples", b"7z\xbc\xaf\x27\x1c" + tar
    yield "samples", b"Rar!\x1a\x07\1\0" + tar


@pytest.mark.parametrize(("name", "data"), list(compressed()))
def test_row_06_compressed_archives_are_not_passed_over(tmp_path, name, data):
    fill(tmp_path, "a.png", "IM.001")  # the second is an image
    fill(tmp_path, name, data=data)
    fill(tmp_path, "z.tar", data=tarred({name: data}))
    assert listed(tmp_path) == {
        "a.png": None,
        "IM.001": None,
        name: "unknown-format",
        ("z.tar", name): "unknown-format",
    }


def looks():
    nifti = [
        kind(NOISE, np.eye(4)).to_bytes() for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image)
    ]
    big = nibabel.Nifti1Header(endianness=">")
    big.set_data_dtype(np.int16)
    nifti.append(nibabel.Nifti1Image(NOISE.astype(">i2"), np.eye(4), big).to_bytes())
    formats = [saved(form) for form in ("PNG", "JPEG", "TIFF", "GIF")]
    return [*formats, npy(NOISE), *nifti, bytes(128) + b"DICM" + bytes(300)]


@pytest.mark.parametrize("data", looks())
@pytest.mark.parametrize("name", ["IM000001", "1.2.840.113", "scan.DAT", "sub/ä"])
def test_files_of_other_names_are_told_by_their_first_bytes(tmp_path, data, name):
    fill(tmp_path, name, data=data)
    fill(tmp_path, "z.zip", data=zipped({name: data}))
    fill(tmp_path, "z.tar", data=tarred({name: data}))
    fill(tmp_path, "shard-0", data=tarred({name: data}))
    expected = {name: None, ("shard-0", name): None, ("z.tar", name): None, ("z.zip", name): None}
    assert listed(tmp_path) == expected


def unread():
    grey = Image.open(io.BytesIO(PNG)).convert("L")
    for form in ("BMP", "WEBP", "PPM", "JPEG2000"):
        stream = io.BytesIO()
        grey.save(stream, form)
        yield stream.getvalue()
    explicit = b"\x08\0\x08\0CS" + bytes(400)  # DICOM from its first element on
    yield from (
        explicit,
        b"\2\0\0\0UL" + bytes(400),
        gzip.compress(explicit, mtime=0),
        gzip.compress(PNG, mtime=0),
    )


@pytest.mark.parametrize("data", list(unread()))
def test_formats_that_are_not_read_are_not_passed_over_whatever_their_names(tmp_path, data):
    fill(tmp_path, "a.png")
    fill(tmp_path, "IM0001", "scan.raw", data=data)
    assert listed(tmp_path) == {"a.png": None, "IM0001": None, "scan.raw": None}


@pytest.mark.parametrize("name", ["x.png.gz", "x.dcm.bz2", "x.nii.xz", "x.tif.zst", "x.npy.z"])
def test_an_image_compressed_once_more_is_rejected(tmp_path, name):
    fill(tmp_path, "a.png", name, "table.csv.gz")
    assert listed(tmp_path) == {"a.png": None, name: "unknown-format", "table.csv.gz": None}


def test_files_of_other_names_that_are_nothing_are_counted(tmp_path):
    fill(tmp_path, "a.png")
    for number, data in enumerate(
        [b"", b"x", b"text" * 200, zipped({"a.png": PNG}), b"\x1f\x8bgz"]
    ):
        fill(tmp_path, f"{number}.docx", data=data)
    fill(
        tmp_path, "c.zip", data=zipped({"b.png": PNG, "1.txt": b"text", "2": b"", "3": zipped({})})
    )
    listing = list_here(tmp_path)
    assert why(listing.files) == {"a.png": None, ("c.zip", "b.png"): None}
    assert listing.ignored == 5 + 3


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("*.png", ["a.png"]),
        ("**/*.png", ["1/gen-0.png", "1/training.png", "2/training.png", "a.png", "x/y/a.png"]),
        ("*/training.png", ["1/training.png", "2/training.png"]),
        ("[!1]/training.png", ["2/training.png"]),
        ("x/**", ["x/b.raw", "x/y/a.png"]),
        ("**/*.raw", ["x/b.raw"]),
        ("?/gen-?.png", ["1/gen-0.png"]),
        ("**/y/**/a.png", ["x/y/a.png"]),
        ("A.png", []),
        ("DICOMDIR", []),
    ],
)
def test_include_patterns(tmp_path, pattern, paths):
    fill(tmp_path, "a.png", "1/training.png", "1/gen-0.png", "2/training.png", ".h/training.png")
    fill(tmp_path, "x/b.raw", "x/y/a.png", "keep.txt", "DICOMDIR", "looks-like-one")
    listing = list_here(tmp_path, Selection((pattern, "keep.txt")))
    assert [item.path for item in listing.files] == sorted([*paths, "keep.txt"])
    assert listing.ignored == 10 - len(listing.files)


def test_include_chooses_archives_and_not_their_members(tmp_path):
    fill(tmp_path, "a.zip", "b.zip", data=zipped({"x.png": PNG, "y.txt": b"text"}))
    listing = list_here(tmp_path, Selection(("a.*",)))
    assert why(listing.files) == {("a.zip", "x.png"): None}
    assert listing.ignored == 2


@pytest.mark.parametrize("pattern", ["", "/a.png", "../*.png", "a//b", "./a.png", "a/"])
def test_patterns_that_could_not_match(pattern):
    for option in ("include", "exclude"):
        with pytest.raises(InputError, match=f"{option} pattern"):
            Selection(**{option: (pattern,)})


@pytest.mark.parametrize(
    ("selection", "paths", "ignored", "excluded"),
    [
        ({}, ["a.png", "a/b.png", "a/c/b.png", "m.zip", "x.h5"], 1, 0),
        ({"exclude": ("*.png",)}, ["a/b.png", "a/c/b.png", "m.zip", "x.h5"], 1, 1),
        ({"exclude": ("**/b.png", "*.h5")}, ["a.png", "m.zip"], 1, 3),
        ({"exclude": ("a/**", "note.txt")}, ["a.png", "m.zip", "x.h5"], 0, 3),
        ({"exclude": ("a",)}, ["a.png", "a/b.png", "a/c/b.png", "m.zip", "x.h5"], 1, 0),
        ({"exclude": ("*.zip",)}, ["a.png", "a/b.png", "a/c/b.png", "x.h5"], 1, 1),
        (
            {"exclude": ("m.zip/*", "1.png")},
            ["a.png", "a/b.png", "a/c/b.png", "m.zip", "x.h5"],
            1,
            0,
        ),
        ({"include": ("a/**",), "exclude": ("*/b.png",)}, ["a/c/b.png"], 4, 1),
    ],
)
def test_row_45_exclude_patterns(tmp_path, selection, paths, ignored, excluded):
    fill(tmp_path, "a.png", "a/b.png", "a/c/b.png", ".hidden.png")
    fill(tmp_path, "note.txt", data=b"text")
    fill(tmp_path, "x.h5", data=b"\x89HDF\r\n\x1a\n")
    fill(tmp_path, "m.zip", data=zipped({"1.png": PNG}))
    (tmp_path / ".hidden.png").unlink()
    listing = list_here(tmp_path, Selection(**selection))
    assert [item.path for item in listing.files] == paths
    assert (listing.ignored, listing.excluded) == (ignored, excluded)


def test_row_45_a_manifests_rows_and_links_can_be_excluded(tmp_path):
    fill(tmp_path, "a.png", "b.png")
    (tmp_path / "out.png").symlink_to("/")
    listing = list_here(tmp_path, Selection(exclude=("out.png",)))
    assert ([item.path for item in listing.files], listing.excluded) == (["a.png", "b.png"], 1)
    names = manifest(tmp_path, "path\na.png\nb.png\nabsent.png\n")
    listing = list_here(tmp_path, Selection(manifest=names, exclude=("a*",)))
    assert (why(listing.files), listing.excluded) == ({"b.png": None}, 2)
    with pytest.raises(InputError, match=r"no image to read \(0 other files, 3 excluded"):
        list_here(tmp_path, Selection(manifest=names, exclude=("*",)))


@pytest.mark.parametrize("suffix", [*CONTAINERS, ".tfrecord-00000-of-00010", ".pkl.gz", ".mat.xz"])
def test_row_45_containers_are_rejected_by_their_name(tmp_path, suffix):
    name = "B" + suffix.upper()
    fill(tmp_path, "a.png")
    fill(tmp_path, name, data=b"what nobody looks for")
    fill(tmp_path, "z.zip", data=zipped({name: b"", "a.png": PNG}))
    listing = list_here(tmp_path)
    assert why(listing.files) == {
        "a.png": None,
        name: "unsupported",
        ("z.zip", name): "unsupported",
        ("z.zip", "a.png"): None,
    }
    assert listing.ignored == 0
    for detail in {item.rejection.detail for item in listing.files if item.rejection}:
        assert "container that is not read" in detail
        assert "--exclude" in detail
    names = manifest(tmp_path, f"path\n{name}\n")
    assert listed(tmp_path, manifest=names) == {name: "unsupported"}
    assert listed(tmp_path, "B*") == {name: "unsupported"}


def containers():
    yield from (b"\x89HDF\r\n\x1a\n", b"MATLAB 5.0 MAT-file, Platform: GLNXA64", b"PAR1\x15\4")
    yield from (b"ARROW1\0\0", pickle.dumps(NOISE, 4), pickle.dumps([NOISE], 5))
    yield b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41"
    yield b"RIFF\x24\x10\0\0AVI LIST"
    yield b"\x1aE\xdf\xa3\x9fB\x86\x81\1"
    yield b"v/1\1\2\0\0\0channels"
    yield b"NRRD0004\ntype: float\n"
    yield b"ObjectType = Image\nNDims = 3\n"
    yield bytes(16) + b"\xde\xc0\xef\xbe\1\0\0\0"  # LMDB
    yield b"\0\0\x08\3" + struct.pack(">3i", 60000, 28, 28)  # IDX, as MNIST is kept
    yield gzip.compress(b"\0\0\x08\3" + bytes(99), mtime=0)


@pytest.mark.parametrize("data", list(containers()))
@pytest.mark.parametrize("name", ["blob", "train-images-ubyte", "weights.v2"])
def test_row_45_containers_of_other_names_are_told_by_their_first_bytes(tmp_path, data, name):
    fill(tmp_path, "a.png")
    fill(tmp_path, name, data=data)
    fill(tmp_path, "z.tar", data=tarred({name: data, "a.png": PNG}))
    expected = {"a.png": None, name: "unsupported", ("z.tar", "a.png"): None}
    assert listed(tmp_path) == expected | {("z.tar", name): "unsupported"}


@pytest.mark.parametrize("name", ["IM1.raw", "scan.bin", "slice.mat", "1.rec"])
def test_row_45_an_image_under_the_name_of_a_container_is_an_image(tmp_path, name):
    fill(tmp_path, name)
    fill(tmp_path, "z.zip", data=zipped({name: PNG}))
    assert listed(tmp_path) == {name: None, ("z.zip", name): None}


def test_row_45_a_folder_that_is_one_array_is_rejected_once(tmp_path):
    fill(tmp_path, "a.png")
    fill(tmp_path, "old.zarr/.zarray", "old.zarr/0.0", "v2/.zgroup", "v2/x/.zarray", data=b"{}")
    fill(tmp_path, "new/zarr.json", "new/c/0/0", "named.ZARR/0/0", data=b"{}")
    fill(tmp_path, "b.n5/attributes.json", "b.n5/0/0", "other/attributes.json", data=b"{}")
    arrays = ("b.n5", "named.ZARR", "new", "old.zarr", "v2")
    listing = list_here(tmp_path)
    assert why(listing.files) == {"a.png": None} | dict.fromkeys(arrays, "unsupported")
    assert listing.ignored == 1
    listing = list_here(tmp_path, Selection(exclude=("*.[zZn]*", "v2", "new")))
    assert why(listing.files) == {"a.png": None}
    assert listing.excluded == 5


def test_row_45_an_array_in_an_archive_is_not_passed_over(tmp_path):
    store = {"x.zarr/.zgroup": b"{}", "x.zarr/0/.zarray": b"{}", "x.zarr/0/0.0": bytes(99)}
    fill(tmp_path, "folder.zip", data=zipped(store | {"a.png": PNG}))
    fill(tmp_path, "whole.zip", data=zipped({"zarr.json": b"{}", "c/0": bytes(99)}))
    assert listed(tmp_path) == {
        ("folder.zip", "a.png"): None,
        ("folder.zip", "x.zarr"): "unsupported",
        ("folder.zip", "x.zarr/0"): "unsupported",
        "whole.zip": "unsupported",
    }


def with_vast_header(kind):
    """Return the first block of a tar whose header says that it goes on for 900 MB."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, 900 << 20
    return info.tobuf(tarfile.GNU_FORMAT)


def vast_zip():
    """Return a zip, but for the 900 MB of its directory, and the end that says so."""
    size = 900 << 20
    return b"PK\3\4", struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, size, 4, 0)


LIST = """
import resource, sys
from pathlib import Path
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.config.limits import Limits
from deepssim_scan.ingest.listing import list_images

if __name__ == "__main__":
    run = RunContext(limits=Limits(max_memory=int(sys.argv[2])))
    for item in list_images(Path(sys.argv[1]), run=run).files:
        print(item.path, item.rejection and item.rejection.reason)
    print("KiB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def listed_apart(folder, max_memory=Limits().max_memory):
    """List a folder in a process of its own; return the reasons, and its peak memory in MiB."""
    program = folder.parent / "list.py"
    program.write_text(LIST)
    command = [sys.executable, program, folder, str(max_memory)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    *lines, last = run.stdout.splitlines()
    return dict(line.rsplit(" ", 1) for line in lines), int(last.split()[1]) / 1024


@pytest.mark.parametrize("max_memory", [Limits().max_memory, 1 << 28])
def test_row_48_headers_that_need_memory_are_rejected_and_cost_none_here(tmp_path, max_memory):
    """Each file takes a few kilobytes of the disk, and listing it would take 900 MB."""
    plain, folder = tmp_path / "plain/in", tmp_path / "vast/in"
    fill(plain, "a.png")
    fill(folder, "a.png", "z.zip/not-an-archive.png")
    for name, kind in (("pax.tar", tarfile.XHDTYPE), ("global.tar", tarfile.XGLTYPE)):
        fill(folder, name, data=with_vast_header(kind))
    fill(folder, "name.tar", data=with_vast_header(tarfile.GNUTYPE_LONGNAME))
    for path in folder.glob("*.tar"):
        os.truncate(path, 901 << 20)
    start, end = vast_zip()
    with (folder / "directory.zip").open("wb") as file:
        file.write(start)
        file.seek((900 << 20) + 4)
        file.write(end)
    _, before = listed_apart(plain)
    found, after = listed_apart(folder, max_memory)
    small = max_memory < Limits().max_memory
    assert found == {
        "a.png": "None",
        "z.zip/not-an-archive.png": "None",
        "directory.zip": "too-large" if small else "bad-archive",
        **dict.fromkeys(["pax.tar", "global.tar", "name.tar"], "too-large"),
    }
    assert after < before + 20


def test_row_48_an_archive_that_takes_too_long_to_list_is_rejected(tmp_path):
    fill(tmp_path, "a.png")
    fill(tmp_path, "many.tar", data=tarred({f"{n}.png": b"" for n in range(5000)}))
    fill(tmp_path, "one.tar", data=tarred({"a.png": PNG}))
    hurried = RunContext(limits=Limits(max_seconds=0.02))
    assert why(list_images(tmp_path, run=hurried).files)["many.tar"] == "decoder-timeout"
    listing = list_images(tmp_path)
    assert len(listing.files) == 5002
    assert listing == list_here(tmp_path)


def test_row_48_a_folder_without_archives_needs_no_process(tmp_path):
    """A script that may start none, because it does not guard its main module."""
    program = LIST.replace('if __name__ == "__main__":', "if True:")
    (tmp_path / "program.py").write_text(program)
    fill(tmp_path, "in/a.png")
    command = [sys.executable, tmp_path / "program.py", tmp_path / "in", str(1 << 30)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("a.png None\n")


def test_a_folder_deeper_than_the_recursion_limit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    depth = 1050
    for _ in range(depth):  # relative, because the whole path is near the system's limit
        Path("d").mkdir()
        os.chdir("d")
    Path("a.png").write_bytes(PNG)
    try:
        assert listed(tmp_path) == {"d/" * depth + "a.png": None}
    finally:  # pytest's own cleaning is recursive
        Path("a.png").unlink()
        for _ in range(depth):
            os.chdir("..")
            Path("d").rmdir()


def test_items_know_size_time_and_location(tmp_path):
    fill(tmp_path, "a.png", "b.bin")
    content = {"sub/c.png": PNG, "d": npy(NOISE)}
    fill(tmp_path, "e.zip", data=zipped(content))
    fill(tmp_path, "f.tar", data=tarred(content))
    items = list_here(tmp_path).files
    assert len(items) == 6
    for item in items:
        status = (tmp_path / item.path).stat()
        assert (item.size, item.mtime_ns) == (status.st_size, status.st_mtime_ns)
        if item.member:
            with (tmp_path / item.path).open("rb") as file:
                assert read_member(file, item.location) == content[item.member]
        else:
            assert item.location is None


def test_a_dataset_in_tars_with_labels_beside_the_images(tmp_path):
    """As WebDataset writes them: parts of one name make a sample."""
    content = {}
    for number in range(3):
        content |= {f"{number:03}.png": PNG, f"{number:03}.cls": b"1", f"{number:03}.json": b"{}"}
    for shard in range(2):
        fill(tmp_path, f"shard-{shard:06}.tar", data=tarred(content))
    listing = list_here(tmp_path)
    assert [(item.path, item.member) for item in listing.files] == [
        (f"shard-{shard:06}.tar", f"{number:03}.png") for shard in range(2) for number in range(3)
    ]
    assert listing.ignored == 12


def infos(kind, *names):
    for name in names:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "a.png"
        yield info


def test_row_19_21_members_that_are_refused_by_name_or_kind(tmp_path):
    names = ["../up.png", "sub/../b.png", "/etc/c.png", "C:\\d.png", "..\\e.png", "\\f.png"]
    good = {"a.png": PNG, "./dot.png": PNG, "C:h.png": PNG}
    inner = {"in.zip": zipped({"a.png": PNG}), "in.tar": tarred({}), "in": tarred({"a.png": PNG})}
    foreign = {"in.tar.gz": b"x", "in.7z": b"x"}
    hidden = {"__MACOSX/a.png": PNG, ".h/a.png": PNG, "s/.h.png": PNG, "DICOMDIR": PNG}
    hidden |= {"..odd/g.png": PNG, "no": b"x", "../no": b"x"}
    content = good | dict.fromkeys([*names, "../IM1"], PNG) | inner | foreign | hidden
    expected = dict.fromkeys(good)
    expected |= dict.fromkeys([*names, "../IM1"], "outside-folder")
    expected |= dict.fromkeys(inner, "unsupported")
    expected |= dict.fromkeys(foreign, "unknown-format")
    fill(tmp_path, "z.zip", data=zipped(content))
    links = [*infos(tarfile.SYMTYPE, "l.png", "l"), *infos(tarfile.FIFOTYPE, "f.png", "f")]
    fill(tmp_path, "t.tar", data=tarred(content, *links))
    files = list_here(tmp_path).files
    assert {item.member: item.rejection and item.rejection.reason for item in files} == {
        **expected,
        **dict.fromkeys(["l.png", "f.png"], "not-a-file"),
    }
    assert len(files) == 2 * len(expected) + 2
    assert list_here(tmp_path).ignored == 2 * len(hidden) + 2
    assert all(item.location is None for item in files if item.rejection)


def test_a_name_used_twice_in_an_archive_is_rejected_once(tmp_path):
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(tmp_path / "z.zip", "w") as z,
    ):
        for name in ("a.png", "b.png", "a.png", "n.txt", "n.txt"):
            z.writestr(name, PNG)
    fill(tmp_path, "t.tar", data=tarred({"a.png": PNG}, *infos(b"0", "a.png", "a.png")))
    files = list_here(tmp_path).files
    assert why(files) == {
        ("t.tar", "a.png"): "bad-archive",
        ("z.zip", "a.png"): "bad-archive",
        ("z.zip", "b.png"): None,
        ("z.zip", "n.txt"): "bad-archive",  # PNG by its bytes
    }
    assert len(files) == 4


def test_archives_that_cannot_be_read_are_one_rejection(tmp_path):
    whole = {"z.zip": zipped({"a.png": PNG}), "t.tar": tarred({"a.png": PNG, "b.png": PNG})}
    for name, data in whole.items():
        fill(tmp_path, "cut-" + name, data=data[: len(data) // 10])
    fill(tmp_path, "empty.zip", data=b"")
    fill(tmp_path, "text.tar", data=b"text" * 999)
    expected = dict.fromkeys(["cut-t.tar", "cut-z.zip", "empty.zip", "text.tar"], "bad-archive")
    assert listed(tmp_path) == expected


def test_encrypted_members_that_may_be_images_are_not_passed_over(tmp_path):
    data = bytearray(zipped({"a.png": PNG, "IM1": PNG}))
    for name in (b"a.png", b"IM1"):
        data[data.rindex(b"PK\1\2", 0, data.rindex(name)) + 8] |= 1
    fill(tmp_path, "z.zip", data=bytes(data))
    assert listed(tmp_path) == {("z.zip", "a.png"): "unsupported", ("z.zip", "IM1"): "unsupported"}


def test_manifest_rows_subjects_and_archives(tmp_path):
    fill(tmp_path, "a.png", "b/c.raw", ".hidden.png", "DICOMDIR", "not-named.png")
    fill(tmp_path, "d.zip", data=zipped({"y.png": PNG, "x.png": PNG, "n.txt": b"n"}))
    fill(tmp_path, "e.zip", data=zipped({"n.txt": b"n", "m.txt": b"n"}))
    fill(tmp_path, "f.tgz")
    text = '\ufeffpath,subject\r\nd.zip,P2\r\n\r\na.png,P1\r\n./b//c.raw,\r\n.hidden.png,"P,3"\r\n'
    text += "absent.png,P4\nDICOMDIR,P5\ne.zip,P6\nf.tgz,P7\n../up.png,P8\n/etc/passwd,P9\n"
    names = manifest(tmp_path, text)
    listing = list_here(tmp_path, Selection(manifest=names))
    assert why(listing.files) == {
        "../up.png": "outside-folder",
        ".hidden.png": None,
        "/etc/passwd": "outside-folder",
        "DICOMDIR": None,
        "a.png": None,
        "absent.png": "vanished",
        "b/c.raw": None,
        ("d.zip", "x.png"): None,
        ("d.zip", "y.png"): None,
        "e.zip": "bad-archive",
        "f.tgz": "unknown-format",
    }
    subjects = ["P8", "P,3", "P9", "P5", "P1", "P4", "", "P2", "P2", "P6", "P7"]
    assert [item.subject for item in listing.files] == subjects
    assert listing.ignored == 3


def test_row_19_a_manifest_row_that_leaves_through_a_link(tmp_path):
    folder = tmp_path / "in"
    fill(tmp_path, "in/a.png", "out/b.png")
    (folder / "link").symlink_to("../out")
    (folder / "c.png").symlink_to("a.png")
    names = manifest(folder, "path\nlink/b.png\nc.png\na.png\n")
    assert listed(folder, manifest=names) == {
        "a.png": None,
        "c.png": None,
        "link/b.png": "outside-folder",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 0: the header"),
        ("file\na.png\n", "line 1: the header"),
        ("path,Subject\na.png,P\n", "line 1: the column 'Subject' must be spelt 'subject'"),
        ("path,x,x\na.png,1,2\n", "line 1: the header has the column 'x' twice"),
        ("path, \na.png,1\n", "line 1: the header has the column ' ' twice, or one without"),
        ("Path\na.png\n", "line 1: the column 'Path' must be spelt 'path'"),
        ("path;subject\na.png;P\n", "line 1: the header .* 'path', and commas between columns"),
        ("path\n", "names no file"),
        ("path\n\n", "names no file"),
        ("path\na.png\nb.png,P\n", "line 3: 2 columns, and the header has 1"),
        ("path,subject\na.png\n", "line 2: 1 columns, and the header has 2"),
        ("path\na.png\nb.png\na.png\n", "line 4: a path that is listed above"),
        ("path\nx/a.png\n./x//a.png\n", "line 3: a path that is listed above"),
        ('path\n""\n', "line 2: an empty path"),
        ("path,subject\n,P\n", "line 2: an empty path"),
        ("path\n./\n", "line 2: an empty path"),
        ("path\na\0.png\n", "line 2: an empty path"),
        ('path\n"a.png', "line 2: unexpected end"),
        ('path\n"a"b.png\n', "line 2: "),
        ("path\n" + "a" * 200_000, "line 2: field larger"),
        ("path\na.png\n".encode("utf-16"), "line 1: "),
    ],
)
def test_manifests_that_are_refused(tmp_path, text, message):
    fill(tmp_path, "a.png", "b.png", "x/a.png")
    with pytest.raises(InputError, match=message) as raised:
        list_here(tmp_path, Selection(manifest=manifest(tmp_path, text)))
    assert str(raised.value).startswith(str(tmp_path / ".list.csv"))


def test_a_manifest_that_is_no_file(tmp_path):
    fill(tmp_path, "a.png")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputMissing, match=r"absent\.csv: cannot be read"):
        list_here(tmp_path, Selection(manifest=tmp_path / "absent.csv"))
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(InputError, match="cannot be read") as raised:
            list_here(tmp_path, Selection(manifest=path))
        assert not isinstance(raised.value, InputMissing)


def test_patterns_and_a_manifest_exclude_each_other():
    with pytest.raises(InputError, match="one of the two"):
        Selection(("*.png",), Path("list.csv"))


NAMES = st.sampled_from(["a.png", "b.png", "sub/c.tif", "z.zip", "absent.npy", "../x.png", "sub"])


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(NAMES, st.text(max_size=5)), min_size=1, unique_by=lambda row: row[0]))
def test_any_manifest_lists_each_row_once(rows):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        fill(folder, "a.png", "b.png", "sub/c.tif")
        fill(folder, "z.zip", data=zipped({"1.png": PNG, "2.png": PNG}))
        text = io.StringIO()
        csv.writer(text).writerows([["path", "subject"], *rows])
        data = text.getvalue().encode("utf-8", "surrogatepass")
        names = manifest(folder, data)
        files = list_here(folder, Selection(manifest=names)).files
        found = {item.path: item.subject for item in files}
        read = {
            path: subject.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
            for path, subject in rows
        }
        assert found == {path: subject.strip() for path, subject in read.items()}
        assert len(files) == len(rows) + ("z.zip" in found)


@settings(deadline=None, max_examples=200)
@given(st.one_of(st.binary(), st.text('path,subject\n\r"./a ', max_size=40).map(str.encode)))
def test_any_bytes_as_a_manifest_are_a_listing_or_an_input_error(data):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        try:
            listing = list_here(folder, Selection(manifest=manifest(folder, b"path\n" + data)))
        except InputError as error:
            assert ".list.csv" in str(error)
        else:
            assert all(item.rejection.reason in REASONS for item in listing.files)


def test_every_suffix_is_lower_case_and_in_one_list():
    every = [*SUFFIXES, *FOREIGN, *PACKED, *CONTAINERS]
    assert len(set(every)) == len(every)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in every)
