"""The images of a folder, looked up by name without walking it.

path, member -> Item, where the file is there now
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.listing.item import Item
from deepssim_scan.ingest.listing.members import listed, members_of


@dataclass(frozen=True, slots=True)
class Lookup:
    """Finds items of a folder, as a `Listing` does; an archive is listed when it is first needed.

    Whether a file is a regular one, inside the folder, is told when it is read.
    """

    folder: Path
    run: RunContext
    _archives: dict[str, dict[str, Item]] = field(default_factory=dict)

    def find(self, path: str, member: str) -> Item | None:
        """Return the item of a path and member, None where there is none."""
        try:
            status = (self.folder / path).stat()
        except (OSError, ValueError):
            return None
        item = Item(path, size=status.st_size, mtime_ns=status.st_mtime_ns)
        if not member:
            return item
        if path not in self._archives:
            work = partial(members_of, folder=self.folder, named=False)
            ((members, _),) = listed([item], work, self.run)
            self._archives[path] = {each.member: each for each in members}
        return self._archives[path].get(member)
