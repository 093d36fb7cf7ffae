"""What several test files share."""

import pytest
import torch
from pictures import write

from deepssim_scan.encoder import Architecture, Encoder
from deepssim_scan.listing import list_images
from deepssim_scan.pools import load_images
from deepssim_scan.standardise import Standardisation

torch.set_num_threads(1)  # networks of a test are small, and idle threads would only spin


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny():
    """An architecture that runs in a millisecond."""
    return Architecture(
        depths=(1, 1), widths=(8, 16), dimension=8, standardisation=Standardisation(size=32)
    )


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
def images(corpus, tiny):
    """Its images, 36 of them held out."""
    return load_images(list_images(corpus), tiny, held_out=0.3, workers=0)
