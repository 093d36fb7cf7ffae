"""Archives written by zipfile and tarfile, and altered byte by byte; read back against both."""

import io
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepssim_scan.ingest import archives
from deepssim_scan.ingest.archives import MemberLocation, list_members, read_member
from deepssim_scan.ingest.rejection import REASONS, Rejected, Rejection

NOISE = np.random.default_rng(3).integers(0, 256, 5000).astype(np.uint8).tobytes()
CONTENT = {
    "a.png": NOISE,
    "dir/b.txt": b"text" * 3000,
    "dir/empty.npy": b"",
    "ü/" + "n" * 120: b"x",
}


def zipped(content=CONTENT, method=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("dir/", b"")
        for name, data in content.items():
            archive.writestr(name, data)
    return stream.getvalue()


def tarred(content=CONTENT, form=tarfile.PAX_FORMAT, *extra):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form, encoding="utf-8") as archive:
        folder = tarfile.TarInfo("dir")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in extra:
            archive.addfile(info)
    return stream.getvalue()


ALL = {
    "deflated": zipped(),
    "stored": zipped(method=zipfile.ZIP_STORED),
    "pax": tarred(),
    "gnu": tarred(form=tarfile.GNU_FORMAT),
    "ustar": tarred({name: data for name, data in CONTENT.items() if name.isascii()}, 0),
}


def members(data):
    return dict(list_members(io.BytesIO(data)))


def reason(data):
    with pytest.raises(Rejected) as raised:
        members(data)
    return raised.value.rejection.reason


@pytest.mark.parametrize("kind", ALL)
def test_members_are_what_was_written(kind):
    file = io.BytesIO(ALL[kind])
    found = {name: read_member(file, place) for name, place in list_members(file)}
    assert found == {name: CONTENT[name] for name in found}
    assert len(found) == len(CONTENT) - (kind == "ustar")


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("most", [1, 348, 4999])
def test_the_first_bytes_of_members(kind, most):
    file = io.BytesIO(ALL[kind])
    for name, place in list_members(file):
        assert read_member(file, place, most) == CONTENT[name][:most]


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(st.text("ab/.é", min_size=1).filter(lambda n: n[-1] != "/"), st.binary()),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, "zip"]),
)
def test_any_content_comes_back(content, form):
    file = io.BytesIO(zipped(content) if form == "zip" else tarred(content, form))
    # tarfile keeps no slash at the end of a name, and zipfile what it was given.
    found = {name: read_member(file, place) for name, place in list_members(file)}
    assert found == content


def test_an_archive_appended_to_by_its_own_program_is_whole(tmp_path):
    for path, opened in ((tmp_path / "a.tar", tarfile.open), (tmp_path / "a.zip", zipfile.ZipFile)):
        for name in ("first.png", "second.png"):
            (tmp_path / name).write_bytes(name.encode())
            with opened(path, "a") as archive:
                (getattr(archive, "add", None) or archive.write)(tmp_path / name, name)
        with path.open("rb") as file:
            found = {name: read_member(file, place) for name, place in list_members(file)}
        assert found == {name: name.encode() for name in ("first.png", "second.png")}


@pytest.mark.parametrize("kind", ["pax", "gnu", "ustar"])
def test_a_tar_cut_short_anywhere_is_noticed(kind):
    data = ALL[kind]
    end = len(data.rstrip(b"\0"))
    last = -(-end // 512) * 512  # where the zeros of the end begin
    # Also where tarfile and GNU tar say nothing: between two members.
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        starts = [info.offset for info in archive]
    for length in {*range(0, last, 300), *starts, last, last + 1, last + 511}:
        assert reason(data[:length]) == "bad-archive", length
    assert members(data[: last + 512])


def test_a_tar_with_a_damaged_header_does_not_end_there():
    data = bytearray(ALL["ustar"])
    place = members(bytes(data))["dir/b.txt"]
    data[place.offset - 512 + 150] ^= 1  # in the checksum
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert len(archive.getnames()) == 2  # tarfile says nothing
    assert reason(bytes(data)) == "bad-archive"


def test_two_archives_in_one_file_are_not_taken_for_one():
    for data in (ALL["deflated"], ALL["pax"]):
        assert reason(data + data) == "bad-archive"
    assert reason(ALL["deflated"] + zipped({})) == "bad-archive"
    assert reason(ALL["pax"] + bytes(20_000) + b"x") == "bad-archive"
    assert members(ALL["pax"] + bytes(20_000))


def test_a_tar_whose_sizes_lead_backwards_ends():
    def header(size):
        info = tarfile.TarInfo("a.png")
        block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
        block[124:136] = b"\xff" * 4 + struct.pack(">q", size)  # base 256, negative
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        return bytes(block)

    for size in (-512, -1024, -1):
        assert tarfile.TarInfo.frombuf(header(size), "utf-8", "strict").size == size
        assert reason(tarred({"b": b"x"})[:1536] + header(size) + bytes(1024)) == "bad-archive"


@pytest.mark.parametrize("data", [b"", b"PK", b"no archive " * 99, ALL["pax"][:100], b"\x1f\x8b"])
def test_what_is_no_archive(data):
    assert reason(data) == "bad-archive"


@pytest.mark.parametrize("kind", ["deflated", "stored"])
def test_a_zip_cut_short_is_noticed(kind):
    for length in range(4, len(ALL[kind]), 97):
        assert reason(ALL[kind][:length]) == "bad-archive"


def test_archives_without_members():
    assert members(zipped({})) == members(tarred({})) == {}
    stream = io.BytesIO()
    zipfile.ZipFile(stream, "w").close()
    assert members(stream.getvalue()) == {}


def edited(data, name, **fields):
    """Change fields of a member's entry in the directory of a zip, at their offsets in it."""
    data = bytearray(data)
    places = {"flags": (8, "<H"), "method": (10, "<H"), "crc": (16, "<L"), "packed": (20, "<L")}
    places |= {"size": (24, "<L"), "mode": (38, "<L"), "offset": (42, "<L")}
    start = data.rindex(b"PK\1\2", 0, data.rindex(name.encode()))
    for field, value in fields.items():
        offset, form = places[field]
        struct.pack_into(form, data, start + offset, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"flags": 1}, "unsupported"),  # encrypted
        ({"flags": 0x41}, "unsupported"),
        ({"method": 9}, "unsupported"),  # deflate64
        ({"method": 12}, "unsupported"),  # bzip2
        ({"method": 99}, "unsupported"),  # AES
        ({"mode": 0o120777 << 16}, "not-a-file"),  # a link
        ({"mode": 0o010644 << 16}, "not-a-file"),  # a FIFO
        ({"size": archives.MAX_BYTES + 1}, "too-large"),
        ({"packed": archives.MAX_BYTES + 1}, "too-large"),
    ],
)
def test_zip_members_that_are_not_read(fields, expected):
    found = members(edited(ALL["deflated"], "a.png", **fields))
    assert found["a.png"].reason == expected
    others = {name for name, place in found.items() if isinstance(place, MemberLocation)}
    assert others == set(CONTENT) - {"a.png"}


