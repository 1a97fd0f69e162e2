"""Widening: more channels for the same function, free of data and training.

New channels are given to every layer whose number of channels is nobody else's business (`models.surgery.inner`), and
then all channels of the layer are put into an order drawn uniformly, so that no new one can be told by its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bench.attack import AttackClass, RemovalAttack
from bench.defense import Defense
from bench.effort import Effort
from bench.stream import Stream
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer
from models.channels import channels
from models.surgery import Inner, inner, lacking, outgoing, reshaped

Hide = Literal["none", "pairs"]


@dataclass(frozen=True)
class _Widening(RemovalAttack):
    """What the attacks of this family share; a subclass says how many channels come, and what they are."""

    family: ClassVar[str] = "widening"
    attack_class: ClassVar[AttackClass] = "reparametrisation"
    strength_unit: ClassVar[str] = "share of channels added"

    def _more(self, layers: tuple[Inner, ...], task: Task) -> dict[str, int]:
        raise NotImplementedError

    def _widened(self, model: nn.Module, more: Mapping[str, int], stream: Stream) -> nn.Module:
        raise NotImplementedError

    def applies_to(self, task: Task) -> str | None:
        """Needs a net with a layer whose channels can come and go."""
        return lacking(task.skeleton)

    def effort(self, task: Task) -> Effort:
        """No input is ever passed through a model."""
        return Effort()

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """One surrogate with the same function; strength 0 where nothing is to be added."""
        model = target.copy()
        layers = inner(channels(model))
        more = self._more(layers, trainer.task)
        share = sum(more.values()) / max(1, sum(one.width for one in layers))
        yield share, self._widened(model, more, trainer.stream)


@dataclass(frozen=True)
class _ByShare(_Widening):
    """What those share that add a share of each layer.

    Attributes:
        share: of each layer's channels, rounded, at least one.
    """

    share: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.share < math.inf:
            raise ValueError(f"expected a finite share > 0, got {self.share}")

    def _more(self, layers: tuple[Inner, ...], task: Task) -> dict[str, int]:
        return {one.layer: max(1, round(self.share * one.width)) for one in layers}


@dataclass(frozen=True)
class DeadChannels(_ByShare):
    """Give each layer channels that look like its own and bear on nothing.

    Attributes:
        share: of each layer's channels, rounded, at least one.
        hide: `none` for channels that are read with zeros; `pairs` for equal ones, of which the second takes away
            what the first gives.
    """

    name: ClassVar[str] = "dead-channels"
    source: ClassVar[str] = "Yan et al. 2023, arXiv 2303.09732"

    hide: Hide = "none"

    def _widened(self, model: nn.Module, more: Mapping[str, int], stream: Stream) -> nn.Module:
        return with_dead(model, more, self.hide, stream)


@dataclass(frozen=True)
class Net2Wider(_ByShare):
    """Double channels drawn at random; what reads one reads a part of it from each of its copies."""

    name: ClassVar[str] = "net2wider"
    source: ClassVar[str] = "Chen, Goodfellow and Shlens 2016, arXiv 1511.05641"

    def _widened(self, model: nn.Module, more: Mapping[str, int], stream: Stream) -> nn.Module:
        return with_doubles(model, more, stream)


@dataclass(frozen=True)
class PadWidth(_Widening):
    """Bring each layer back to the width that it has in the task's architecture, by channels that bear on nothing.

    Attributes:
        hide: as for `dead-channels`.
    """

    name: ClassVar[str] = "pad-width"
    source: ClassVar[str] = "Yan et al. 2023, arXiv 2303.09732"

    hide: Hide = "none"

    def against(self, scheme: Defense) -> str | None:
        """Needs a scheme whose key is in the widths."""
        return None if scheme.key_kind == "architecture" else f"{scheme.name} publishes the architecture's own widths"

    def _more(self, layers: tuple[Inner, ...], task: Task) -> dict[str, int]:
        plain = {one.layer: one.width for one in inner(channels(task.skeleton))}
        missing = {one.layer: plain.get(one.layer, 0) - one.width for one in layers}
        return {name: count for name, count in missing.items() if count > 0}

    def _widened(self, model: nn.Module, more: Mapping[str, int], stream: Stream) -> nn.Module:
        return with_dead(model, more, self.hide, stream)


def with_dead(model: nn.Module, more: Mapping[str, int], hide: Hide, stream: Stream) -> nn.Module:
    """A wider copy of a model: each new channel has its bias and normalization from another one of the layer.

    Of the weights that make it, each is one that some channel has in the same place, and together they are as long as
    the other one's; with pairs, so are those that read the first of a pair, and the second has them with the sign
    changed. An odd one out is a true copy of the other one and is read instead of a part of it.

    Args:
        model: descends from `models.build`; stays as it is.
        more: name of a layer of `inner` to how many channels it is given.
        hide: whether the new ones come in pairs.
        stream: of all that is drawn.

    Returns:
        A model in evaluation mode of the same function up to rounding.
    """
    layers, alike = _named(model, more), 2 if hide == "pairs" else 1
    likes = {
        one.layer: stream.child("like", one.layer).numpy().integers(one.width, size=-(-more[one.layer] // alike))
        for one in layers
    }
    places = {
        one.layer: np.append(np.arange(one.width), np.repeat(likes[one.layer], alike)[: more[one.layer]])
        for one in layers
    }
    made = reshaped(model, places)
    with torch.no_grad():
        for one in layers:
            for reader in one.readers:
                read = outgoing(made, reader, one.layer)
                _unread(read, one.width, likes[one.layer], alike, stream.child("columns", one.layer, reader))
        # Only now, when all columns stand: the two of a pair must be equal in every one of them.
        for one in layers:
            layer: Any = made.get_submodule(one.layer)
            _made_up(layer.weight, one.width, likes[one.layer], alike, stream.child("rows", one.layer))
    return _mixed(made, places, stream)


def with_doubles(model: nn.Module, more: Mapping[str, int], stream: Stream) -> nn.Module:
    """A wider copy of a model: channels are doubled, and the parts that are read of the copies add up to one.

    Args:
        model: descends from `models.build`; stays as it is.
        more: name of a layer of `inner` to how many channels it is given; each time one of all is doubled.
        stream: of all that is drawn.

    Returns:
        A model in evaluation mode of the same function up to rounding.
    """
    layers, places = _named(model, more), {}
    for one in layers:
        doubled = stream.child("doubled", one.layer).numpy().integers(one.width, size=more[one.layer])
        places[one.layer] = np.append(np.arange(one.width), doubled)
    made = reshaped(model, places)
    with torch.no_grad():
        for one in layers:
            # Uniform over all ways to divide one among the copies; a single channel keeps exactly all.
            copies = places[one.layer]
            parts = stream.child("parts", one.layer).numpy().exponential(size=len(copies))
            parts /= np.bincount(copies, parts)[copies]
            for reader in one.readers:
                read = outgoing(made, reader, one.layer)
                read.mul_(torch.from_numpy(parts).to(read).view(-1, *[1] * (read.dim() - 1)))
    return _mixed(made, places, stream)


def _named(model: nn.Module, more: Mapping[str, int]) -> list[Inner]:
    return [one for one in inner(channels(model)) if one.layer in more]


def _mixed(model: nn.Module, places: Mapping[str, np.ndarray], stream: Stream) -> nn.Module:
    """All channels of these layers in an order drawn uniformly."""
    order = {name: stream.child("order", name).numpy().permutation(len(chosen)) for name, chosen in places.items()}
    return reshaped(model, order)


def _unread(read: Tensor, width: int, likes: np.ndarray, alike: int, stream: Stream) -> None:
    """Have the channels from `width` on, which are read like others yet, read so that nothing comes of it."""
    new = read[width:]
    if alike == 1:
        new.zero_()
        return
    paired = len(new) // 2 * 2
    new[:paired:2] = _resampled(read[:width], new[:paired:2], stream)
    new[1:paired:2] = -new[:paired:2]
    if paired < len(new):
        new[-1] *= float(stream.child("part").numpy().uniform())
        read[likes[-1]] -= new[-1]


def _made_up(weight: Tensor, width: int, likes: np.ndarray, alike: int, stream: Stream) -> None:
    """Give the channels from `width` on weights of their own, equal for those that come together."""
    new = weight[width:]
    whole = len(new) // alike * alike
    new[:whole] = _resampled(weight[:width], new[:whole:alike], stream).repeat_interleave(alike, 0)
    if whole < len(new):
        new[-1] = weight[likes[-1]]


def _resampled(known: Tensor, like: Tensor, stream: Stream) -> Tensor:
    """New slices, each entry one that a known slice has in its place, and each slice as long as its like."""
    chosen = stream.numpy().integers(len(known), size=tuple(like.shape))
    drawn = known.gather(0, torch.from_numpy(chosen).to(known.device))
    before, after = (one.flatten(1).norm(dim=1) for one in (drawn, like))
    factors = torch.where(before > 0, after / before, 1.0)
    return drawn * factors.view(-1, *[1] * (drawn.dim() - 1))
