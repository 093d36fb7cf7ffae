"""A release holds what was cleared and nothing else, and any change of it is found."""

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pictures import TINY, drawn
from PIL import Image

from deepssim_scan.audit.release import cleared
from deepssim_scan.audit.release import release as releasing
from deepssim_scan.audit.release import verify as verifying
from deepssim_scan.audit.release.release import ReleaseConfig, release
from deepssim_scan.audit.release.statement import sealed
from deepssim_scan.audit.release.verify import VerifyConfig, verify
from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.network import Encoder
from deepssim_scan.errors import InputError, InputMissing
from deepssim_scan.ingest import pipeline
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.rejection import Rejected
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig, QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import CANDIDATES, CanaryConfig, EvidenceConfig, VerdictConfig
from deepssim_scan.reporting.partial import PartialCopy
from deepssim_scan.store.store import Store

RUN = RunContext("cpu", workers=0)
CONFIG = QueryConfig(canaries=CanaryConfig(0))


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG")


def openssl(*arguments):
    subprocess.run([shutil.which("openssl"), *arguments], check=True)


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    """A key and its public part, made as the documentation says."""
    folder = tmp_path_factory.mktemp("key")
    private, public = folder / "release.pem", folder / "release.pub"
    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    return private, public


@pytest.fixture(scope="module")
def judged(people, tmp_path_factory):
    """Images that copy nobody, in folders and an archive, a copy, and a volume that holds one."""
    root = tmp_path_factory.mktemp("judged")
    source = Image.open(people / "training" / "s03" / "1.png")
    for number in range(4):
        save(Image.fromarray(drawn(number, 64)), root / "synthetic" / "a" / f"{number}.png")
    save(source.rotate(4), root / "synthetic" / "copy.png")
    volume = np.stack([drawn(10, 128), np.asarray(source), drawn(11, 128), np.zeros((128, 128))])
    np.save(root / "synthetic" / "copied.npy", volume.astype(np.float32))
    volume[1] = drawn(12, 128)
    np.save(root / "synthetic" / "volume.npy", volume.astype(np.float32))
    with zipfile.ZipFile(root / "synthetic" / "more.zip", "w") as archive:
        for name in ("x.png", "inner/y.png"):
            save(Image.fromarray(drawn(len(name), 64)), root / "member.png")
            archive.write(root / "member.png", name)
    query(root / "synthetic", people / "index", root / "report", CONFIG, RUN)
    return root


CLEARED = {
    *(f"a/{number}.png" for number in range(4)),
    "volume.npy",
    "more.zip/x.png",
    "more.zip/inner/y.png",
}


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def released(judged, tmp_path, **config):
    return release(judged / "report", tmp_path / "cleared", ReleaseConfig(**config), RUN)


def test_what_was_cleared_is_released_and_nothing_else(judged, tmp_path):
    found = released(judged, tmp_path)
    assert files(found.folder) == CLEARED | {"release.json"}
    assert found.released == len(CLEARED)
    assert found.kept_back == {"duplicate": 2}
    same = (found.folder / "a" / "0.png").read_bytes()
    assert same == (judged / "synthetic" / "a" / "0.png").read_bytes()
    with zipfile.ZipFile(judged / "synthetic" / "more.zip") as archive:
        member = archive.read("inner/y.png")
    assert (found.folder / "more.zip" / "inner" / "y.png").read_bytes() == member
    value = json.loads((found.folder / "release.json").read_bytes())
    assert value["_type"] == "https://in-toto.io/Statement/v1"
    assert {each["name"] for each in value["subject"]} == CLEARED
    assert verify(found.folder, VerifyConfig(), RUN).intact


