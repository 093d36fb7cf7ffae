"""Calibrating an index on its own images, and the file that keeps what was found."""

import json
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_rule import calibration

from deepssim_scan.calibration import calibrate as module
from deepssim_scan.calibration.calibration import Calibration
from deepssim_scan.calibration.fit import FOLDS
from deepssim_scan.calibration.groups import groups_of
from deepssim_scan.calibration.null import NullDistribution
from deepssim_scan.calibration.partial import PartialCalibration
from deepssim_scan.errors import Damaged, InputError, InputMissing, StoreMismatch
from deepssim_scan.imaging.names import KINDS
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.jobs import calibrate as job
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import CalibrateConfig, IndexConfig, QueryConfig
from deepssim_scan.jobs.demo import to_image
from deepssim_scan.jobs.gallery import Gallery, training_files
from deepssim_scan.jobs.identity import index_encoder
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import CanaryConfig, VerdictConfig
from deepssim_scan.matching.views import Views
from deepssim_scan.reporting.matches import best_matches
from deepssim_scan.storage.records import read_json, write_json
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.store import Store
from deepssim_scan.training.pseudo_subjects import mni152, slices

RUN = RunContext("cpu", workers=0)


class Said:
    """Progress that keeps the warnings."""

    def __init__(self):
        self.warnings = []

    def __call__(self, stage, done, total, note=""):
        assert done <= total

    def warn(self, text):
        self.warnings.append(text)


@pytest.fixture(scope="module")
def found(people):
    return Calibration.read(people / "index")


@pytest.fixture
def calibrator(people):
    """What calibrates the index."""
    loaded = index_encoder(people / "index")
    with Store.open(people / "index" / "store") as store:
        search = TrainingIndex.open(people / "index", store, "cpu")
        gallery = Gallery(store, search, groups_of(store), training_files(store, None, RUN))
        yield gallery.calibrator(Embedder(loaded, run=RUN), 8, Views())


def same(first, second):
    """Whether two calibrations say the same."""

    def plain(each):
        value = {field.name: getattr(each, field.name) for field in fields(each)}
        value |= {"null": each.null.as_json(), "digest": "", "planted": dict(each.planted)}
        return value | {"partial": each.partial and each.partial.as_json()}

    return plain(first) == plain(second)


# What it finds.


def test_planted_copies_are_found_and_told_from_other_people(found):
    rate = found.false_alarm(None)
    assert rate == pytest.approx(1 / (len(found.null.statistics) + 1))
    assert {kind: len(values) for kind, values in found.planted.items()} == dict.fromkeys(KINDS, 2)
    assert found.found(rate) > 0.8
    assert found.source_first > 0.8
    assert found.sensitivity(rate)["identity"] == 1
    assert (found.subjects, found.gallery, found.candidates) == ("guessed", 180, 8)


def test_training_images_of_two_subjects_that_are_one_are_named_and_no_non_members(found):
    """The last subject is a copy of the first one."""
    assert found.duplicates
    for first, second in found.duplicates:
        assert first.startswith("s00/")
        assert second == first.replace("s00", "s59")
    assert not {0, 59} & set(found.null.subjects.tolist())
    assert set(found.null.subjects.tolist()) <= set(range(1, 59))
    assert len(found.null.statistics) == 58


def test_a_non_member_of_which_too_little_is_compared_raises_no_threshold(
    calibrator, found, monkeypatch
):
    """A query never flags it. Here it is the one with the highest statistic."""
    exact = module.Calibrator._non_members

    def with_little(self, most, rng):
        null, *rest = exact(self, most, rng)
        enough = null.decidable & (null.group != found.null.subjects[-1])[:, None]
        return replace(null, decidable=enough), *rest

    monkeypatch.setattr(module.Calibrator, "_non_members", with_little)
    without = calibrator.calibrate()
    lowest, *others, _ = found.null.statistics.tolist()
    assert without.null.statistics.tolist() == [lowest, lowest, *others]
    assert without.null.threshold(0.05) < found.null.threshold(0.05)
    assert without.planted == found.planted


