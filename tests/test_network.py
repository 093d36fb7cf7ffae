"""The network against torchvision's naming rule and against arithmetic written out here."""

from dataclasses import replace

import pytest
import torch
from pictures import TINY_CONVNEXT
from torch.nn import functional

from deepssim_scan.encoder.architecture import REFERENCE, Architecture
from deepssim_scan.encoder.network import Encoder, embed
from deepssim_scan.errors import InputError
from deepssim_scan.ingest.standardise import Standardisation

REFERENCE_LIKE = replace(TINY_CONVNEXT, depths=(1, 2, 1), widths=(8, 12, 20), dimension=6)
OURS = Architecture(
    depths=(2, 1),
    widths=(16, 32),
    pose=(16,),
    dimension=6,
    standardisation=Standardisation(size=40),
)


def torchvision_shapes(channels, depths, widths):
    """Names and shapes of `convnext_*().features`: stem, then stages and what lies between."""
    shapes = {"0.0.weight": (widths[0], channels, 4, 4), "0.0.bias": (widths[0],)}
    shapes |= {"0.1.weight": (widths[0],), "0.1.bias": (widths[0],)}
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        if stage:
            below = widths[stage - 1]
            shapes |= {f"{2 * stage}.0.weight": (below,), f"{2 * stage}.0.bias": (below,)}
            shapes[f"{2 * stage}.1.weight"] = (width, below, 2, 2)
            shapes[f"{2 * stage}.1.bias"] = (width,)
        for block in range(depth):
            prefix = f"{2 * stage + 1}.{block}"
            shapes |= {
                f"{prefix}.layer_scale": (width, 1, 1),
                f"{prefix}.block.0.weight": (width, 1, 7, 7),
                f"{prefix}.block.0.bias": (width,),
                f"{prefix}.block.2.weight": (width,),
                f"{prefix}.block.2.bias": (width,),
                f"{prefix}.block.3.weight": (4 * width, width),
                f"{prefix}.block.3.bias": (4 * width,),
                f"{prefix}.block.5.weight": (width, 4 * width),
                f"{prefix}.block.5.bias": (width,),
            }
    return shapes


def _normed(x, weights, prefix, dim):
    """Layer norm over one dimension, written out."""
    centred = x - x.mean(dim, keepdim=True)
    unit = centred / (centred.square().mean(dim, keepdim=True) + 1e-6).sqrt()
    shape = [-1 if each == dim else 1 for each in range(x.ndim)]
    return unit * weights[f"{prefix}.weight"].view(shape) + weights[f"{prefix}.bias"].view(shape)


def _gelu(x):
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def _linear(x, weights, prefix):
    return x @ weights[f"{prefix}.weight"].T + weights[f"{prefix}.bias"]


def _convolved(x, weights, prefix, **options):
    return functional.conv2d(x, weights[f"{prefix}.weight"], weights[f"{prefix}.bias"], **options)


def reference_features(images, weights, depths):
    """ConvNeXt after its paper (arXiv:2201.03545), from weights under torchvision's names."""
    x = _normed(_convolved(images, weights, "0.0", stride=4), weights, "0.1", 1)
    for stage, depth in enumerate(depths):
        if stage:
            x = _normed(x, weights, f"{2 * stage}.0", 1)
            x = _convolved(x, weights, f"{2 * stage}.1", stride=2)
        for block in range(depth):
            prefix = f"{2 * stage + 1}.{block}"
            y = _convolved(x, weights, f"{prefix}.block.0", padding=3, groups=x.shape[1])
            y = _normed(y.movedim(1, -1), weights, f"{prefix}.block.2", 3)
            y = _linear(
                _gelu(_linear(y, weights, f"{prefix}.block.3")), weights, f"{prefix}.block.5"
            )
            x = x + weights[f"{prefix}.layer_scale"] * y.movedim(-1, 1)
    return x


def _split(encoder):
    """Weights of the trunk and of the head, without their prefix."""
    parts = {"feature_extractor": {}, "fc": {}}
    for name, value in encoder.state_dict().items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    return parts["feature_extractor"], parts["fc"]


@pytest.mark.parametrize("architecture", [REFERENCE, REFERENCE_LIKE])
def test_parameters_have_torchvisions_names_and_shapes(architecture):
    with torch.device("meta"):
        features = Encoder(architecture).feature_extractor
    found = {name: tuple(value.shape) for name, value in features.state_dict().items()}
    assert found == torchvision_shapes(3, architecture.depths, architecture.widths)


