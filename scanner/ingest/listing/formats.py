"""What a name, or the first bytes under it, say of a file.

Names decide first. Where a name says nothing, or names a container, the first bytes do: many DICOM
files have no suffix, and any suffix may stand on an image.
"""

import re
import zlib
from enum import Enum

from deepssim_scan.ingest.decode import arrays, dicom, pillow
from deepssim_scan.ingest.rejection import Rejection

ARCHIVES = (".zip", ".tar")
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".npy", ".npz", ".nii", ".nii.gz"),
    *(".dcm", ".dicom", ".ima", *ARCHIVES),
)
FOREIGN = (
    *(".bmp", ".webp", ".jp2", ".j2k", ".j2c", ".jpx", ".jls", ".jxl"),
    *(".tga", ".pbm", ".heic", ".heif", ".avif", ".ppm", ".pgm", ".pnm"),
    ".img",
)
"""Image formats that are not read: their content decides, and is mostly an unknown format."""

CONTAINERS = (
    *(".h5", ".hdf5", ".hdf", ".he5", ".h5ad", ".nc", ".nc4", ".mat", ".ims"),
    *(".zarr.zip", ".b2nd", ".asdf", ".rds", ".rda", ".rdata", ".jld2"),
    *(".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".msgpack", ".safetensors"),
    *(".tfrecord", ".tfrecords", ".rec", ".lmdb", ".mdb", ".beton", ".mds"),
    *(".parquet", ".arrow", ".feather", ".orc", ".avro"),
    *(".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm", ".wmv", ".mpg", ".mpeg", ".flv", ".ogv"),
    *(".exr", ".dpx", ".fits", ".psd", ".xcf", ".mrb", ".vti", ".vtk", ".raw", ".bin"),
    *(".mha", ".mhd", ".nrrd", ".nhdr", ".mgz", ".mgh", ".mnc"),
    *(
        ".svs",
        ".ndpi",
        ".czi",
        ".lif",
        ".nd2",
        ".oib",
        ".oir",
        ".vsi",
        ".scn",
        ".mrxs",
        ".zvi",
        ".dv",
        ".ecat",
    ),
)
"""Files that may hold images and are not read: arrays, tables, checkpoints, videos, raw samples."""

PACKED = (
    *(".tgz", ".tar.gz", ".tbz", ".tb2", ".tbz2", ".tar.bz2", ".txz", ".tar.xz", ".tlz"),
    *(".tzst", ".tar.zst", ".taz", ".7z", ".rar"),
)

HEAD = 348
"""How many first bytes tell every format: a NIfTI-1 has its magic at 344."""

NOT_UNPACKED = Rejection(
    "unknown-format",
    "a compressed archive; unpack it, pack it as a plain .tar or .zip, or leave it out with "
    "--exclude",
)
NOT_READ = Rejection(
    "unsupported",
    "a container that is not read, and may hold images; convert them to images, or leave it out "
    "with --exclude",
)

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".z", ".lz4", ".lz", ".lzma", ".br")
_VOLUME = re.compile(r"\.\d{3}$")  # of an archive in several files
_SHARD = re.compile(r"\.(tfrecords?|parquet|arrow)-\d+-of-\d+$")
_ARRAY_FOLDERS = (".zarr", ".n5")
_ARRAY_MARKS = (".zarray", ".zgroup", "zarr.json")
_FOREIGN_MAGIC = (
    *(b"\xff\x4f\xff\x51", b"\xff\x0a", b"P1\n", b"P2\n", b"P3\n", b"P4\n", b"P5\n", b"P6\n"),
)
_CONTAINER_MAGIC = (
    *(b"\x89HDF\r\n\x1a\n", b"MATLAB 5.0 MAT", b"MATLAB 7.3 MAT", b"CDF\1", b"CDF\2", b"CDF\5"),
    *(b"PAR1", b"ARROW1\0\0", b"FEA1", b"Obj\1"),
    *(b"\x80\4\x95", b"\x80\5\x95"),  # pickles of protocol 4 and 5
    *(
        b"\x1aE\xdf\xa3",
        b"\0\0\1\xba",
        b"\0\0\1\xb3",
        b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
        b"FLV\1",
    ),
    *(b"v/1\1", b"SIMPLE  =", b"8BPS", b"#?RADIANCE", b"NRRD000", b"ObjectType = Image"),
    *(b"# vtk DataFile", b"ZISRAWFILE", b"\xda\xce\xbe\n"),
    *(b"\0\0\x08\3", b"\0\0\x08\4"),  # IDX: bytes of three or four axes, as MNIST is kept
)
_PACKED_MAGIC = (
    *(b"BZh%d1AY&SY" % level for level in range(1, 10)),
    *(b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"LZIP\1"),  # xz, zstd, LZ4, lzip
    *(b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07"),
)
"""What is compressed so is not looked into: its first bytes do not tell what it holds."""


class Kind(Enum):
    """What becomes of a file in a listing."""

    IMAGE = "an image, or to be rejected as one"
    ARCHIVE = "a zip or tar"
    PACKED = "a compressed archive, which is not read"
    CONTAINER = "not read, and may hold images"
    UNKNOWN = "its first bytes must tell"
    IGNORED = "neither image nor archive, or not asked for"
    EXCLUDED = "left out by an exclude pattern"


UNREAD = {Kind.PACKED: NOT_UNPACKED, Kind.CONTAINER: NOT_READ}
"""Why the kinds that are not read are rejected."""


def by_name(path: str) -> Kind:
    """Tell what a file is by its name alone."""
    name = path.lower()
    if path.rpartition("/")[2] == "DICOMDIR":  # a list of other files, that may lead anywhere
        return Kind.IGNORED
    plain = name.rpartition(".")[0] if name.endswith(_COMPRESSED) else name
    if plain.endswith(CONTAINERS) or _SHARD.search(plain):
        return Kind.CONTAINER
    if name.endswith(ARCHIVES):
        return Kind.ARCHIVE
    if name.endswith(SUFFIXES + FOREIGN):
        return Kind.IMAGE
    packed = plain != name and plain.endswith(SUFFIXES + FOREIGN)
    whole = _VOLUME.sub("", name)
    volume = whole != name and whole.endswith(ARCHIVES + PACKED)
    return Kind.PACKED if packed or volume or name.endswith(PACKED) else Kind.UNKNOWN


def by_content(head: bytes) -> Kind:
    """Tell what a file is by its first HEAD bytes. Zip is not looked for: office documents are."""
    if head[257:262] == b"ustar":
        return Kind.ARCHIVE
    if head.startswith(b"\x1f\x8b"):
        kind = by_content(_inflated(head))
        return Kind.PACKED if kind is Kind.ARCHIVE else kind
    if head.startswith(_PACKED_MAGIC):
        return Kind.PACKED
    if _is_image(head):
        return Kind.IMAGE
    video = head[4:8] == b"ftyp" or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
    lmdb = head[16:20] == b"\xde\xc0\xef\xbe"
    container = video or lmdb or head.startswith(_CONTAINER_MAGIC)
    return Kind.CONTAINER if container else Kind.IGNORED


def by_both(kind: Kind, head: bytes) -> Kind:
    """Tell what a file is by its first bytes, when its name said UNKNOWN or CONTAINER."""
    found = by_content(head)
    unsaid = found in (Kind.IGNORED, Kind.PACKED)  # R data, say, are compressed as a whole
    return kind if kind is Kind.CONTAINER and unsaid else found


def array_folder(path: str) -> str | None:
    """Return the folder that a file with this path makes a Zarr or N5 array, None for others."""
    folder, _, name = path.rpartition("/")
    n5 = name == "attributes.json" and any(part.endswith(".n5") for part in folder.split("/"))
    return folder if name in _ARRAY_MARKS or n5 else None


def names_array(folder: str) -> bool:
    """Tell whether a folder is named like a Zarr or N5 array."""
    return folder.lower().endswith(_ARRAY_FOLDERS)


def _is_image(head: bytes) -> bool:
    bitmap = head[:2] == b"BM" and head[6:10] == bytes(4)
    boxed = b"WEBP" in head[8:12] or b"jP  " in head[4:8]
    nifti = head[344:347] == b"n+1" or head[4:7] == b"n+2"
    known = pillow.form(head) or head.startswith(arrays.MAGIC) or dicom.is_dicom(head)
    return bool(bitmap or boxed or nifti or known or head.startswith(_FOREIGN_MAGIC))


def _inflated(head: bytes) -> bytes:
    """Return the first bytes of what was gzipped."""
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, HEAD)
    except zlib.error:
        return b""
