"""The case study from end to end, with the smallest generator; and the labels by search."""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig
from deepssim_scan.jobs.evaluate import EvaluateConfig, evaluate
from deepssim_scan.reporting.matches import verdicts_of

CASESTUDY = Path(__file__).parents[1] / "benchmarks" / "casestudy"
RUN = RunContext("cpu", workers=0)


@pytest.fixture(scope="module")
def study():
    """The modules of the case study."""
    folders = [str(CASESTUDY), str(CASESTUDY.parent)]
    sys.path[:0] = folders
    import generator
    import images
    import label

    yield generator, images, label
    for folder in folders:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def people(study, tmp_path_factory):
    """A folder of 80 images of 20 pseudo-people, 64 pixels a side."""
    folder = tmp_path_factory.mktemp("casestudy") / "training"
    study[1].write_pseudo("brain", range(20), 64, folder)
    return folder


def test_a_label_is_the_best_ssim_over_all_transforms(study, people, tmp_path):
    generator, _, label = study
    training = generator.read(people, 64)
    pixels = training.pixels[:, 0]
    random = torch.Generator().manual_seed(0)
    at = (torch.rand(6, 5, generator=random) * 2 - 1) * torch.tensor([8, 0.05, 0.04, 0.04, 0.3])
    sources = pixels[:6].clone()
    sources[::2] = sources[::2].flip(2)
    images = torch.cat([label.transformed(sources, at), 1 - pixels[10:12].flip(1)])
    names = [f"{number}.png" for number in range(len(images))]
    path = tmp_path / "labelled.csv"
    best = label.write_labels(images, names, pixels, training.names, path)
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["chosen"] == "best"]
    assert [row["training"] for row in rows[:6]] == list(training.names[:6])
    assert [row["label"] for row in rows[:6]] == ["duplicate"] * 6
    assert all(row["label"] != "duplicate" for row in rows[6:])
    # What is told of the transform, and of the SSIM, is so.
    for number, row in enumerate(rows[:6]):
        told = [float(row[name]) for name in ("degrees", "scale", "right", "down", "gamma")]
        values = torch.tensor([told[0], np.log(told[1]), told[2], told[3], np.log(told[4])])
        seen = label.orientations(images[number][None])[int(row["orientation"])]
        moved = label.transformed(seen, values[None].float())[0]
        left, right = (
            ((each - each.mean()) / each.std()).numpy() for each in (pixels[number], moved)
        )
        ssim = structural_similarity(left, right, data_range=float(np.ptp(left)))
        assert ssim == pytest.approx(best[number], abs=0.002)
        assert float(row["ssim"]) == pytest.approx(best[number], abs=1e-4)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(0.86, "duplicate"), (0.85, "similar"), (0.61, "similar"), (0.6, "different")],
)
def test_labels_have_the_thresholds_of_the_paper(study, value, wanted):
    assert study[2].label(value) == wanted


def test_repeats_are_those_of_the_level(study):
    generator = study[0]
    for level, most in generator.REPEATS.items():
        found = generator.repeats_of(1000, level, 0)
        assert (found.min(), found.max()) == (1, most)


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(study, people, tmp_path):
    generator = study[0]
    size = generator.Size(32, (8, 16), 1, 6, (16, 32), (False, True), 16, 2, 1e-3, 8)
    pictures = generator.read(people, size.side)
    whole = generator.train_autoencoder(pictures, size, tmp_path / "whole.pt", 0)
    part = tmp_path / "part.pt"
    stopped, exact = [], generator.Trainer.step

    def step(trainer, loss):
        exact(trainer, loss)
        if len(trainer.losses) == 3 and not stopped:
            stopped.append(True)
            trainer.save()
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator.Trainer, "step", step)
        with pytest.raises(KeyboardInterrupt):
            generator.train_autoencoder(pictures, size, part, 0)
    again = generator.train_autoencoder(pictures, size, part, 0)
    assert again.losses == whole.losses
    for one, other in zip(
        again.network.state_dict().values(), whole.network.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    with pytest.raises(SystemExit, match="other images or options"):
        generator.train_autoencoder(pictures, size, part, 1)


def test_what_images_are_conditioned_on_is_read(study, people, tmp_path):
    generator = study[0]
    names = generator.read(people, 32).names
    rows = "\n".join(f"{name},{number},{number % 2}" for number, name in enumerate(names))
    (tmp_path / "variables.csv").write_text(f"file,age,sex\n{rows}\n")
    found = generator.read(people, 32, tmp_path / "variables.csv").conditions
    assert found.shape == (80, 1, 2)
    assert found.mean(0).abs().max() < 1e-5
    vectors = np.arange(80 * 3 * 4, dtype=np.float32).reshape(80, 3, 4)
    np.savez(tmp_path / "texts.npz", names=np.array(names), vectors=vectors)
    pictures = generator.read(people, 32, tmp_path / "texts.npz")
    assert torch.equal(pictures.conditions, torch.from_numpy(vectors))
    size = generator.Size(32, (8, 16), 1, 2, (16, 32), (False, True), 16, 1, 1e-3, 16)
    told = generator.generate(pictures, size, tmp_path / "out" / "none", "none", 3, 0)
    assert (told["images"], told["samples"], told["steps"]) == (80, 3, 5)


def test_a_generator_is_queried_and_evaluated(study, people, tmp_path):
    generator, _, label = study
    size = replace(generator.SIZES["tiny"], autoencoder_steps=50, epochs=10)
    pictures = generator.read(people, size.side)
    few = generator.Pictures(pictures.pixels[:16], pictures.names[:16])
    generator.generate(few, size, tmp_path / "high", "high", 12, 0)
    samples = generator.read(tmp_path / "high" / "samples", size.side)
    path = tmp_path / "labelled.csv"
    label.write_labels(
        samples.pixels[:, 0], samples.names, pictures.pixels[:, 0], pictures.names, path
    )
    build_index(people, tmp_path / "index", IndexConfig(adapt="never"), RUN)
    config = EvaluateConfig(("deepssim", "verdicts", "ssim"), index=tmp_path / "index")
    sides = people, tmp_path / "high" / "samples"
    found = evaluate(path, *sides, tmp_path / "evaluation", config, RUN)
    assert set(found.metrics) == {"deepssim", "verdicts", "ssim"}
    assert len(verdicts_of(tmp_path / "evaluation" / "report")) == 12
