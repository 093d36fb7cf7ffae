"""PNG, JPEG, TIFF and GIF, one frame a page, through Pillow.

APNG, MPO and TIFF with several pages give their frames in the file's order; GIF and APNG frames
are composed as a viewer shows them. Pillow stops at the first frame that it cannot find, so
the frames of a GIF, APNG or TIFF are also counted without it. The gain map of
an Ultra HDR JPEG is no frame.
"""

import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import GifImagePlugin, Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.decode.values import MAX_FRAMES, Frame, luminance
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.ingest.rejection import Rejected

PNG = b"\x89PNG\r\n\x1a\n"
MAGIC = {
    PNG: "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
}
_PIECE = 1 << 16  # bytes
_NATIVE = {  # how Pillow reads samples in the order of the file, and in that of this machine
    "I;16BS": "I;16NS",
    "I;32BS": "I;32NS",
    "F;32BF": "F;32NF",
}
_IMAGEJ = re.compile(r"ImageJ=.*?^images=(\d+)$", re.DOTALL | re.MULTILINE)
_TIFFFILE = re.compile(r'\{"shape": \[([\d, ]+)\].*"truncated": true')
_ADAM7 = (  # each pass's first column and row, and its steps
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


def form(data: bytes) -> str | None:
    """Name the format by its first bytes; None when it is not one of these."""
    return next((name for magic, name in MAGIC.items() if data.startswith(magic)), None)


@contextmanager
def strict(max_pixels: int) -> Iterator[None]:
    """Refuse bombs and half images, whatever another library has set; restore it after."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    strategy = GifImagePlugin.LOADING_STRATEGY
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata, which may name a patient
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # Pillow would go on with the first image of several, and pydicom with what there is.
        warnings.filterwarnings("error", "Image appears to be a malformed MPO")
        warnings.filterwarnings("error", ".* in file <no filename>")
        try:
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, max_pixels
            # Else a grey GIF whose frames have palettes of their own gives indices for grey levels.
            GifImagePlugin.LOADING_STRATEGY = GifImagePlugin.LoadingStrategy.RGB_ALWAYS
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before
            GifImagePlugin.LOADING_STRATEGY = strategy


def frames(data: bytes, options: ReadOptions) -> Iterator[Frame]:
    """Give every frame; each step must run under `strict`."""
    name = form(data) or ""
    if name == "PNG":  # load() does not look at the checksums of pixel data
        with Image.open(io.BytesIO(data), formats=(name,)) as image:
            image.verify()
    with Image.open(io.BytesIO(data), formats=(name,)) as image:
        count = _count(image, data, name)
        _check_stack(image, count)
        for number in range(count):
            image.seek(number)
            # Not every version of Pillow checks this of the later frames.
            if image.width * image.height > options.max_pixels:
                size = f"{image.width} x {image.height}"
                raise Rejected("too-large", f"{size} is over the limit of {options.max_pixels}")
            _check_strips(image)
            _check_samples(image)
            _read_in_native_order(image)
            image.load()  # some modes are known only now
            bits = data[24] if name == "PNG" else _tag(image, 258, 8)
            yield Frame(f"frame={number}" if count > 1 else "", image.mode, _pixels(image, bits))


def _count(image: Image.Image, data: bytes, name: str) -> int:
    """Count the frames; what Pillow finds and what the file holds must agree."""
    held = {"GIF": _gif_frames, "PNG": _png_frames, "TIFF": _tiff_frames}.get(name)
    counts = [held(data)] if held else []
    if max(counts, default=0) <= MAX_FRAMES:  # Pillow walks through all of them to count
        counts.append(int(getattr(image, "n_frames", 1)))
    if max(counts) > MAX_FRAMES:
        raise Rejected("too-large", f"{max(counts)} frames, over the limit of {MAX_FRAMES}")
    if min(counts) != max(counts):
        raise Rejected("damaged", f"it holds {counts[0]} frames, of which {counts[1]} can be read")
    return counts[0]


def _check_stack(image: Image.Image, count: int) -> None:
    """Refuse what Pillow would give a small part of.

    A stack of ImageJ or tifffile may have one directory for many images, which follow its samples;
    so has a MetaMorph stack (STK), which has tag 33629; a raw photograph has a thumbnail, and the
    image in a directory below.
    """
    if isinstance(image, TiffImageFile) and 33629 in image.tag_v2:
        raise Rejected("unsupported", "a MetaMorph stack (STK); save its planes as TIFF pages")
    if _tag(image, 254, 0) & 1 and _tag(image, 330, 0):
        raise Rejected("unsupported", "a TIFF that shows a thumbnail and hides its image (SubIFDs)")
    text = str(image.tag_v2.get(270, "")) if isinstance(image, TiffImageFile) else ""
    if (said := _IMAGEJ.match(text)) and int(said[1]) > count:
        raise Rejected(
            "unsupported", f"an ImageJ stack of {said[1]} images in {count} TIFF directory"
        )
    samples = image.width * image.height * _tag(image, 277, 1)
    if (said := _TIFFFILE.match(text)) and math.prod(map(int, said[1].split(","))) > samples:
        raise Rejected("unsupported", f"a tifffile stack of shape {said[1]} in one TIFF directory")


def _png_frames(data: bytes) -> int:
    """Count the frames of a PNG whose chunks were verified; each must have all of its rows.

    Pillow leaves black what compressed data that ends early does not reach.
    """
    size = struct.unpack_from(">II", data, 16)
    images: list[tuple[int, list[memoryview]]] = []
    for kind, body in png_chunks(data):
        if kind == b"fcTL":
            images.append((_png_bytes(data, *struct.unpack_from(">II", body, 4)), []))
        elif kind == b"IDAT" and not images:  # shown by itself, where APNG is not known
            images.append((_png_bytes(data, *size), []))
        if kind in (b"IDAT", b"fdAT"):
            images[-1][1].append(body if kind == b"IDAT" else body[4:])
    if not all(_inflates(parts, wanted) for wanted, parts in images):
        raise Rejected("damaged", "the compressed data ends before the last row")
    return len(images)


def png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Give the kind and the content of every chunk of a PNG, up to its end."""
    kind, at = b"", 8
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, memoryview(data)[at + 8 : at + 8 + length]
        at += 12 + length


def _png_bytes(data: bytes, width: int, height: int) -> int:
    """Bytes of an image's rows uncompressed, each with its filter, over the passes if interlaced.

    Source: PNG specification, sections 7.2 and 8.2.
    """
    bits = data[24] * {2: 3, 4: 2, 6: 4}.get(data[25], 1)
    passes = _ADAM7 if data[28] else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes]
    return sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns > 0)


