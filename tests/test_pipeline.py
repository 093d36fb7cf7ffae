"""Items of real folders, archives and volumes, decoded here and in real processes.

Each test is named after its row in the table of bad inputs, where it has one. What the decoders
make of one file's bytes is the matter of test_decode.py.
"""

import ast
import dataclasses
import hashlib
import io
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
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from processes import all_ended, children
from worker_faults import DeadlyRule

import deepssim_scan
from deepssim_scan.errors import InputError
from deepssim_scan.execution.answer import Answer
from deepssim_scan.ingest import pipeline, safe_open
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.limits import Limits
from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.decode.values import Frame
from deepssim_scan.ingest.listing import Item, Listing, list_images
from deepssim_scan.ingest.packing import packed
from deepssim_scan.ingest.pipeline import decode_images, decode_item
from deepssim_scan.ingest.record import Decoded, ImageRecord
from deepssim_scan.ingest.rejection import BLANK, REASONS, Rejected, Rejection

AS_IS = Standardisation(size=None)
NOISE = np.random.default_rng(7).integers(0, 256, (90, 70)).astype(np.uint8)


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


def decoding(listing, rule=AS_IS, *, options=ReadOptions(), limits=Limits(), workers=0, chunk=32):
    """Decode a listing, in this process unless told otherwise."""
    run = RunContext(workers=workers, limits=limits)
    return decode_images(listing, rule, IngestConfig(read_options=options), run, chunk=chunk)


def why(result):
    return result.record.reason, result.record.detail


def reason(folder, name):
    (result,) = decoded(folder, name)
    assert result.pixels is None
    assert str(folder) not in result.record.detail
    return result.record.reason


def test_a_plain_image(tmp_path):
    fill(tmp_path, "a.png")
    (result,) = decoded(tmp_path)
    status = (tmp_path / "a.png").stat()
    assert result.record == ImageRecord(
        path="a.png",
        member="",
        frame="",
        frames=1,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        sha256=hashlib.sha256(png()).hexdigest(),
        mode="L",
        subject="",
    )
    np.testing.assert_array_equal(result.pixels, z(NOISE).astype(np.float32))


def test_two_arrays_that_would_give_frames_of_one_name(tmp_path):
    rng = np.random.default_rng(0)
    volume, plane = rng.normal(size=(2, 30, 30)), rng.normal(size=(30, 30))
    np.savez(tmp_path / "a.npz", **{"a": volume, "a,axis=0,slice=0": plane})
    (one,) = next(decoding(list_images(tmp_path), Standardisation(size=32)))
    assert one.record.reason == "bad-array"


def test_row_10_every_frame_of_a_file_comes_out(tmp_path):
    stack = np.random.default_rng(1).normal(size=(5, 9, 7)).astype(np.float32)
    fill(tmp_path, "a.npy", data=npy(stack))
    results = decoded(tmp_path)
    assert [result.record.frame for result in results] == [f"axis=0,slice={n}" for n in range(5)]
    for result, plane in zip(results, stack, strict=True):
        np.testing.assert_allclose(result.pixels, z(plane), atol=1e-5)
        assert (result.record.frames, result.record.path) == (5, "a.npy")
        assert result.record.sha256 == hashlib.sha256(npy(stack)).hexdigest()


def test_row_08_and_43_one_bad_frame_is_left_out_among_the_others(tmp_path):
    stack = np.random.default_rng(1).normal(size=(4, 9, 7)).astype(np.float32)
    stack[1], stack[2, 3, 3] = 5.0, np.nan
    fill(tmp_path, "a.npy", data=npy(stack))
    results = decoded(tmp_path)
    reasons = [result.record.reason for result in results]
    assert reasons == [None, "blank", "not-finite", None]
    states = [result.record.state for result in results]
    assert states == ["embedded", "blank", "rejected", "embedded"]
    assert {result.record.frames for result in results} == {4}
    assert {result.record.mode for result in results} == {"npy:float32"}
    assert [result.pixels is None for result in results] == [False, True, True, False]


@pytest.mark.parametrize("shape", [(9, 7), (1, 9, 7), (3, 9, 7)])
def test_row_43_a_file_that_is_constant_throughout_is_rejected(tmp_path, shape):
    constant = np.arange(shape[0]).reshape(-1, 1, 1) if len(shape) == 3 else 0
    fill(tmp_path, "a.npy", data=npy(np.zeros(shape) + constant))
    results = decoded(tmp_path)
    assert {result.record.reason for result in results} == {"constant"}
    assert {result.record.state for result in results} == {"rejected"}
    assert len(results) == (shape[0] if len(shape) == 3 else 1)


