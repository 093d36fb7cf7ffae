"""The metric for training loops says what a query says, with torchmetrics and without it."""

import copy
import importlib
import pickle
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from pictures import drawn
from PIL import Image
from torch import nn
from torchmetrics import Metric

from deepssim_scan import metrics
from deepssim_scan.calibration.calibration import Calibration
from deepssim_scan.errors import InputError, InputMissing
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig, QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import CanaryConfig
from deepssim_scan.store.store import Store


@pytest.fixture(params=["torchmetrics", "alone"])
def rate(request, monkeypatch):
    """The class, with torchmetrics there, and as it is without it."""
    if request.param == "torchmetrics":
        yield metrics.MemorizationRate
        return
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    yield importlib.reload(metrics).MemorizationRate
    monkeypatch.undo()
    importlib.reload(metrics)


@pytest.fixture(scope="module")
def images(people):
    """Five images of which two are copies, (5, 128, 128) in [0, 1]."""
    sources = [people / "training" / f"s{number:02d}" / "1.png" for number in (3, 4)]
    copies = [np.asarray(Image.open(path).rotate(4)) for path in sources]
    others = [drawn(number, 128) for number in range(3)]
    return torch.from_numpy(np.stack([*copies, *others]) / 255.0).float()


def test_it_is_the_share_that_a_query_flags(rate, people, images, tmp_path):
    for number, image in enumerate(images):
        (tmp_path / "synthetic").mkdir(exist_ok=True)
        pixels = (image * 255).round().byte().numpy()
        Image.fromarray(pixels).save(tmp_path / "synthetic" / f"{number}.png")
    config = QueryConfig(canaries=CanaryConfig(0))
    places = tmp_path / "synthetic", people / "index", tmp_path / "report"
    wanted = query(*places, config, RunContext("cpu", workers=0)).flagged / len(images)
    found = rate(people / "index", device="cpu")
    found.update(images[:2])
    assert found.compute() == 1
    found.update(images[2:][:, None])
    assert float(found.compute()) == pytest.approx(wanted)
    assert float(found.compute()) == pytest.approx(2 / 5)
    found.reset()
    found.update(images[2:, None].repeat(1, 3, 1, 1) * 2 - 1)  # colour, and another range
    assert found.compute() == 0


def test_images_that_cannot_be_judged_are_counted_apart(rate, people, images):
    found = rate(people / "index", device="cpu")
    found.update(torch.stack([torch.zeros(128, 128), images[0], images[1] / 0]))
    assert (int(found.judged), int(found.flagged), int(found.rejected)) == (1, 1, 2)


def test_an_image_that_a_query_cannot_decide_on_is_counted_apart(rate, people, tmp_path):
    """It lowered the rate like one that is no copy."""
    image = np.zeros((128, 128), np.uint8)
    image[60:69, 60:69] = np.random.default_rng(0).integers(100, 255, (9, 9))
    (tmp_path / "synthetic").mkdir()
    Image.fromarray(image).save(tmp_path / "synthetic" / "a.png")
    config = QueryConfig(canaries=CanaryConfig(0))
    places = tmp_path / "synthetic", people / "index", tmp_path / "report"
    counts = query(*places, config, RunContext("cpu", workers=0)).summary["counts"]
    found = rate(people / "index", device="cpu")
    found.update(torch.from_numpy(image)[None])
    assert counts["undecidable"] == int(found.undecidable) == 1
    assert (int(found.judged), int(found.flagged)) == (1, 0)


def test_what_a_query_warns_of_is_a_warning(rate, people, tmp_path):
    """It was dropped."""
    with pytest.warns(UserWarning, match="was calibrated with tta_views 4, and this run has 1"):
        rate(people / "index", device="cpu", tta_views=1)
    calibration = Calibration.read(people / "index")
    shutil.copytree(people / "index", tmp_path / "small")
    replace(calibration, subjects="bundled").write(tmp_path / "small")
    with pytest.warns(UserWarning, match="small: has too few images to be calibrated"):
        rate(tmp_path / "small", device="cpu")
    shutil.copytree(people / "training", tmp_path / "training")
    (tmp_path / "training" / "s00" / "damaged.png").write_bytes(b"none")
    run = RunContext("cpu", workers=0)
    build_index(tmp_path / "training", tmp_path / "index", IndexConfig(calibrate=False), run)
    with Store.open(tmp_path / "index" / "store") as store:
        replace(calibration, store=store.digest).write(tmp_path / "index")
    with pytest.warns(UserWarning, match=r"index: 1 training images were rejected"):
        rate(tmp_path / "index", device="cpu")


def test_a_copy_of_it_counts_by_itself_and_says_the_same(people, images):
    """As in MetricCollection.clone, and in a process that is spawned."""
    first = metrics.MemorizationRate(people / "index", device="cpu")
    first.update(images[:1])
    for second in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):  # noqa: S301 - ours
        second.update(images[1:3])
        assert (int(second.flagged), int(second.judged)) == (2, 3)
    assert (int(first.flagged), int(first.judged)) == (1, 1)


def test_what_are_no_images_is_refused(rate, people):
    found = rate(people / "index", device="cpu")
    for shape in ((128, 128), (1, 2, 128, 128), (1, 1, 1, 128, 128), (1, 0, 9), (1, 3, 9, 0)):
        with pytest.raises(InputError, match="images must be"):
            found.update(torch.zeros(shape))


def test_without_an_index_it_is_told(rate, tmp_path):
    with pytest.raises(InputMissing, match="holds no finished index"):
        rate(tmp_path / "index")


@pytest.mark.filterwarnings("ignore:The ``compute`` method")  # of torchmetrics, which says so
def test_before_there_are_images_the_rate_is_not_known(rate, people):
    assert torch.isnan(rate(people / "index", device="cpu").compute())


def test_with_torchmetrics_it_is_a_metric(people):
    found = metrics.MemorizationRate(people / "index", device="cpu")
    assert isinstance(found, Metric)


def test_a_generator_that_memorizes_is_seen_to_in_its_training_loop(people):
    """A table of pixels, one image a code, is fitted to four training images."""
    names = [people / "training" / f"s{number:02d}" / "1.png" for number in range(4)]
    wanted = torch.stack([torch.from_numpy(np.asarray(Image.open(n)) / 255.0) for n in names])
    torch.manual_seed(0)
    generator = nn.Embedding(4, 128 * 128)
    optimizer = torch.optim.Adam(generator.parameters(), lr=0.1)
    rates, rate = [], metrics.MemorizationRate(people / "index", device="cpu")
    for step in range(61):
        made = generator.weight.reshape(4, 128, 128)
        if step % 30 == 0:
            rate.reset()
            rate.update(made)
            rates.append(float(rate.compute()))
        loss = (made - wanted.float()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert rates[0] == 0
    assert rates[-1] == 1
