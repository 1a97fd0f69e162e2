"""Nets of each kind of kernel graph, and paths found one by one."""

import math

import networkx as nx
import torch
from nets import KINDS, lived_in, put
from torch import nn

import models


def parallel(widths, seed=0):
    """A ResNet-18 with narrow first stages, whose second begins with a convolution beside two others."""
    model = models.build("resnet18", 10, (3, 8, 8))
    one, two, three = widths[:3]
    put(model, "conv1", nn.Conv2d(3, one, 3, padding=1, bias=False))
    put(model, "bn1", nn.BatchNorm2d(one))
    shapes = {"1.0": (one, two, one, 1), "1.1": (one, three, one, 1), "2.0": (one, two, three, 2)}
    for name, (before, inner, after, stride) in shapes.items():
        block = model.get_submodule(f"layer{name}")
        block.conv1 = nn.Conv2d(before, inner, 3, stride=stride, padding=1, bias=False)
        block.conv2 = nn.Conv2d(inner, after, 3, padding=1, bias=False)
        block.bn1, block.bn2 = nn.BatchNorm2d(inner), nn.BatchNorm2d(after)
        if stride > 1:
            block.downsample[0] = nn.Conv2d(before, after, 1, stride=stride, bias=False)
            block.downsample[1] = nn.BatchNorm2d(after)
    for conv in ("conv1", "conv2"):
        put(model, f"layer2.1.{conv}", nn.Conv2d(three, three, 3, padding=1, bias=False))
        put(model, f"layer2.1.bn{conv[-1]}", nn.BatchNorm2d(three))
    put(model, "layer3.0.conv1", nn.Conv2d(three, 256, 3, stride=2, padding=1, bias=False))
    put(model, "layer3.0.downsample.0", nn.Conv2d(three, 256, 1, stride=2, bias=False))
    return lived_in(model, seed)


# Kind of net -> how it is made, and the layers that its graph is between.
NETS = {
    "plain": (KINDS["plain"], ["conv1", "conv2", "hidden", "head"]),
    "vgg_like": (KINDS["vgg_like"], ["conv2", "conv3", "conv4", "conv6", "hidden"]),
    "residual": (KINDS["residual"], [f"layer{n}.0.conv{k}" for n in (1, 2, 3) for k in (1, 2)]),
    "parallel": (
        parallel,
        ["layer1.1.conv1", "layer1.1.conv2", "layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0"],
    ),
}


def masked(model, layers, density, seed=0):
    """Parameter name to a random mask, for each layer."""
    chance = torch.Generator().manual_seed(seed)
    shapes = {f"{name}.weight": model.get_submodule(name).weight.shape for name in layers}
    return {name: torch.rand(shape, generator=chance) < density for name, shape in shapes.items()}


def routes(net):
    """The kernels on each path from a start to an end, and the path's strength, found by networkx one by one."""
    for start in net.graph["starts"]:
        for end in net.graph["ends"]:
            found = [[]] if start == end else nx.all_simple_edge_paths(net, start, end)
            for path in found:
                edges = [net.edges[edge] for edge in path]
                on_it = [(edge["layer"], edge["kernel"]) for edge in edges if "layer" in edge]
                yield on_it, math.prod(edge["strength"] for edge in edges)