def test_the_signature_is_what_the_envelope_says(judged, tmp_path, key):
    private, public = key
    found = released(judged, tmp_path, key=private)
    value = json.loads((found.folder / "release.json").read_bytes())
    payload = base64.b64decode(value["payload"])
    kind = value["payloadType"]
    signed = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    (signature,) = value["signatures"]
    whose = load_pem_public_key(public.read_bytes())
    whose.verify(base64.b64decode(signature["sig"]), signed)
    with pytest.raises(InvalidSignature):
        whose.verify(base64.b64decode(signature["sig"]), signed + b" ")
    checked = verify(found.folder, VerifyConfig(key=public), RUN)
    assert checked.intact
    assert checked.counts["signatures verified"] == 1


def test_a_byte_changed_anywhere_is_found(judged, tmp_path, key):
    private, public = key
    found = released(judged, tmp_path, key=private)
    rng = np.random.default_rng(0)
    for name in files(found.folder):
        path = found.folder / name
        data = path.read_bytes()
        every = range(len(data)) if name == "release.json" else rng.integers(0, len(data), 5)
        for at in every:
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            assert not verify(found.folder, VerifyConfig(key=public), RUN).intact, (name, at)
        path.write_bytes(data)
    assert verify(found.folder, VerifyConfig(key=public), RUN).intact


def test_a_file_added_removed_or_swapped_is_found(judged, tmp_path, key):
    private, public = key
    found = released(judged, tmp_path, key=private)

    def problems():
        checked = verify(found.folder, VerifyConfig(key=public), RUN)
        return [(problem.where.rpartition("cleared/")[2]) for problem in checked.problems]

    (found.folder / "more").mkdir()
    shutil.copy2(judged / "synthetic" / "copy.png", found.folder / "more" / "copy.png")
    assert problems() == ["more/copy.png"]
    (found.folder / "more" / "copy.png").unlink()
    (found.folder / "a" / "0.png").rename(tmp_path / "kept")
    assert problems() == ["a/0.png"]
    shutil.copy2(found.folder / "a" / "1.png", found.folder / "a" / "0.png")
    assert problems() == ["a/0.png"]
    (found.folder / "a" / "0.png").unlink()
    (found.folder / "a" / "0.png").symlink_to(tmp_path / "kept")
    assert problems() == ["a/0.png"]
    (tmp_path / "kept").rename(found.folder / "a" / "0.png")
    assert problems() == []
    (found.folder / "more" / "all").symlink_to(judged / "synthetic")
    assert problems() == ["more/all"]


def test_another_key_does_not_verify(judged, tmp_path, key):
    found = released(judged, tmp_path, key=key[0])
    other = tmp_path / "other.pem"
    openssl("genpkey", "-algorithm", "ed25519", "-out", other)
    public = tmp_path / "other.pub"
    openssl("pkey", "-in", other, "-pubout", "-out", public)
    assert not verify(found.folder, VerifyConfig(key=public), RUN).intact
    shutil.rmtree(found.folder)
    released(judged, tmp_path)
    assert not verify(found.folder, VerifyConfig(key=public), RUN).intact


def test_what_has_no_signature_is_not_intact_for_whoever_gives_a_key(judged, tmp_path, key):
    with pytest.raises(InputError, match=r"is no release \(release.json is not there\)"):
        verify(judged / "report", VerifyConfig(key=key[1]), RUN)
    found = released(judged, tmp_path, key=key[0])
    shutil.rmtree(found.folder)
    shutil.copytree(judged / "report", found.folder)  # in place of the release
    with pytest.raises(InputError, match="no signature to verify"):
        verify(found.folder, VerifyConfig(key=key[1]), RUN)


def test_images_that_are_not_what_was_judged_are_not_released(judged, tmp_path):
    shutil.copytree(judged, tmp_path / "judged")
    synthetic = judged / "synthetic" / "a" / "0.png"
    data = synthetic.read_bytes()
    try:
        save(Image.fromarray(drawn(99, 64)), synthetic)
        with pytest.raises(InputError, match="is not what was judged any more"):
            released(judged, tmp_path)
    finally:
        synthetic.write_bytes(data)
    assert not (tmp_path / "cleared").exists()
    assert not list(tmp_path.glob(".cleared*"))