def test_a_non_member_is_looked_for_without_its_own_subject(calibrator):
    rows = np.array([7, 50, 100])
    images = dict(calibrator.reader.pixels(rows.tolist()))
    pixels, group = [images[row] for row in rows.tolist()], calibrator.groups.number[rows]
    beside = [calibrator.groups.beside(row) for row in rows.tolist()]
    left_out = calibrator.look_for(pixels, group, beside)
    assert (calibrator.groups.number[left_out.rows] != group[:, None]).all()
    assert left_out.rows.shape == (3, 8)
    assert left_out.whole.all()
    with_itself = calibrator.look_for(pixels, group)
    assert with_itself.rows[:, 0].tolist() == rows.tolist()
    assert with_itself.same[:, 0].all()
    assert not left_out.same.any()


@pytest.mark.parametrize(("alike", "least", "most"), [(True, 0.8, 1.0), (False, 0.0, 0.2)])
def test_another_image_of_the_same_patient_is_flagged_where_it_is_nearly_the_same(
    tmp_path, alike, least, most
):
    """The second image of a patient is the first one, moved and noisy, or another person's."""
    volume, noise = mni152(), torch.Generator().manual_seed(0)
    for subject in range(24):
        seeds = [subject, subject if alike else 1000 + subject]
        for number, seed in enumerate(seeds):
            person = torch.Generator().manual_seed(seed)
            (pixels,) = slices(volume, 2, [0.45], 128, person)
            if number:
                pixels = pixels.roll(5, 1) + 0.02 * torch.randn(128, 128, generator=noise)
            path = tmp_path / "training" / f"s{subject:02d}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            to_image(pixels.clamp(0, 1)).save(path)
    result = build_index(
        tmp_path / "training", tmp_path / "index", IndexConfig(adapt="never"), RUN
    ).calibration
    flagged, asked = result.count_same_patient(result.false_alarm(None))
    assert 15 < asked <= 24  # but for those that are the same image
    assert least <= flagged / asked <= most
    assert Calibration.read(tmp_path / "index").same_patient == result.same_patient


def test_where_every_patient_has_one_image_no_other_one_is_looked_for(tmp_path):
    volume = mni152()
    for subject in range(24):
        person = torch.Generator().manual_seed(subject)
        path = tmp_path / "training" / f"s{subject:02d}" / "0.png"
        path.parent.mkdir(parents=True)
        to_image(slices(volume, 2, [0.45], 128, person)[0]).save(path)
    build_index(tmp_path / "training", tmp_path / "index", IndexConfig(adapt="never"), RUN)
    found = Calibration.read(tmp_path / "index")
    assert (found.subjects, found.same_patient) == ("guessed", ())
    assert found.summary(found.false_alarm(None))["same_patient"] is None


def adapted(calibrator, subjects):
    """The calibrator with an encoder that says that it was trained on images of some subjects."""
    numbers = zip(calibrator.groups.number, calibrator.store.embedded(), strict=True)
    seen = [record.digest for number, record in numbers if number in subjects]
    probe, said = calibrator.probe, Said()
    loaded = replace(probe.embedder.loaded, training={"seen": seen[::2]})
    probe = replace(probe, embedder=replace(probe.embedder, loaded=loaded))
    reader = replace(calibrator.reader, run=replace(RUN, progress=said))
    return replace(calibrator, probe=probe, reader=reader), said


def test_the_null_is_of_subjects_that_the_encoder_was_not_trained_on(calibrator):
    """Also their images that it was not trained on: every second one."""
    learnt, said = adapted(calibrator, range(30))
    found = learnt.calibrate()
    assert set(found.null.subjects.tolist()) == set(range(30, 59))
    assert not said.warnings


def test_an_encoder_that_left_too_few_folds_is_warned_of(calibrator):
    """Every fifth subject is left, and all of them are in one fold."""
    learnt, said = adapted(calibrator, {*range(60)} - {*range(1, 60, FOLDS)})
    assert len(set(learnt.calibrate().null.subjects.tolist())) == 58
    assert "trained on images of nearly all subjects" in said.warnings[0]


