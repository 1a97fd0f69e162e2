"""AlexNet (Krizhevsky et al. 2012) in the CIFAR form of the passport papers (Fan et al. 2019, Zhang et al. 2020)."""

from __future__ import annotations

import functools

from torch import nn

# Channels, size of the kernel, whether a maximum follows.
_CONVOLUTIONS = ((64, 5, True), (192, 5, True), (384, 3, False), (256, 3, False), (256, 3, True))


class AlexNet(nn.Sequential):
    """Five convolutions with normalization and one linear layer; 2,493,386 parameters for ten classes at 3x32x32.

    Layers: `conv1` to `conv5` each with `norm` and `act` of the same number, `pool1`, `pool2` and `pool3` behind the
    first, second and fifth, `flatten`, `head`.

    Args:
        classes: number of outputs.
        shape: (channels, height, width); height and width are multiples of 8.
        width: share of the channels that each convolution has.
    """

    def __init__(self, classes: int, shape: tuple[int, ...], width: float = 1.0) -> None:
        if len(shape) != 3 or shape[1] % 8 or shape[2] % 8:
            raise ValueError(f"alexnet expects images with height and width in multiples of 8, got {tuple(shape)}")
        super().__init__()
        before, rows, columns = shape
        pools = 0
        for number, (channels, kernel, pooled) in enumerate(_CONVOLUTIONS, start=1):
            after = int(width * channels)
            conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
            self.initialise(f"conv{number}", conv)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"norm{number}", nn.BatchNorm2d(after))
            self.add_module(f"act{number}", nn.ReLU())
            if pooled:
                pools += 1
                self.add_module(f"pool{pools}", nn.MaxPool2d(2))
            before = after
        self.add_module("flatten", nn.Flatten())
        self.add_module("head", nn.Linear(before * (rows // 8) * (columns // 8), classes))

    def initialise(self, name: str, layer: nn.Module) -> None:
        """Draw the weights of a layer of this net, see `models.fresh`."""
        del name
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


ARCHITECTURES = {"alexnet": AlexNet, "alexnet-small": functools.partial(AlexNet, width=0.25)}