def test_an_incomplete_or_damaged_report_is_not_released(judged, people, tmp_path):
    (tmp_path / "synthetic").mkdir()
    save(Image.fromarray(drawn(0, 64)), tmp_path / "synthetic" / "0.png")
    (tmp_path / "synthetic" / "bad.png").write_bytes(b"no image")
    query(tmp_path / "synthetic", people / "index", tmp_path / "report", CONFIG, RUN)
    with pytest.raises(InputError, match="is not complete"):
        released(tmp_path, tmp_path)
    found = released(tmp_path, tmp_path, incomplete=True)
    assert (found.released, found.kept_back) == (1, {"rejected": 1})
    path = tmp_path / "report" / "matches.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        InputError, match=r"is damaged \(.*matches\.parquet: [^:]*[^.]\)\. Query again"
    ):
        release(tmp_path / "report", tmp_path / "again", ReleaseConfig(incomplete=True), RUN)


def test_a_report_of_other_training_images_than_the_index_has_is_not_released(
    judged, people, tmp_path
):
    """As after a night that updated the index, and could not query the set."""
    shutil.copytree(people / "index", tmp_path / "index")
    shutil.copytree(people / "training", tmp_path / "training")
    config = IndexConfig(adapt="never")
    build_index(tmp_path / "training", tmp_path / "index", config, RUN)
    query(judged / "synthetic", tmp_path / "index", tmp_path / "report", CONFIG, RUN)
    save(Image.fromarray(drawn(7, 64)), tmp_path / "training" / "new" / "0.png")
    build_index(tmp_path / "training", tmp_path / "index", config, RUN)
    with pytest.raises(InputError, match="copies of those that were added are not found"):
        released(tmp_path, tmp_path)
    assert released(tmp_path, tmp_path, incomplete=True).released == len(CLEARED)
    shutil.rmtree(tmp_path / "index")  # it may be elsewhere
    assert release(tmp_path / "report", tmp_path / "more", ReleaseConfig(), RUN).released


def test_a_report_that_is_replaced_while_it_is_released_is_told(judged, tmp_path, monkeypatch):
    """A copy has the row that another image has in the new report."""
    shutil.copytree(judged / "synthetic" / "a", tmp_path / "synthetic")
    shutil.copy2(judged / "synthetic" / "copy.png", tmp_path / "synthetic" / "1a.png")
    index = Path(json.loads((judged / "report" / "job.json").read_text())["index"])
    query(tmp_path / "synthetic", index, tmp_path / "report", CONFIG, RUN)
    exact = releasing.cleared

    def cleared(*given, **options):
        save(Image.fromarray(drawn(5, 64)), tmp_path / "synthetic" / "00.png")
        (tmp_path / "synthetic" / "2.png").unlink()
        query(tmp_path / "synthetic", index, tmp_path / "report", CONFIG, RUN)
        return exact(*given, **options)

    monkeypatch.setattr(releasing, "cleared", cleared)
    with pytest.raises(InputError, match="was replaced by another report meanwhile"):
        released(tmp_path, tmp_path)
    assert not (tmp_path / "cleared").exists()


def test_an_image_with_a_candidate_that_was_not_looked_at_is_kept_back(people, tmp_path):
    """Also where the candidate is not the one that ranks first."""
    for number in range(8):
        save(Image.fromarray(drawn(number, 64)), tmp_path / "synthetic" / f"{number}.png")
    config = replace(CONFIG, verdict=VerdictConfig(top_k=CANDIDATES))
    query(tmp_path / "synthetic", people / "index", tmp_path / "whole", config, RUN)
    matches = pq.read_table(tmp_path / "whole" / "matches.parquet").to_pylist()
    candidates = {}
    for row in matches:
        candidates.setdefault(row["training"], {})[row["synthetic"]] = row
    # Where it was not looked at, its score alone makes it different, so others rank first.
    gone = next(
        training
        for training, rows in candidates.items()
        if all(row["rank"] > 1 and row["score"] < 0.6 for row in rows.values())
    )
    shutil.copytree(people / "training", tmp_path / "training")
    (tmp_path / "training" / gone).unlink()
    config = replace(CONFIG, evidence=EvidenceConfig(training=tmp_path / "training"))
    assert not query(
        tmp_path / "synthetic", people / "index", tmp_path / "report", config, RUN
    ).complete
    found = released(tmp_path, tmp_path, incomplete=True)
    every = {f"{number}.png" for number in range(8)}
    assert files(found.folder) == every - candidates[gone].keys() | {"release.json"}
    assert found.kept_back == {"not verified": len(candidates[gone])}


