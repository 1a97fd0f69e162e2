"""LeNet-5 in the 20-50-500 form of the pruning literature (LeCun et al. 1998; Caffe's version)."""

from __future__ import annotations

from torch import nn


class LeNet5(nn.Sequential):
    """Two 5x5 convolutions of 20 and 50 channels, a hidden layer of 500; 431,080 parameters on 28x28 grey.

    Layers: `conv1`, `act1`, `pool1`, `conv2`, `act2`, `pool2`, `flatten`, `hidden`, `act3`, `head`.

    Args:
        classes: number of outputs.
        shape: (channels, height, width); height and width from 16 on.
    """

    def __init__(self, classes: int, shape: tuple[int, ...]) -> None:
        if len(shape) != 3:
            raise ValueError(f"lenet5 expects images, got inputs of shape {tuple(shape)}")
        channels, height, width = shape
        if min(height, width) < 16:
            raise ValueError(f"lenet5 expects at least 16x16 pixels, got {height}x{width}")
        super().__init__()
        rows, columns = ((size - 4) // 2 for size in (height, width))
        rows, columns = ((size - 4) // 2 for size in (rows, columns))
        self.add_module("conv1", nn.Conv2d(channels, 20, 5))
        self.add_module("act1", nn.ReLU())
        self.add_module("pool1", nn.MaxPool2d(2))
        self.add_module("conv2", nn.Conv2d(20, 50, 5))
        self.add_module("act2", nn.ReLU())
        self.add_module("pool2", nn.MaxPool2d(2))
        self.add_module("flatten", nn.Flatten())
        self.add_module("hidden", nn.Linear(50 * rows * columns, 500))
        self.add_module("act3", nn.ReLU())
        self.add_module("head", nn.Linear(500, classes))


ARCHITECTURES = {"lenet5": LeNet5}
