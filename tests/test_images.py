"""Items of real folders, archives and volumes, decoded here and in real processes.

Each test is named after its row in the table of bad inputs, where it has one. What the decoders
make of one file's bytes is the matter of test_decode.py.
"""

import ast
import dataclasses
import hashlib
import hmac
import io
import multiprocessing
import os
import socket
import subprocess
import sys
import tarfile
import weakref
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from deeds import DeadlyRule
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import deepssim_scan
from deepssim_scan import images, inputs
from deepssim_scan.decode import REASONS, Frame, Reading, Rejected, Rejection
from deepssim_scan.errors import InputError
from deepssim_scan.images import Decoded, decode_images, decode_item
from deepssim_scan.listing import Item, Listing, Selection, list_images
from deepssim_scan.standardise import Standardisation
from deepssim_scan.workers import Limits

AS_IS = Standardisation(size=None)
NOISE = np.random.default_rng(7).integers(0, 256, (90, 70)).astype(np.uint8)
TOKEN = Rejection("constant", "")


def z(values):
    """Z-score in float64: the oracle."""
    values = np.asarray(values, np.float64)
    return (values - values.mean()) / values.std()


def png(array=NOISE):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def gif(*planes):
    stream = io.BytesIO()
    pages = [Image.fromarray(plane) for plane in planes]
    pages[0].save(stream, "GIF", save_all=True, append_images=pages[1:])
    return stream.getvalue()


def fill(folder, *names, data=None):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png() if data is None else data)


def archived(folder, content):
    """Write one zip and one tar of the same members."""
    with (
        zipfile.ZipFile(folder / "z.zip", "w", zipfile.ZIP_DEFLATED) as zipped,
        tarfile.open(folder / "t.tar", "w") as tarred,
    ):
        for name, data in content.items():
            zipped.writestr(name, data)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tarred.addfile(info, io.BytesIO(data))


def item_of(folder, path):
    """Return an item as it would be listed, for a path that would not be."""
    status = (folder / path).stat()
    return Item(str(path), size=status.st_size, mtime_ns=status.st_mtime_ns)


def decoded(folder, name=None):
    """Decode the file of that name, or the only item of a folder."""
    (item,) = [item_of(folder, name)] if name else list_images(folder).files
    return decode_item(folder, item, AS_IS)


def reason(folder, name):
    (result,) = decoded(folder, name)
    assert result.pixels is None
    assert str(folder) not in result.rejection.detail
    return result.rejection.reason


