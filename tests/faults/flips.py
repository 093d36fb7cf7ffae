"""Runs in a fork server's child: a reader of a folder meets one changed byte after the other."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server import describe

from deepssim_scan.errors import ScanError

SAME = "what was written"
"""What a reader says where the byte that was changed holds nothing."""


def survey(reader: str, cases: list[tuple[str, int, int]]) -> list[tuple[str, str]]:
    """Change a byte of each case's file, call "module:function", put it back: what came of it.

    A mask of 0 cuts the file before the byte; before byte -1, it removes it. "found" and the
    error's class; "missed" when it returned, "harmless" when it returned `SAME`, which is all that
    was written; "crash" for any other exception.
    """
    module, _, name = reader.partition(":")
    read = getattr(importlib.import_module(module), name)
    endings = []
    for file, offset, mask in cases:
        with _changed(Path(file), offset, mask):
            try:
                said = str(read())
                endings.append(("harmless" if said == SAME else "missed", said))
            except ScanError as error:
                endings.append(("found", type(error).__name__))
            except Exception as error:  # which a user would see as a traceback
                endings.append(("crash", describe(error)["trace"]))
    return endings


@contextmanager
def _changed(path: Path, offset: int, mask: int) -> Iterator[None]:
    whole = path.read_bytes()
    if offset < 0:
        path.unlink()
    else:
        rest = bytes([whole[offset] ^ mask]) + whole[offset + 1 :] if mask else b""
        path.write_bytes(whole[:offset] + rest)
    try:
        yield
    finally:
        path.write_bytes(whole)
