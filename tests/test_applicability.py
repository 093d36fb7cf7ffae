"""Mismatches of two sets, each made on purpose, and none where the sets go together."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image, ImageOps
from test_calibrate import RUN

from deepssim_scan.calibration.applicability import Seen, mismatches
from deepssim_scan.calibration.calibration import Calibration
from deepssim_scan.calibration.codes import CODES
from deepssim_scan.calibration.membership import Estimate
from deepssim_scan.imaging.looks import LOOKS, looks
from deepssim_scan.ingest.standardise import Standardisation, standardise
from deepssim_scan.jobs.config import QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import CanaryConfig

RULE = Standardisation(size=128)
RNG = np.random.default_rng(0)


def texture(sigma=2.0):
    """A grey texture in the middle of a black frame: (128, 128) from 0 to 1."""
    image = np.zeros((128, 128))
    noise = scipy.ndimage.gaussian_filter(RNG.normal(size=(96, 96)), sigma)
    image[16:112, 16:112] = 0.3 + 0.6 * (noise - noise.min()) / np.ptp(noise)
    return image


def seen(images):
    return looks([standardise(image.astype(np.float32), RULE) for image in images])


SOUND = Seen(
    training=seen([texture() for _ in range(30)]),
    synthetic=seen([texture() for _ in range(30)]),
    modes=(["L"], ["L"]),
    scores=RNG.normal(0.6, 0.1, 50),
    inverted=0.05,
    others=RNG.normal(0.6, 0.1, 200),
    nearest=[*range(50)],
    source_first=0.99,
)


def codes(**changed):
    return [each.code for each in mismatches(replace(SOUND, **changed))]


def test_sets_that_go_together_have_no_code():
    assert codes() == []


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"inverted": 0.9}, "polarity_differs"),
        ({"synthetic": seen([texture(4.0) for _ in range(30)])}, "sharpness_differs"),
        (
            {"synthetic": seen([np.pad(texture()[::2, ::2], 32) for _ in range(30)])},
            "extent_differs",
        ),
        (
            {"synthetic": seen([np.pad(texture()[:, ::2], ((0, 0), (32, 32))) for _ in range(30)])},
            "aspect_differs",
        ),
        (
            {"synthetic": seen([(texture() * 1.8).clip(0, 1) for _ in range(30)])},
            "brightest_differs",
        ),
        ({"modes": (["dicom:MONOCHROME2:int16"], ["L"])}, "depth_differs"),
        ({"modes": (["nifti:uint8"], ["I;16"])}, "depth_differs"),
        (
            {"modes": (["nifti:int16"], ["npy:float32"]), "windows": ("40,400", "40,400")},
            "depth_differs",
        ),
        ({"scores": RNG.normal(0.2, 0.05, 50)}, "unlike_training"),
        ({"nearest": [7] * 20 + [*range(30)]}, "hub"),
        ({"source_first": 0.7}, "encoder_unfit"),
        ({"found": 0.7}, "copies_missed"),
        ({"members": Estimate(0.8, 0.7, 0.9)}, "holdout_differs"),
    ],
)
def test_a_mismatch_has_its_code(changed, code):
    assert code in codes(**changed)
    assert set(codes(**changed)) <= set(CODES)


def test_a_hold_out_that_is_alike_within_chance_has_no_code():
    assert codes(members=Estimate(0.8, 0.55, 0.95)) == codes(members=None) == []


def test_one_look_at_inverted_images_tells_no_other_aspect():
    tall = seen([np.pad(texture()[:, ::2], ((0, 0), (32, 32))) for _ in range(30)])
    assert "aspect_differs" in codes(synthetic=tall)
    assert "aspect_differs" not in codes(synthetic=tall, inverted=0.9)


def test_of_few_images_nothing_is_told():
    few = {"training": SOUND.training[:5], "synthetic": SOUND.synthetic[:5] + 9}
    assert codes(**few, scores=np.zeros(3), inverted=None, nearest=[7] * 9) == []


def test_of_few_training_images_one_is_the_nearest_to_many():
    """Of four, one is always the nearest to a quarter."""
    assert codes(nearest=[7] * 50) == ["hub"]
    assert codes(nearest=[7] * 50, others=SOUND.others[:4]) == []


def test_each_look_is_what_it_says():
    plain, (blurred, small, clipped) = (
        texture(1.0),
        (
            scipy.ndimage.gaussian_filter(texture(1.0), 3),
            np.pad(texture(1.0)[::2, ::2], 32),
            (texture(1.0) * 2).clip(0, 1),
        ),
    )
    tall = np.pad(texture(1.0)[:, ::2], ((0, 0), (32, 32)))
    aspects = seen([plain, tall, tall.T])[:, LOOKS.index("aspect")]
    assert aspects == pytest.approx([0, np.log10(2), -np.log10(2)], abs=0.03)
    found = dict(zip(LOOKS, seen([plain, blurred, small, clipped]).T, strict=True))
    assert found["sharpness"][1] < found["sharpness"][0] - 0.1
    assert found["extent"][0] == pytest.approx((96 / 128) ** 2, abs=0.03)
    assert found["extent"][2] == pytest.approx((48 / 128) ** 2, abs=0.03)
    assert found["brightest"][3] > found["brightest"][0] + 1


def test_a_query_of_stretched_copies_says_so(people, tmp_path):
    """Of copies of which one side is scaled most are missed, which is told, and of others not."""
    for wide, kind in ((128, "plain"), (170, "stretched")):
        for number in range(48):
            copy = Image.open(people / "training" / f"s{number:02d}" / f"{number % 3}.png")
            (tmp_path / kind).mkdir(exist_ok=True)
            copy.resize((wide, 128)).save(tmp_path / kind / f"{number}.png")
        config = QueryConfig(canaries=CanaryConfig(0))
        report = tmp_path / f"report-{kind}"
        found = query(tmp_path / kind, people / "index", report, config, RUN).summary
        told = [each["code"] for each in found["mismatches"]]
        assert ("aspect_differs" in told) == (kind == "stretched")


def test_a_query_by_a_calibration_that_finds_few_copies_says_so(people, tmp_path):
    """Half of the planted copies are less like their sources than any non-member is."""
    index = shutil.copytree(people / "index", tmp_path / "index")
    made = Calibration.read(index)
    lowest = made.null.statistics[0]
    halved = {kind: (*values, *[lowest] * len(values)) for kind, values in made.planted.items()}
    replace(made, planted=halved).write(index)
    config, synthetic = QueryConfig(canaries=CanaryConfig(0)), people / "training" / "s01"
    for searched, told in ((index, True), (people / "index", False)):
        found = query(synthetic, searched, tmp_path / f"report-{told}", config, RUN).summary
        assert (found["calibration"]["sensitivity"] < 0.8) == told
        assert ("copies_missed" in [each["code"] for each in found["mismatches"]]) == told


def test_a_query_of_inverted_images_says_so(people, tmp_path):

    for number in range(24):
        source = people / "training" / f"s{number:02d}" / "1.png"
        (tmp_path / "synthetic").mkdir(exist_ok=True)
        ImageOps.invert(Image.open(source)).save(tmp_path / "synthetic" / f"{number}.png")
    config = QueryConfig(canaries=CanaryConfig(0))
    report = tmp_path / "report"
    found = query(tmp_path / "synthetic", people / "index", report, config, RUN).summary
    told = {each["code"]: each for each in found["mismatches"]}
    assert "polarity_differs" in told
    assert told["polarity_differs"]["text"] in (report / "report.html").read_text()
