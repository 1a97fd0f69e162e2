"""PointNet for classification (Qi et al. 2017, section 4.2), with the three convolutions of its PyTorch edition."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn


class Alignment(nn.Sequential):
    """A T-Net (Qi et al. 2017, appendix C): reads a matrix from a cloud and multiplies its points by it.

    The matrix is the identity before training. Layers: `conv1` to `conv3` each with `norm` and `act` of the same
    number, `pool`, `flatten`, `hidden1`, `norm4`, `act4`, `hidden2`, `norm5`, `act5`, and `head`, which gives what is
    added to the identity.

    Args:
        width: coordinates of a point.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        for number, (before, after) in enumerate(((width, 64), (64, 128), (128, 1024)), start=1):
            _convolve(self, number, before, after)
            self.add_module(f"act{number}", nn.ReLU())
        _read(self)
        head = nn.Linear(256, width * width)
        self.initialise("head", head)
        self.add_module("head", head)

    def initialise(self, name: str, layer: nn.Module) -> None:
        """Zeros for what is added to the identity, see `models.fresh`."""
        if name == "head" and isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, points) to the same shape."""
        # A sum, because an identity in the bias would decay with the weights.
        return x + torch.bmm(super().forward(x).view(-1, self.width, self.width), x)


class PointNet(nn.Sequential):
    """Convolutions of single points to 64, 128 and 1,024 channels, their maximum over the points, two hidden layers.

    Layers: `conv1`, `norm1`, `act1`, `conv2`, `norm2`, `act2`, `conv3`, `norm3` (nothing but the maximum follows),
    `pool`, `flatten`, `hidden1`, `norm4`, `act4`, `hidden2`, `dropout`, `norm5`, `act5`, `head`; 809,832 parameters
    for 40 classes. With alignment also `align1` before `conv1` and `align2` before `conv2`; 3,467,825 parameters.

    Args:
        aligned: whether T-Nets align the points, and the 64 features of each.
        classes: number of outputs.
        shape: (coordinates, points).
    """

    def __init__(self, aligned: bool, classes: int, shape: tuple[int, ...]) -> None:
        if len(shape) != 2:
            raise ValueError(f"pointnet expects clouds of shape (coordinates, points), got shape {tuple(shape)}")
        super().__init__()
        if aligned:
            self.add_module("align1", Alignment(shape[0]))
        _convolve(self, 1, shape[0], 64)
        self.add_module("act1", nn.ReLU())
        if aligned:
            self.add_module("align2", Alignment(64))
        _convolve(self, 2, 64, 128)
        self.add_module("act2", nn.ReLU())
        _convolve(self, 3, 128, 1024)
        _read(self, dropout=0.4)
        self.add_module("head", nn.Linear(256, classes))


def _convolve(net: nn.Sequential, number: int, before: int, after: int) -> None:
    # No bias: the normalization that follows would take it away again.
    net.add_module(f"conv{number}", nn.Conv1d(before, after, 1, bias=False))
    net.add_module(f"norm{number}", nn.BatchNorm1d(after))


def _read(net: nn.Sequential, dropout: float | None = None) -> None:
    """The maximum over the points, and the two hidden layers behind it."""
    net.add_module("pool", nn.AdaptiveMaxPool1d(1))
    net.add_module("flatten", nn.Flatten())
    net.add_module("hidden1", nn.Linear(1024, 512))
    net.add_module("norm4", nn.BatchNorm1d(512))
    net.add_module("act4", nn.ReLU())
    net.add_module("hidden2", nn.Linear(512, 256))
    if dropout is not None:
        net.add_module("dropout", nn.Dropout(dropout))
    net.add_module("norm5", nn.BatchNorm1d(256))
    net.add_module("act5", nn.ReLU())


ARCHITECTURES = {
    "pointnet": functools.partial(PointNet, True),
    "pointnet-basic": functools.partial(PointNet, False),
}