def test_members_of_a_tar_of_a_folder_are_released_under_their_names(people, tmp_path):
    for number in range(2):
        save(Image.fromarray(drawn(number, 64)), tmp_path / "in" / "sub" / f"{number}.png")
    (tmp_path / "synthetic").mkdir()
    tar = [shutil.which("tar"), "-cf", tmp_path / "synthetic" / "set.tar"]
    subprocess.run([*tar, "-C", tmp_path / "in", "."], check=True)
    query(tmp_path / "synthetic", people / "index", tmp_path / "report", CONFIG, RUN)
    found = released(tmp_path, tmp_path)
    names = {f"set.tar/sub/{number}.png" for number in range(2)}
    assert files(found.folder) == names | {"release.json"}
    value = json.loads((found.folder / "release.json").read_bytes())
    assert {each["name"] for each in value["subject"]} == names
    assert verify(found.folder, VerifyConfig(), RUN).intact


@pytest.mark.parametrize("other", ["./x.png", "x.png/y.png"])
def test_images_that_would_lie_in_one_place_are_not_released(people, tmp_path, other):
    save(Image.fromarray(drawn(0, 64)), tmp_path / "x.png")
    (tmp_path / "synthetic").mkdir()
    with zipfile.ZipFile(tmp_path / "synthetic" / "set.zip", "w") as archive:
        archive.write(tmp_path / "x.png", "x.png")
        archive.writestr(other, (tmp_path / "x.png").read_bytes())
    query(tmp_path / "synthetic", people / "index", tmp_path / "report", CONFIG, RUN)
    with pytest.raises(InputError, match="another image takes its place"):
        released(tmp_path, tmp_path)
    assert not (tmp_path / "cleared").exists()


def test_row_63_a_file_that_holds_more_than_was_judged_is_kept_back(people, tmp_path):
    source = Image.open(people / "training" / "s03" / "1.png").convert("L")
    save(source, tmp_path / "source.png")
    for number in range(3):
        save(Image.fromarray(drawn(number, 64)), tmp_path / "synthetic" / f"{number}.png")
    hiding = tmp_path / "synthetic" / "1.png"
    hiding.write_bytes(hiding.read_bytes() + (tmp_path / "source.png").read_bytes())
    drawing = Image.fromarray(drawn(2, 64))
    thumbnail = io.BytesIO()
    source.save(thumbnail, "JPEG")
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail.getvalue()
    drawing.save(tmp_path / "synthetic" / "3.jpg", exif=exif)
    result = query(tmp_path / "synthetic", people / "index", tmp_path / "report", CONFIG, RUN)
    assert result.complete
    found = released(tmp_path, tmp_path)
    assert files(found.folder) == {"0.png", "2.png", "release.json"}
    assert found.kept_back == {
        "not judged whole: it holds bytes after its end": 1,
        "not judged whole: it holds an image in its metadata": 1,
    }
    assert verify(found.folder, VerifyConfig(), RUN).intact


def test_a_report_of_which_nothing_may_be_released(people, tmp_path):
    save(Image.open(people / "training" / "s03" / "1.png"), tmp_path / "synthetic" / "0.png")
    query(tmp_path / "synthetic", people / "index", tmp_path / "report", CONFIG, RUN)
    with pytest.raises(InputError, match="no image that is cleared"):
        released(tmp_path, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "synthetic"]


