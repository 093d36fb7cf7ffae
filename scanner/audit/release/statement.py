"""What a release says of its files: an in-toto statement, signed or not.

    files with their digests and verdicts -> statement -> DSSE envelope under an Ed25519 key

The bytes of a signed file are fixed by what it says: one that was written in another way is
refused. Sources: the in-toto Attestation Framework, v1, with its predicate test-result, v0.1; the
Dead Simple Signing Envelope, 1.0.2.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from deepssim_scan.errors import Damaged, DependencyMissing, InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"
PAYLOAD = "application/vnd.in-toto+json"


@dataclass(frozen=True, slots=True)
class Released:
    """A file of a release: its path with "/", SHA-256, and what was said of it."""

    name: str
    sha256: str
    said: Mapping[str, Any]


def statement_of(
    files: Iterable[Released],
    configuration: Mapping[str, str],
    passed: Iterable[str],
    warned: Iterable[str],
) -> dict[str, Any]:
    """Return the statement that files passed tests, made with things of some digests, by name.

    `warned` says what lessens what the tests prove.
    """
    warnings = list(warned)
    return {
        "_type": STATEMENT,
        "subject": [
            {"name": each.name, "digest": {"sha256": each.sha256}, "annotations": dict(each.said)}
            for each in files
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "result": "WARNED" if warnings else "PASSED",
            "configuration": [
                {"name": name, "digest": {"sha256": digest}}
                for name, digest in configuration.items()
            ],
            "passedTests": list(passed),
            "warnedTests": warnings,
            "failedTests": [],
        },
    }


def sealed(statement: Mapping[str, Any], key: "Ed25519PrivateKey | None") -> bytes:
    """Return the bytes of a statement, or of the envelope in which it is signed."""
    payload = _rendered(statement)
    if key is None:
        return payload
    signature = {"keyid": _identity(key.public_key()), "sig": _text(key.sign(_signed(payload)))}
    return _rendered({"payload": _text(payload), "payloadType": PAYLOAD, "signatures": [signature]})


def opened(path: Path, data: bytes, key: "Ed25519PublicKey | None") -> tuple[dict[str, Any], bool]:
    """Return the statement of bytes that `sealed` gave, and whether its signature was verified.

    Raises Damaged where they are not what was written, or the signature is not of the key.
    InputError where there is a key and no signature.
    """
    value = _parsed(path, data)
    signed = value.get("payloadType") == PAYLOAD
    if key is not None and not signed:
        raise InputError(f"{path}: is not signed, and a key to verify it with was given.")
    if not signed:
        return value, False
    try:
        payload = base64.b64decode(value["payload"], validate=True)
        (signature,) = value["signatures"]
        mark = base64.b64decode(signature["sig"], validate=True)
        whole = {"payload": _text(payload), "payloadType": PAYLOAD}
        identity = signature["keyid"] if key is None else _identity(key)
        again = whole | {"signatures": [{"keyid": identity, "sig": _text(mark)}]}
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{path}: is no signed statement ({error}).") from error
    if _rendered(again) != data:
        raise Damaged(f"{path}: was altered, or signed with another key than the one given.")
    if key is not None:
        _verify(path, key, mark, payload)
    return _parsed(path, payload), key is not None


def listed_in(path: Path, statement: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of every file of a statement by name; Damaged where it is none."""
    try:
        found = {str(each["name"]): str(each["digest"]["sha256"]) for each in statement["subject"]}
        whole = len(found) == len(statement["subject"]) and statement["predicateType"] == PREDICATE
    except (KeyError, TypeError) as error:
        raise Damaged(f"{path}: is no statement of a release: it has no {error}.") from error
    if not whole:
        raise Damaged(f"{path}: is no statement of a release, or names a file twice.")
    return found


def made_with(path: Path, statement: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of what a release was made with by name; Damaged where there are none."""
    try:
        found = statement["predicate"]["configuration"]
        return {str(each["name"]): str(each["digest"]["sha256"]) for each in found}
    except (KeyError, TypeError) as error:
        raise Damaged(f"{path}: does not say what it was made with: it has no {error}.") from error


def read_private_key(path: Path) -> "Ed25519PrivateKey":
    """Read an Ed25519 key in PEM.

    Raises InputError where it is none, DependencyMissing without the extra `sign`.
    """
    serialization, ed25519 = _library()
    how = f"openssl genpkey -algorithm ed25519 -out {path}"

    def load(data: bytes) -> Any:
        return serialization.load_pem_private_key(data, None)

    return cast("Ed25519PrivateKey", _read_key(path, load, ed25519.Ed25519PrivateKey, how))


def read_public_key(path: Path) -> "Ed25519PublicKey":
    """Read the public part of an Ed25519 key in PEM; raises what `read_private_key` does."""
    serialization, ed25519 = _library()
    how, load = f"openssl pkey -in KEY -pubout -out {path}", serialization.load_pem_public_key
    return cast("Ed25519PublicKey", _read_key(path, load, ed25519.Ed25519PublicKey, how))


def _read_key(path: Path, load: Callable[[bytes], Any], kind: type, how: str) -> Any:
    """Read a key of a kind; `how` says with which command one is made."""
    try:
        key = load(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: no such key can be read ({error}). Make one with: {how}"
        ) from error
    if not isinstance(key, kind):
        raise InputError(f"{path}: holds a key of another kind; an Ed25519 key is needed.")
    return key


def _library() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise DependencyMissing(
            "Signatures need the extra `sign`: pip install 'deepssim-scan[sign]'"
        ) from error
    return serialization, ed25519


def _verify(path: Path, key: "Ed25519PublicKey", mark: bytes, payload: bytes) -> None:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(mark, _signed(payload))
    except InvalidSignature as error:
        raise Damaged(f"{path}: its signature does not fit: it was altered.") from error


def _signed(payload: bytes) -> bytes:
    """Return what is signed: the kind and the payload, each with its length."""
    kind = PAYLOAD.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _identity(key: "Ed25519PublicKey") -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _rendered(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode("ascii")


def _parsed(path: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path}: is not the JSON that was written ({error}).") from error
    if not isinstance(value, dict) or _rendered(value) != data:
        raise Damaged(f"{path}: was altered: it is not written as it was.")
    return value
