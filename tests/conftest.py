"""What several test files share."""

from dataclasses import replace

import pytest
import torch
from pictures import TINY, in_memory, write

from deepssim_scan.calibration import calibrate, partial
from deepssim_scan.encoder.network import Encoder
from deepssim_scan.evaluation import agreement
from deepssim_scan.imaging.names import KINDS
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig
from deepssim_scan.jobs.demo import to_image
from deepssim_scan.training.pseudo_subjects import mni152, slices

_FIRST_SUBJECT = 2_000_000_000  # far from the seeds of any image that the bundled encoder saw

torch.set_num_threads(1)  # networks of a test are small, and idle threads would only spin


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _few():
    """Calibrate on as few images as can be, and draw few times for an interval."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "_NULL", 60)
        patch.setattr(calibrate, "_PLANTED", 2 * len(KINDS))
        patch.setattr(calibrate, "_AGAIN", 30)
        patch.setattr(partial, "FEWEST", 50)
        patch.setattr(partial, "_PASTED", 20)
        patch.setattr(agreement, "DRAWS", 100)
        yield


@pytest.fixture(scope="session")
def tiny():
    """An architecture that runs in milliseconds, of 8 dimensions."""
    return replace(TINY, dimension=8)


@pytest.fixture(scope="session")
def make_encoder():
    """Give an encoder of an architecture with random weights, far from how training starts."""

    def make(architecture, seed=0):
        generator = torch.Generator().manual_seed(seed)
        encoder = Encoder(architecture).eval()
        for name, value in encoder.state_dict().items():
            if value.is_floating_point():
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
            if name.endswith("running_var"):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        return encoder

    return make


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """120 images in four folders."""
    return write(tmp_path_factory.mktemp("images"), 120, per_folder=30)


@pytest.fixture(scope="session")
def dataset(corpus, tiny):
    """Its images in memory, 36 of them held out."""
    return in_memory(corpus, tiny, held_out=0.3)


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """A folder of 60 pseudo-subjects with three slices each, and a calibrated index of it.

    The slices of the last subject are darker copies of those of the first.
    """
    root, volume = tmp_path_factory.mktemp("people"), mni152()
    for subject in range(60):
        seed = torch.Generator().manual_seed(_FIRST_SUBJECT + subject % 59)
        for number, pixels in enumerate(slices(volume, 2, [0.35, 0.45, 0.6], 128, seed)):
            path = root / "training" / f"s{subject:02d}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            to_image(pixels * (0.8 if subject == 59 else 1)).save(path)
    config = IndexConfig(adapt="never")
    build_index(root / "training", root / "index", config, RunContext("cpu", workers=0))
    return root