def test_volumes_of_which_slices_were_chosen_are_kept_back(judged, people, tmp_path):
    ingest = IngestConfig(read_options=ReadOptions(slices="2:3"))
    config = QueryConfig(ingest, canaries=CanaryConfig(0))
    query(judged / "synthetic", people / "index", tmp_path / "report", config, RUN)
    found = released(tmp_path, tmp_path)
    assert found.kept_back == {"duplicate": 1, "not judged whole: slices were chosen": 2}
    assert not any(name.endswith(".npy") for name in files(found.folder))


def test_the_statement_says_what_lessens_it(judged, people, tmp_path):
    def told(folder):
        return json.loads((folder / "release.json").read_bytes())["predicate"]

    first = told(released(judged, tmp_path).folder)
    (unfit,) = json.loads((judged / "report" / "summary.json").read_text())["mismatches"]
    assert unfit["code"] == "depth_differs"
    assert first["warnedTests"] == ["no planted copies were looked for", unfit["text"]]
    evidence = EvidenceConfig(verify=False)
    config = QueryConfig(evidence=evidence, canaries=CanaryConfig(0))
    query(judged / "synthetic", people / "index", tmp_path / "report", config, RUN)
    shutil.rmtree(tmp_path / "cleared")
    second = told(released(tmp_path, tmp_path).folder)
    assert second["result"] == "WARNED"
    assert "pairs were not verified, and judged by the score alone" in second["warnedTests"]
    assert second["passedTests"] == ["no duplicate by fixed scores: 0.85 at most"]
    windowed = IngestConfig(read_options=ReadOptions(window="40,400"))
    config = QueryConfig(windowed, canaries=CanaryConfig(0))
    query(judged / "synthetic", people / "index", tmp_path / "report", config, RUN)
    shutil.rmtree(tmp_path / "cleared")
    third = told(released(tmp_path, tmp_path).folder)
    assert "values outside of the window (40,400) were not judged" in third["warnedTests"]


@pytest.mark.parametrize("inside", ["synthetic", "report"])
def test_a_release_does_not_lie_in_what_it_is_made_of(judged, inside):
    with pytest.raises(InputError, match="A release is a folder beside it"):
        release(judged / "report", judged / inside / "cleared", ReleaseConfig(), RUN)


def test_a_folder_that_is_there_is_kept(judged, tmp_path):
    (tmp_path / "cleared").mkdir()
    with pytest.raises(InputError, match="is there already"):
        released(judged, tmp_path)


def test_what_is_no_key_is_refused(judged, tmp_path, key):
    with pytest.raises(InputError, match="openssl genpkey -algorithm ed25519"):
        released(judged, tmp_path, key=key[1])
    other = tmp_path / "rsa.pem"
    openssl("genpkey", "-algorithm", "rsa", "-out", other)
    with pytest.raises(InputError, match="an Ed25519 key is needed"):
        released(judged, tmp_path, key=other)


def test_a_sample_of_a_report_is_embedded_again(judged):
    checked = verify(judged / "report", VerifyConfig(sample=5), RUN)
    assert checked.intact
    assert checked.counts["images embedded again"] == 5
    synthetic = judged / "synthetic" / "a" / "0.png"
    data = synthetic.read_bytes()
    try:
        save(Image.fromarray(drawn(98, 64)), synthetic)
        checked = verify(judged / "report", VerifyConfig(sample=1000), RUN)
        assert [problem.where for problem in checked.problems] == [str(synthetic)]
    finally:
        synthetic.write_bytes(data)


