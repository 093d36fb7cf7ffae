"""A corpus of inputs that must not be lost: bad ones, and odd ones that are good.

    corpus(seed) -> Case(path, put, ends), several for each row of docs/inputs.md about files
    plant(folder, cases) writes them; expected(cases) says what must be in a catalog of the folder

What must become of a file was written from that table and the text of the modules, not from what
the program was seen to do.
"""

import bz2
import gzip
import os
import pickle
import stat
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from archive_bytes import Member, deflated, tarred, zeros, zipped
from dicom_bytes import (
    DEFLATED,
    JPEG,
    MPEG4,
    RLE,
    UNKNOWN,
    dicom,
    dicom_file,
    dicom_tags,
    element,
    encapsulated,
    rle,
)
from image_bytes import chunk, nifti, npy, png, saved, saved_all
from numpy.random import Generator
from PIL import Image

EMBEDDED, BLANK = "embedded", "blank"
EXECUTED = "PICKLE_EXECUTED"
"""The folder that the pickles make in the working directory of who runs them."""

MAX_SECONDS, MAX_MEMORY = 10.0, 1 << 29
"""Limits that the file of row 28 exceeds by minutes and a bomb by gigabytes, and no other."""

SIDE = 40  # pixels


@dataclass(frozen=True, slots=True)
class Case:
    """A file, link or folder, and what must become of it.

    `put` writes it; None: another case does, or nothing is there. `ends` holds the end of every
    frame by (member, frame): EMBEDDED, BLANK, or a reason. `ignored` counts what is passed over:
    the file itself, or members of an archive.
    """

    path: str
    put: Callable[[Path], object] | None
    ends: Mapping[tuple[str, str], str]
    ignored: int = 0


def plant(folder: Path, cases: Iterable[Case]) -> None:
    """Write cases into a folder."""
    for case in cases:
        if case.put is not None:
            path = folder / case.path
            path.parent.mkdir(parents=True, exist_ok=True)
            case.put(path)


def moved(cases: Iterable[Case], folder: str) -> list[Case]:
    """Return cases that are in a folder of the folder."""
    return [replace(case, path=f"{folder}/{case.path}") for case in cases]


def expected(cases: Iterable[Case]) -> list[tuple[str, str, str, str]]:
    """List what must be in a catalog: path, member, frame, and what became of it; sorted."""
    return sorted((case.path, *image, end) for case in cases for image, end in case.ends.items())


def corpus(seed: int) -> list[Case]:
    """Return every case: those of row 1 in the folder row-01, and so on."""
    cases = at_the_top(np.random.default_rng([seed, 0]))
    for row, make in ROWS.items():
        cases += moved(make(np.random.default_rng([seed, row])), f"row-{row:02d}")
    return cases


def manifest_corpus(seed: int) -> tuple[str, list[Case]]:
    """Return a manifest and the cases that it names, of which some are not there."""
    rng = np.random.default_rng([seed, 100])
    names = ("here.png", "no-suffix", 'café, "7"\n.png')
    cases = [
        *embedded({name: picture(rng) for name in names}),
        *rejected("unknown-format", {"text.txt": b"no image, but asked for"}),
        *(one(name, None, "vanished") for name in ("absent.png", "no/such/folder.png")),
        *(one(name, None, "outside-folder") for name in ("../above.png", "/etc/hostname")),
        one("folder.png", Path.mkdir, "not-a-file"),
        packed("two.zip", zipped(image(rng), image(rng, "b.png")), ONE | {"b.png": EMBEDDED}),
        Case("none.zip", writing(zipped(Member("a.txt", b"a"))), {("", ""): "bad-archive"}, 1),
    ]
    rows = ('"' + case.path.replace('"', '""') + '"' for case in cases)
    return "\n".join(["path", *rows, ""]), cases


def one(path: str, put: Callable[[Path], object] | None, end: str) -> Case:
    """Return anything that is one row, however it is written."""
    return Case(path, put, {("", ""): end})


def rejected(reason: str, files: Mapping[str, bytes]) -> list[Case]:
    """Return files that must be rejected whole."""
    return [one(path, writing(data), reason) for path, data in files.items()]


def embedded(files: Mapping[str, bytes]) -> list[Case]:
    """Return files that must be embedded, in a row each."""
    return [one(path, writing(data), EMBEDDED) for path, data in files.items()]


def several(path: str, data: bytes, name: str, ends: Iterable[str]) -> Case:
    """Return a file of several frames; `name` has their number, from 0, in place of {}."""
    frames = {("", name.format(number)): end for number, end in enumerate(ends)}
    return Case(path, writing(data), frames)


