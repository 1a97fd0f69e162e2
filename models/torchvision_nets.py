"""ResNet-18 and VGG-16 with batch normalization: layers of torchvision, with the stem and head of small images."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn


class _OfTorchvision(nn.Sequential):
    """What both have in common: how torchvision initialises their convolutions."""

    def initialise(self, name: str, layer: nn.Module) -> None:
        """Draw the weights of a layer of this net, see `models.fresh`."""
        del name
        if isinstance(layer, nn.Conv2d):
            _initialised(layer)


class ResNet18(_OfTorchvision):
    """ResNet-18 (He et al. 2016): the first convolution is 3x3 without stride, no max-pool follows it.

    Layers: `conv1`, `bn1`, `relu`, `layer1` to `layer4` as torchvision calls them, `avgpool`, `flatten`, `head`;
    11,173,962 parameters for ten classes in colour.

    Args:
        classes: number of outputs.
        shape: (channels, height, width); height and width from 8 on.
    """

    def __init__(self, classes: int, shape: tuple[int, ...]) -> None:
        _require(shape, 8, "resnet18")
        net = _torchvision("resnet").resnet18(num_classes=classes)
        super().__init__()
        self.add_module("conv1", _initialised(nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)))
        for name in ("bn1", "relu", "layer1", "layer2", "layer3", "layer4", "avgpool"):
            self.add_module(name, getattr(net, name))
        self.add_module("flatten", nn.Flatten())
        self.add_module("head", net.fc)


class VGG16BN(_OfTorchvision):
    """VGG-16 with batch normalization (Simonyan and Zisserman 2015) and one linear layer behind its convolutions.

    Layers: `features` as torchvision has it (convolutions `features.0`, `features.3`, …), `avgpool`, `flatten`,
    `head`; 14,728,266 parameters for ten classes in colour.

    Args:
        classes: number of outputs.
        shape: (channels, height, width); height and width from 32 on.
    """

    def __init__(self, classes: int, shape: tuple[int, ...]) -> None:
        _require(shape, 32, "vgg16-bn")
        vgg = _torchvision("vgg")
        super().__init__()
        features = vgg.make_layers(vgg.cfgs["D"], batch_norm=True)
        if shape[0] != 3:
            features[0] = nn.Conv2d(shape[0], 64, 3, padding=1)
        for layer in features:
            if isinstance(layer, nn.Conv2d):
                _initialised(layer)
        self.add_module("features", features)
        self.add_module("avgpool", nn.AdaptiveAvgPool2d(1))
        self.add_module("flatten", nn.Flatten())
        self.add_module("head", nn.Linear(512, classes))


def _initialised(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _require(shape: tuple[int, ...], least: int, name: str) -> None:
    if len(shape) != 3 or min(shape[1:]) < least:
        raise ValueError(f"{name} expects images of at least {least}x{least} pixels, got shape {tuple(shape)}")


def _torchvision(module: str) -> Any:
    # Only here, so that a torchvision that does not fit the installed PyTorch spoils nothing else.
    try:
        return importlib.import_module(f"torchvision.models.{module}")
    except (ImportError, RuntimeError, OSError) as error:
        raise ValueError(f"needs torchvision, which does not import here: {error}") from error


ARCHITECTURES = {"resnet18": ResNet18, "vgg16-bn": VGG16BN}