def test_a_sample_of_a_release_is_embedded_again(judged, tmp_path):
    report = tmp_path / "report"
    shutil.copytree(judged / "report", report)
    release(report, tmp_path / "cleared", ReleaseConfig(), RUN)
    config = VerifyConfig(report=report)
    found = verify(tmp_path / "cleared", config, RUN)
    assert found.intact
    # Of the volume three slices are no blanks.
    assert found.counts["images embedded again"] == len(CLEARED) + 2
    assert verify(tmp_path / "cleared", VerifyConfig(2, report=report), RUN).counts[
        "images embedded again"
    ] in (2, 4)
    # The same release, of a report that never saw one of its files.
    shutil.copytree(judged / "synthetic", tmp_path / "others")
    save(Image.fromarray(drawn(99, 64)), tmp_path / "others" / "a" / "0.png")
    index = json.loads((report / "job.json").read_text())["index"]
    query(tmp_path / "others", Path(index), tmp_path / "other-report", CONFIG, RUN)
    found = verify(tmp_path / "cleared", VerifyConfig(report=tmp_path / "other-report"), RUN)
    assert [(Path(each.where).name, each.what) for each in found.problems] == [
        ("release.json", f"was made from another report than {tmp_path / 'other-report'}"),
        ("0.png", "was not cleared by the report"),
    ]
    with pytest.raises(InputError, match="is no release"):
        verify(report, config, RUN)


def test_an_index_with_another_encoder_is_told_and_no_image_is_blamed(judged, people, tmp_path):
    shutil.copytree(people / "index", tmp_path / "index")
    query(judged / "synthetic", tmp_path / "index", tmp_path / "report", CONFIG, RUN)
    release(tmp_path / "report", tmp_path / "cleared", ReleaseConfig(), RUN)
    checkpoint.save(tmp_path / "encoder", Encoder(TINY), {})
    config = IndexConfig(tmp_path / "encoder", calibrate=False, adapt="never")
    build_index(people / "training", tmp_path / "index", config, RUN)
    for path, report in (("report", None), ("cleared", tmp_path / "report")):
        found = verify(tmp_path / path, VerifyConfig(report=report), RUN)
        (problem,) = found.problems
        assert "no image can be embedded as it was" in problem.what


def forged(folder, name, data):
    """Add a file to a release that is not signed, and to its statement."""
    (folder / name).write_bytes(data)
    value = json.loads((folder / "release.json").read_bytes())
    digest = {"sha256": hashlib.sha256(data).hexdigest()}
    value["subject"].append({"name": name, "digest": digest, "annotations": {}})
    (folder / "release.json").write_bytes(sealed(value, None))


def problems_of(folder, report, run=RUN):
    found = verify(folder, VerifyConfig(report=report), run)
    return [(each.where.rpartition("cleared/")[2], each.what) for each in found.problems]


def test_what_the_report_did_not_clear_is_found_whatever_it_is(judged, tmp_path):
    folder = released(judged, tmp_path).folder
    kept_back = {
        "copy.png": (judged / "synthetic" / "copy.png").read_bytes(),
        "copied.npy": (judged / "synthetic" / "copied.npy").read_bytes(),
        "patients.h5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "empty.png": b"",
    }
    for name, data in kept_back.items():
        forged(folder, name, data)
    assert verify(folder, VerifyConfig(), RUN).intact
    assert problems_of(folder, judged / "report") == [
        (name, "was not cleared by the report") for name in kept_back
    ]


def test_a_statement_that_says_less_or_more_than_the_report_is_found(judged, tmp_path):
    folder = released(judged, tmp_path).folder
    assert problems_of(folder, judged / "report") == []
    whole = (folder / "release.json").read_bytes()

    def altered(change):
        value = json.loads(whole)
        change(value)
        (folder / "release.json").write_bytes(sealed(value, None))
        assert verify(folder, VerifyConfig(), RUN).intact
        return problems_of(folder, judged / "report")

    told = [("release.json", "does not say what the report says of the tests, and of their limits")]
    assert altered(lambda value: value["predicate"].update(warnedTests=[])) == told
    assert altered(lambda value: value["predicate"].update(result="PASSED")) == told
    assert altered(lambda value: value["predicate"].update(passedTests=["looked at"])) == told
    name = json.loads(whole)["subject"][0]["name"]
    told = [(name, "has other verdicts in the report")]
    verdicts = {"images": 1, "verdicts": ["similar", "different"]}
    assert altered(lambda value: value["subject"][0].update(annotations=verdicts)) == told
    assert altered(lambda value: value["subject"][0].pop("annotations")) == told


