"""What several test files share."""

from dataclasses import replace

import pytest
import torch
from pictures import TINY, in_memory, write

from deepssim_scan.encoder.network import Encoder

torch.set_num_threads(1)  # networks of a test are small, and idle threads would only spin


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


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
