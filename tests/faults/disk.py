"""A disk that loses its power: from the record of a run, the states that a power cut may leave.

    folder before the run + record of its calls up to one of them -> a state of the folder

The disk is as hostile as POSIX allows:

- A file's bytes since its last fsync or fdatasync may be there, or not, or in part. Each sector of
  512 bytes is that of any version since, zeros where that version was shorter. Size and
  permissions are those of any version.
- What was done to the names of a folder since its last fsync may be there, or not, or in part: the
  first calls, or any of them. fsync of a file does not keep its name.
- A rename is there as a whole or not at all, and a name is never gone without a call that took it
  away. No job renames from one folder to another; a record in which one does is refused.

Not modelled: old bytes of other files where data is missing, and sectors of which a part is new.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from stat import S_IMODE

SECTOR = 512
NOTHING, ALL, FIRST, ANY, EACH = ("nothing", "all", "the first", "any", "each its own")
"""How much is there of what was not flushed."""
OF_NAMES, OF_DATA = (NOTHING, ALL, ALL, ALL, FIRST, ANY), (NOTHING, ALL, FIRST, ANY, ANY, ANY)
"""What is drawn: names are there more often than not, or what is below them would never be."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was recorded, its paths from the root: `mode` and `size` are those after it."""

    name: str
    path: Path
    other: Path | None
    mode: int
    size: int
    at: int
    data: bytes


def read_record(record: Path, root: Path) -> list[Call]:
    """Return the calls that shim.c recorded, but those to files that have no name any more."""
    whole, calls = record.read_bytes(), []
    start = 0
    while start < len(whole):
        end = whole.index(b"\n", start)
        name, path, other, mode, *numbers = whole[start:end].decode().split("\t")
        size, at, count = map(int, numbers)
        start = end + 1 + count
        if not path.endswith(" (deleted)"):
            paths = Path(path).relative_to(root), Path(other).relative_to(root) if other else None
            data = whole[end + 1 : start]
            calls.append(Call(name, *paths, int(mode, 8), size, at, data))
    return calls


@dataclass(slots=True)
class File:
    """A file: its bytes and mode when it was last flushed, and after each call since."""

    versions: list[tuple[bytes, int]]

    def change(self, data: bytes | None = None, mode: int | None = None) -> None:
        """Take down what a call made of it."""
        last = self.versions[-1]
        self.versions.append((last[0] if data is None else data, last[1] if mode is None else mode))

    def write(self, at: int, data: bytes) -> None:
        """Take down a write."""
        whole = self.versions[-1][0]
        self.change(whole[:at].ljust(at, b"\0") + data + whole[at + len(data) :])

    def flush(self) -> None:
        """Keep the last version, and no other."""
        del self.versions[:-1]

    @property
    def unflushed(self) -> int:
        """How many calls since may be lost."""
        return len(self.versions) - 1

    def left(self, manner: str, random: Random) -> tuple[bytes, int]:
        """Return what a power cut leaves of its bytes, and its mode."""
        last = len(self.versions) - 1
        middle = random.randint(0, last)
        ends = {NOTHING: (0, 0), ALL: (last, last), FIRST: (middle, middle + 1), ANY: (0, last)}
        first, stop = ends[manner]
        found = self.versions[first : stop + 1]
        size, mode = len(random.choice(found)[0]), random.choice(found)[1]
        sectors = (
            random.choice(found)[0][at : at + SECTOR].ljust(SECTOR, b"\0")
            for at in range(0, size, SECTOR)
        )
        return found[0] if len(found) == 1 else (b"".join(sectors)[:size], mode)


Names = dict[str, "File | Folder"]
Change = dict[str, "File | Folder | None"]
"""Names that a call gave to files or folders, None for one that it took away."""


@dataclass(slots=True)
class Folder:
    """A folder: names and mode when it was last flushed, what changed them since, and what is now.

    `modes` are the one that was flushed, and all since.
    """

    modes: list[int]
    kept: Names = field(default_factory=dict)
    now: Names = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def change(self, change: Change) -> None:
        """Take down a change of names."""
        self.changes.append(change)
        self.now = _changed(self.now, [change])

    def flush(self) -> None:
        """Keep all names as they are."""
        self.kept, self.changes = self.now, []
        del self.modes[:-1]

    @property
    def unflushed(self) -> int:
        """How many calls since may be lost, with those to all that is in it."""
        own = len(self.changes) + len(self.modes) - 1
        return own + sum(node.unflushed for node in self.now.values())

    def left(self, manner: str, random: Random) -> Names:
        """Return the names that a power cut leaves."""
        last = len(self.changes)
        count = {NOTHING: 0, FIRST: random.randint(0, last)}.get(manner, last)
        found = (each for each in self.changes[:count] if manner != ANY or random.random() < 0.5)
        return _changed(self.kept, found)


