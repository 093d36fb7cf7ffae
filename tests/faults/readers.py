"""What reads the files of the program where a byte of them was changed, and must find it.

A reader works in a folder that `write_whole` made. It raises ScanError, or returns what it said.
"""

import shutil
from contextlib import chdir
from pathlib import Path

import audit_jobs
import jobs
from audit_jobs import AUDITS, RELEASE, TOLD
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from damage import Flip
from flips import SAME
from jobs import ENCODER, INDEX, REPORT, RUN, SYNTHETIC, TRAINING

from deepssim_scan.audit.history import History
from deepssim_scan.audit.release.release import ReleaseConfig, release
from deepssim_scan.audit.release.verify import VerifyConfig, verify
from deepssim_scan.encoder import checkpoint
from deepssim_scan.errors import Damaged
from deepssim_scan.jobs import build_index as index_job
from deepssim_scan.jobs import query as query_job
from deepssim_scan.jobs.check import Checked, check
from deepssim_scan.jobs.config import IndexConfig, QueryConfig
from deepssim_scan.matching.config import VerdictConfig
from deepssim_scan.storage.layout import BLANK, CALIBRATION, JOB, REJECTED
from deepssim_scan.storage.records import read_json

MODULES = (*jobs.MODULES, "flips", "readers")
"""What a fork server imports."""
FOLDERS = {
    "judge": str(INDEX),
    "check_index": str(INDEX),
    "check_report": str(REPORT),
    "load_checkpoint": ENCODER,
    "open_history": str(AUDITS),
    "verify_release": str(RELEASE),
}
"""What each reader reads: a folder, or a file."""
SHARES = dict(zip(FOLDERS, (15, 10, 15, 25, 20, 15), strict=True))
"""Of 100 bytes that are changed, how many a reader meets: fewer where it takes long."""
_KEY = Path("public.pem")


def judge() -> str:
    """Run a query where damage must stop it; return what it said, or that it left a report."""
    config = QueryConfig(embed=jobs.SMALL, verdict=VerdictConfig(3))
    try:
        query_job.query(Path(SYNTHETIC), INDEX, Path("verdict"), config, RUN)
    except Exception:
        if left := [path.name for path in Path().iterdir() if "verdict" in path.name]:
            return f"it raised, and left {left}"
        raise
    return "a verdict"


def check_index() -> str:
    """Check the index; Damaged when there is a problem, as a reader says it."""
    return _intact(check(INDEX))


def check_report() -> str:
    """Check the report; Damaged when there is a problem, as a reader says it."""
    return _intact(check(REPORT))


def load_checkpoint() -> str:
    """Load the encoder that stands alone."""
    return checkpoint.load(Path(ENCODER)).fingerprint


def open_history() -> str:
    """Open the history, as whatever reads it does; tell whether all of it is what was written.

    A database has bytes that hold nothing.
    """
    with History(AUDITS):
        found = audit_jobs.taken_down(TOLD)
    return SAME if found == read_json(TOLD)["rows"] else "other rows"


def verify_release() -> str:
    """Verify the release and its signature; Damaged when there is a problem."""
    return _intact(verify(RELEASE, VerifyConfig(key=_KEY), RUN))


def _intact(checked: Checked) -> str:
    if checked.problems:
        raise Damaged(str(checked.problems[0]))
    return "intact"


def write_whole(folder: Path, inputs: Path) -> Path:
    """Make all that the readers read: a calibrated index, a report of it, a signed release, ...

    Beside them: a history, an encoder, and the synthetic images.
    """
    index = IndexConfig(inputs / ENCODER, embed=jobs.SMALL, adapt="never")
    index_job.build_index(inputs / TRAINING, folder / INDEX, index, RUN)
    query_job.query(inputs / SYNTHETIC, folder / INDEX, folder / REPORT, jobs.top(3), RUN)
    key = Ed25519PrivateKey.generate()
    private, public = inputs / "private.pem", key.public_key()
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / _KEY).write_bytes(
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    release(folder / REPORT, folder / RELEASE, ReleaseConfig(private, incomplete=True), RUN)
    with chdir(folder):
        audit_jobs.take_down(1)
    shutil.copytree(inputs / SYNTHETIC, folder / SYNTHETIC)
    shutil.copy(inputs / ENCODER, folder / ENCODER)
    return folder


def is_to_find(reader: str, flip: Flip) -> bool:
    """Tell whether a reader is to find a flip in a file that `write_whole` made.

    Three files decide no verdict. An index without a calibration is one that was not calibrated.
    """
    path = Path(flip.file)
    decides = reader != "judge" or path.name not in (JOB, REJECTED, BLANK)
    gone = reader == "check_index" and path.name == CALIBRATION and flip.offset < 0
    return path.parts[0] == FOLDERS[reader] and decides and not gone