def _inflates(parts: list[memoryview], wanted: int) -> bool:
    """Tell whether zlib data in parts gives as many bytes."""
    stream, found = zlib.decompressobj(), 0
    for part in parts:
        for at in range(0, len(part), _PIECE):
            if found < wanted and not stream.eof:
                found += len(stream.decompress(part[at : at + _PIECE], wanted - found))
    return found >= wanted


def gif_blocks(data: bytes) -> tuple[int, int]:
    """Count the image blocks of a GIF, which must go on to its trailer; and say where it ends."""
    count, at = 0, 13 + _table(data[10])
    while (kind := data[at]) != 0x3B:
        if kind == 0x2C:
            count, at = count + 1, at + 11 + _table(data[at + 9])
        elif kind == 0x21:
            at += 2
        else:
            raise Rejected("damaged", f"a GIF block of the unknown kind {kind}")
        while length := data[at]:
            at += 1 + length
        at += 1
    return count, at + 1


def _gif_frames(data: bytes) -> int:
    return gif_blocks(data)[0]


def _table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _tiff_frames(data: bytes) -> int:
    """Count the directories of a TIFF, each of which names the next."""
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    start, count, entry, following = (8, "Q", 20, "Q") if big else (4, "H", 12, "I")
    seen: set[int] = set()
    (at,) = struct.unpack_from(order + following, data, start)
    while at and len(seen) <= MAX_FRAMES:
        if at in seen:
            raise Rejected("damaged", "a TIFF directory that names an earlier one as the next")
        seen.add(at)
        (entries,) = struct.unpack_from(order + count, data, at)
        at += struct.calcsize(order + count) + entries * entry
        (at,) = struct.unpack_from(order + following, data, at)
    return len(seen)


