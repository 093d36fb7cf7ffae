"""The network against torchvision's naming rule and against arithmetic written out here."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from deepssim_scan.canonical import evened
from deepssim_scan.encoder import (
    REFERENCE,
    SMALL,
    Architecture,
    Encoder,
    embed,
    pick_device,
)
from deepssim_scan.errors import InputError
from deepssim_scan.standardise import Standardisation

POOL = Architecture(
    depths=(1, 2, 1),
    widths=(8, 12, 20),
    channels="repeat",
    head="pool",
    dimension=6,
    standardisation=Standardisation(size=None),
)
LAYOUT = Architecture(
    depths=(2, 1), widths=(8, 12), dimension=6, standardisation=Standardisation(size=40)
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
            place = f"{2 * stage + 1}.{block}"
            shapes |= {
                f"{place}.layer_scale": (width, 1, 1),
                f"{place}.block.0.weight": (width, 1, 7, 7),
                f"{place}.block.0.bias": (width,),
                f"{place}.block.2.weight": (width,),
                f"{place}.block.2.bias": (width,),
                f"{place}.block.3.weight": (4 * width, width),
                f"{place}.block.3.bias": (4 * width,),
                f"{place}.block.5.weight": (width, 4 * width),
                f"{place}.block.5.bias": (width,),
            }
    return shapes


def _normed(x, weights, place, dim):
    """Layer norm over one dimension, written out."""
    centred = x - x.mean(dim, keepdim=True)
    unit = centred / (centred.square().mean(dim, keepdim=True) + 1e-6).sqrt()
    shape = [-1 if each == dim else 1 for each in range(x.ndim)]
    return unit * weights[f"{place}.weight"].view(shape) + weights[f"{place}.bias"].view(shape)


def _gelu(x):
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def _linear(x, weights, place):
    return x @ weights[f"{place}.weight"].T + weights[f"{place}.bias"]


def _convolved(x, weights, place, **options):
    return functional.conv2d(x, weights[f"{place}.weight"], weights[f"{place}.bias"], **options)


def reference_features(images, weights, depths):
    """ConvNeXt after its paper (arXiv:2201.03545), from weights under torchvision's names."""
    x = _normed(_convolved(images, weights, "0.0", stride=4), weights, "0.1", 1)
    for stage, depth in enumerate(depths):
        if stage:
            x = _normed(x, weights, f"{2 * stage}.0", 1)
            x = _convolved(x, weights, f"{2 * stage}.1", stride=2)
        for block in range(depth):
            place = f"{2 * stage + 1}.{block}"
            y = _convolved(x, weights, f"{place}.block.0", padding=3, groups=x.shape[1])
            y = _normed(y.movedim(1, -1), weights, f"{place}.block.2", 3)
            y = _linear(_gelu(_linear(y, weights, f"{place}.block.3")), weights, f"{place}.block.5")
            x = x + weights[f"{place}.layer_scale"] * y.movedim(-1, 1)
    return x


def reference_evened(images):
    def mean(x):
        return functional.avg_pool2d(x, 17, stride=1, padding=8, count_include_pad=False)

    spread = mean((images - mean(images)) ** 2)
    return (images - mean(images)) / torch.sqrt(spread + 0.01)


def _split(encoder):
    """Weights of the trunk and of the head, without their prefix."""
    parts = {"feature_extractor": {}, "fc": {}}
    for name, value in encoder.state_dict().items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    return parts["feature_extractor"], parts["fc"]


@pytest.mark.parametrize("architecture", [SMALL, REFERENCE, POOL, LAYOUT])
def test_parameters_have_torchvisions_names_and_shapes(architecture):
    with torch.device("meta"):
        features = Encoder(architecture).feature_extractor
    found = {name: tuple(value.shape) for name, value in features.state_dict().items()}
    channels = {"repeat": 3, "local": 2}[architecture.channels]
    assert found == torchvision_shapes(channels, architecture.depths, architecture.widths)


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


def test_the_pool_encoder_equals_arithmetic_written_out(make_encoder):
    encoder = make_encoder(POOL)
    trunk, head = _split(encoder)
    images = torch.randn(3, 1, 45, 38)
    features = reference_features(torch.cat([images] * 3, 1), trunk, POOL.depths)
    pooled = features.mean((2, 3))
    spread = (head["2.running_var"] + 1e-5).sqrt()
    normed = (pooled - head["2.running_mean"]) / spread * head["2.weight"] + head["2.bias"]
    output = _linear(_gelu(_linear(normed, head, "3")), head, "6")
    expected = output / output.square().sum(1, keepdim=True).sqrt()
    with torch.inference_mode():
        torch.testing.assert_close(encoder(images), expected, rtol=0, atol=1e-5)


