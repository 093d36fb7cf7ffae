"""JSON that carries its own checksum: it reads back, and nothing altered does."""

import hashlib
import json
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepssim_scan.errors import Damaged, InputMissing
from deepssim_scan.storage.records import read_json, write_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text().filter(lambda name: name != "checksum"), VALUES, max_size=4))
def test_what_was_written_reads_back(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "record.json"
    write_json(path, value)
    assert read_json(path) == value
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = json.loads(path.read_text())
    text = {name: each for name, each in loaded.items() if name != "checksum"}
    rendered = json.dumps(text, indent=2, sort_keys=True) + "\n"
    assert loaded["checksum"] == hashlib.sha256(rendered.encode()).hexdigest()


def test_row_32_every_altered_byte_is_found(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, {"rows": 12, "name": "a b", "list": [1.5, None, True]})
    whole = path.read_bytes()
    for position in range(len(whole)):
        for change in (0x01, 0x10, 0x2A):  # the last one makes a space a line feed
            altered = bytearray(whole)
            altered[position] ^= change
            path.write_bytes(altered)
            with pytest.raises(Damaged, match=r"record\.json"):
                read_json(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "1", "\xff", "[" * 100_000])
def test_what_is_none_of_ours_is_damaged(tmp_path, text):
    (tmp_path / "x.json").write_text(text, encoding="latin-1")
    with pytest.raises(Damaged, match=r"x\.json"):
        read_json(tmp_path / "x.json")


def test_what_is_not_there_is_missing(tmp_path):
    with pytest.raises(InputMissing):
        read_json(tmp_path / "x.json")
    (tmp_path / "file").touch()
    with pytest.raises(InputMissing):
        read_json(tmp_path / "file" / "x.json")
