"""Whose image it is, through real files, archives, volumes and DICOM, to the record of each."""

import hashlib
import hmac
import zipfile
from dataclasses import replace

import pytest
from dicom_bytes import PATIENT_ID, dicom
from hypothesis import given
from hypothesis import strategies as st
from image_bytes import NOISE, STACK, npy, png

from deepssim_scan.errors import InputError
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.config.selection import Selection
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.listing import Item, list_images
from deepssim_scan.ingest.pipeline import decode_images
from deepssim_scan.ingest.subjects import subject_of
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig
from deepssim_scan.matching.config import PageConfig
from deepssim_scan.progress import Collected

KEY = b"a secret of many bytes"
HERE = RunContext("cpu", workers=0)


def hashed(subject):
    return hmac.new(KEY, subject.encode(), hashlib.sha256).hexdigest()


def keyed(**options):
    return IngestConfig(read_options=ReadOptions(subject_key=KEY), **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images alone and in folders, a DICOM, volumes, an archive, and a file that is damaged."""
    root = tmp_path_factory.mktemp("images")
    files = {
        "alone.png": png(NOISE, 8, 0),
        "p1/a.png": png(NOISE, 8, 0),
        "p1/visit 2/b.png": png(NOISE, 8, 0),
        "p1/damaged.png": png(NOISE, 8, 0)[:50],
        "p2/scan.dcm": dicom(NOISE),
        "p2/volume.npy": npy(STACK),
    }
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with zipfile.ZipFile(root / "z.zip", "w") as archive:
        archive.writestr("top.png", png(NOISE, 8, 0))
        archive.writestr("p3/c.png", png(NOISE, 8, 0))
        archive.writestr("p3/volume.npy", npy(STACK))
    return root


def subjects(folder, ingest=IngestConfig()):
    """Return the subject of every image by its name, and the names of those that are known."""
    listing = list_images(folder, ingest.selection, HERE)
    decoded = decode_images(listing, Standardisation(size=None), ingest, HERE)
    records = [image.record for item in decoded for image in item]
    known = {record.name for record in records if record.subject_known}
    return {record.name: record.subject for record in records}, known


GUESSED = {
    "alone.png": "",
    "p1/a.png": "p1",
    "p1/visit 2/b.png": "p1/visit 2",
    "p1/damaged.png": "p1",
    "p2/scan.dcm": "p2",
    **{f"p2/volume.npy#axis=0,slice={n}": "p2/volume.npy" for n in range(3)},
    "z.zip#member=top.png": "z.zip",
    "z.zip#member=p3/c.png": "z.zip/p3",
    **{f"z.zip#member=p3/volume.npy,axis=0,slice={n}": "z.zip/p3/volume.npy" for n in range(3)},
}


def test_without_anything_else_a_file_of_frames_or_a_folder_is_a_guess(folder):
    assert subjects(folder) == (GUESSED, set())


def test_one_slice_of_a_volume_is_still_of_the_volume(folder):
    found, _ = subjects(folder, IngestConfig(read_options=ReadOptions(slices="1:2")))
    assert found["p2/volume.npy#axis=0,slice=1"] == "p2/volume.npy"


def test_with_a_key_a_patient_id_is_known_and_everything_is_hashed(folder):
    expected = {name: hashed(subject) if subject else "" for name, subject in GUESSED.items()}
    expected["p2/scan.dcm"] = hashed(PATIENT_ID)
    assert subjects(folder, keyed()) == (expected, {"p2/scan.dcm"})


@pytest.mark.parametrize("regex", [r"p\d", r"(p\d)/", r"(?:^|/)(p\d)(?=/)"])
def test_a_regular_expression_is_searched_for_in_the_path(folder, regex):
    """In an archive too; what it does not match goes on to the next rule."""
    known = {name: f"p{n}" for name in GUESSED for n in (1, 2, 3) if f"p{n}/" in name}
    assert len(known) == 11
    expected = GUESSED | known
    assert subjects(folder, IngestConfig(subject_regex=regex)) == (expected, set(known))


@pytest.mark.parametrize("regex", ["nothing", "visit( 3)?$", "()alone", "x*"])
def test_an_expression_that_matches_nothing_says_nothing(folder, regex):
    assert subjects(folder, IngestConfig(subject_regex=regex)) == (GUESSED, set())


def test_an_expression_goes_before_the_patient_id_and_is_hashed(folder):
    found, known = subjects(folder, keyed(subject_regex=r"^p\d"))
    assert found["p2/scan.dcm"] == found["p2/volume.npy#axis=0,slice=1"] == hashed("p2")
    assert "p2/scan.dcm" in known


def test_a_manifest_goes_before_everything(folder, tmp_path):
    rows = ["path,subject", "p1/a.png,\u00c4-1", "p2/scan.dcm,", "z.zip,P2", "p2/volume.npy,P2"]
    manifest = tmp_path / "list.csv"
    manifest.write_text("\n".join([*rows, "p1/damaged.png,P4", "absent.png,P5", ""]), "utf-8")
    chosen = Selection(manifest=manifest)
    found, known = subjects(folder, IngestConfig(chosen, subject_regex="^p1"))
    assert found == {
        "absent.png": "P5",
        "p1/a.png": "\u00c4-1",
        "p1/damaged.png": "P4",
        "p2/scan.dcm": "p2",
        **{name: "P2" for name in GUESSED if name.startswith(("p2/v", "z.zip"))},
    }
    assert known == found.keys() - {"p2/scan.dcm"}
    found, known = subjects(folder, keyed(selection=chosen))
    assert found["p2/scan.dcm"] == hashed(PATIENT_ID)
    assert found["p1/a.png"] == hashed("\u00c4-1")
    assert known == found.keys()


def test_spaces_about_a_subject_of_a_manifest_are_not_of_it(folder, tmp_path):
    """One person was two, and all images with a space for a name were of one person."""
    rows = "path,subject\np1/a.png,P1\np1/visit 2/b.png, P1\u00a0\np2/scan.dcm, \nalone.png,\t\n"
    (tmp_path / "list.csv").write_text(rows, "utf-8")
    found, known = subjects(folder, IngestConfig(Selection(manifest=tmp_path / "list.csv")))
    assert found == {
        "p1/a.png": "P1",
        "p1/visit 2/b.png": "P1",
        "p2/scan.dcm": "p2",
        "alone.png": "",
    }
    assert known == {"p1/a.png", "p1/visit 2/b.png"}


def test_a_name_is_the_same_composed_and_decomposed():
    """A folder that was copied from a Mac, beside a manifest of another machine."""
    composed, decomposed = "Ren\u00e9e", "Rene\u0301e"
    for ingest in (IngestConfig(), IngestConfig(subject_regex="[^/]+"), keyed()):
        one, other = (
            subject_of(Item(f"{name}/a.png"), "", "", ingest) for name in (composed, decomposed)
        )
        assert one == other
        named = subject_of(Item("a.png", subject=decomposed), "", "", ingest)
        assert named.name == one.name


def test_without_a_key_no_patient_id_is_read(folder):
    assert hashed(PATIENT_ID) not in subjects(folder)[0].values()
    assert PATIENT_ID not in subjects(folder)[0].values()


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=9)


@given(st.lists(NAMES, min_size=1, max_size=4), NAMES | st.just(""), st.booleans())
def test_two_images_of_a_folder_or_volume_have_one_subject_and_no_others(parts, member, volume):
    """Any names: a guess depends on the folder alone, or, for a frame, on the file alone."""
    frame = "frame=0" if volume else ""
    path = "/".join(parts)
    subject = subject_of(Item(path, member), frame, "", IngestConfig())
    whole = f"{path}/{member}" if member else path
    assert subject.name == (whole if volume else whole.rpartition("/")[0])
    assert not subject.known
    other = subject_of(Item(f"other/{path}", member), frame, "", IngestConfig())
    assert other.name != subject.name


@pytest.mark.parametrize(
    "regex",
    [
        "(",
        "(a)(b)",
        "*",
        "(?P<x>a)(?P<y>b)",
        "[[1]]",
        f"a{{{'9' * 20}}}",
        "(?:" * 5000 + ")" * 5000,
    ],
)
def test_an_expression_that_cannot_be_used_is_refused(regex):
    with pytest.raises(InputError, match=r"subject_regex .* one group at most"):
        IngestConfig(subject_regex=regex)


def test_the_expression_is_part_of_what_a_store_records(tmp_path):
    recorded = IngestConfig(subject_regex="p(.)").source(tmp_path)
    assert recorded["subject_regex"] == "p(.)"
    assert IngestConfig().source(tmp_path)["subject_regex"] is None


def test_a_key_that_is_short_is_refused_wherever_it_is_given():
    """The command line asked for 16 bytes, and Python took any."""
    for made in (lambda key: ReadOptions(subject_key=key), lambda key: PageConfig(pseudonyms=key)):
        with pytest.raises(InputError, match="has 15 bytes, and at least 16 are needed"):
            made(b"k" * 15)
        assert made(b"") != made(b"k" * 16)


@pytest.mark.parametrize(
    ("regex", "words"),
    [
        ("sub-[0-9]+", "12 of 12 training images have no named subject, for instance 'alone.png'"),
        ("p[0-9]", "2 of 12 training images have no named subject, for instance 'alone.png'"),
        (r"\.", "All 12 training images have the same named subject"),
        ("^[a-z]", None),
        (None, None),
    ],
)
def test_subjects_that_an_expression_does_not_tell_apart_are_warned_of(
    folder, tmp_path, regex, words
):
    """A misspelt expression was taken in silence, and reports counted whom it named as people."""
    said = Collected()
    config = IndexConfig(ingest=IngestConfig(subject_regex=regex), calibrate=False)
    build_index(folder, tmp_path / "index", config, replace(HERE, progress=said))
    assert [words in each for each in said.warnings] == [True] * (words is not None)