def test_the_layout_encoder_equals_arithmetic_written_out(make_encoder):
    encoder = make_encoder(LAYOUT)
    trunk, head = _split(encoder)
    images = torch.randn(3, 1, 40, 40)
    both = torch.cat([images, reference_evened(images)], 1)
    features = reference_features(both, trunk, LAYOUT.depths)
    assert features.shape == (3, 12, 5, 5)
    narrow = _convolved(_normed(features, head, "0", 1), head, "1")
    output = _linear(_gelu(_linear(narrow.flatten(1), head, "3")), head, "5")
    expected = output / output.square().sum(1, keepdim=True).sqrt()
    with torch.inference_mode():
        torch.testing.assert_close(encoder(images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 1, 40, 40), (1, 1, 9, 30), (3, 1, 17, 64)])
def test_the_local_channel_equals_average_pooling(shape):
    images = 2 * torch.randn(shape) + 1
    images[..., :5, :] = 0.25  # a flat part, whose local spread is nought
    torch.testing.assert_close(
        evened(images, floor=0.01), reference_evened(images), rtol=1e-4, atol=1e-4
    )


def test_the_local_channel_is_the_same_for_bright_and_dark():
    images = torch.randn(1, 1, 40, 40)
    shifted = images + torch.linspace(-3, 3, 40)  # brighter on one side
    inner = (..., slice(8, 32), slice(8, 32))
    brightness = (shifted - images)[inner].abs().mean()
    assert (evened(shifted) - evened(images))[inner].abs().mean() < 0.2 * brightness


@pytest.mark.parametrize("architecture", [POOL, LAYOUT])
def test_embeddings_are_float32_of_unit_norm(architecture, make_encoder):
    encoder = make_encoder(architecture).train()
    found = embed(encoder, torch.randn(5, 40, 40))
    assert found.shape == (5, architecture.dimension)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert not encoder.training
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))
    assert len(found.unique(dim=0)) == 5


@pytest.mark.parametrize("architecture", [POOL, LAYOUT])
def test_an_embedding_does_not_depend_on_its_batch(architecture, make_encoder):
    encoder, images = make_encoder(architecture), torch.randn(7, 40, 40)
    together = embed(encoder, images)
    alone = torch.cat([embed(encoder, image[None]) for image in images])
    chunks = embed(encoder, images, batch=3)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(together, chunks, rtol=0, atol=1e-5)


def test_no_images_give_no_embeddings(make_encoder):
    assert embed(make_encoder(LAYOUT), torch.zeros(0, 40, 40)).shape == (0, 6)


def test_row_18_what_cannot_be_scored_stays_visible(make_encoder):
    encoder = make_encoder(LAYOUT)
    images = torch.randn(2, 40, 40)
    images[1, 3, 3] = torch.nan
    assert embed(encoder, images).isfinite().all(1).tolist() == [True, False]
    torch.nn.init.zeros_(encoder.fc[-1].weight)
    torch.nn.init.zeros_(encoder.fc[-1].bias)
    assert embed(encoder, images[:1]).norm() == 0


def test_the_layout_head_tells_places_apart(make_encoder):
    image = torch.zeros(2, 40, 40)
    image[0, 4:12, 4:12] = image[1, 28:36, 28:36] = 4.0
    found = embed(make_encoder(LAYOUT), image)
    assert found[0] @ found[1] < 0.99


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depths": (1, 1, 1)}, "one width a stage: .* depths"),
        ({"depths": (), "widths": ()}, "one width a stage"),
        ({"depths": (0, 1)}, "must be >= 1"),
        ({"widths": (8, -1)}, "must be >= 1"),
        ({"dimension": 0}, "must be >= 1"),
        ({"channels": "rgb"}, "unknown channels 'rgb'"),
        ({"head": "attention"}, "or head 'attention'"),
        ({"standardisation": Standardisation(size=None)}, "fixed input size, found none"),
    ],
)
def test_an_impossible_architecture_is_refused(changes, words, tiny):
    with pytest.raises(ValueError, match=words):
        replace(tiny, **changes)


@pytest.mark.parametrize(("size", "stages"), [(8, 3), (15, 3), (31, 4)])
def test_a_size_that_the_stages_shrink_to_nothing_is_refused(size, stages, make_encoder):
    options = {"depths": (1,) * stages, "widths": (8,) * stages}
    smallest = 2 ** (stages + 1)
    words = rf"images of 2\^{stages + 1} pixels a side or more, found size {size}"
    with pytest.raises(InputError, match=words):
        Architecture(**options, standardisation=Standardisation(size=size))
    fits = Architecture(**options, standardisation=Standardisation(size=smallest))
    assert fits.grid == 1
    assert embed(make_encoder(fits), torch.randn(1, smallest, smallest)).isfinite().all()


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [pick_device(name) for name in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(InputError, match="cuda was asked for"):
        pick_device("cuda")
    with pytest.raises(InputError, match="found 'gpu'"):
        pick_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [pick_device(name) for name in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]