def test_an_encoder_that_was_trained_on_everybody_is_warned_of(calibrator):
    learnt, said = adapted(calibrator, range(60))
    assert len(set(learnt.calibrate().null.subjects.tolist())) == 58
    (warning,) = said.warnings
    assert "trained on images of nearly all subjects" in warning
    assert "--holdout" in warning


def test_an_encoder_that_was_trained_on_nobody_of_a_few_images_is_not_warned_of(people, tmp_path):
    """The bundled one: it was said to have been trained on images of nearly all subjects."""
    said = Said()
    shutil.copytree(people / "training" / "s00", tmp_path / "training" / "s00")
    run = replace(RUN, progress=said)
    build_index(tmp_path / "training", tmp_path / "index", IndexConfig(), run)
    (warning,) = said.warnings
    assert warning.startswith("Not calibrated: ")


def test_planted_copies_are_of_all_kinds_and_drawn_by_the_seed(calibrator):
    one, again, other = (calibrator.plant(28, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.bincount(one.kinds).tolist() == [2] * len(KINDS)
    assert len(set(calibrator.groups.number[one.sources].tolist())) == 28
    pairs = zip(one.images, again.images, strict=True)
    assert all(np.array_equal(first, second) for first, second in pairs)
    assert not np.array_equal(one.sources, other.sources)


# The file.


@pytest.mark.parametrize("null", [np.linspace(0, 1, 50), np.random.default_rng(0).normal(size=900)])
def test_a_calibration_is_read_as_it_was_written(tmp_path, null):
    """With and without a tail of the null."""
    partial = PartialCalibration(
        NullDistribution.of(null, np.arange(len(null)), 0), {"half": (None, 1.5)}
    )
    written = calibration(null, duplicates=(("a", "b"),), partial=partial)
    assert (written.null.tail is None) == (len(null) == 50)
    written.write(tmp_path)
    read = Calibration.read(tmp_path)
    assert same(read, written)
    assert read.digest
    values = np.linspace(-3, 5, 99)
    assert np.array_equal(read.null.p_values(values), written.null.p_values(values))


def test_an_index_without_a_calibration_says_how_to_make_one(tmp_path):
    with pytest.raises(InputMissing, match=r"not calibrated .*deepssim-scan calibrate --index"):
        Calibration.read(tmp_path)


def test_any_altered_byte_is_found(tmp_path):
    calibration(np.linspace(0, 1, 20)).write(tmp_path)
    path = tmp_path / "calibration.json"
    whole = path.read_bytes()
    for position in range(0, len(whole), 37):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(Damaged):
            Calibration.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 1}, "of another version"),
        ({"statistic": {"weights": [1.0], "constant": 0.0}}, "weights must be those of 16"),
        ({"statistic": None}, "holds no calibration"),
        ({"planted": None}, "holds no calibration"),
        ({"more": 1}, "holds no calibration"),
        ({"null": {}}, "holds no null"),
    ],
)
def test_what_is_no_calibration_is_refused(tmp_path, change, words):
    """With a checksum that fits."""
    calibration().write(tmp_path)
    path = tmp_path / "calibration.json"
    write_json(path, read_json(path) | change)
    with pytest.raises(Damaged, match=words):
        Calibration.read(tmp_path)


@pytest.mark.parametrize("what", ["encoder", "store", "subjects"])
def test_row_34_a_calibration_of_something_else_is_refused(people, found, tmp_path, what):
    index = shutil.copytree(people / "index", tmp_path / "index")
    replace(found, **{what: "f" * 64}).write(index)
    with pytest.raises(StoreMismatch, match=f"was calibrated with {what} ffffffffffff"):
        query(people / "training", index, tmp_path / "report", QueryConfig(), RUN)
    assert not (tmp_path / "report").exists()


def test_a_rate_that_is_not_supported_is_refused_before_any_work(people, tmp_path):
    config = QueryConfig(verdict=VerdictConfig(false_alarm=1e-6))
    with pytest.raises(
        InputError, match=r"1e-06 was asked for; the null of 58 .* supports 0\.017 at"
    ):
        query(people / "training", people / "index", tmp_path / "report", config, RUN)
    assert list(tmp_path.iterdir()) == []


