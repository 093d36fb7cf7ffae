"""Copies of a part of an image: planted, calibrated, and found by a query."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.stats import binom

from deepssim_scan.audit.release.release import ReleaseConfig, release
from deepssim_scan.calibration import partial as calibrating
from deepssim_scan.calibration.calibration import Calibration
from deepssim_scan.calibration.groups import Groups
from deepssim_scan.calibration.null import NullDistribution
from deepssim_scan.calibration.partial import FEWEST, PartialCalibration, PartialCalibrator
from deepssim_scan.calibration.rule import CalibratedRule
from deepssim_scan.encoder.bundled import CALIBRATION as BUNDLED_CALIBRATION
from deepssim_scan.imaging.changes.pasted import paste
from deepssim_scan.imaging.names import PARTS
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.config import QueryConfig
from deepssim_scan.jobs.demo import to_image
from deepssim_scan.jobs.gallery import Gallery, training_files
from deepssim_scan.jobs.identity import index_encoder
from deepssim_scan.jobs.query import query
from deepssim_scan.jobs.query.proof.partial import Looking, _pixels
from deepssim_scan.matching import regions
from deepssim_scan.matching.config import CanaryConfig
from deepssim_scan.matching.identity import Context
from deepssim_scan.reporting.html.words import has_rate, partial_copies, verdict
from deepssim_scan.reporting.partial import read_partial
from deepssim_scan.store.reread import Reader
from deepssim_scan.store.store import Store
from deepssim_scan.training.pseudo_subjects import mni152, slices

RUN = RunContext("cpu", workers=0)
CONFIG = QueryConfig(canaries=CanaryConfig(0))


# What is planted.


@pytest.mark.parametrize(("part", "share"), [("half", 0.5), ("quarter", 0.25)])
def test_a_part_of_the_donor_is_pasted_and_the_rest_is_the_host(part, share):
    rng = np.random.default_rng(0)
    host, donor = rng.standard_normal((2, 96, 128)).astype(np.float32)
    for seed in range(8):
        mixed = paste(host, donor, part, np.random.default_rng(seed))
        assert mixed.dtype == np.float32
        assert abs(mixed.mean()) < 1e-4
        assert mixed.std() == pytest.approx(1, abs=1e-4)
        quarters = [np.s_[y : y + 48, x : x + 64] for y in (0, 48) for x in (0, 64)]
        alike = [np.corrcoef(mixed[q].ravel(), host[q].ravel())[0, 1] > 0.8 for q in quarters]
        assert np.mean(alike) == pytest.approx(1 - share)
    with pytest.raises(ValueError, match=r"shapes \(96, 128\) and \(64, 64\)"):
        paste(host, donor[:64, :64], part, rng)


# What the calibration knows.


def test_sensitivity_counts_what_lies_above_the_threshold_and_shows_the_right_subject():
    null = NullDistribution.of(np.linspace(0, 1, 200), np.arange(200), 0)
    made = PartialCalibration(null, {"half": (2.0, None, 0.1, 3.0), "quarter": ()})
    assert made.sensitivity(0.05) == {"half": 0.5}
    assert made.rate(0.3) == 0.3
    assert made.rate(1e-9) == null.smallest_rate


def test_a_calibration_says_how_many_pasted_parts_are_found(people):
    made = Calibration.read(people / "index").partial
    # The copies of the first subject are no non-members.
    assert len(made.null.statistics) == 58
    assert not {0, 59} & set(made.null.subjects.tolist())
    # A host that shows the donor's subject is left out.
    assert [*made.planted] == [*PARTS]
    most = calibrating._PASTED
    assert all(0.85 * most < len(values) <= most for values in made.planted.values())
    found = made.sensitivity(made.rate(0.001))
    assert found["half"] > found["quarter"] > 0.1


def test_images_that_may_show_anyone_count_beside_no_non_member(people, monkeypatch):
    """The images of the last subject, which are copies of the first one's, are nobody known's."""
    monkeypatch.setattr(calibrating, "FEWEST", 6)
    with Store.open(people / "index" / "store") as store:
        files, number = training_files(store, None, RUN), np.arange(store.rows) // 3
        rule = index_encoder(people / "index").architecture.standardisation
        reader = Reader(store, files, rule, RUN)
        certain = number < 59
        alone = np.where(certain, number, np.arange(store.rows))
        told = Groups(alone, subjects=True, known=True, certain=certain)
        null = PartialCalibrator(reader, told, 0).calibrate([], np.arange(6)).null
        every = np.concatenate([part for _, part in store.thumbnails()])
    search = regions.RegionSearch(every, np.minimum(number, 59))
    beside = np.column_stack([number[:6], np.full(6, 59)])
    wanted = search.look_for(every[:6], beside).statistic
    np.testing.assert_allclose(null.statistics, np.sort(wanted), rtol=1e-6)
    assert (search.look_for(every[:3], beside[:3, :1]).statistic > wanted.max() + 1).all()


def test_the_page_names_the_limits_that_there_are():
    told = partial_copies(None)
    assert f"{regions.MOST:,} training images" in told
    assert f"{FEWEST} images of others" in told


def test_a_calibration_of_pseudo_subjects_tells_neither_chance_nor_what_is_missed():
    numbers = {"expected_false_alarms": 0.2, "false_alarm_upper_95": 0.05, "looked_for": 12}
    found = {"flagged": 3, "sensitivity": {"half": 0.31}, **numbers}
    assert "0.2 of 12 are expected, at most 0.6" in partial_copies(found)
    said = partial_copies(found, rate_known=False)
    assert said.startswith("Copies of a part: 3 images")
    assert "is not known" in said
    assert not {"0.2", "0.6", "31%"} & set(said.split())
    made = Calibration.read(BUNDLED_CALIBRATION.parent).summary(0.001)
    assert not has_rate({"calibration": made})
    assert has_rate({"calibration": made | {"non_members": {"from": "guessed"}}})


# What a query finds.


@pytest.fixture(scope="module")
def judged(people, tmp_path_factory):
    """Pseudo-people who are not in the training set; 12 have a half of a training image."""
    root = tmp_path_factory.mktemp("judged")
    (root / "synthetic").mkdir()
    rng, volume = np.random.default_rng(0), mni152()
    for number in range(24):
        someone = torch.Generator().manual_seed(5_000_000 + number)
        host = slices(volume, 2, [0.45], 128, someone)[0]
        if number < 12:
            with Image.open(people / "training" / f"s{3 + number:02d}" / "1.png") as file:
                donor = np.asarray(file, np.float32)
            pair = [(each - each.mean()) / each.std() for each in (host.numpy(), donor)]
            mixed = paste(*pair, "half", rng)
            host = torch.from_numpy((mixed - mixed.min()) / np.ptp(mixed))
        name = f"{number:02d}\udcff.png" if number == 3 else f"{number:02d}.png"  # 3 is not UTF-8
        to_image(host).save(root / "synthetic" / name)
    result = query(root / "synthetic", people / "index", root / "report", CONFIG, RUN)
    return root, result


def test_images_with_a_half_of_a_training_image_are_found(judged):
    root, result = judged
    found = read_partial(root / "report")
    told = result.summary["partial"]
    assert told["flagged"] == len(found) >= 6
    assert told["looked_for"] + result.flagged == 24
    assert told["beyond_chance"]
    right = [each for each in found if each.subject == f"s{3 + int(each.synthetic[:2]):02d}"]
    assert len(right) >= len(found) - 1
    for each in found:
        assert each.p_value <= told["false_alarm"]
        assert (each.right - each.left, each.bottom - each.top) == (64, 64)
    whole = [match for match in result.strongest if match.verdict == "duplicate"]
    assert result.flagged == len(whole)
    rate = result.summary["calibration"]["false_alarm"]
    assert binom.sf(result.flagged - 1, 24, rate) > 0.2  # as chance gives, where 58 are the null
    counts = result.summary["counts"] | {"duplicate": 0}
    said = verdict(result.summary | {"counts": counts})["text"]
    assert f"None of 24 images is a copy of a training image, but {len(found)} hold a part" in said
    page = (root / "report" / "report.html").read_text("utf-8")
    assert found[0].synthetic in page
    assert r"03\xff.png" in {each.synthetic for each in found}


def test_a_folder_that_may_hold_images_of_many_people_is_nobody(judged, people, tmp_path):
    """Runs of files are groups here, as where no subjects are told apart."""
    root, _ = judged
    rule = index_encoder(people / "index").architecture.standardisation
    found = CalibratedRule(Calibration.read(people / "index"), 0.1)
    with (
        Store.open(people / "index" / "store") as training,
        Store.open(root / "report" / "synthetic") as store,
    ):
        number = np.arange(training.rows) // 3
        runs = Groups(number, subjects=False, known=False, certain=number >= 0)
        gallery = Gallery(training, None, runs, None)
        looking = Looking(gallery, found, Context({}, {}), tmp_path / "regions.parquet", None)
        reader = Reader(store, training_files(store, None, RUN), rule, RUN)
        partials = looking.partials(reader, ())
    assert len(partials.copies) > 6
    assert {each.subject for each in partials.copies} == {""}
    assert partials.summary["subjects"] == len({each.training for each in partials.copies})


def test_a_release_keeps_them_back(judged, tmp_path):
    root, _ = judged
    released = release(root / "report", tmp_path / "cleared", ReleaseConfig(), RUN)
    partial = {each.synthetic for each in read_partial(root / "report")}
    assert released.kept_back["a part is copied"] == len(partial)
    assert not partial & {path.name for path in (tmp_path / "cleared").rglob("*.png")}


def test_what_was_found_of_an_image_is_not_looked_for_again(judged, people, monkeypatch):
    root, _ = judged
    before = pq.read_table(root / "report" / "partial.parquet")
    looked = []
    exact = regions.RegionSearch.look_for

    def noting(search, images, left_out=None):
        looked.append(len(images))
        return exact(search, images, left_out)

    monkeypatch.setattr(regions.RegionSearch, "look_for", noting)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128), np.uint8)).save(
        root / "synthetic" / "new.png"
    )
    query(root / "synthetic", people / "index", root / "report", CONFIG, RUN)
    assert looked == [1]
    assert pq.read_table(root / "report" / "partial.parquet").slice(0, len(before)) == before


def test_where_there_are_too_many_training_images_the_page_says_that_nobody_looked(
    judged, people, tmp_path, monkeypatch
):
    root, _ = judged
    monkeypatch.setattr(regions, "MOST", 100)
    result = query(root / "synthetic", people / "index", tmp_path / "report", CONFIG, RUN)
    assert result.summary["partial"] is None
    assert read_partial(tmp_path / "report") == []
    page = (tmp_path / "report" / "report.html").read_text("utf-8")
    assert "Copies of a part of an image were not looked for" in page
    assert json.loads((tmp_path / "report" / "summary.json").read_text())["partial"] is None


@pytest.mark.parametrize(
    ("shape", "square", "wanted"),
    [
        ((128, 128), True, [0, 32, 64, 96]),
        ((100, 200), True, [0, 0, 100, 100]),
        ((100, 200), False, [0, 25, 100, 75]),
    ],
)
def test_a_box_is_in_pixels_of_the_image_and_not_of_the_square_about_it(shape, square, wanted):
    assert _pixels((0.0, 0.25, 0.5, 0.75), shape, square=square) == wanted