def test_the_references_trunk_is_convnext_base():
    with torch.device("meta"):
        encoder = Encoder(REFERENCE)
    count = sum(each.numel() for each in encoder.feature_extractor.parameters())
    classifier = 2 * 1024 + 1024 * 1000 + 1000  # torchvision's: a layer norm and 1000 classes
    assert count == 88_591_464 - classifier  # its documented number of parameters
    head = {name: tuple(value.shape) for name, value in encoder.fc.named_parameters()}
    assert head == {
        "2.weight": (1024,),
        "2.bias": (1024,),
        "3.weight": (512, 1024),
        "3.bias": (512,),
        "6.weight": (256, 512),
        "6.bias": (256,),
    }


def test_the_references_network_equals_arithmetic_written_out(make_encoder):
    encoder = make_encoder(REFERENCE_LIKE)
    trunk, head = _split(encoder)
    images = torch.randn(3, 1, 45, 38)
    features = reference_features(torch.cat([images] * 3, 1), trunk, REFERENCE_LIKE.depths)
    pooled = features.mean((2, 3))
    spread = (head["2.running_var"] + 1e-5).sqrt()
    normed = (pooled - head["2.running_mean"]) / spread * head["2.weight"] + head["2.bias"]
    output = _linear(_gelu(_linear(normed, head, "3")), head, "6")
    expected = output / output.square().sum(1, keepdim=True).sqrt()
    with torch.inference_mode():
        torch.testing.assert_close(encoder(images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", [REFERENCE_LIKE, OURS])
def test_embeddings_are_float32_of_unit_norm(architecture, make_encoder):
    encoder = make_encoder(architecture).train()
    found = embed(encoder, torch.randn(5, 40, 40))
    assert found.shape == (5, architecture.dimension)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert not encoder.training
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))
    assert len(found.unique(dim=0)) == 5


@pytest.mark.parametrize("architecture", [REFERENCE_LIKE, OURS])
def test_an_embedding_does_not_depend_on_its_batch(architecture, make_encoder):
    encoder, images = make_encoder(architecture).double(), torch.randn(19, 40, 40).double()
    together = embed(encoder, images)
    for size in (1, 7):
        parts = torch.cat([embed(encoder, part) for part in images.split(size)])
        torch.testing.assert_close(together, parts, rtol=0, atol=1e-10)


def test_no_images_give_no_embeddings(make_encoder):
    assert embed(make_encoder(OURS), torch.zeros(0, 40, 40)).shape == (0, 6)


def test_row_18_what_cannot_be_scored_stays_visible(make_encoder):
    encoder = make_encoder(OURS)
    images = torch.randn(2, 40, 40)
    images[1, 3, 3] = torch.nan
    assert embed(encoder, images).isfinite().all(1).tolist() == [True, False]
    torch.nn.init.zeros_(encoder.fc.out.weight)
    torch.nn.init.zeros_(encoder.fc.out.bias)
    assert embed(encoder, images[:1]).norm() == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depths": (1, 1, 1)}, "one width a stage: .* depths"),
        ({"depths": (), "widths": ()}, "one width a stage"),
        ({"depths": (0, 1)}, "must be >= 1"),
        ({"widths": (8, -1)}, "must be >= 1"),
        ({"dimension": 0}, "must be >= 1"),
        ({"trunk": "vit"}, "unknown trunk 'vit'"),
        ({"pose": ()}, "widths of the pose estimator .pose."),
        ({"widths": (16, 24)}, "multiples of 16, found"),
        ({"pooling": 3}, "pooling is 1 or 2, found 3"),
        ({"pooling": True}, "pooling is 1 or 2, found True"),
        ({"standardisation": Standardisation(size=None)}, "fixed input size, found none"),
        ({"trunk": "convnext"}, "has no pose estimator, found widths"),
        (
            {"trunk": "convnext", "pose": (), "depths": (1,) * 6, "widths": (16,) * 6},
            "6 stages need a size >= 128, found 32",
        ),
    ],
)
def test_an_impossible_architecture_is_refused(changes, words, tiny):
    with pytest.raises(ValueError, match=words):
        replace(tiny, **changes)


@pytest.mark.parametrize(
    ("pooling", "stages", "poses", "least"),
    [(1, 3, 1, 16), (1, 2, 2, 16), (1, 3, 3, 32), (2, 3, 2, 32), (2, 2, 2, 16)],
)
def test_a_size_that_the_stages_do_not_divide_is_refused(
    pooling, stages, poses, least, make_encoder
):
    options = {"depths": (1,) * stages, "widths": (16,) * stages, "pose": (16,) * poses}
    options["pooling"] = pooling
    for size in (least // 2, least + 4):
        with pytest.raises(InputError, match=f"found size {size}, .* a multiple of {least}"):
            Architecture(**options, standardisation=Standardisation(size=size))
    fits = Architecture(**options, standardisation=Standardisation(size=least))
    assert embed(make_encoder(fits), torch.randn(1, least, least)).isfinite().all()