def _changed(names: Names, changes: Iterable[Change]) -> Names:
    found: Change = dict(names)
    for change in changes:
        found |= change
    return {name: node for name, node in found.items() if node is not None}


class Disk:
    """A folder as it was, all of it on the disk, and what calls have made of it since."""

    def __init__(self, folder: Path) -> None:
        """Read the folder as it was."""
        self.root = _read(folder)

    def do(self, call: Call) -> None:
        """Take down what a call did; ValueError for one that is not modelled."""
        name = call.name.removesuffix("64")
        if call.data:
            self._file(call).write(call.at, call.data)
        elif name in ("fsync", "fdatasync"):
            self._node(call.path).flush()
        elif name in ("open", "openat", "creat", "fopen"):
            self._open(call)
        elif name in ("ftruncate", "truncate"):
            file = self._file(call)
            file.change(file.versions[-1][0][: call.size].ljust(call.size, b"\0"))
        elif name in ("chmod", "fchmod", "fchmodat"):
            self._chmod(call)
        elif name in ("mkdir", "mkdirat"):
            self._parent(call).change({call.path.name: Folder([call.mode])})
        elif name in ("unlink", "unlinkat", "remove", "rmdir"):
            self._parent(call).change({call.path.name: None})
        elif call.other is not None and name in ("link", "linkat"):
            self._parent(call).change({call.path.name: self._node(call.other)})
        elif call.other is not None and call.path.parent == call.other.parent:
            named = {call.path.name: self._node(call.other)}
            self._parent(call).change({call.other.name: None} | named)
        elif name != "fchown":  # to the user who runs this
            raise ValueError(f"{call.name} of {call.other} to {call.path} is not modelled")

    def _open(self, call: Call) -> None:
        folder = self._parent(call)
        if call.path.name not in folder.now:
            folder.change({call.path.name: File([(b"", call.mode)])})
        elif call.size == 0:
            self._file(call).change(b"")

    def _chmod(self, call: Call) -> None:
        node = self._node(call.path)
        if isinstance(node, File):
            node.change(mode=call.mode)
        else:
            node.modes.append(call.mode)

    def _node(self, path: Path) -> File | Folder:
        node: File | Folder = self.root
        for part in path.parts:
            assert isinstance(node, Folder), path
            node = node.now[part]
        return node

    def _file(self, call: Call) -> File:
        node = self._node(call.path)
        assert isinstance(node, File), call
        return node

    def _parent(self, call: Call) -> Folder:
        node = self._node(call.path.parent)
        assert isinstance(node, Folder), call
        return node

    def write_now(self, folder: Path) -> None:
        """Make a folder of all that is there while there is power."""
        _write(folder, self.root, ALL, ALL, Random(0))

    def write_left(self, folder: Path, random: Random) -> None:
        """Make a folder of what a power cut may leave.

        What is lost of names, and what of bytes, is drawn for all of them alike, or for each.
        """
        names, data = (random.choice((*manners, EACH, EACH)) for manners in (OF_NAMES, OF_DATA))
        _write(folder, self.root, names, data, random)


def _read(folder: Path) -> Folder:
    """Read a folder, all of which is on the disk."""
    names: Names = {
        path.name: _read(path)
        if path.is_dir()
        else File([(path.read_bytes(), S_IMODE(path.stat().st_mode))])
        for path in folder.iterdir()
    }
    return Folder([S_IMODE(folder.stat().st_mode)], names, names)


def _write(path: Path, node: File | Folder, names: str, data: str, random: Random) -> None:
    """Write what is left of a file or folder, its names and data lost in such manners."""
    if isinstance(node, File):
        found, mode = node.left(random.choice(OF_DATA) if data == EACH else data, random)
        path.write_bytes(found)
    else:
        path.mkdir()
        manner = random.choice(OF_NAMES) if names == EACH else names
        for name, each in node.left(manner, random).items():
            _write(path / name, each, names, data, random)
        mode = node.modes[-1] if names == ALL else random.choice(node.modes)
    path.chmod(mode)
