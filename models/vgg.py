"""VGG-like nets: plain stacks of 3x3 convolutions (Simonyan and Zisserman 2015, with batch normalization)."""

from __future__ import annotations

from torch import nn


class VGG8(nn.Sequential):
    """Six convolutions in three groups of two, a hidden linear layer and the head; 173,354 parameters on digits.

    Layers: `conv1` to `conv6` each with `norm` and `act` of the same number, `pool1` and `pool2` between the
    groups, `flatten`, `hidden`, `act7`, `head`.

    Args:
        classes: number of outputs.
        shape: (channels, height, width); height and width are multiples of 4.
    """

    def __init__(self, classes: int, shape: tuple[int, ...]) -> None:
        if len(shape) != 3:
            raise ValueError(f"vgg8 expects images, got inputs of shape {tuple(shape)}")
        channels, height, width = shape
        if height % 4 or width % 4:
            raise ValueError(f"vgg8 expects height and width in multiples of 4, got {height}x{width}")
        super().__init__()
        before = channels
        for number, after in enumerate((32, 32, 64, 64, 64, 64), start=1):
            # No bias: the normalization that follows would take it away again.
            self.add_module(f"conv{number}", nn.Conv2d(before, after, 3, padding=1, bias=False))
            self.add_module(f"norm{number}", nn.BatchNorm2d(after))
            self.add_module(f"act{number}", nn.ReLU())
            if number in (2, 4):
                self.add_module(f"pool{number // 2}", nn.MaxPool2d(2))
            before = after
        self.add_module("flatten", nn.Flatten())
        self.add_module("hidden", nn.Linear(before * (height // 4) * (width // 4), 128))
        self.add_module("act7", nn.ReLU())
        self.add_module("head", nn.Linear(128, classes))


ARCHITECTURES = {"vgg8": VGG8}