def packed(path: str, data: bytes, ends: Mapping[str, str], ignored: int = 0) -> Case:
    """Return an archive, with the end of each member that is listed."""
    return Case(path, writing(data), {(name, ""): end for name, end in ends.items()}, ignored)


def passed_over(path: str, put: Callable[[Path], object]) -> Case:
    """Return what must be ignored."""
    return Case(path, put, {}, 1)


def writing(data: bytes) -> Callable[[Path], object]:
    """Return what writes a file of these bytes."""
    return lambda path: path.write_bytes(data)


def linking(target: str) -> Callable[[Path], object]:
    """Return what makes a symbolic link."""
    return lambda path: path.symlink_to(target)


def noise(rng: Generator, *shape: int) -> np.ndarray:
    """Draw grey levels of 8 bits."""
    return rng.integers(0, 256, shape or (SIDE, SIDE)).astype(np.uint8)


def picture(rng: Generator, form: str = "PNG", mode: str = "L", **options: Any) -> bytes:
    """Return an image of noise as Pillow writes it."""
    bands = {"LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}.get(mode, 1)
    drawn = Image.frombytes("L" if bands == 1 else mode, (SIDE, SIDE), rng.bytes(SIDE**2 * bands))
    return saved(drawn.convert(mode), form, **options)


def image(rng: Generator, name: str = "a.png") -> Member:
    """Return an image as a member of a zip."""
    return Member(name, picture(rng))


ONE = {"a.png": EMBEDDED}


def truncated(rng: Generator) -> list[Case]:
    """Row 1: parts of files, and archives cut short or glued together."""
    whole = {
        "png": picture(rng),
        "jpg": picture(rng, "JPEG"),
        "tif": picture(rng, "TIFF"),
        "lzw.tif": picture(rng, "TIFF", compression="tiff_lzw"),
        "gif": saved_all(noise(rng, 3, SIDE, SIDE), "GIF"),
    }
    parts = {
        f"{percent}.{form}": data[: len(data) * percent // 100]
        for form, data in whole.items()
        for percent in (30, 50, 90, 98)
    }
    # All chunks are there and right; the rows within end early.
    parts["rows.png"] = png(noise(rng, 9, SIDE), 8, 0, size=(SIDE, SIDE))
    parts["8.png"] = whole["png"][:8]
    box = zipped(*(image(rng, f"{n}.png") for n in range(3)))
    ball = tarred({f"{n}.png": picture(rng) for n in range(3)})
    archives = {f"{n}.zip": box[: len(box) * n // 4] for n in (1, 2, 3)}
    archives |= {f"{n}.tar": ball[: len(ball) * n // 4] for n in (1, 2)}
    archives |= {"prefixed.zip": b"prefix" + box, "appended.tar": ball * 2}
    return [
        *rejected("damaged", parts),
        *rejected("unknown-format", {"4.png": whole["png"][:4]}),
        *rejected("bad-archive", archives),
    ]


def wrong_checksums(rng: Generator) -> list[Case]:
    """Row 3: bytes that are not what their checksum says."""
    header, pixels = bytearray(picture(rng)), bytearray(picture(rng))
    header[29] ^= 1  # the first byte of the checksum of IHDR
    pixels[-13] ^= 1  # the last one of IDAT, before the 12 bytes of IEND
    comment = bytearray(chunk(b"tEXt", b"Comment\0of no weight"))
    comment[-1] ^= 1
    volume = bytearray(gzip.compress(nifti(noise(rng))))
    volume[-8] ^= 1  # of the checksum at the end
    files = {
        "header.png": bytes(header),
        "pixels.png": bytes(pixels),
        "comment.png": png(noise(rng), 8, 0, before=bytes(comment)),
        "volume.nii.gz": bytes(volume),
        "array.npz": zipped(Member("a.npy", npy(noise(rng)), crc=7)),
    }
    wrong = Member("b.png", picture(rng), crc=7), deflated("c.png", picture(rng), crc=7)
    members = zipped(image(rng), *wrong, deflated("d.png", picture(rng)))
    ends = ONE | {"b.png": "damaged", "c.png": "damaged", "d.png": EMBEDDED}
    return [*rejected("damaged", files), packed("members.zip", members, ends)]


@cache
def megapixels(side: int) -> bytes:
    """Return a whole PNG of side x side black pixels, in a thousandth of the bytes."""
    packer, row = zlib.compressobj(1), bytes(side + 1)
    rows = b"".join([packer.compress(row) for _ in range(side)] + [packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bombs(rng: Generator) -> list[Case]:
    """Row 4: more pixels, or more bytes, than can be meant."""
    small = picture(rng, "GIF")
    files = {
        "100-megapixels.png": megapixels(10_000),
        "100-megapixels.gif": small[:6] + struct.pack("<HH", 10_000, 10_000) + small[10:],
        "400-megapixels.png": png(noise(rng), 8, 0, size=(20_000, 20_000)),
        "exapixels.png": png(noise(rng), 8, 0, size=(2**31 - 1, 2**31 - 1)),
    }
    members = zipped(
        Member("huge.png", zeros(1025), 8, size=1025 << 20, crc=0),
        Member("liar.png", zeros(1025), 8, size=1000, crc=0),
        image(rng),
    )
    ends = ONE | {"huge.png": "too-large", "liar.png": "damaged"}
    return [*rejected("too-large", files), packed("members.zip", members, ends)]


def empty_and_foreign(rng: Generator) -> list[Case]:
    """Row 5: nothing, no pixels, and texts under an image's name."""
    page = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    suffixes = ("png", "jpg", "tif", "gif", "npy", "npz", "nii", "nii.gz", "dcm")
    foreign = {f"page.{suffix}": page for suffix in suffixes}
    archives = {"page.zip": page, "page.tar": page, "empty.zip": b"", "empty.tar": b""}
    none = {"0x0.png": png(noise(rng)[:0], 8, 0), "0x40.png": png(noise(rng)[:0], 8, 0, (0, SIDE))}
    ends = {"a.png": "unknown-format", "b.png": "empty-file"}
    return [
        *rejected("empty-file", {f"empty.{suffix}": b"" for suffix in suffixes}),
        *rejected("unknown-format", foreign),
        *rejected("unknown-format", {"random.png": rng.bytes(4000), "zeros.dcm": bytes(4000)}),
        *rejected("bad-archive", archives),
        *rejected("damaged", none),
        packed("pages.zip", zipped(Member("a.png", page), Member("b.png", b"")), ends),
        packed("pages.tar", tarred({"a.png": page, "b.png": b""}), ends),
        passed_over("notes.txt", writing(page)),
        passed_over(".hidden.png", writing(page)),
        passed_over("no-image.zip", writing(zipped(Member("a.txt", page)))),
    ]


def other_formats(rng: Generator) -> list[Case]:
    """Row 6: formats that are not read, under their own names and others."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(owned) (w) file closefile showpage\n"
    drawn = Image.fromarray(noise(rng))
    names = ("own.bmp", "own.webp", "own.ppm", "bmp.png", "webp.png", "ico.png", "tga.png")
    forms = ("BMP", "WEBP", "PPM", "BMP", "WEBP", "ICO", "TGA")
    foreign = {name: saved(drawn, form) for name, form in zip(names, forms, strict=True)}
    foreign |= {f"eps.{suffix}": eps for suffix in ("png", "jpg", "tif", "nii")}
    office = zipped(Member("word/document.xml", b"<xml/>"), image(rng, "word/media/a.png"))
    ball = gzip.compress(tarred({"a.png": picture(rng)}))
    packages = {"a.tgz": ball, "a.tar.gz": ball, "a.7z": b"7z\xbc\xaf\x27\x1c", "a.png": office}
    good = ("png-named.jpg", "png-without-suffix", "SHOUTED.PNG")
    ends = {"a.bmp": "unknown-format"}
    return [
        *rejected("unknown-format", foreign | packages),
        packed("bmp.zip", zipped(Member("a.bmp", saved(drawn, "BMP"))), ends),
        *embedded({name: picture(rng) for name in good}),
        passed_over("office.docx", writing(office)),
        passed_over("eps", writing(eps)),
        *other_packings(rng),
    ]


def other_packings(rng: Generator) -> list[Case]:
    """Row 6 as well: members of archives that are packed in ways that are not read."""
    data = picture(rng)
    members = (
        image(rng),
        Member("encrypted.png", data, flags=0x801),
        Member("bzip2.png", bz2.compress(data), 12, size=len(data)),
        Member("unknown.png", data, 77),
        Member("longer.png", data, size=len(data) + 1),
        Member("text.txt", b"text"),
        Member("__MACOSX/._a.png", b"text"),
    )
    refused = dict.fromkeys(("encrypted.png", "bzip2.png", "unknown.png"), "unsupported")
    ends = ONE | refused | {"longer.png": "damaged"}
    return [packed("members.zip", zipped(*members), ends, ignored=2)]


def deep_grey(rng: Generator) -> list[Case]:
    """Row 7: more than 8 bits; one.png and other.png differ only above 255."""
    pixels = rng.integers(256, 65_535, (SIDE, SIDE)).astype(np.uint16)
    other = pixels[::-1] // 256 * 256 + pixels % 256
    files = {
        "one.png": saved(Image.fromarray(pixels), "PNG"),
        "other.png": saved(Image.fromarray(other), "PNG"),
        "one.tif": saved(Image.fromarray(pixels), "TIFF"),
        "float.tif": saved(Image.fromarray(pixels.astype(np.float32)), "TIFF"),
        "one.npy": npy(pixels),
        "big-endian.npy": npy(pixels.astype(">i4")),
        "float64.npy": npy(pixels.astype(np.float64)),
        "one.dcm": dicom(pixels),
        "one.nii": nifti(pixels),
    }
    return embedded(files)


def not_finite(rng: Generator) -> list[Case]:
    """Row 8: NaN and infinities, in one frame or in the only one."""
    values = noise(rng, 3, SIDE, SIDE).astype(np.float32)
    values[1, 3, 5] = np.nan
    infinite = values[0].copy()
    infinite[7, 9] = -np.inf
    files = {
        "nan.tif": saved(Image.fromarray(values[1]), "TIFF"),
        "inf.tif": saved(Image.fromarray(infinite), "TIFF"),
        "nan.npy": npy(values[1]),
        "inf.npy": npy(infinite),
        "beyond-float32.npy": npy(values[0].astype(np.float64) * 1e300),
        "beyond-float32.nii": nifti(noise(rng), 1e38, 0),
        "nan.nii.gz": gzip.compress(nifti(values[1])),
    }
    ends = (EMBEDDED, "not-finite", EMBEDDED)
    return [
        *rejected("not-finite", files),
        several("volume.npy", npy(values), "axis=0,slice={}", ends),
        several("volume.nii", nifti(np.moveaxis(values, 0, 2)), "axis=2,slice={}", ends),
    ]


def colours(rng: Generator) -> list[Case]:
    """Row 9: whatever is brought to luminance by the written rule, and what would lose bits."""
    files = {f"{mode}.png": picture(rng, mode=mode) for mode in ("1", "LA", "P", "RGB", "RGBA")}
    files |= {f"{mode}.jpg": picture(rng, "JPEG", mode) for mode in ("RGB", "CMYK")}
    files |= {f"{mode}.tif": picture(rng, "TIFF", mode) for mode in ("RGB", "CMYK")}
    deep = rng.integers(0, 65_536, (SIDE, SIDE, 3)).astype(">u2")
    return [*embedded(files), *rejected("unsupported", {"deep.png": png(deep, 16, 2)})]


def several_frames(rng: Generator) -> list[Case]:
    """Row 10: a row for each frame, or none."""
    # Every frame has every grey level: Pillow misreads GIF frames of fewer, which are rejected.
    levels = np.tile(np.arange(SIDE**2) % 256, (4, 1)).astype(np.uint8)
    stack = rng.permuted(levels, axis=1).reshape(4, SIDE, SIDE)
    gif, all_four = saved_all(stack, "GIF"), [EMBEDDED] * 4
    many = {"4097.gif": tiny_frames(4097), "4097.npy": npy(noise(rng, 4097, 9, 9))}
    return [
        several("four.gif", gif, "frame={}", all_four),
        several("four.png", saved_all(stack, "PNG"), "frame={}", all_four),
        several("four.tif", saved_all(stack, "TIFF"), "frame={}", all_four),
        several("four.dcm", dicom(stack), "frame={}", all_four),
        several("four.npy", npy(stack), "axis=0,slice={}", all_four),
        several("forty.nii", nifti(stack), "axis=2,slice={}", [EMBEDDED] * SIDE),
        several("four.npz", npz(stack), "array={}", all_four),
        *rejected("damaged", {"no-trailer.gif": gif[:-1]}),
        *rejected("too-large", many),
        *rejected("unsupported", {"four-axes.npy": npy(noise(rng, 2, 2, SIDE, SIDE))}),
    ]


def npz(planes: np.ndarray) -> bytes:
    """Return an NPZ with an array for each plane, named by its number."""
    return zipped(*(deflated(f"{number}.npy", npy(plane)) for number, plane in enumerate(planes)))


def tiny_frames(count: int) -> bytes:
    """Return a GIF of frames of one pixel."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return screen + frame * count + b";"


def constants(rng: Generator) -> list[Case]:
    """Row 11: one value, or so near to it that nothing can be seen."""
    flat, specks = np.full((SIDE, SIDE), 7, np.uint8), np.zeros((100, 100), np.uint8)
    specks[3, 4:9] = 255  # 5 of 10,000
    files = {
        "black.png": png(0 * flat, 8, 0),
        "flat.png": png(flat, 8, 0),
        "one-pixel.png": png(flat[:1, :1], 8, 0),
        "specks.png": png(specks, 8, 0),
        "flat.npy": npy(flat),
        "near.npy": npy(1 + 1e-8 * noise(rng)),
        "flat.nii": nifti(flat),
        "flat.dcm": dicom(flat),
    }
    return [*rejected("constant", files), *embedded({"faint.png": png(128 + noise(rng) % 2, 8, 0)})]


def nifti_claiming(data: bytes, *shape: int) -> bytes:
    """Return a NIfTI-1 file with another shape in its header: dim, at byte 40."""
    return data[:40] + struct.pack("<4h", len(shape), *shape) + data[48:]


def bad_nifti(rng: Generator) -> list[Case]:
    """Row 12: headers that lie, and bodies of another length."""
    plane, volume = nifti(noise(rng)), nifti(noise(rng, 9, SIDE, SIDE))
    vast, half = nifti_claiming(volume, 32_000, 32_000, 32_000), len(volume) // 2
    arrays = {
        "half.nii": volume[:half],
        "header.nii": plane[:348],
        "trailing.nii": plane + b"\0",
        "bomb.nii.gz": gzip.compress(plane) + gzip.compress(bytes(16 << 20)) * 300,
        "negative.nii": nifti_claiming(volume, -9, SIDE, SIDE),
        "complex.nii": nifti(noise(rng).astype(np.complex64)),
    }
    damaged = {
        "slope-inf.nii": nifti(noise(rng), np.inf, 0),
        "half.nii.gz": gzip.compress(volume)[:half],
    }
    good = {
        "slope.nii": nifti(noise(rng), 0.5, -7),
        "slope-nan.nii": nifti(noise(rng), np.nan, np.nan),
    }
    return [
        *rejected("too-large", {"vast.nii": vast, "vast.nii.gz": gzip.compress(vast)}),
        *rejected("bad-array", arrays),
        *rejected("damaged", damaged),
        *rejected("unknown-format", {"half-header.nii": plane[:200]}),
        *embedded(good),
    ]


class Program:
    """What a pickle runs when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (EXECUTED,)


def npy_claiming(header: str, body: bytes) -> bytes:
    """Return an NPY file with any header."""
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def bad_arrays(rng: Generator) -> list[Case]:
    """Row 13: arrays that would run a program, fill the memory, or are not as long as they say."""
    plane, objects = npy(noise(rng)), np.array([[Program(), Program()]] * 2, object)
    shape = "{'descr': '<f8', 'fortran_order': False, 'shape': (2000000, 2000000), }"
    pickled, first = npy(objects, allow_pickle=True), Member("a.npy", plane)
    packer = zlib.compressobj(wbits=-15)
    more = packer.compress(plane) + packer.flush(zlib.Z_FULL_FLUSH) + zeros(1025)
    arrays = {
        "pickled.npy": pickled,
        "pickled.npz": zipped(first, Member("b.npy", pickled)),
        "program.npy": npy_claiming(f"__import__('os').mkdir({EXECUTED!r})", b""),
        "trailing.npy": plane + b"\0",
        "short.npy": plane[:-1],
        "no-header.npy": plane[:9],
        "complex.npy": npy(noise(rng).astype(complex)),
        "text.npy": npy(np.array([["a", "b"]])),
        "line.npy": npy(noise(rng, 99)),
        "number.npy": npy(np.uint8(3)),
        "nothing.npy": npy(noise(rng)[:0]),
        "twice.npz": zipped(first, first),
        "other-file.npz": zipped(first, Member("b.txt", b"")),
        "bomb.npz": zipped(Member("a.npy", more, 8, size=len(plane) + (1025 << 20), crc=0)),
    }
    return [
        *rejected("bad-array", arrays),
        *rejected("too-large", {"29-tebibytes.npy": npy_claiming(shape, bytes(100))}),
        *rejected("unknown-format", {"bare-pickle.npy": pickle.dumps(Program())}),
        *rejected("unsupported", {"colour.npy": npy(noise(rng, SIDE, SIDE, 3))}),
        *embedded({"one.npz": npz(noise(rng, 1, SIDE, SIDE))}),
        *embedded({"fortran.npy": npy(np.asfortranarray(noise(rng, SIDE, 20)))}),
    ]


def good_dicom(rng: Generator) -> list[Case]:
    """Row 14: patients' files, of which only the pixels may come through."""
    plane, deep = noise(rng), rng.integers(0, 4096, (6, SIDE, SIDE)).astype(np.uint16)
    body = dicom_tags(deep[0]) + element(0x7FE00010, b"OW", deep[0].tobytes())
    files = {
        "ct.dcm": dicom(deep[1]),
        "IM000001": dicom(deep[2]),
        "a.IMA": dicom(deep[3]),
        "inverted.dcm": dicom(deep[4], photometric=b"MONOCHROME1"),
        "hounsfield.dcm": dicom(deep[5], more=element(0x00281052, b"DS", b"-1024")),
        "deflated.dcm": dicom_file(deflated("", body).data, DEFLATED),
        "rle.dcm": encapsulated(plane, RLE, rle(plane)),
        "jpeg.dcm": encapsulated(plane, JPEG, saved(Image.fromarray(plane), "JPEG")),
    }
    study = zipped(Member("DICOM/IM1", dicom(deep[0])))
    return [*embedded(files), packed("study.zip", study, {"DICOM/IM1": EMBEDDED})]


def bad_dicom(rng: Generator) -> list[Case]:
    """Row 15: what cannot be decoded, and what must not be."""
    plane, frames = noise(rng), noise(rng, 3, SIDE, SIDE)
    whole, coded = dicom(plane), saved(Image.fromarray(plane), "JPEG")
    other_size = saved(Image.fromarray(noise(rng, 4000, 4000)), "JPEG")
    vast = np.broadcast_to(plane[0, 0], (65_535, 65_535))
    preambles = {
        "windows.dcm": b"MZ\x90\0",
        "linux.dcm": b"\x7fELF\2",
        "script.dcm": b"#!/bin/sh\n",
    }
    cut_short = {f"{n}.dcm": whole[: len(whole) * n // 100] for n in (30, 60, 99)}
    damaged = {
        "two-of-three.dcm": dicom(frames, body=frames[:2].tobytes()),
        "half.jpeg.dcm": encapsulated(plane, JPEG, coded[: len(coded) // 2]),
        "other-size.jpeg.dcm": encapsulated(plane, JPEG, other_size),
        "short.rle.dcm": encapsulated(plane, RLE, rle(plane[:9])),
        "slope-0.dcm": dicom(plane, more=element(0x00281053, b"DS", b"0")),
    }
    undecoded = {
        "video.dcm": encapsulated(plane, MPEG4, rng.bytes(900)),
        "unknown-syntax.dcm": encapsulated(plane, UNKNOWN, rng.bytes(900)),
    }
    large = {"bomb.dcm": dicom_file(zeros(2049), DEFLATED), "vast.dcm": dicom(vast, body=b"ab")}
    return [
        *rejected("no-pixels", {"no-pixels.dcm": dicom_file(dicom_tags(plane))}),
        *rejected("no-decoder", undecoded),
        *rejected(
            "executable", {n: dicom(plane, preamble=start) for n, start in preambles.items()}
        ),
        *rejected("too-large", large),
        *rejected("damaged", cut_short | damaged),
        *rejected("unsupported", {"hsv.dcm": dicom(plane, photometric=b"HSV")}),
        packed("half.zip", zipped(Member("IM1", whole[:900])), {"IM1": "damaged"}),
    ]


def dicomdir(rng: Generator) -> list[Case]:
    """Row 16: a list of files that lie elsewhere."""
    listed = dicom_file(element(0x00041500, b"CS", b"..\\..\\ETC\\PASSWD"))
    study = zipped(Member("DICOMDIR", listed), image(rng))
    return [passed_over("DICOMDIR", writing(listed)), packed("study.zip", study, ONE, ignored=1)]


def sizes(rng: Generator) -> list[Case]:
    """Row 17: any size and aspect."""
    shapes = ((1, 300), (300, 2), (3, 3), (17, 1000), (700, 500))
    return embedded(
        {f"{high}x{wide}.png": png(noise(rng, high, wide), 8, 0) for high, wide in shapes}
    )


def outside(rng: Generator) -> list[Case]:
    """Row 19: links and names that lead out of the folder."""
    up = "../" * 40
    targets = {
        "absolute.png": "/dev/zero",
        "relative.png": f"{up}etc/passwd",
        "dangling.png": f"{up}no/such/file",
        "folder": "/",
    }
    names = ("../a.png", "/a.png", "b/../../a.png", "C:\\a.png", "..\\a.png")
    ends = dict.fromkeys(names, "outside-folder") | ONE
    leading = tarred({"a.png": picture(rng)}, {"b.png": "/etc/passwd"})
    linked = ONE | {"b.png": "not-a-file"}
    link = Member("b.png", b"/etc/passwd", mode=stat.S_IFLNK)
    return [
        *(one(name, linking(target), "outside-folder") for name, target in targets.items()),
        *embedded({"target.png": picture(rng)}),
        one("inside.png", linking("target.png"), EMBEDDED),
        packed("a.zip", zipped(*(image(rng, name) for name in ends)), ends),
        packed("a.tar", tarred({name: picture(rng) for name in ends}), ends),
        packed("links.zip", zipped(image(rng), link), linked),
        packed("links.tar", leading, linked),
    ]


def loops(rng: Generator) -> list[Case]:
    """Row 20: links that lead to themselves, and archives in archives."""
    ball = Member("c.tar", tarred({"a.png": picture(rng)}))
    nested = zipped(image(rng), Member("b.zip", zipped(image(rng))), ball)
    return [
        one("one.png", linking("two.png"), "unreadable"),
        one("two.png", linking("one.png"), "unreadable"),
        passed_over("here", linking(".")),
        passed_over("above", linking("..")),
        packed("a.zip", nested, ONE | {"b.zip": "unsupported", "c.tar": "unsupported"}),
    ]


def no_files(rng: Generator) -> list[Case]:
    """Row 21: names of images and archives on what is no file."""

    def socket(path: Path) -> None:
        os.mknod(path, stat.S_IFSOCK | 0o600)

    return [
        *(one(name, os.mkfifo, "not-a-file") for name in ("fifo.png", "fifo.zip")),
        one("socket.dcm", socket, "not-a-file"),
        passed_over("fifo", os.mkfifo),
        *embedded({"folder.png/a.png": picture(rng)}),
    ]


def unreadable(rng: Generator) -> list[Case]:
    """Row 22: what the operating system refuses, and what is not there."""
    data, names = picture(rng), ["d" * 255] * 16

    def forbidden(path: Path) -> None:
        path.write_bytes(data)
        path.chmod(0)

    def deep(path: Path) -> None:
        """Make folders within folders until no path is short enough to name the last."""
        holder = os.open(path.parent, os.O_RDONLY)
        for name in names:
            os.mkdir(name, dir_fd=holder)
            within = os.open(name, os.O_RDONLY, dir_fd=holder)
            os.close(holder)
            holder = within
        os.close(holder)

    may_read_all = os.geteuid() == 0
    return [
        one("forbidden.png", forbidden, EMBEDDED if may_read_all else "unreadable"),
        *(one(name, linking("absent.png"), "vanished") for name in ("dangling.png", "dangling")),
        Case(names[0], deep, {}),
        one("/".join(names), None, "unreadable"),
    ]


def same_names(rng: Generator) -> list[Case]:
    """Row 24: one name in two folders, or in two archives; and twice in one."""
    twice = zipped(image(rng), image(rng, "b.png"), image(rng, "b.png"))
    return [
        *embedded({"a/same.png": picture(rng), "b/same.png": picture(rng)}),
        packed("a.zip", zipped(image(rng)), ONE),
        packed("b.zip", zipped(image(rng)), ONE),
        packed("twice.zip", twice, ONE | {"b.png": "bad-archive"}),
    ]


def odd_names(rng: Generator) -> list[Case]:
    """Row 25: names that would break a table, a page or a terminal; good files and bad."""
    names = (
        *("n" * 251 + ".png", "new\nline.png", "carriage\rreturn.png", "\x1b[31mred.png"),
        *("<script>alert(1).png", "back\\slash.png", 'comma, "quote".png', " blank .png"),
        *("over\u202eride.png", "\u00fc.png", "u\u0308.png", "not-utf-8-\udcff\udcfe.png"),
    )
    formula, old = Member("=1\n\x1b.png", picture(rng)), Member("\u00fc.png", picture(rng), flags=0)
    ball = tarred({"\udcff.png": picture(rng), "@.png": b""})
    return [
        *embedded({f"good/{name}": picture(rng) for name in names}),
        *rejected("empty-file", {f"bad/{name}": b"" for name in names}),
        packed("a.zip", zipped(formula), {formula.name: EMBEDDED}),
        packed("old.zip", zipped(old), {old.name: EMBEDDED}),
        packed("a.tar", ball, {"\udcff.png": EMBEDDED, "@.png": "empty-file"}),
    ]


def at_the_top(rng: Generator) -> list[Case]:
    """Row 25 as well: names like a formula, which are one only where a path begins."""
    return [
        *embedded({f"{first}1+1.png": picture(rng) for first in "=+-@\t"}),
        *rejected("empty-file", {f"{first}cmd|' C'!A0.png": b"" for first in "=+-@\t"}),
    ]


def endless(rng: Generator) -> list[Case]:
    """Row 28: a file that is all right, and would take minutes."""
    whole = saved(Image.fromarray(np.zeros((3000, 3000), np.uint8)), "GIF")
    start = 13 + (3 << (whole[10] & 7) + 1)
    slow = whole[:start] + whole[start:-1] * 1200 + whole[-1:]
    return [
        *rejected("decoder-timeout", {"slow.gif": slow}),
        *embedded({"after.png": picture(rng)}),
    ]


def padded_dicom(rng: Generator) -> list[Case]:
    """Row 39: CT with padding, part of an image or all of it, and padding that is no number."""
    samples = rng.integers(0, 3000, (SIDE, SIDE)).astype(np.int16)
    samples[:9] = -2000
    value = element(0x00280120, b"SS", struct.pack("<h", -2000))
    pair = element(0x00280120, b"SS", struct.pack("<2h", -2000, 0))
    return [
        *embedded({"padded.dcm": dicom(samples, more=value)}),
        *rejected("constant", {"all-padding.dcm": dicom(samples[:9], more=value)}),
        *rejected("damaged", {"two-values.dcm": dicom(samples, more=pair)}),
    ]


def blank_frames(rng: Generator) -> list[Case]:
    """Row 43: frames with nothing on them, beside others and alone."""
    stack = noise(rng, 5, SIDE, SIDE)
    stack[0] = stack[3:] = 0
    ends = (BLANK, EMBEDDED, EMBEDDED, BLANK, BLANK)
    values = stack.astype(np.float32)
    values[1, 2, 3] = np.nan
    mixed = (BLANK, "not-finite", EMBEDDED, BLANK, BLANK)
    shades = np.arange(3, dtype=np.uint8).repeat(SIDE**2).reshape(3, SIDE, SIDE)
    return [
        several("volume.nii.gz", gzip.compress(nifti(stack.T)), "axis=2,slice={}", ends),
        several("volume.npy", npy(values), "axis=0,slice={}", mixed),
        several("pages.tif", saved_all(stack, "TIFF"), "frame={}", ends),
        several("frames.dcm", dicom(stack), "frame={}", ends),
        several("arrays.npz", npz(stack), "array={}", ends),
        several("all.npy", npy(shades), "axis=0,slice={}", ["constant"] * 3),
        *rejected("constant", {"one-slice.npy": npy(shades[:1])}),
    ]


def containers(rng: Generator) -> list[Case]:
    """Row 45: files and folders that may hold images, and are not read."""
    data = b"\x89HDF\r\n\x1a\n" + rng.bytes(900)
    names = ("a.h5", "b.mat", "c.pkl", "d.parquet", "e.MP4", "f.exr", "no-suffix", "g.raw.gz")
    files = dict.fromkeys(names, data)
    return [
        *rejected("unsupported", files | {"h.bin": rng.bytes(900)}),
        one("array.zarr", Path.mkdir, "unsupported"),
        Case("array.zarr/c/0", writing(data), {}),
        *embedded({"an-image.raw": picture(rng)}),
        packed("a.zip", zipped(image(rng), Member("b.pt", data)), ONE | {"b.pt": "unsupported"}),
    ]


def vast_headers(rng: Generator) -> list[Case]:
    """Row 48: a tar of a few kilobytes whose header says that it goes on for 900 MB."""
    info = tarfile.TarInfo("@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 900 << 20

    def sparse(path: Path) -> None:
        path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
        os.truncate(path, 901 << 20)

    whole = tarred({"a.png": picture(rng)})
    return [one("vast.tar", sparse, "too-large"), packed("whole.tar", whole, ONE)]


ROWS: dict[int, Callable[[Generator], list[Case]]] = {
    1: truncated,
    3: wrong_checksums,
    4: bombs,
    5: empty_and_foreign,
    6: other_formats,
    7: deep_grey,
    8: not_finite,
    9: colours,
    10: several_frames,
    11: constants,
    12: bad_nifti,
    13: bad_arrays,
    14: good_dicom,
    15: bad_dicom,
    16: dicomdir,
    17: sizes,
    19: outside,
    20: loops,
    21: no_files,
    22: unreadable,
    24: same_names,
    25: odd_names,
    28: endless,
    39: padded_dicom,
    43: blank_frames,
    45: containers,
    48: vast_headers,
}