def test_row_43_blank_is_by_the_bound_of_row_11(tmp_path):
    stack = np.random.default_rng(1).normal(size=(5, 100, 100))
    stack[1] = 1 + 1e-9 * stack[1]
    stack[2:] = 0
    stack[2, 0, :9], stack[3, 0, :10] = 255, 255  # 9, and 10, of 10,000
    fill(tmp_path, "a.npy", data=npy(stack))
    states = [result.record.state for result in decoded(tmp_path)]
    assert states == ["embedded", "blank", "blank", "embedded", "blank"]


def test_row_10_a_file_that_is_damaged_after_some_frames_is_rejected_whole(tmp_path, monkeypatch):
    pages = [np.roll(NOISE, shift) for shift in range(3)]
    whole = gif(*pages)
    fill(tmp_path, "a.gif", data=whole)
    assert len(decoded(tmp_path)) == 3
    fill(tmp_path, "a.gif", data=whole[: len(whole) - 500])
    (result,) = decoded(tmp_path)
    assert (result.record.reason, result.record.frame, result.record.frames) == ("damaged", "", 1)
    assert result.record.sha256 == hashlib.sha256(whole[:-500]).hexdigest()

    def late(data, options):
        yield Frame("frame=0", "L", NOISE.astype(np.float32))
        raise Rejected("damaged", "the second frame")

    monkeypatch.setattr(pipeline, "decode", late)
    (result,) = decoded(tmp_path)
    assert (why(result), result.record.frames) == (("damaged", "the second frame"), 1)
    monkeypatch.setattr(pipeline, "decode", lambda data, options: iter(()))
    (result,) = decoded(tmp_path)
    assert why(result) == ("damaged", "no frame in it")


def test_only_standardised_frames_are_kept(tmp_path, monkeypatch):
    given = []

    def many(data, options):
        for number in range(50):
            # The last one is still held by the generator, and by whoever asked for it.
            assert sum(plane() is not None for plane in given) <= 1
            pixels = np.random.default_rng(number).normal(size=(64, 64)).astype(np.float32)
            given.append(weakref.ref(pixels))
            yield Frame(f"frame={number}", "L", pixels)

    monkeypatch.setattr(pipeline, "decode", many)
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
        record = result.record
        pixels = None if result.pixels is None else result.pixels.tobytes()
        name = record.member or record.path
        read = record.frame, record.frames, record.size, record.sha256, record.mode
        return (name, *read, pixels, *why(result))

    expected = [[facts(r) for r in rs] for rs in decoding(list_images(plain))]
    assert [len(results) for results in expected] == [1, 2, 1]
    assert expected[2][0][-2] == "damaged"
    listing = list_images(tmp_path / "packed")
    packed = list(decoding(listing))
    assert [[facts(result) for result in results] for results in packed] == expected * 2
    for results in packed:
        status = (tmp_path / "packed" / results[0].record.path).stat()
        assert {result.record.mtime_ns for result in results} == {status.st_mtime_ns}


def test_row_19_paths_that_leave_the_folder_are_not_read(tmp_path):
    folder = tmp_path / "in"
    fill(tmp_path, "in/a.png", "out/c.png")
    (folder / "leaves.png").symlink_to(tmp_path / "out/c.png")
    (folder / "stays.png").symlink_to("a.png")
    for path in ("../out/c.png", "leaves.png", str(tmp_path / "out/c.png")):
        assert reason(folder, path) == "outside-folder"
    assert decoded(folder, "stays.png")[0].record.reason is None
    (tmp_path / "link").symlink_to("in")
    assert decoded(tmp_path / "link", "a.png")[0].record.reason is None


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
    check, calls = safe_open._regular, []

    def late(status):
        calls.append(status)
        return check(status) if len(calls) > 1 else status

    monkeypatch.setattr(safe_open, "_regular", late)
    assert reason(tmp_path, "a.png") == "not-a-file"
    assert len(calls) == 2


