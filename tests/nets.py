"""Small nets of each kind with weights as if trained, and what is done to them that keeps their function."""

import copy

import torch
from torch import nn

import models
from attacks.reparametrise import drawn
from bench.stream import Stream
from models.channels import channels
from models.frames import reframe

MOVES = ("permute", "rescale", "sign-flip")


def lived_in(model, seed=0):
    """The model with random statistics, gains of either sign, and biases."""
    chance = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(generator=chance)
            module.running_var.uniform_(0.1, 2.0, generator=chance)
            module.weight.data.normal_(1.0, 0.5, generator=chance)
            module.bias.data.normal_(0.0, 0.3, generator=chance)
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            module.weight.data.normal_(0.0, module.weight[0].numel() ** -0.5, generator=chance)
            if module.bias is not None:
                module.bias.data.normal_(0.0, 0.1, generator=chance)
    return model.eval()


def plain(widths, seed=0):
    """Two convolutions and a hidden layer without normalization."""
    first, second, third = widths[:3]
    model = models.build("lenet5", 10, (1, 16, 16))
    model.conv1, model.conv2 = nn.Conv2d(1, first, 5), nn.Conv2d(first, second, 5)
    model.hidden, model.head = nn.Linear(second, third), nn.Linear(third, 10)
    return lived_in(model, seed)


def vgg_like(widths, seed=0):
    """Six convolutions with normalization and a hidden layer."""
    model, before = models.build("vgg8", 10, (1, 8, 8)), 1
    widths = (list(widths) * 3)[:7]
    for number, after in enumerate(widths[:6], start=1):
        setattr(model, f"conv{number}", nn.Conv2d(before, after, 3, padding=1, bias=False))
        setattr(model, f"norm{number}", nn.BatchNorm2d(after))
        before = after
    model.hidden, model.head = nn.Linear(before * 4, widths[6]), nn.Linear(widths[6], 10)
    return lived_in(model, seed)


def residual(widths, seed=0):
    """Three stages of one block each; the streams grow by padded channels."""
    model, widths = models.build("resnet8", 10, (1, 8, 8)), sorted(widths[:3])
    inner = widths[::-1]
    model.conv1, model.norm1 = nn.Conv2d(1, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0])
    before = widths[0]
    for number, (after, between) in enumerate(zip(widths, inner, strict=True), start=1):
        block = model.get_submodule(f"layer{number}.0")
        block.conv1 = nn.Conv2d(before, between, 3, stride=block.stride, padding=1, bias=False)
        block.norm1, block.norm2 = nn.BatchNorm2d(between), nn.BatchNorm2d(after)
        block.conv2 = nn.Conv2d(between, after, 3, padding=1, bias=False)
        before = after
    model.head = nn.Linear(before, 10)
    return lived_in(model, seed)


KINDS = {"plain": plain, "vgg_like": vgg_like, "residual": residual}


def reframed(model, seed, moves=MOVES, spread=10.0):
    """A copy with random moves."""
    made = copy.deepcopy(model)
    graph = channels(made)
    reframe(made, graph, *drawn(graph, moves, spread, Stream.root(seed)))
    return made


def noisy(model, seed, share):
    """A copy whose weights have moved by a share of their size, as fine-tuning would."""
    made, chance = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data += share * parameter.data.std(correction=0) * torch.randn(parameter.shape, generator=chance)
    return made


def merged(model):
    """A copy with every normalization merged into the convolution before it."""
    made = copy.deepcopy(model)
    for layer in channels(made).layers:
        if layer.norm is None:
            continue
        old, norm = made.get_submodule(layer.name), made.get_submodule(layer.norm)
        slope = norm.weight / (norm.running_var + norm.eps).sqrt()
        bias = 0.0 if old.bias is None else old.bias
        new = nn.Conv2d(
            old.in_channels, old.out_channels, old.kernel_size, stride=old.stride, padding=old.padding, bias=True
        )
        new.weight.data = (old.weight * slope[:, None, None, None]).detach()
        new.bias.data = (norm.bias + slope * (bias - norm.running_mean)).detach()
        put(made, layer.name, new)
        put(made, layer.norm, nn.Identity())
    return made.eval()


def widened(model, number, doubles=0, dead=0, pairs=0, seed=0):
    """A copy of a VGG-like net with channels more at convolution `number`, the function unchanged.

    Doubles share what the first gave (Net2Wider); dead ones are read by nobody; of a pair of equal channels one
    takes away what the other gives.
    """
    made, chance = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    conv, norm = getattr(made, f"conv{number}"), getattr(made, f"norm{number}")
    name = "hidden" if number == 6 else f"conv{number + 1}"
    reader, width = made.get_submodule(name), conv.out_channels
    rows, columns = conv.weight.detach(), reader.weight.detach().reshape(len(reader.weight), width, -1)
    stats = torch.stack([norm.weight, norm.bias, norm.running_mean, norm.running_var]).detach()
    for _ in range(doubles):
        chosen = int(torch.randint(width, (1,), generator=chance))
        share = float(torch.rand(1, generator=chance)) - 0.5
        columns = torch.cat([columns, share * columns[:, chosen : chosen + 1]], 1)
        columns[:, chosen] *= 1 - share
        rows, stats = torch.cat([rows, rows[chosen : chosen + 1]]), torch.cat([stats, stats[:, chosen : chosen + 1]], 1)
    for copies in [1] * dead + [2] * pairs:
        row = torch.randn(1, *rows.shape[1:], generator=chance) * rows.std()
        stat = torch.rand(4, 1, generator=chance) + 0.1
        column = torch.randn(len(columns), 1, columns.shape[2], generator=chance) * (copies - 1)
        rows = torch.cat([rows] + [row] * copies)
        stats = torch.cat([stats] + [stat] * copies, 1)
        columns = torch.cat([columns, column, -column][: copies + 1], 1)
    after = len(rows)
    wide, wide_norm = nn.Conv2d(conv.in_channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)
    wide.weight.data = rows
    wide_norm.weight.data, wide_norm.bias.data, wide_norm.running_mean, wide_norm.running_var = stats.clone()
    if isinstance(reader, nn.Conv2d):
        wide_reader = nn.Conv2d(after, reader.out_channels, 3, padding=1, bias=False)
        wide_reader.weight.data = columns.reshape(len(columns), after, 3, 3)
    else:
        wide_reader = nn.Linear(after * columns.shape[2], reader.out_features)
        wide_reader.weight.data, wide_reader.bias.data = columns.flatten(1), reader.bias.detach().clone()
    put(made, f"conv{number}", wide)
    put(made, f"norm{number}", wide_norm)
    put(made, name, wide_reader)
    return made.eval()


def put(model, name, layer):
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def inputs(model, count=16, seed=0):
    shape = model.architecture["shape"]
    dtype = next(model.parameters()).dtype
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def difference(first, second):
    """The largest difference of two models' answers, relative to the largest answer."""
    x = inputs(first)
    with torch.no_grad():
        ours, theirs = first(x), second(x)
    return float((ours - theirs).abs().max() / ours.abs().max())


def apart(first, second):
    """The largest difference of two models' tensors, relative to the largest entry of each; with its name."""
    worst = (0.0, "")
    theirs = second.state_dict()
    for name, value in first.state_dict().items():
        if value.dtype.is_floating_point:
            gap = float((value - theirs[name]).abs().max() / value.abs().max().clamp_min(1e-9))
            worst = max(worst, (gap, name))
    return worst
