"""Structural watermark in the pruning rates of layers (Zhao, Yao, Wu and Zhang 2021, arXiv 2107.08688)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import nn

import models
from bench.canonical import needed_widths
from bench.defense import Defense, KeyKind, Protected
from bench.effort import Effort, of_training
from bench.errors import Unreadable
from bench.evidence import Evidence, any_of
from bench.key import Key
from bench.parameters import judged, require_training
from bench.plugin import Access
from bench.stage import CleanModel, Stage
from bench.statistics import binomial_tail
from bench.stream import Stream
from bench.suspect import Suspect
from bench.task import Task
from bench.trainer import OwnerTrainer
from defenses.structure.cells import Cells, most_bits
from defenses.structure.symbol_code import SymbolCode
from models.channels import channels
from models.pruning import Importance, natural_widths, with_widths
from models.surgery import Inner, inner
from models.widths import widths


@dataclass(frozen=True)
class ChannelRate(Defense):
    """The number of channels that each layer keeps says a symbol of a uniform message; weights say nothing.

    Pruned are the least important channels of the clean model, then it is trained on. Only layers whose channels
    nobody else has a say in carry symbols: those inside residual blocks, and all of a plain net.

    Attributes:
        form: `direct` puts each layer into the middle of its cell; `nearest` goes from the width that pruning
            all layers by importance would leave to the nearest one that says the symbol.
        cell: least number of channels in a cell; with 1 the capacity is largest, and no change is tolerated.
        bits: of each layer's symbol; 0 for as many as it can carry.
        low: least pruning rate, in [0, 1).
        high: the rate that is too much, in (low, 1].
        natural: share of all channels that pruning by importance leaves out, in [0, 1); for `nearest`.
        importance: of a channel: the sum of its absolute weights (`filter`), or the size of the gain of its
            normalization (`scale`), where there is one.
        dense: whether hidden linear layers carry symbols as well as convolutions.
        layers: how many layers the key chooses; 0 for all. It chooses the order in any case.
        spare: how many of them carry the parity symbols of a Reed-Solomon code; 0 for no code.
        epochs: of training after pruning.
        learning_rate: of that training.
        canonical: verify a second time without the channels that do nothing: dead, doubled or cancelling ones.
    """

    name: ClassVar[str] = "channel-rate"
    family: ClassVar[str] = "structural-watermark"
    source: ClassVar[str] = "Zhao et al. 2021, WIFS, arXiv 2107.08688"
    access: ClassVar[Access] = "white-box"
    key_kind: ClassVar[KeyKind] = "architecture"
    uniform: ClassVar[tuple[str, ...]] = ("message",)
    parts: ClassVar[tuple[str, ...]] = ("message", "order")

    form: Literal["direct", "nearest"] = "direct"
    cell: int = 1
    bits: int = 0
    low: float = 0.0
    high: float = 0.5
    natural: float = 0.2
    importance: Importance = "filter"
    dense: bool = False
    layers: int = 0
    spare: int = 0
    epochs: int = 20
    learning_rate: float = 0.02
    canonical: bool = judged(False)

    def __post_init__(self) -> None:
        if not (0 <= self.low < self.high <= 1 and 0 <= self.natural < 1):
            raise ValueError(
                f"expected 0 <= low < high <= 1 and natural in [0, 1), got {self.low}, {self.high} and {self.natural}"
            )
        if self.cell < 1 or min(self.bits, self.layers, self.spare) < 0:
            raise ValueError(
                "expected cell >= 1 and bits, layers and spare >= 0, "
                f"got {self.cell}, {self.bits}, {self.layers} and {self.spare}"
            )
        require_training(self.epochs, self.learning_rate)

    # What can carry what

    def applies_to(self, task: Task) -> str | None:
        """Needs a net whose channels can be followed, and enough layers that can be pruned."""
        try:
            found = self.cells(task)
            self._code(found)
        except ValueError as error:
            return str(error)
        if not found or len(found) < self.layers:
            wanted = f"{max(1, self.layers)} layers that carry {self.bits or 'any'} bits"
            return f"{wanted} are needed, {task.model} has {len(found)}"
        return None

    def cells(self, task: Task) -> dict[str, Cells]:
        """The cells of each layer that can carry a symbol, by its name."""
        low, high = Fraction(str(self.low)), Fraction(str(self.high))
        carriers = self._carriers(task)
        room = {one.layer: most_bits(one.width, low, high, self.cell) for one in carriers}
        able = [one for one in carriers if room[one.layer] >= max(1, self.bits)]
        # Symbols of a code over layers are all of one size.
        least = min((room[one.layer] for one in able), default=0) if self.spare else 0
        found = {}
        for one in able:
            bits = self.bits or least or room[one.layer]
            if self.form == "direct":
                found[one.layer] = Cells.covering(one.width, low, high, bits)
            else:
                found[one.layer] = Cells.repeating(one.width, low, high, bits, self.cell)
        return found

    def _carriers(self, task: Task) -> list[Inner]:
        plain = _plain(task.model, task.classes, task.shape)
        return [one for one in plain.inner if self.dense or one.layer not in plain.linear]

    def _code(self, cells: Mapping[str, Cells]) -> SymbolCode | None:
        if not self.spare:
            return None
        bits = min((one.bits for one in cells.values()), default=0)
        return SymbolCode(bits, self.layers or len(cells), self.spare)

    def _message_bits(self, chosen: Sequence[Cells]) -> int:
        carried = chosen[: len(chosen) - self.spare]
        return sum(one.bits for one in carried)

    def capacity(self, task: Task) -> float:
        """All bits right; where the key chooses layers, with the largest ones. One reading more costs a factor of 2."""
        found = sorted(self.cells(task).values(), key=lambda one: -one.bits)
        return (int(self.canonical) - self._message_bits(found[: self.layers or None])) * math.log10(2)

    def stages(self) -> tuple[Stage, ...]:
        """The clean model, which is pruned."""
        return (CleanModel(),)

    def effort(self, task: Task) -> Effort:
        """The training after pruning."""
        return of_training(task, task.sizes.train, self.epochs)

    # The key

    def draw(self, task: Task, stream: Stream) -> Key:
        """The order of layers, as positions among those that carry symbols, and the message, (n,) in {0, 1}."""
        found = list(self.cells(task).values())
        order = torch.from_numpy(stream.child("order").numpy().permutation(len(found)))[: self.layers or None]
        count = self._message_bits([found[place] for place in order.tolist()])
        return Key({"message": stream.child("message").bits(count), "order": order})

    def symbols(self, key: Key, task: Task) -> dict[str, int]:
        """What each layer is to say, in the order of the key."""
        every = self.cells(task)
        found = list(every.items())
        chosen = [found[place] for place in key.tensor("order").tolist()]
        carrying = chosen[: len(chosen) - self.spare]
        parts = key.tensor("message").split([cells.bits for _, cells in carrying])
        said = [int("".join(str(bit) for bit in part.tolist()), 2) for part in parts]
        code = self._code(every)
        return dict(zip((layer for layer, _ in chosen), code.encode(said) if code else said, strict=True))

    def wanted(self, key: Key, task: Task, model: nn.Module) -> dict[str, int]:
        """The width that each layer of a model is to get."""
        cells, said = self.cells(task), self.symbols(key, task)
        if self.form == "direct":
            return {layer: cells[layer].central(symbol) for layer, symbol in said.items()}
        graph = channels(model)
        kept = natural_widths(model, inner(graph), self.importance, self.natural)
        return {layer: cells[layer].nearest(symbol, Fraction(kept[layer])) for layer, symbol in said.items()}

    # Protecting and verifying

    def protect(self, trainer: OwnerTrainer, key: Key) -> Protected:
        """Prune the clean model to the wanted widths, least important channels first, and train it on."""
        model = trainer.clean()
        wanted = self.wanted(key, trainer.task, model)
        model = with_widths(model, wanted, self.importance, trainer.stream.child("doubled").numpy())
        recipe = trainer.recipe(epochs=self.epochs, learning_rate=self.learning_rate)
        return Protected(trainer.fit(model, trainer.train, recipe), key)

    def verify(self, suspect: Suspect, key: Key, trainer: OwnerTrainer) -> Evidence:
        """Bits that agree with the message; binomial with rate 1/2, since the message is uniform."""
        module, task = suspect.module, trainer.task
        taken = {"raw": self._of(lambda: widths(module), key, task)}
        if not self.canonical:
            return taken["raw"]
        return any_of(taken | {"canonical": self._of(lambda: needed_widths(module), key, task)})

    def _of(self, count: Callable[[], Sequence[int]], key: Key, task: Task) -> Evidence:
        try:
            found = count()
        except (ValueError, Unreadable) as error:
            return Evidence.unreadable(str(error))
        return self.judge(found, key, task)

    def judge(self, found: Sequence[int], key: Key, task: Task) -> Evidence:
        """What an architecture says, from its widths alone (`models.widths`: of a live module or an exported program).

        Args:
            found: width of each convolution and linear layer, in the order in which they run.
            key: the owner's.
            task: of the owner's model; its plain architecture says what was pruned.
        """
        plain = _plain(task.model, task.classes, task.shape).layers
        if len(found) != len(plain):
            return Evidence.unreadable(f"expected {len(plain)} layers with weights, got {len(found)}")
        there, cells, said = dict(zip(plain, found, strict=True)), self.cells(task), self.symbols(key, task)
        read = {layer: cells[layer].symbol(there[layer]) for layer in said}
        bits, message = self._bits(read, cells), key.tensor("message").tolist()
        right = sum(one == other for one, other in zip(bits, message, strict=True))
        figures = {
            "bit_error": 1.0 - right / len(message),
            "layers_wrong": float(sum(read[layer] != symbol for layer, symbol in said.items())),
            "channels_kept": sum(there[layer] for layer in said) / sum(cells[layer].full for layer in said),
        }
        return Evidence(right, binomial_tail(right, len(message), 0.5), figures)

    # For forgeries (attacks/forging/offers.py)

    def withheld(self) -> str | None:
        """Nothing is learnt while protecting."""
        return None

    def completed(self, key: Key, model: nn.Module, task: Task) -> Key:
        """The key as it was drawn."""
        del model, task
        return key

    def illegible(self) -> str | None:
        """Any widths say some message."""
        return None

    def read_off(self, key: Key, suspect: Suspect, task: Task) -> Key:
        """The key with the message that the suspect's widths say in its order of layers.

        Raises:
            Unreadable: another number of layers, or one that cannot be followed.
        """
        plain = _plain(task.model, task.classes, task.shape).layers
        try:
            found = dict(zip(plain, widths(suspect.module), strict=True))
        except ValueError as error:
            raise Unreadable(str(error)) from error
        cells = self.cells(task)
        read = {layer: cells[layer].symbol(found[layer]) for layer in self.symbols(key, task)}
        return key.redraw(Key({"message": torch.tensor(self._bits(read, cells))}), ("message",))

    def _bits(self, read: Mapping[str, int], cells: Mapping[str, Cells]) -> list[int]:
        """The message in the symbols of the layers, corrected where there is a code."""
        code, sizes = self._code(cells), [cells[layer].bits for layer in read]
        symbols = code.decode(list(read.values())) if code else list(read.values())
        parts = [f"{symbol:0{size}b}" for symbol, size in zip(symbols, sizes, strict=False)]
        return [int(bit) for part in parts for bit in part]


class _Plain(NamedTuple):
    """Of an architecture: its layers with weights as they run, those whose width is free, and those that are linear."""

    layers: tuple[str, ...]
    inner: tuple[Inner, ...]
    linear: frozenset[str]


@functools.lru_cache(maxsize=32)
def _plain(model: str, classes: int, shape: tuple[int, ...]) -> _Plain:
    # Each verification asks for it several times, and following a model takes longer than reading one.
    net = models.skeleton(model, classes, shape)
    graph = channels(net)
    linear = frozenset(name for name, module in net.named_modules() if isinstance(module, nn.Linear))
    return _Plain(tuple(layer.name for layer in graph.layers if layer.kind == "weight"), inner(graph), linear)