def test_what_a_released_file_holds_beside_its_frames_is_found(judged, tmp_path, monkeypatch):
    """In a release that another program made of cleared files."""
    folder = released(judged, tmp_path).folder
    monkeypatch.setattr(verifying, "beside_frames", lambda data, frames: "an icon")
    files = (path for path in folder.rglob("*") if path.is_file())
    names = sorted(path.relative_to(folder).as_posix() for path in files)
    assert problems_of(folder, judged / "report") == [
        (name, "holds an icon, which was not judged") for name in names if name != "release.json"
    ]


@pytest.mark.parametrize("why", ["undecidable", "a part is copied", "not verified"])
def test_what_keeps_an_image_back_is_asked_for_again(judged, tmp_path, monkeypatch, why):
    folder = released(judged, tmp_path).folder
    with Store.open(judged / "report" / "synthetic") as store:
        row = store.paths().index("a/0.png")
    partial = PartialCopy(row, "a/0.png", "t.png", "p", 0.001, 0.9, False, 0, 0, 9, 9)
    exact = cleared.verdicts_of

    def asked(report):
        values = list(exact(report))
        values[row] = "undecidable" if why == "undecidable" else values[row]
        return values

    monkeypatch.setattr(cleared, "verdicts_of", asked)
    unlooked = [row] if why == "not verified" else []
    monkeypatch.setattr(cleared, "_unverified", lambda *_: unlooked)
    parts = [partial] if why == "a part is copied" else []
    monkeypatch.setattr(cleared, "read_partial", lambda _: parts)
    found = [("a/0.png", "was not cleared by the report")]
    assert problems_of(folder, judged / "report") == found
    shutil.rmtree(folder)
    assert released(judged, tmp_path).kept_back == {"duplicate": 2, why: 1}


def test_a_released_file_that_is_decoded_otherwise_now_is_told(judged, tmp_path, monkeypatch):
    folder = released(judged, tmp_path).folder
    decode = pipeline.decode

    def damaged(data, options):
        if data == (folder / "a" / "0.png").read_bytes():
            raise Rejected("damaged", "")
        return decode(data, options)

    monkeypatch.setattr(pipeline, "decode", damaged)
    assert problems_of(folder, judged / "report") == [("a/0.png", "cannot be judged now: damaged")]


def test_a_release_is_not_decoded_in_this_process(judged, tmp_path, monkeypatch):
    folder, here = released(judged, tmp_path).folder, os.getpid()
    decode = pipeline.decode

    def elsewhere(data, options):
        assert os.getpid() != here
        return decode(data, options)

    monkeypatch.setattr(pipeline, "decode", elsewhere)
    assert problems_of(folder, judged / "report", RunContext("cpu", workers=1)) == []


def test_a_report_of_no_use_is_told_first(judged, tmp_path):
    folder, report = released(judged, tmp_path).folder, tmp_path / "report"
    with pytest.raises(InputMissing):
        problems_of(folder, report)
    with pytest.raises(InputError, match="is no report of a query"):
        index = json.loads((judged / "report" / "job.json").read_text())["index"]
        problems_of(folder, Path(index))
    shutil.copytree(judged / "report", report)
    (report / "job.json").unlink()
    with pytest.raises(InputError, match="is damaged"):
        problems_of(folder, report)


def test_a_statement_that_was_written_in_another_way_is_damaged(judged, tmp_path):
    found = released(judged, tmp_path)
    path = found.folder / "release.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    checked = verify(found.folder, VerifyConfig(), RUN)
    assert "was altered" in checked.problems[0].what
    for value in ({}, {"subject": 5}, {"subject": [{}]}, {"subject": [], "predicateType": "x"}):
        path.write_bytes(sealed(value, None))
        checked = verify(found.folder, VerifyConfig(), RUN)
        assert "is no statement of a release" in checked.problems[0].what