def test_tar_members_that_are_not_read():
    infos = []
    for name, kind in (
        ("link.png", tarfile.SYMTYPE),
        ("hard.png", tarfile.LNKTYPE),
        ("fifo.png", tarfile.FIFOTYPE),
        ("device.png", tarfile.CHRTYPE),
        ("unknown.png", b"Q"),
    ):
        infos.append(tarfile.TarInfo(name))
        infos[-1].type, infos[-1].linkname = kind, "a.png"
    found = members(tarred(CONTENT, tarfile.PAX_FORMAT, *infos))
    assert {name: found[name].reason for name in found if name not in CONTENT} == {
        info.name: "not-a-file" for info in infos
    }


def test_a_sparse_member_is_not_read_as_if_it_were_plain(tmp_path):
    sparse = tarfile.TarInfo("s.png")
    sparse.size = 3
    sparse.pax_headers = {"GNU.sparse.map": "0,3", "GNU.sparse.size": "9"}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(sparse, io.BytesIO(b"abc"))
    assert members(stream.getvalue())["s.png"].reason == "unsupported"


def test_a_tar_member_over_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 4999)
    found = members(ALL["pax"])
    assert found["a.png"].reason == "too-large"
    assert members(ALL["stored"])["a.png"].reason == "too-large"


@pytest.mark.parametrize("kind", ["deflated", "stored"])
@pytest.mark.parametrize(
    "fields",
    [{"size": 4999}, {"size": 5001}, {"size": 0}, {"crc": 7}, {"packed": 900}, {"offset": 50}],
)
def test_row_01_zip_members_that_are_not_what_the_directory_says(kind, fields):
    file = io.BytesIO(edited(ALL[kind], "a.png", **fields))
    place = dict(list_members(file))["a.png"]
    with pytest.raises(Rejected) as raised:
        read_member(file, place)
    assert raised.value.rejection.reason == "damaged"


def test_row_05_a_member_that_inflates_to_more_than_it_says_is_not_inflated(monkeypatch):
    bomb = edited(zipped({"a.png": bytes(50_000_000)}), "a.png", size=1000)
    file, most = io.BytesIO(bomb), []
    ((_, place),) = list_members(file)
    real = zlib.decompressobj

    class Counting:
        def __init__(self, *args):
            self._stream = real(*args)
            self.eof, self.unused_data = False, b""

        def decompress(self, data, length):
            most.append(length)
            return self._stream.decompress(data, length)

    monkeypatch.setattr(zlib, "decompressobj", Counting)
    with pytest.raises(Rejected, match="damaged"):
        read_member(file, place)
    assert most == [1001]


def test_first_bytes_are_not_read_from_where_no_member_is():
    for fields in ({"offset": 50}, {"offset": 1 << 30}):
        file = io.BytesIO(edited(ALL["deflated"], "a.png", **fields))
        with pytest.raises(Rejected, match="no local header"):
            read_member(file, dict(list_members(file))["a.png"], 10)


def test_a_crc_of_the_bytes_is_checked():
    data = bytearray(ALL["stored"])
    data[data.index(NOISE) + 77] ^= 1
    file = io.BytesIO(data)
    places = dict(list_members(file))
    with pytest.raises(Rejected, match="CRC"):
        read_member(file, places["a.png"])
    assert read_member(file, places["dir/b.txt"]) == CONTENT["dir/b.txt"]


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(sorted(ALL)), st.data())
def test_altered_archives_give_rejections_or_members_and_nothing_else(kind, draw):
    data = bytearray(ALL[kind])
    for _ in range(draw.draw(st.integers(1, 5))):
        start = draw.draw(st.sampled_from([0, len(data) - 700, len(data) // 2]))
        place = draw.draw(st.integers(start, min(start + 700, len(data)) - 1))
        data[place] = draw.draw(st.integers(0, 255))
    if draw.draw(st.booleans()):
        del data[draw.draw(st.integers(0, len(data))) :]
    file = io.BytesIO(data)
    try:
        found = list_members(file)
    except Rejected as rejected:
        assert rejected.rejection.reason == "bad-archive"
        return
    for _, place in found:
        if isinstance(place, Rejection):
            assert place.reason in REASONS
            continue
        for most in (348, archives.MAX_BYTES):
            try:
                content = read_member(file, place, most)
            except Rejected as rejected:
                assert rejected.rejection.reason == "damaged"
            else:
                assert len(content) == min(place.size, most)