def _check_strips(image: Image.Image) -> None:
    """Refuse a TIFF whose strips or tiles leave a part out: Pillow leaves it black.

    What libtiff decodes is one piece, of all planes; it refuses by itself what leaves a part out.
    """
    if isinstance(image, TiffImageFile):
        apart = _tag(image, 284, 1) == 2 and all(t.codec_name != "libtiff" for t in image.tile)
        planes = len(image.getbands()) if apart else 1
        boxes = [tile.extents or (0, 0, 0, 0) for tile in image.tile]
        covered = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes)
        if covered < image.width * image.height * planes:
            raise Rejected("damaged", "strips or tiles are missing")


def _check_samples(image: Image.Image) -> None:
    """Refuse a TIFF with samples that Pillow passes over: of further planes, or of channels."""
    if not isinstance(image, TiffImageFile):
        return
    if (planes := _tag(image, 32997, 1)) > 1:
        raise Rejected(
            "unsupported", f"a volume of {planes} planes in one TIFF image; save them as pages"
        )
    if 0 in _values(image, 338):
        raise Rejected(
            "unsupported",
            "a channel that is neither grey, colour nor alpha; save each channel as a grey image",
        )


def _read_in_native_order(image: Image.Image) -> None:
    """Have the samples of a big-endian TIFF read as libtiff gives them: in this machine's order.

    Pillow swaps the bytes of signed samples and floats once more.
    """
    if isinstance(image, TiffImageFile):
        image.tile = [
            tile._replace(args=(_NATIVE.get(tile.args[0], tile.args[0]), *tile.args[1:]))
            if tile.codec_name == "libtiff" and isinstance(tile.args, tuple)
            else tile
            for tile in image.tile
        ]


def _tag(image: Image.Image, tag: int, default: int) -> int:
    """Return the first value of a TIFF tag; `default` where it, or the TIFF, is absent."""
    values = _values(image, tag) if isinstance(image, TiffImageFile) else ()
    return int(values[0] if values else default)


def _values(image: TiffImageFile, tag: int) -> tuple[Any, ...]:
    """Return the values of a TIFF tag; none where it is absent."""
    value: Any = image.tag_v2.get(tag, ())
    return value if isinstance(value, tuple) else (value,)


def _pixels(image: Image.Image, bits: int) -> Pixels:
    """Return the selected frame (H, W), turned as its orientation says."""
    # A copy: the frames that follow may be drawn over this one as it is in the file.
    turned = ImageOps.exif_transpose(image)
    if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16"):
        return _grey(image, turned, bits)
    return _luminance(turned, bits)


def _grey(image: Image.Image, turned: Image.Image, bits: int) -> Pixels:
    """Return a grey frame's samples (H, W), with what Pillow leaves undone.

    It gives unsigned 32-bit and signed 8-bit TIFF samples the other sign's type, and inverts
    white-is-zero TIFF at 8 bits but not at 16.
    """
    samples: npt.NDArray[Any] = np.asarray(turned.convert("L") if turned.mode == "1" else turned)
    if isinstance(image, TiffImageFile):
        layout = _tag(image, 258, 1), _tag(image, 339, 1)
        actual = {(32, 1): np.uint32, (8, 2): np.int8}.get(layout)
        samples = samples if actual is None else samples.view(actual)
        if image.mode.startswith("I;16") and _tag(image, 262, 1) == 0:
            samples = (1 << bits) - 1 - samples.astype(np.int32)
    transparent = image.info.get("transparency")
    if transparent is not None:
        if bits < 8:  # Pillow spreads such samples to 8 bits, and not this one
            raise Rejected("unsupported", f"a transparent value in {bits}-bit grey")
        samples = np.where(samples == transparent, 0, samples)
    return samples.astype(np.float32)


def _luminance(image: Image.Image, bits: int) -> Pixels:
    """Return the luminance (H, W) of an 8-bit image with colour, a palette or alpha."""
    if bits > 8 or image.mode not in ("LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        raise Rejected(
            "unsupported", f"{bits}-bit {image.mode}; save as 8-bit colour or as 16-bit grey"
        )
    alpha = image.has_transparency_data
    samples = np.asarray(image.convert("RGBA" if alpha else "RGB")).astype(np.float32)
    pixels = luminance(samples[..., :3])
    return pixels * (samples[..., 3] / np.float32(255)) if alpha else pixels