def test_row_22_vanished_and_unreadable(tmp_path):
    fill(tmp_path, "a.png", "b.png", "sub/c.png")
    listing = list_images(tmp_path)
    (tmp_path / "a.png").unlink()
    (tmp_path / "sub/c.png").unlink()
    (tmp_path / "sub").rmdir()
    fill(tmp_path, "sub")
    (first,), (second,), (third,) = decoding(listing)
    assert (first.record.path, first.record.reason) == ("a.png", "vanished")
    assert second.record.reason is None
    assert (third.record.path, third.record.reason) == ("sub/c.png", "vanished")
    # A regular file whose first byte no process may read: an error of the system, not a mock.
    (result,) = decode_item(Path("/proc/self"), item_of(Path("/proc/self"), "mem"), AS_IS)
    assert result.record.reason == "unreadable"


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
        assert result.record.reason == "changed"


@pytest.mark.parametrize("archive", [False, True])
def test_row_23_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch, archive):
    if archive:
        archived(tmp_path, {"a.png": png()})
    else:
        fill(tmp_path, "a.png", "b.png")
    check = pipeline._check_same
    for item in list_images(tmp_path).files:
        path, calls = tmp_path / item.path, []

        def change(status, listed, path=path, calls=calls):
            check(status, listed)
            calls.append(status)
            if len(calls) == 1:
                path.write_bytes(path.read_bytes()[:-1] + b"x")
                os.utime(path, ns=(0, listed.mtime_ns + 1))

        monkeypatch.setattr(pipeline, "_check_same", change)
        (result,) = decode_item(tmp_path, item, AS_IS)
        assert result.record.reason == "changed"
        assert len(calls) == 1


def test_row_23_the_hash_is_of_the_bytes_decoded(tmp_path):
    fill(tmp_path, "a.png")
    fill(tmp_path, "b.png", data=png()[:99])
    for name, data in (("a.png", png()), ("b.png", png()[:99])):
        (result,) = decoded(tmp_path, name)
        assert (result.record.size, result.record.sha256) == (
            len(data),
            hashlib.sha256(data).hexdigest(),
        )


def test_a_file_over_the_byte_limit_is_not_read(tmp_path):
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(pipeline.MAX_BYTES + 1)
    assert reason(tmp_path, "sparse.png") == "too-large"


@pytest.mark.parametrize("workers", [0, 1])
def test_row_25_any_name(tmp_path, workers):
    names = ["\N{GRINNING FACE}".encode()]  # before 0xff in bytes, after it as a string
    names += [b"=cmd", b"@x", b"<script>", b"\x1b[31m", b"new\nline", b"\xff not utf-8", b"a" * 251]
    for name in names:
        (tmp_path / os.fsdecode(name + b".png")).write_bytes(png())
    results = list(decoding(list_images(tmp_path), workers=workers))
    found = [os.fsencode(result.record.path) for (result,) in results]
    assert found == sorted(name + b".png" for name in names)
    assert all(result.record.reason is None for (result,) in results)


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
            (result.record, None if result.pixels is None else result.pixels.tobytes())
            for result in item
        ]
        for item in results
    ]


def test_results_do_not_depend_on_workers_or_chunk(tmp_path):
    listing = mixed(tmp_path)
    alone = values(decoding(listing, Standardisation(size=32)))
    assert [rows[0][0].key[:2] for rows in alone] == [
        (item.path, item.member) for item in listing.files
    ]
    assert [len(rows) for rows in alone] == [1] * 6 + [6] + [1] * 6 + [1, 2, 1, 1] * 2
    reasons = [record.reason for rows in alone for record, _ in rows if record.reason]
    packed = ["empty-file", "unknown-format"]
    assert reasons == ["outside-folder", "damaged", "blank", *packed, *packed]
    for workers, size in ((1, 1), (2, 4)):
        rule = Standardisation(size=32)
        assert values(decoding(listing, rule, workers=workers, chunk=size)) == alone


def test_what_is_read_does_not_depend_on_workers(tmp_path):
    volume = np.random.default_rng(5).normal(size=(9, 8, 6)).astype(np.float32)
    fill(tmp_path, "a.nii", data=nibabel.Nifti1Image(volume, np.eye(4)).to_bytes())
    options = ReadOptions(axis=0, slices="2:4")
    for workers in (0, 1):
        ((first, second),) = decoding(list_images(tmp_path), options=options, workers=workers)
        assert (first.record.frame, second.record.frame) == ("axis=0,slice=2", "axis=0,slice=3")
        np.testing.assert_allclose(second.pixels, z(volume[3].T), atol=1e-5)