# Where the null comes from.


def other_people(folder, count, first=3_000_000_000):
    """Write a slice each of pseudo-subjects who are in no training set."""
    volume = mni152()
    for number in range(count):
        (pixels,) = slices(volume, 2, [0.5], 128, torch.Generator().manual_seed(first + number))
        path = folder / f"p{number}" / "0.png"
        path.parent.mkdir(parents=True)
        to_image(pixels).save(path)
    return folder


def test_the_null_of_images_held_out(people, tmp_path):
    config = CalibrateConfig(holdout=other_people(tmp_path / "others", 22))
    found = job.calibrated(people / "index", config, RUN)
    assert found.subjects == "hold-out"
    assert len(found.null.statistics) == len(set(found.null.subjects.tolist())) == 22
    assert found.duplicates == ()
    assert found.found(found.false_alarm(None)) > 0.7


def test_images_held_out_whose_subjects_are_not_told_apart_count_by_runs_of_files(people, tmp_path):
    """They may be several of each person, so they are not as many people."""
    count = 72
    for number in range(count):
        Image.fromarray(np.full((8, 8), number, np.uint8) + np.eye(8, dtype=np.uint8)).save(
            tmp_path / f"{number:02d}.png"
        )
    rule = index_encoder(people / "index").architecture.standardisation
    read = job._hold_out(tmp_path, IngestConfig(), rule, RUN)
    assert [number for _, number in read] == [at // 16 for at in range(count)]
    named = job._hold_out(tmp_path, IngestConfig(subject_regex="^(0)"), rule, RUN)
    assert [number for _, number in named] == [0] * 10 + [1 + at // 16 for at in range(count - 10)]


def test_a_hold_out_stands_for_a_training_set_that_is_too_small_for_a_null(
    people, tmp_path, monkeypatch
):
    """How like its people are to training subjects is not told then."""

    def too_few(*_):
        raise InputError("too few")

    monkeypatch.setattr(module.Calibrator, "_non_members", too_few)
    config = CalibrateConfig(holdout=other_people(tmp_path / "others", 22))
    found = job.calibrated(people / "index", config, RUN)
    assert (found.subjects, found.members) == ("hold-out", None)


def test_a_planted_copy_on_which_too_little_is_compared_is_not_found():
    features = np.zeros((3, 2, 16))
    enough = np.array([[True, True], [False, True], [False, False]])
    found = module.Found(np.zeros((3, 2), int), features, enough, np.arange(3))
    statistics = np.array([[5.0, 1.0], [5.0, 1.0], [5.0, 5.0]])
    counted = module._by_kind(np.array([0, 0, 1]), found, statistics, lowest=-2.0)
    assert (counted[KINDS[0]], counted[KINDS[1]]) == ((5.0, 1.0), (-2.0,))


def test_training_images_among_the_images_held_out_are_refused(people, tmp_path):
    others = other_people(tmp_path / "others", 19)
    shutil.copytree(people / "training" / "s20", others / "me")
    with pytest.raises(InputError, match=r"3 of 22 hold-out images look the same .*'s20/\d\.png'"):
        job.calibrated(people / "index", CalibrateConfig(holdout=others), RUN)


def test_one_training_image_among_many_held_out_takes_no_part(people, tmp_path):
    others = other_people(tmp_path / "others", 55)
    without = job.calibrated(people / "index", CalibrateConfig(holdout=others), RUN)
    shutil.copy(next((people / "training" / "s20").iterdir()), others / "p54" / "copy.png")
    said = Said()
    run = replace(RUN, progress=said)
    found = job.calibrated(people / "index", CalibrateConfig(holdout=others), run)
    assert any("1 of 56 hold-out images look the same" in line for line in said.warnings)
    assert len(found.null.statistics) == len(without.null.statistics) == 55


def test_a_variant_of_a_training_image_among_many_held_out_takes_no_part(people, tmp_path):
    """Nothing was above a null with a few of them: next to no copy was flagged."""
    others = other_people(tmp_path / "others", 55)
    without = job.calibrated(people / "index", CalibrateConfig(holdout=others), RUN)
    with Image.open(people / "training" / "s20" / "1.png") as image:
        turned = np.array(image.rotate(4, Image.Resampling.BICUBIC))
    noise = np.random.default_rng(0).normal(0, 10, turned.shape)
    noisy = Image.fromarray((turned + noise).clip(0, 255).astype(np.uint8))
    noisy.save(others / "p54" / "variant.png")
    said = Said()
    config, run = CalibrateConfig(holdout=others), replace(RUN, progress=said)
    found = job.calibrated(people / "index", config, run)
    assert any("1 of 56 hold-out images look the same" in line for line in said.warnings)
    assert np.allclose(found.null.statistics, without.null.statistics)
    noisy.save(others / "p53" / "variant.png")
    with pytest.raises(InputError, match=r"2 of 57 .* nearly so, for instance as 's20/1\.png'"):
        job.calibrated(people / "index", config, RUN)


def test_too_few_images_held_out_are_refused(people, tmp_path):
    config = CalibrateConfig(holdout=other_people(tmp_path / "others", 3))
    with pytest.raises(InputError, match="holds 3 images that can be read, and a null needs 20"):
        job.calibrated(people / "index", config, RUN)


def test_images_held_out_of_one_subject_are_refused(people, tmp_path):
    others = other_people(tmp_path / "others", 21)
    config = CalibrateConfig(holdout=others, ingest=IngestConfig(subject_regex="(p)"))
    with pytest.raises(InputError, match="21 images of non-members of 1 subjects"):
        job.calibrated(people / "index", config, RUN)


def test_a_small_index_takes_the_bundled_calibration_and_says_so(people, tmp_path):
    said = Said()
    for number in range(9):
        source = people / "training" / f"s{number:02d}"
        shutil.copytree(source, tmp_path / "training" / source.name)
    run = replace(RUN, progress=said)
    made = build_index(tmp_path / "training", tmp_path / "index", IndexConfig(), run)
    (warning,) = said.warnings
    assert "Verdicts go by the bundled calibration, whose false-alarm rate is not that" in warning
    calibrated = Calibration.read(tmp_path / "index")
    assert same(calibrated, made.calibration)
    assert (calibrated.subjects, calibrated.gallery) == ("bundled", 27)
    assert calibrated.duplicates == ()  # those of pseudo-subjects are no images of this folder
    assert calibrated.encoder == made.encoder
    assert not made.adapted
    with pytest.raises(InputError, match="a calibration needs 20 of more than one"):
        job.calibrate(tmp_path / "index", run=run)
    assert same(Calibration.read(tmp_path / "index"), calibrated)
    assert json.loads((tmp_path / "index" / "calibration.json").read_text())["format"] == 2


def test_a_seed_below_zero_is_refused():
    """A traceback was shown, after all images had been read."""
    with pytest.raises(InputError, match="seed must be >= 0, found -1"):
        CalibrateConfig(seed=-1)


def test_copies_of_an_image_that_is_of_many_subjects_are_flagged(people, tmp_path):
    """Each hid the others: none was more alike than those of other subjects."""
    training = shutil.copytree(people / "training", tmp_path / "training")
    for number in range(10, 24):
        shutil.copy2(training / "s03" / "1.png", training / f"s{number}" / "again.png")
    build_index(training, tmp_path / "index", IndexConfig(adapt="never"), RUN)
    (tmp_path / "synthetic").mkdir()
    for subject in ("s03", "s30"):
        image = Image.open(training / subject / "1.png")
        for angle in (-8, -4, 3, 7):
            turned = image.rotate(angle, Image.Resampling.BILINEAR)
            turned.save(tmp_path / "synthetic" / f"{subject}{angle}.jpg", quality=30)
    config = QueryConfig(canaries=CanaryConfig(0))
    query(tmp_path / "synthetic", tmp_path / "index", tmp_path / "report", config, RUN)
    verdicts = {match.synthetic: match.verdict for match in best_matches(tmp_path / "report")}
    assert len(verdicts) == 8
    assert set(verdicts.values()) == {"duplicate"}


def test_variants_of_a_few_training_images_leave_the_calibration_as_it_is(people, tmp_path):
    """Those that are looked for again were too few for a null, and no other one was taken."""
    training = shutil.copytree(people / "training", tmp_path / "training")
    noise = np.random.default_rng(0)
    for number in (3, 20):
        for path in sorted((training / f"s{number:02d}").iterdir()):
            with Image.open(path) as image:
                turned = np.array(image.rotate(4, Image.Resampling.BICUBIC))
            noisy = (turned + noise.normal(0, 10, turned.shape)).clip(0, 255)
            (training / f"v{number:02d}").mkdir(exist_ok=True)
            Image.fromarray(noisy.astype(np.uint8)).save(training / f"v{number:02d}" / path.name)
    said = Said()
    run = replace(RUN, progress=said)
    build_index(training, tmp_path / "index", IndexConfig(adapt="never"), run)
    found = Calibration.read(tmp_path / "index")
    assert not said.warnings
    assert found.subjects == "guessed"
    assert len(found.null.statistics) > 50
    assert found.found(found.false_alarm(None)) > 0.8
    assert any(second.startswith("v") for _, second in found.duplicates)
    with_variants = {3, 20, 60, 61}
    assert with_variants & set(found.null.subjects.tolist())
    assert not with_variants & set(found.partial.null.subjects.tolist())


def test_a_training_set_that_is_there_twice_is_told_why_it_is_not_calibrated(people, tmp_path):
    """It was asked for more images, though it has enough of them."""
    for folder in ("export", "original"):
        for path in sorted((people / "training").glob("s[0-2]*/*.png")):
            copy = tmp_path / "training" / folder / f"{path.parent.name}-{path.name}"
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    said = Said()
    run = replace(RUN, progress=said)
    build_index(tmp_path / "training", tmp_path / "index", IndexConfig(adapt="never"), run)
    (warning,) = said.warnings
    assert "there are 0 images of non-members" in warning
    assert re.search(r"\d\d pairs are copies of each other or nearly so: keep one of each", warning)


def test_few_files_whose_subjects_are_not_known_are_calibrated_when_they_are(people, tmp_path):
    """More images were asked for, though those of 24 people are enough: each was anyone's."""
    training, said = tmp_path / "training", Said()
    training.mkdir()
    for number in range(24):
        shutil.copy(people / "training" / f"s{number:02d}" / "0.png", training / f"{number}.png")
    run = replace(RUN, progress=said)
    build_index(training, tmp_path / "index", IndexConfig(adapt="never"), run)
    (warning,) = said.warnings
    assert f"{training}: there are 0 images of non-members" in warning
    assert "No subjects are known: say who is who (--subject-regex, --manifest)." in warning
    named = IndexConfig(adapt="never", ingest=IngestConfig(subject_regex=r"\d+"))
    build_index(training, tmp_path / "named", named, RUN)
    assert Calibration.read(tmp_path / "named").subjects == "known"


def test_variants_of_training_images_hide_no_copies(people, tmp_path):
    """Each image was a non-member that is like a copy: nothing was above such a null."""
    for path in sorted((people / "training").glob("*/*.png")):
        name, image = f"{path.parent.name}-{path.name}", Image.open(path)
        for folder, angle in (("plain", 0), ("turned", 3)):
            (tmp_path / "training" / folder).mkdir(parents=True, exist_ok=True)
            turned = image.rotate(angle, Image.Resampling.BICUBIC)
            turned.save(tmp_path / "training" / folder / name)
    build_index(tmp_path / "training", tmp_path / "index", IndexConfig(adapt="never"), RUN)
    found = Calibration.read(tmp_path / "index")
    assert found.subjects == "runs"
    assert found.found(found.false_alarm(None)) > 0.5
    named = [{Path(name).name for name in pair} for pair in found.duplicates]
    assert len(named) > 30
    assert sum(len(each) == 1 for each in named) > 0.9 * len(named)
