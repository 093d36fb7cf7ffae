"""The reference's TorchScript weights, of a network written here with torchvision's names."""

import hashlib
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from deepssim_scan.encoder.architecture import REFERENCE
from deepssim_scan.encoder.checkpoint import load
from deepssim_scan.encoder.network import embed
from deepssim_scan.encoder.torchscript import convert
from deepssim_scan.errors import CheckpointError, InputError


class _LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        x = nn.functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class _Last(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class _First(nn.Module):
    def forward(self, x):
        return x.permute(0, 3, 1, 2)


class _CNBlock(nn.Module):
    """As torchvision's, without its stochastic depth, which does nothing in evaluation."""

    def __init__(self, dim):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim, bias=True),
            _Last(),
            nn.LayerNorm(dim, eps=1e-6),
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Linear(4 * dim, dim),
            _First(),
        )
        self.layer_scale = nn.Parameter(torch.ones(dim, 1, 1) * 1e-6)

    def forward(self, x):
        return self.layer_scale * self.block(x) + x


class _ReferenceNetwork(nn.Module):
    """The network of arXiv:2509.16582 at any width, not made from anything of this package."""

    def __init__(self, depths=(1, 1, 2, 1), widths=(8, 16, 32, 64), dimension=24):
        super().__init__()
        layers = [
            nn.Sequential(nn.Conv2d(3, widths[0], kernel_size=4, stride=4), _LayerNorm2d(widths[0]))
        ]
        layers[0][1].eps = 1e-6
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            layers.append(nn.Sequential(*[_CNBlock(width) for _ in range(depth)]))
            if stage + 1 < len(depths):
                norm = _LayerNorm2d(width, eps=1e-6)
                down = nn.Conv2d(width, widths[stage + 1], kernel_size=2, stride=2)
                layers.append(nn.Sequential(norm, down))
        self.feature_extractor = nn.Sequential(*layers)
        self.fc = nn.Sequential(
            nn.AdaptiveAvgPool2d((1, 1)),
            nn.Flatten(),
            nn.BatchNorm1d(widths[-1]),
            nn.Linear(widths[-1], widths[-1] // 2),
            nn.GELU(),
            nn.Dropout(p=0.33),
            nn.Linear(widths[-1] // 2, dimension),
        )

    def forward(self, x):
        return self.fc(self.feature_extractor(x))


def _scripted(network, path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.*` is deprecated", DeprecationWarning)
        torch.jit.script(network).save(path)
    return path


@pytest.fixture
def reference():
    network = _ReferenceNetwork().eval()
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point():
            value.normal_(0, 0.3)
    return network


def test_the_references_torchscript_converts_to_the_same_network(reference, tmp_path):
    path = _scripted(reference, tmp_path / "best_model_jit.pt")
    found = convert(path, tmp_path / "encoder.safetensors")
    images = torch.randn(5, 48, 56) * 20 + 100
    images = (images - images.mean((1, 2), keepdim=True)) / images.std((1, 2), keepdim=True)
    with torch.inference_mode():
        expected = reference(torch.stack([images] * 3, dim=1))
    expected = expected / torch.linalg.vector_norm(expected, dim=1, keepdim=True)
    assert (expected @ expected.T).fill_diagonal_(0).max() < 0.999  # five that differ
    torch.testing.assert_close(embed(found.encoder, images), expected, rtol=0, atol=1e-5)
    assert found.architecture == replace(
        REFERENCE, depths=(1, 1, 2, 1), widths=(8, 16, 32, 64), dimension=24
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.training == {"converted_from": "best_model_jit.pt", "sha256": digest}
    assert load(tmp_path / "encoder.safetensors").fingerprint == found.fingerprint


def test_a_network_in_training_mode_converts_to_the_same_one(reference, tmp_path):
    still = convert(_scripted(reference, tmp_path / "a.pt"), tmp_path / "a")
    moving = convert(_scripted(reference.train(), tmp_path / "b.pt"), tmp_path / "b")
    images = torch.randn(2, 40, 40)
    assert torch.equal(embed(still.encoder, images), embed(moving.encoder, images))


def _no_layer_scale(network):
    network.feature_extractor = nn.Sequential(nn.Conv2d(3, 64, 4, stride=4))


def _longer_head(network):
    network.fc.append(nn.Linear(24, 24))


def _half(network):
    network.half()


def _not_finite(network):
    network.fc[3].weight.data[0, 0] = torch.nan


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_no_layer_scale, "one width a stage"),
        (_longer_head, "'fc.7.bias'"),
        (_half, "found torch.float16"),
        (_not_finite, "not finite"),
    ],
)
def test_row_35_torchscript_of_another_network_is_refused(reference, tmp_path, change, words):
    change(reference)
    path = _scripted(reference, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=words) as caught:
        convert(path, tmp_path / "out")
    assert str(caught.value).startswith(f"{path}: not TorchScript weights of the reference's")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


class _Named(nn.Module):
    """A program whose one weight has a name that is split, counted and indexed."""

    def __init__(self, weight):
        super().__init__()
        self.layer_scale = nn.Parameter(weight)

    def forward(self, x):
        return x * self.layer_scale


@pytest.mark.parametrize(
    "network",
    [
        nn.Linear(3, 4),
        nn.Identity(),
        _Named(torch.ones(())),
        nn.Sequential(nn.Sequential(_Named(torch.ones(())))),
    ],
)
def test_row_35_any_other_torchscript_is_refused(network, tmp_path):
    path = _scripted(network, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="not TorchScript weights of the reference's network"):
        convert(path, tmp_path / "out")


def test_the_file_itself_and_a_folder_are_no_place_for_the_checkpoint(reference, tmp_path):
    """The file was replaced, and is not easily had again."""
    path = _scripted(reference, tmp_path / "best_model_jit.pt")
    before = path.read_bytes()
    (tmp_path / "link.pt").symlink_to(path)
    for out, told in (
        (path, "is the file that is converted"),
        (tmp_path / "link.pt", "is the file that is converted"),
        (tmp_path, "is a folder"),
        (path / "encoder", "below .*best_model_jit.pt, which is a file"),
    ):
        with pytest.raises(InputError, match=told):
            convert(path, out)
    assert path.read_bytes() == before
