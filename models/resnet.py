"""Residual nets in the CIFAR form (He et al. 2016, section 4.2), shortcuts of option A."""

from __future__ import annotations

import functools

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut without parameters.

    Args:
        before: channels in.
        after: channels out; where they grow, the shortcut takes every second pixel and pads with zeros.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride = 1 if before == after else 2
        self.conv1 = nn.Conv2d(before, after, 3, stride=self.stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, H, W) to (N, after, H / stride, W / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.stride != 1:
            missing = y.shape[1] - x.shape[1]
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, missing // 2, missing - missing // 2))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels with `blocks` blocks each: 6 * blocks + 2 layers."""

    def __init__(self, blocks: int, classes: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        if len(shape) != 3:
            raise ValueError(f"a residual net expects images, got inputs of shape {tuple(shape)}")
        channels, height, width = shape
        if min(height, width) < 4:
            raise ValueError(f"a residual net expects at least 4x4 pixels, got {height}x{width}")
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks, 16, 16)
        self.layer2 = _stage(blocks, 16, 32)
        self.layer3 = _stage(blocks, 32, 64)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(64, classes)
        for name, module in self.named_modules():
            self.initialise(name, module)

    def initialise(self, name: str, layer: nn.Module) -> None:
        """Draw the weights of a layer of this net, see `models.fresh`."""
        del name
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to logits (N, classes)."""
        x = F.relu(self.norm1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.head(self.flatten(self.pool(x)))  # type: ignore[no-any-return]


def _stage(blocks: int, before: int, after: int) -> nn.Sequential:
    return nn.Sequential(*(BasicBlock(before if i == 0 else after, after) for i in range(blocks)))


ARCHITECTURES = {
    "resnet8": functools.partial(CifarResNet, 1),
    "resnet20": functools.partial(CifarResNet, 3),
}
