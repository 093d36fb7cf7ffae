"""What a process answers, as bytes that cannot run code when they are read.

Answer: what JSON holds, and arrays by name -> bytes (safetensors) -> the same
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

Arrays = Mapping[str, NDArray[Any]]
_RECORDS = ""  # the name under which the JSON lies among the arrays
_KINDS = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int64": "I64",
    "float32": "F32",
    "float64": "F64",
}


class NoAnswer(ValueError):
    """Bytes that are no answer."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """Plain records, of what JSON holds, and arrays by names that are not empty.

    `warnings` are sentences that the person who runs the job should read.
    """

    records: Any = None
    arrays: Arrays = field(default_factory=dict)
    warnings: Sequence[str] = ()

    def pack(self) -> bytes:
        """Return the answer as bytes.

        They are written here, because the writer of safetensors ends the process where memory is
        short. Raises MemoryError there.
        """
        text = json.dumps([self.records, list(self.warnings)]).encode()
        arrays = {_RECORDS: np.frombuffer(text, np.uint8), **self.arrays}
        header, end = {}, 0
        for name, array in arrays.items():
            kind = _KINDS[array.dtype.name]
            header[name] = {
                "dtype": kind,
                "shape": array.shape,
                "data_offsets": (end, end + array.nbytes),
            }
            end += array.nbytes
        names = json.dumps(header).encode()
        data = (array.tobytes() for array in arrays.values())
        return b"".join((len(names).to_bytes(8, "little"), names, *data))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Return the answer that bytes hold; raises NoAnswer where they hold none."""
        try:
            arrays = load(data)
            records, warnings = json.loads(arrays.pop(_RECORDS).tobytes())
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise NoAnswer(f"{len(data)} bytes are no answer: {error}") from error
        return cls(records, arrays, [*map(str, warnings)])