def test_row_28_limits_hold_in_worker_processes_for_real_files(tmp_path):
    fill(tmp_path, "a.png", "c.png")
    fill(tmp_path, "b.npy", data=npy(np.zeros((2, 2)))[:-32].replace(b"(2, 2)", b"(7000, 7000)"))
    with (tmp_path / "b.npy").open("r+b") as file:
        file.seek(0, 2)
        file.truncate(file.tell() + 7000 * 7000 * 8)
    results = decoding(list_images(tmp_path), workers=1, limits=Limits(max_memory=1 << 28))
    reasons = [result.record.reason for (result,) in results]
    assert reasons == [None, "too-large", None]


def test_row_28_what_kills_a_process_is_rejected_in_its_place(tmp_path):
    fill(tmp_path, "a.png", "c.png")
    (tmp_path / "b.png").symlink_to("/")
    results = list(decoding(list_images(tmp_path), DeadlyRule(), workers=1))
    reasons = [(result.record.path, result.record.reason) for (result,) in results]
    crashed = "decoder-crashed"
    assert reasons == [("a.png", crashed), ("b.png", "outside-folder"), ("c.png", crashed)]
    assert all_ended()


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: answer.records.clear(),
        lambda answer: answer.records[0].__setitem__(0, "other.png"),
        lambda answer: answer.records[0].__setitem__(3, 2),
        lambda answer: answer.records[0].__setitem__(4, "1"),
        lambda answer: answer.records[0].__setitem__(9, "no such reason"),
        lambda answer: answer.records[0].pop(),
        lambda answer: answer.records.append(answer.records[0]),
        lambda answer: answer.records.append(7),
        lambda answer: answer.arrays.clear(),
        lambda answer: answer.arrays["0"].fill(np.nan),
        lambda answer: answer.arrays.update({"0": np.zeros(3, np.float32)}),
        lambda answer: answer.arrays.update({"0": np.zeros((3, 3))}),
    ],
)
def test_row_49_an_answer_of_another_file_is_rejected(tmp_path, change):
    fill(tmp_path, "a.png")
    (item,) = list_images(tmp_path).files
    answer = packed(decode_item(tmp_path, item, AS_IS))
    change(answer)
    task = pipeline.Decoding(tmp_path, (item,), AS_IS, IngestConfig(), None)
    rejection = pipeline._of_item(task, item, Answer.unpack(answer.pack()))
    assert rejection.reason == "decoder-crashed"
    assert "is no answer" in rejection.detail


def test_numbers_out_of_range_are_refused_at_the_call(tmp_path):
    listing = Listing(tmp_path, (Item("a.png"),), 0)
    for options in ({"workers": -1}, {"workers": 1, "chunk": 0}):
        with pytest.raises(InputError, match="must be"):
            decoding(listing, **options)


def test_closing_early_ends_the_workers(tmp_path):
    results = decoding(mixed(tmp_path), workers=2, chunk=1)
    next(results)
    started = children()
    assert len(started) >= 2  # a worker and its decoder
    results.close()
    assert all_ended(started)


@given(st.lists(st.integers(0, 20 << 20), max_size=40), st.integers(1, 9))
def test_chunks_are_whole_and_bounded_in_files_and_in_bytes(sizes, most):
    items = [Item(str(number), size=size) for number, size in enumerate(sizes)]
    chunks = list(pipeline.chunks(iter(items), most))
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
    assert len(list(pipeline.chunks(iter(list_images(tmp_path).files), 32))) == 1


def test_running_out_of_memory_is_too_large(tmp_path, monkeypatch):
    def greedy(*_):
        raise MemoryError

    fill(tmp_path, "a.png")
    for name in ("decode", "standardise", "read_item"):
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, name, greedy)
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
    assert used | {BLANK} == set(REASONS)
    with pytest.raises(ValueError, match="is not one of"):
        Rejection("nonsense", "")


def test_decoded_has_either_pixels_or_a_rejection():
    record = ImageRecord("a", "", "", 1, 0, 0, "", "", "")
    with pytest.raises(ValueError, match="either"):
        Decoded(record, None)
    with pytest.raises(ValueError, match="either"):
        Decoded(dataclasses.replace(record, reason="constant"), np.zeros((2, 2), np.float32))


def test_workers_start_without_torch_nibabel_or_pydicom():
    heavy = "{'torch', 'nibabel', 'pydicom'} & set(sys.modules)"
    code = f"import sys, deepssim_scan.ingest.pipeline; print(sorted({heavy}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert run.stdout == b"[]\n"
