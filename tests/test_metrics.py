"""The metric for training loops says what a query says, with torchmetrics and without it."""

import importlib
import sys

import numpy as np
import pytest
import torch
from pictures import drawn
from PIL import Image
from torch import nn
from torchmetrics import Metric

from deepssim_scan import metrics
from deepssim_scan.errors import InputError, InputMissing
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.config import QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import CanaryConfig


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


def test_what_are_no_images_is_refused(rate, people):
    found = rate(people / "index", device="cpu")
    for shape in ((128, 128), (1, 2, 128, 128), (1, 1, 1, 128, 128)):
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
