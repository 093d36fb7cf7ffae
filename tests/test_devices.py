"""Row 36: a GPU without room, played by work that counts what it is given at once."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import of_every_family

from deepssim_scan.encoder import network
from deepssim_scan.encoder.network import embed
from deepssim_scan.errors import InputError
from deepssim_scan.imaging.devices import BatchRunner, pick_device
from deepssim_scan.imaging.registration import comparison
from deepssim_scan.imaging.registration.sides import sides
from deepssim_scan.matching import pairs as looking
from deepssim_scan.matching.evidence import CandidatePairs, Evidence, gather_pairs
from deepssim_scan.progress import Collected
from deepssim_scan.store.embed_listing import Network
from deepssim_scan.store.reread import Held


@pytest.fixture
def gpu(monkeypatch):
    """A GPU to which tensors are brought, and of which nothing but its room is true."""

    class Gpu:
        room, now = 0, "cpu"

        def __init__(self):
            self.sizes = []

        def check(self, images):
            if self.now == "cuda":
                self.sizes.append(len(images))
                if len(images) > self.room:
                    raise torch.OutOfMemoryError("CUDA out of memory")

    made, exact = Gpu(), torch.Tensor.to

    def to(tensor, *where, **options):
        if where not in (("cpu",), ("cuda",)):
            return exact(tensor, *where, **options)
        made.now = where[0]
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return made


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [pick_device(name) for name in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(InputError, match="cuda was asked for"):
        pick_device("cuda")
    with pytest.raises(InputError, match="found 'gpu'"):
        pick_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [pick_device(name) for name in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]


@given(st.integers(0, 20), st.integers(0, 20))
def test_row_36_every_image_is_worked_on_once_and_in_order(count, room):
    def work(device, first, second):
        if device == "cuda" and len(first) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return device, first + second

    progress = Collected()
    runner = BatchRunner("cuda", "adding", progress)
    found = runner.run(work, torch.arange(count), 100 * torch.arange(count))
    assert torch.cat([part for _, part in found]).tolist() == [101 * n for n in range(count)]
    on_gpu = room > 0 and count > 0
    assert {device for device, _ in found} == {"cuda" if on_gpu else "cpu"}
    assert len(progress.warnings) == (count > 0 and room == 0)


def test_row_36_a_cpu_without_memory_is_an_error():
    def work(device, images):
        raise torch.OutOfMemoryError("no memory")

    for device in ("cpu", "cuda"):
        with pytest.raises(torch.OutOfMemoryError):
            BatchRunner(device, "nothing").run(work, torch.zeros(3))


class Crowded(torch.nn.Module):
    """An encoder that another program leaves little room on the GPU."""

    def __init__(self, encoder, gpu):
        super().__init__()
        self.encoder, self.gpu, self.architecture = encoder, gpu, encoder.architecture
        self.place = "cuda"

    def parameters(self, recurse=True):
        return iter([SimpleNamespace(device=torch.device(self.place))])

    def to(self, device):
        self.place = device
        return self

    def normalised(self, images):
        assert self.place == self.gpu.now
        self.gpu.check(images)
        return self.encoder.normalised(images)

    def of_normalised(self, images):
        return self.encoder.of_normalised(images)


@pytest.mark.parametrize(
    ("room", "sizes", "told"), [(9, [4], 0), (2, [4, 2, 2], 0), (0, [4, 2, 1], 1)]
)
def test_row_36_embedding_leaves_a_full_gpu_for_smaller_batches_or_the_cpu(
    room, sizes, told, gpu, tiny, make_encoder, monkeypatch
):
    images = of_every_family(1, 32)[:4]
    wanted = embed(make_encoder(tiny), images).numpy()
    monkeypatch.setattr(network, "batches", torch.Tensor.split)
    encoder, progress, gpu.room = Crowded(make_encoder(tiny), gpu), Collected(), room
    loaded = SimpleNamespace(encoder=encoder, architecture=tiny)
    for _ in range(2):  # the second time it is tried on the GPU again
        found = Network(loaded, "cuda").embed(list(images.numpy()), progress)
        assert np.abs(found[:, 0] - wanted).max() < 1e-6
    assert gpu.sizes == sizes * 2
    assert len(progress.warnings) == told
    assert all("not enough memory for embedding" in text for text in progress.warnings)


@pytest.mark.parametrize(("room", "size", "told"), [(256, 6, 0), (3, 3, 0), (1, 1, 0), (0, 1, 1)])
def test_row_36_registration_on_a_full_gpu_gives_the_same_evidence(
    room, size, told, gpu, monkeypatch
):
    """Six synthetic images, each with all three training images."""
    images = of_every_family(2, 64)
    training, synthetic = images[:3], torch.cat([images[:3].flip(2), images[3:6]])
    numbers, views = np.tile(np.arange(3), (6, 1)), np.zeros((6, 3), np.int8)
    query = np.repeat(np.arange(6), 3)
    every = comparison.Pairs(query, numbers.ravel(), query, numbers.ravel())
    exact = comparison.compare_candidates
    wanted = exact(synthetic, sides(training), every)
    known = {number: sides(training[number, None]) for number in range(3)}
    monkeypatch.setattr(looking, "sides_of", lambda images: known)

    def counting(first, second, pairs):
        gpu.check(first)
        return exact(first, second, pairs)

    monkeypatch.setattr(looking, "compare_candidates", counting)
    gpu.room = room
    pairs = CandidatePairs(Held(synthetic.numpy()), None, numbers, views, numbers)
    for _ in range(2):
        answer = gather_pairs("cuda", pairs)
        found = Evidence(**answer.arrays)
        assert found.registered.all()
        np.testing.assert_allclose(found.measures.reshape(18, -1), wanted.measures, atol=1e-3)
        assert found.flip.ravel().tolist() == wanted.flip.tolist()
        assert len(answer.warnings) == told
        assert all("not enough memory for registration" in text for text in answer.warnings)
    assert gpu.sizes.count(size) >= 2