def test_a_plain_image(tmp_path):
    fill(tmp_path, "a.png")
    (result,) = decoded(tmp_path)
    status = (tmp_path / "a.png").stat()
    assert (result.path, result.member, result.frame, result.frames) == ("a.png", "", "", 1)
    assert (result.size, result.mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert result.sha256 == hashlib.sha256(png()).hexdigest()
    assert (result.mode, result.subject, result.rejection) == ("L", "", None)
    np.testing.assert_array_equal(result.pixels, z(NOISE).astype(np.float32))


def test_two_arrays_that_would_give_frames_of_one_name(tmp_path):
    rng = np.random.default_rng(0)
    volume, plane = rng.normal(size=(2, 30, 30)), rng.normal(size=(30, 30))
    np.savez(tmp_path / "a.npz", **{"a": volume, "a,axis=0,slice=0": plane})
    (one,) = next(decode_images(list_images(tmp_path), Standardisation(size=32), workers=0))
    assert one.rejection.reason == "bad-array"


def test_row_10_every_frame_of_a_file_comes_out(tmp_path):
    stack = np.random.default_rng(1).normal(size=(5, 9, 7)).astype(np.float32)
    fill(tmp_path, "a.npy", data=npy(stack))
    results = decoded(tmp_path)
    assert [result.frame for result in results] == [f"axis=0,slice={n}" for n in range(5)]
    for result, plane in zip(results, stack, strict=True):
        np.testing.assert_allclose(result.pixels, z(plane), atol=1e-5)
        assert (result.frames, result.path) == (5, "a.npy")
        assert result.sha256 == hashlib.sha256(npy(stack)).hexdigest()


def test_rows_08_and_11_one_bad_frame_is_rejected_among_the_others(tmp_path):
    stack = np.random.default_rng(1).normal(size=(4, 9, 7)).astype(np.float32)
    stack[1], stack[2, 3, 3] = 5.0, np.nan
    fill(tmp_path, "a.npy", data=npy(stack))
    results = decoded(tmp_path)
    reasons = [result.rejection and result.rejection.reason for result in results]
    assert reasons == [None, "constant", "not-finite", None]
    assert {result.frames for result in results} == {4}
    assert {result.mode for result in results} == {"npy:float32"}
    assert [result.pixels is None for result in results] == [False, True, True, False]


def test_row_10_a_file_that_is_damaged_after_some_frames_is_rejected_whole(tmp_path, monkeypatch):
    pages = [np.roll(NOISE, shift) for shift in range(3)]
    whole = gif(*pages)
    fill(tmp_path, "a.gif", data=whole)
    assert len(decoded(tmp_path)) == 3
    fill(tmp_path, "a.gif", data=whole[: len(whole) - 500])
    (result,) = decoded(tmp_path)
    assert (result.rejection.reason, result.frame, result.frames) == ("damaged", "", 1)
    assert result.sha256 == hashlib.sha256(whole[:-500]).hexdigest()

    def late(data, reading):
        yield Frame("frame=0", "L", NOISE.astype(np.float32))
        raise Rejected("damaged", "the second frame")

    monkeypatch.setattr(images, "decode", late)
    (result,) = decoded(tmp_path)
    assert (result.rejection, result.frames) == (Rejection("damaged", "the second frame"), 1)
    monkeypatch.setattr(images, "decode", lambda data, reading: iter(()))
    (result,) = decoded(tmp_path)
    assert result.rejection == Rejection("damaged", "no frame in it")


def test_only_standardised_frames_are_kept(tmp_path, monkeypatch):
    given = []

    def many(data, reading):
        for number in range(50):
            # The last one is still held by the generator, and by whoever asked for it.
            assert sum(plane() is not None for plane in given) <= 1
            pixels = np.random.default_rng(number).normal(size=(64, 64)).astype(np.float32)
            given.append(weakref.ref(pixels))
            yield Frame(f"frame={number}", "L", pixels)

    monkeypatch.setattr(images, "decode", many)
    fill(tmp_path, "a.png")
    item = list_images(tmp_path).files[0]
    assert len(decode_item(tmp_path, item, Standardisation(size=8))) == 50


def test_members_of_archives_are_as_the_files_they_hold(tmp_path):
    contents = {
        "a.png": png(),
        "b.gif": gif(NOISE, NOISE[::-1]),
        "bad.png": png()[:99],
        "no.txt": b"",
    }
    plain = tmp_path / "plain"
    for name, data in contents.items():
        fill(plain, name, data=data)
    (tmp_path / "packed").mkdir()
    archived(tmp_path / "packed", contents)

    def facts(result):
        pixels = None if result.pixels is None else result.pixels.tobytes()
        names = (result.member or result.path, result.frame, result.frames)
        return (*names, result.size, result.sha256, result.mode, pixels, result.rejection)

    expected = [
        [facts(r) for r in rs] for rs in decode_images(list_images(plain), AS_IS, workers=0)
    ]
    assert [len(results) for results in expected] == [1, 2, 1]
    assert expected[2][0][-1].reason == "damaged"
    listing = list_images(tmp_path / "packed")
    packed = list(decode_images(listing, AS_IS, workers=0))
    assert [[facts(result) for result in results] for results in packed] == expected * 2
    for results in packed:
        status = (tmp_path / "packed" / results[0].path).stat()
        assert {result.mtime_ns for result in results} == {status.st_mtime_ns}


def test_subjects_come_from_the_manifest_hashed_under_the_key(tmp_path, monkeypatch):
    fill(tmp_path, "a.png", "b.png")
    archived(tmp_path, {"m.png": png(), "n.png": png()})
    (tmp_path / "list.csv").write_text("path,subject\na.png,Ä-1\nb.png,\nz.zip,P2\n")
    listing = list_images(tmp_path, Selection(manifest=tmp_path / "list.csv"))

    def subjects(**options):
        results = decode_images(listing, AS_IS, workers=0, **options)
        return [result.subject for (result,) in results]

    assert subjects() == ["Ä-1", "", "P2", "P2"]
    keyed = [
        hmac.new(b"secret", subject, "sha256").hexdigest() for subject in ("Ä-1".encode(), b"P2")
    ]
    assert subjects(reading=Reading(subject_key=b"secret")) == [keyed[0], "", keyed[1], keyed[1]]

    def named(data, reading):
        yield Frame("", "L", NOISE.astype(np.float32), "from the file")

    monkeypatch.setattr(images, "decode", named)
    assert subjects() == ["Ä-1", "from the file", "P2", "P2"]


def test_a_rejected_file_keeps_the_subject_of_its_manifest(tmp_path):
    (tmp_path / "list.csv").write_text("path,subject\nabsent.png,P1\n")
    listing = list_images(tmp_path, Selection(manifest=tmp_path / "list.csv"))
    ((result,),) = decode_images(listing, AS_IS, workers=0)
    assert (result.subject, result.rejection.reason) == ("P1", "vanished")


def test_row_19_paths_that_leave_the_folder_are_not_read(tmp_path):
    folder = tmp_path / "in"
    fill(tmp_path, "in/a.png", "out/c.png")
    (folder / "leaves.png").symlink_to(tmp_path / "out/c.png")
    (folder / "stays.png").symlink_to("a.png")
    for path in ("../out/c.png", "leaves.png", str(tmp_path / "out/c.png")):
        assert reason(folder, path) == "outside-folder"
    assert decoded(folder, "stays.png")[0].rejection is None
    (tmp_path / "link").symlink_to("in")
    assert decoded(tmp_path / "link", "a.png")[0].rejection is None


def test_row_21_fifo_socket_device_and_folder_are_not_read(tmp_path, monkeypatch):
    fill(tmp_path, "folder.png/b.png")
    os.mkfifo(tmp_path / "fifo.png")
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.png")
        for name in ("fifo.png", "socket.png", "folder.png"):
            assert reason(tmp_path, name) == "not-a-file"
    assert reason(Path("/dev"), "zero") == "not-a-file"


def test_row_21_a_fifo_that_takes_a_files_place_does_not_hang(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a.png")
    check, calls = inputs._regular, []

    def late(status):
        calls.append(status)
        return check(status) if len(calls) > 1 else status

    monkeypatch.setattr(inputs, "_regular", late)
    assert reason(tmp_path, "a.png") == "not-a-file"
    assert len(calls) == 2


def test_row_22_vanished_and_unreadable(tmp_path):
    fill(tmp_path, "a.png", "b.png", "sub/c.png")
    listing = list_images(tmp_path)
    (tmp_path / "a.png").unlink()
    (tmp_path / "sub/c.png").unlink()
    (tmp_path / "sub").rmdir()
    fill(tmp_path, "sub")
    (first,), (second,), (third,) = decode_images(listing, AS_IS, workers=0)
    assert (first.path, first.rejection.reason) == ("a.png", "vanished")
    assert second.rejection is None
    assert (third.path, third.rejection.reason) == ("sub/c.png", "vanished")
    # A regular file whose first byte no process may read: an error of the system, not a mock.
    (result,) = decode_item(Path("/proc/self"), item_of(Path("/proc/self"), "mem"), AS_IS)
    assert result.rejection.reason == "unreadable"


@pytest.mark.parametrize("archive", [False, True])
def test_row_23_a_file_that_changes_after_it_was_listed(tmp_path, archive):
    if archive:
        archived(tmp_path, {"a.png": png()})
    else:
        fill(tmp_path, "a.png", "b.png")
    first, second = list_images(tmp_path).files
    data = bytearray((tmp_path / first.path).read_bytes())
    data[-1] ^= 1
    (tmp_path / first.path).write_bytes(data)
    os.utime(tmp_path / first.path, ns=(0, first.mtime_ns + 1))  # the size is the same
    with (tmp_path / second.path).open("ab") as file:
        file.write(b"\0")
    os.utime(tmp_path / second.path, ns=(0, second.mtime_ns))  # the time is the same
    for item in (first, second):
        (result,) = decode_item(tmp_path, item, AS_IS)
        assert result.rejection.reason == "changed"


@pytest.mark.parametrize("archive", [False, True])
def test_row_23_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch, archive):
    if archive:
        archived(tmp_path, {"a.png": png()})
    else:
        fill(tmp_path, "a.png", "b.png")
    check = images._check_same
    for item in list_images(tmp_path).files:
        path, calls = tmp_path / item.path, []

        def change(status, listed, path=path, calls=calls):
            check(status, listed)
            calls.append(status)
            if len(calls) == 1:
                path.write_bytes(path.read_bytes()[:-1] + b"x")
                os.utime(path, ns=(0, listed.mtime_ns + 1))

        monkeypatch.setattr(images, "_check_same", change)
        (result,) = decode_item(tmp_path, item, AS_IS)
        assert result.rejection.reason == "changed"
        assert len(calls) == 1


def test_row_23_the_hash_is_of_the_bytes_decoded(tmp_path):
    fill(tmp_path, "a.png")
    fill(tmp_path, "b.png", data=png()[:99])
    for name, data in (("a.png", png()), ("b.png", png()[:99])):
        (result,) = decoded(tmp_path, name)
        assert (result.size, result.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_a_file_over_the_byte_limit_is_not_read(tmp_path):
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    assert reason(tmp_path, "sparse.png") == "too-large"


@pytest.mark.parametrize("workers", [0, 1])
def test_row_25_any_name(tmp_path, workers):
    names = ["\N{GRINNING FACE}".encode()]  # before 0xff in bytes, after it as a string
    names += [b"=cmd", b"@x", b"<script>", b"\x1b[31m", b"new\nline", b"\xff not utf-8", b"a" * 251]
    for name in names:
        (tmp_path / os.fsdecode(name + b".png")).write_bytes(png())
    results = list(decode_images(list_images(tmp_path), AS_IS, workers=workers))
    found = [os.fsencode(result.path) for (result,) in results]
    assert found == sorted(name + b".png" for name in names)
    assert all(result.rejection is None for (result,) in results)


def mixed(folder, count=11):
    """Fill a folder with files of every kind, damaged and rejected ones; return its listing."""
    for number in range(count):
        data = png(np.roll(NOISE, number))
        fill(folder, f"{number:02}.png", data=data[:99] if number == 4 else data)
    (folder / "03b.png").symlink_to("/")
    volume = np.random.default_rng(5).normal(size=(9, 8, 6)).astype(np.float32)
    volume[..., 2] = 1.0
    fill(folder, "05.nii", data=nibabel.Nifti1Image(volume, np.eye(4)).to_bytes())
    archived(folder, {"a.png": png(), "b.gif": gif(NOISE, NOISE[::-1]), "c.png": b"", "d.7z": b""})
    return list_images(folder)


def values(results):
    """Return what can be compared of lists of Decoded."""
    return [
        [
            (
                *dataclasses.astuple(dataclasses.replace(result, pixels=None, rejection=TOKEN))[:9],
                None if result.pixels is None else result.pixels.tobytes(),
                result.rejection,
            )
            for result in item
        ]
        for item in results
    ]


def test_results_do_not_depend_on_workers_or_chunk(tmp_path):
    listing = mixed(tmp_path)
    alone = values(decode_images(listing, Standardisation(size=32), workers=0))
    assert [(rows[0][0], rows[0][1]) for rows in alone] == [
        (item.path, item.member) for item in listing.files
    ]
    assert [len(rows) for rows in alone] == [1] * 6 + [6] + [1] * 6 + [1, 2, 1, 1] * 2
    reasons = [row[10].reason for rows in alone for row in rows if row[10]]
    packed = ["empty-file", "unknown-format"]
    assert reasons == ["outside-folder", "damaged", "constant", *packed, *packed]
    for workers, size in ((1, 1), (2, 4)):
        rule = Standardisation(size=32)
        assert values(decode_images(listing, rule, workers=workers, chunk=size)) == alone


def test_what_is_read_does_not_depend_on_workers(tmp_path):
    volume = np.random.default_rng(5).normal(size=(9, 8, 6)).astype(np.float32)
    fill(tmp_path, "a.nii", data=nibabel.Nifti1Image(volume, np.eye(4)).to_bytes())
    reading = Reading(axis=0, slices="2:4")
    for workers in (0, 1):
        ((first, second),) = decode_images(list_images(tmp_path), AS_IS, reading, workers=workers)
        assert (first.frame, second.frame) == ("axis=0,slice=2", "axis=0,slice=3")
        np.testing.assert_allclose(second.pixels, z(volume[3].T), atol=1e-5)


def test_row_28_limits_hold_in_worker_processes_for_real_files(tmp_path):
    fill(tmp_path, "a.png", "c.png")
    fill(tmp_path, "b.npy", data=npy(np.zeros((2, 2)))[:-32].replace(b"(2, 2)", b"(7000, 7000)"))
    with (tmp_path / "b.npy").open("r+b") as file:
        file.seek(0, 2)
        file.truncate(file.tell() + 7000 * 7000 * 8)
    results = decode_images(
        list_images(tmp_path), AS_IS, workers=1, limits=Limits(max_memory=1 << 28)
    )
    reasons = [result.rejection and result.rejection.reason for (result,) in results]
    assert reasons == [None, "too-large", None]


def test_row_28_what_kills_a_process_is_rejected_in_its_place(tmp_path):
    fill(tmp_path, "a.png", "c.png")
    (tmp_path / "b.png").symlink_to("/")
    results = list(decode_images(list_images(tmp_path), DeadlyRule(), workers=1))
    reasons = [(result.path, result.rejection.reason) for (result,) in results]
    crashed = "decoder-crashed"
    assert reasons == [("a.png", crashed), ("b.png", "outside-folder"), ("c.png", crashed)]
    assert not multiprocessing.active_children()


def test_numbers_out_of_range_are_refused_at_the_call(tmp_path):
    listing = Listing(tmp_path, (Item("a.png"),), 0)
    for options in ({"workers": -1}, {"workers": 1, "chunk": 0}):
        with pytest.raises(InputError, match="must be"):
            decode_images(listing, AS_IS, **options)


def test_closing_early_ends_the_workers(tmp_path):
    results = decode_images(mixed(tmp_path), AS_IS, workers=2, chunk=1)
    next(results)
    assert multiprocessing.active_children()
    results.close()
    assert not multiprocessing.active_children()


@given(st.lists(st.integers(0, 20 << 20), max_size=40), st.integers(1, 9))
def test_chunks_are_whole_and_bounded_in_files_and_in_bytes(sizes, most):
    items = [Item(str(number), size=size) for number, size in enumerate(sizes)]
    chunks = list(images._chunks(iter(items), most))
    assert [item for chunk in chunks for item in chunk] == items
    totals = [sum(item.size for item in chunk) for chunk in chunks]
    for chunk, total in zip(chunks, totals, strict=True):
        assert 1 <= len(chunk) <= most
        assert total <= 8 << 20 or len(chunk) == 1
    for chunk, total, after in zip(chunks, totals, chunks[1:], strict=False):
        assert len(chunk) == most or total + after[0].size > 8 << 20  # none is cut too early


def test_members_are_chunked_by_their_own_size(tmp_path):
    archived(tmp_path, {f"{number}.png": png() for number in range(9)})
    with (tmp_path / "big.zip").open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", bytes(9 << 20))
        for number in range(9):
            archive.writestr(f"{number}.png", png())
    assert len(list(images._chunks(iter(list_images(tmp_path).files), 32))) == 1


def test_running_out_of_memory_is_too_large(tmp_path, monkeypatch):
    def greedy(*_):
        raise MemoryError

    fill(tmp_path, "a.png")
    for name in ("decode", "standardise", "_read"):
        with monkeypatch.context() as patch:
            patch.setattr(images, name, greedy)
            assert reason(tmp_path, "a.png") == "too-large"


def test_every_reason_given_is_documented_and_every_documented_one_given():
    used = set()
    for path in Path(deepssim_scan.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                "Rejection",
                "Rejected",
            ):
                used |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    assert used == set(REASONS)
    with pytest.raises(ValueError, match="is not one of"):
        Rejection("nonsense", "")


def test_decoded_has_either_pixels_or_a_rejection():
    facts = ("a", "", "", 1, 0, 0, "", "", "")
    with pytest.raises(ValueError, match="either"):
        Decoded(*facts, None, None)
    with pytest.raises(ValueError, match="either"):
        Decoded(*facts, np.zeros((2, 2), np.float32), TOKEN)


def test_workers_start_without_torch_nibabel_or_pydicom():
    heavy = "{'torch', 'nibabel', 'pydicom'} & set(sys.modules)"
    code = f"import sys, deepssim_scan.images; print(sorted({heavy}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert run.stdout == b"[]\n"
