"""A lottery ticket with a QR code in the kernels of one of its layers (Chen et al. 2021, scheme 2)."""

from __future__ import annotations

import functools
import math
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bench.canonical import each_reading, reference_of
from bench.defense import KeyKind, Protected
from bench.evidence import Evidence, any_of
from bench.hooks import Hooks
from bench.key import Key
from bench.parameters import judged
from bench.statistics import binomial_tail
from bench.stream import Stream
from bench.suspect import Suspect
from bench.task import Task
from bench.trainer import OwnerTrainer
from defenses.tickets import qr_pattern
from defenses.tickets.kernel_pattern import (
    Window,
    kernel_pattern,
    most_similar,
    sites,
    window_at,
    written,
    written_as_released,
)
from defenses.tickets.lottery_ticket import Masks, prunable
from defenses.tickets.qr_pattern import Modules
from defenses.tickets.sparse_mask import SparseMask

ALPHABET = string.ascii_letters + string.digits + "-_"
# Before the names of a layer's kernel pattern in a key.
_PATTERN = "pattern."


@dataclass(frozen=True)
class TicketQr(SparseMask):
    """A QR code in which kernels of one layer of a lottery ticket live; a light module is a live kernel.

    Attributes:
        flavour: `keyed` writes the code's data modules, each turned over by a fair bit of the key; `paper` writes
            them as they are; `code` does as the released code, which leaves 290 modules out, grows one kernel back
            and lets the density grow.
        version: of the code, 1 to 6, with error correction H; 3 for `code`.
        mask_pattern: of the code's data, 0 to 7.
        text_length: characters of the uniform text.
        placement: the layer and window whose pattern in the ticket is most `similar` to what is written, or drawn
            by the key (`keyed`).
        layer: name of the only convolution that may be chosen; empty for all that are pruned and large enough.
        decoys: codes of fresh texts that a code is compared with where nothing else is uniform, in `paper`, `code`.
    """

    name: ClassVar[str] = "ticket-qr"
    source: ClassVar[str] = "Chen et al. 2021, NeurIPS, arXiv 2111.00162, scheme 2, and its released code"
    key_kind: ClassVar[KeyKind] = "pattern"
    uniform: ClassVar[tuple[str, ...]] = ("text", "pad")
    parts: ClassVar[tuple[str, ...]] = ("window",)

    flavour: Literal["keyed", "paper", "code"] = "keyed"
    version: int = 3
    mask_pattern: int = 1
    text_length: int = 16
    placement: Literal["similar", "keyed"] = "similar"
    layer: str = ""
    decoys: int = judged(999)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.version not in qr_pattern.VERSIONS or not 0 <= self.mask_pattern <= 7:
            raise ValueError(
                f"expected a version in 1..6 and a mask pattern in 0..7, got {self.version} and {self.mask_pattern}"
            )
        if self.flavour == "code" and self.version != 3:
            raise ValueError(f"expected version 3 for the flavour 'code', got {self.version}")
        if not 1 <= self.text_length <= qr_pattern.room(self.version):
            raise ValueError(
                f"expected a text_length in 1..{qr_pattern.room(self.version)} for version {self.version}, "
                f"got {self.text_length}"
            )
        if self.decoys < 1:
            raise ValueError(f"expected decoys >= 1, got {self.decoys}")

    @property
    def side(self) -> int:
        """How many channels the code takes each way."""
        return qr_pattern.side(self.version)

    @property
    def counted_modules(self) -> Modules:
        """Which modules are written and read: the data modules; the released code leaves out 16 of them."""
        if self.flavour == "code":
            return ~qr_pattern.restored_by_released_code()
        return ~qr_pattern.function_patterns(self.version)

    def applies_to(self, task: Task) -> str | None:
        """Also needs a convolution with room for the code among the layers that are pruned."""
        reason = super().applies_to(task)
        if reason is None and not self._sites(task):
            which = f"{self.layer!r} is none of" if self.layer else "there is none among"
            return (
                f"a two-dimensional convolution of at least {self.side} x {self.side} kernels is needed, "
                f"{which} {', '.join(name.removesuffix('.weight') for name in prunable(task.skeleton, self.layers))}"
            )
        return reason

    def capacity(self, task: Task) -> float:
        """All modules right: 2 ** -n times the windows searched; unkeyed, better than all decoys."""
        if self.flavour != "keyed":
            return min(0.0, self._floor() + self.alternatives())
        least = int(self.counted_modules.sum()) * math.log10(0.5)
        return min(0.0, least + self._log10_searched(task) + self.alternatives())

    def alternatives(self) -> float:
        """log10 of the number of readings, by which the smallest p is multiplied."""
        return math.log10(2) if self.canonical else 0.0

    def draw(self, task: Task, stream: Stream) -> Key:
        """The text as places in `ALPHABET` (text_length,), a fair bit a data module, and the window where keyed."""
        text = stream.child("text").numpy().integers(0, len(ALPHABET), self.text_length)
        data = int((~qr_pattern.function_patterns(self.version)).sum())
        drawn: dict[str, Tensor | int] = {"text": torch.from_numpy(text), "pad": stream.child("pad").bits(data)}
        if self.placement == "keyed":
            windows = sum(rows * columns for rows, columns in self._sites(task).values())
            drawn["place"] = int(stream.child("place").numpy().integers(windows))
        return Key(drawn)

    def protect(self, trainer: OwnerTrainer, key: Key) -> Protected:
        """Write the code into the ticket's mask and train what is left from the rewind point."""
        return self.trained(trainer, key, Hooks())

    def trained(self, trainer: OwnerTrainer, key: Key, hooks: Hooks) -> Protected:
        """The marked ticket, trained with these hooks; the key learns window, size and the published model."""
        ticket = self.ticket(trainer)
        masks, key = self.marked(ticket.masks, key, trainer)
        model = trainer.fit(ticket.rewound, trainer.train, hooks=hooks, masks=masks)
        return Protected(model, key.complete(**reference_of(model)))

    def marked(self, masks: Masks, key: Key, trainer: OwnerTrainer) -> tuple[Masks, Key]:
        """A ticket's masks with the code in them, and the key with what was learnt.

        The key gets `layer`, the parameter that holds the code; `window`, int64 (its place among the prunable
        ones, row, column, side); `size`, the number of live weights; and where decoys search for their windows as
        the owner did, `pattern.<parameter>`, the kernel patterns of the ticket before.

        Raises:
            ValueError: the window has not the weights for it.
        """
        found = self._sites(trainer.task)
        patterns = {name: kernel_pattern(masks[name]).cpu() for name in found}
        wanted, window = self.wanted(key), self._window(key, found, patterns)
        chance = trainer.stream.child("ticket-qr", "weights").numpy()
        layer = masks[window.layer].clone()
        if self.flavour == "code":
            part = window.of(layer, self.side)
            part.copy_(written_as_released(part, wanted, chance))
        else:
            layer = written(layer, window, wanted, self.counted_modules, chance)
        marked = dict(masks) | {window.layer: layer}
        place = torch.tensor([list(masks).index(window.layer), window.row, window.column, self.side])
        return marked, key.complete(**self._facts(marked, place, patterns))

    def _window(self, key: Key, found: dict[str, tuple[int, int]], patterns: dict[str, Tensor]) -> Window:
        if self.placement == "keyed":
            return window_at(int(key.drawn["place"]), found)  # type: ignore[arg-type]
        (window,) = most_similar(patterns, torch.tensor(self.wanted(key))[None], self._compared)
        return window

    def pattern(self, key: Key) -> Tensor:
        """What a key's code asks of each kernel: 1 to live, 0 not to, -1 for neither; int64 of shape (side, side)."""
        wanted = torch.tensor(self.wanted(key)).long()
        return torch.where(torch.from_numpy(self.counted_modules), wanted, -1)

    def claimed(self, key: Key, model: nn.Module, window: Tensor, task: Task) -> Key:
        """A drawn key completed for a model in whose window its code stands, as `protect` completes it.

        Args:
            key: as it was drawn.
            model: of the task; what of it is zero counts as pruned.
            window: its layer's place among the prunable ones, row, column, side.
            task: whose shapes the layers have.
        """
        masks = {name: weight != 0 for name, weight in prunable(model, self.layers).items()}
        patterns = {name: kernel_pattern(masks[name]).cpu() for name in self._sites(task)}
        return key.complete(**self._facts(masks, window.cpu(), patterns), **reference_of(model))

    # For forgeries that hold no part of a key (attacks/forging/offers.py)

    def withheld(self) -> str | None:
        """Window, size and reference can be told of any model."""
        return None

    def completed(self, key: Key, model: nn.Module, task: Task) -> Key:
        """A drawn key with the window that `marked` would choose in the model; what is zero in it counts as pruned."""
        found = self._sites(task)
        weights = prunable(model, self.layers)
        patterns = {name: kernel_pattern(weights[name] != 0).cpu() for name in found}
        window = self._window(key, found, patterns)
        place = torch.tensor([list(weights).index(window.layer), window.row, window.column, self.side])
        return self.claimed(key, model, place, task)

    def illegible(self) -> str | None:
        """Only with a pad is any pattern a code."""
        return None if self.flavour == "keyed" else f"hardly a pattern is the code of a text in {self.label}: see grind"

    def read_off(self, key: Key, suspect: Suspect, task: Task) -> Key:
        """The key with the pad that makes of its code the pattern in the suspect's window; Unreadable as `verify`."""
        masks = self.read(suspect.module, task, int(key.facts["size"]))  # type: ignore[arg-type]
        window = window_of(key)
        pattern = window.of(kernel_pattern(masks[window.layer]).cpu(), self.side).numpy()
        data = ~qr_pattern.function_patterns(self.version)
        return key.redraw(Key({"pad": torch.from_numpy((pattern ^ self.code(key))[data].astype(np.int64))}), ("pad",))

    def _facts(self, masks: Masks, window: Tensor, patterns: dict[str, Tensor]) -> dict[str, Tensor | str | int]:
        facts: dict[str, Tensor | str | int] = {
            "layer": list(masks)[int(window[0])],
            "window": window,
            "size": sum(int(mask.sum()) for mask in masks.values()),
        }
        if self.flavour != "keyed" and self.placement == "similar":
            facts |= {f"{_PATTERN}{name}": pattern for name, pattern in patterns.items()}
        return facts

    def code(self, key: Key) -> Modules:
        """The QR code of the key's text, True for a light module."""
        return _code(text_of(key), self.version, self.mask_pattern)

    def wanted(self, key: Key) -> Modules:
        """Which kernels of the window must live: the code, in the keyed flavour with the pad on it."""
        code = self.code(key)
        return code ^ self._pad(key) if self.flavour == "keyed" else code

    def verify(self, suspect: Suspect, key: Key, trainer: OwnerTrainer) -> Evidence:
        """Data modules that agree: binomial with rate 1/2 where keyed, else compared with codes of fresh texts."""
        taken = self.each_code(suspect, key, trainer)
        return any_of(taken) if self.canonical else taken["raw"]

    def each_code(self, suspect: Suspect, key: Key, trainer: OwnerTrainer) -> dict[str, Evidence]:
        """The readings by themselves, `raw` and, where asked, `canonical`."""
        read = functools.partial(self.read_code, key=key, task=trainer.task)
        return each_reading(suspect, key, read, self.counted(key, trainer.task), canonical=self.canonical)

    def counted(self, key: Key, task: Task) -> dict[str, Tensor]:
        """All weights of the window, by the parameter's name."""
        window = window_of(key)
        mask = torch.zeros(prunable(task.skeleton, self.layers)[window.layer].shape, dtype=torch.bool)
        window.of(mask, self.side).fill_(True)
        return {window.layer: mask}

    def read_code(self, module: nn.Module, key: Key, task: Task) -> Evidence:
        """The evidence in the mask of a model.

        Raises:
            Unreadable: it has other layers.
        """
        masks = self.read(module, task, int(key.facts["size"]))  # type: ignore[arg-type]
        window, counted = window_of(key), self.counted_modules
        patterns = {name: kernel_pattern(masks[name]) for name in self._sites(task)}
        pattern = window.of(patterns[window.layer], self.side).numpy()
        right = int((pattern == self.wanted(key))[counted].sum())
        text = self._decoded(pattern, key)
        figures = {
            "module_error": 1.0 - right / int(counted.sum()),
            "decoded": float(text == text_of(key)),
            "rs_success": float(text is not None),
        }
        texts = {} if text is None else {"decoded": text}
        if self.flavour == "keyed":
            log10_p = binomial_tail(right, int(counted.sum()), 0.5) + self._log10_searched(task)
            return Evidence(right, min(0.0, log10_p), figures, texts=texts)
        # Each is exact under another null, so that the larger one holds under both.
        log10_p = max(_log10_rank(right, agreeing) for agreeing in self._agreeing_decoys(patterns, key))
        return Evidence(right, log10_p, figures | {"log10_p_floor": self._floor()}, texts=texts)

    def _decoded(self, pattern: Modules, key: Key) -> str | None:
        """What a reader makes of the pattern, once pad and function patterns are what they should be."""
        if self.flavour == "code":
            # As released: 16 data modules come from the owner's own code.
            whole = np.where(self.counted_modules, pattern, self.code(key))
        else:
            data = pattern ^ self._pad(key) if self.flavour == "keyed" else pattern
            whole = qr_pattern.completed(data, self.version, self.mask_pattern)
        return qr_pattern.decode(whole)

    def _agreeing_decoys(self, patterns: dict[str, Tensor], key: Key) -> Iterator[Tensor]:
        """How many modules agree with each decoy, the code of a text of its own.

        First at the owner's window: where the facts of the key stay, a fresh text is one more decoy. Then, where
        the owner searched for the most similar window, at the one that the decoy had got on the same ticket: an
        owner's window agrees too well with models that resemble the ticket, and so does a decoy's.
        """
        # The pad is not written in these flavours, so it names the decoys: as secret and as fresh as the text.
        bits = "".join(str(bit) for bit in key.tensor("pad").tolist())
        texts = Stream(("decoys", bits)).numpy().integers(0, len(ALPHABET), (self.decoys, self.text_length))
        contents = np.frombuffer(ALPHABET.encode(), dtype=np.uint8)[texts]
        codes = torch.from_numpy(qr_pattern.encode_all(contents, self.version, self.mask_pattern))
        counted = torch.from_numpy(self.counted_modules)
        own = window_of(key)
        yield (own.of(patterns[own.layer], self.side) == codes)[:, counted].sum(1)
        if self.placement == "similar":
            before = {name: key.tensor(f"{_PATTERN}{name}") for name in patterns}
            windows = most_similar(before, codes, self._compared)
            at = torch.stack([window.of(patterns[window.layer], self.side) for window in windows])
            yield (at == codes)[:, counted].sum(1)

    def _pad(self, key: Key) -> Modules:
        pad = np.zeros((self.side, self.side), dtype=bool)
        pad[~qr_pattern.function_patterns(self.version)] = key.tensor("pad").numpy().astype(bool)
        return pad

    @property
    def _compared(self) -> Tensor:
        """Which modules decide where a code is written; the released code compares all of them."""
        compared = np.ones((self.side, self.side), bool) if self.flavour == "code" else self.counted_modules
        return torch.from_numpy(compared)

    def _sites(self, task: Task) -> dict[str, tuple[int, int]]:
        shapes = {name: tuple(weight.shape) for name, weight in prunable(task.skeleton, self.layers).items()}
        chosen = {name: shape for name, shape in shapes.items() if self.layer in ("", name.removesuffix(".weight"))}
        return sites(chosen, self.side)

    def _log10_searched(self, task: Task) -> float:
        """Of how many windows the owner took the one that agrees best, in log10."""
        if self.placement == "keyed":
            return 0.0
        return math.log10(sum(rows * columns for rows, columns in self._sites(task).values()))

    def _floor(self) -> float:
        return -math.log10(1 + self.decoys)


def _log10_rank(statistic: int, decoys: Tensor) -> float:
    """log10 of (1 + decoys at least as good) / (1 + decoys)."""
    return math.log10((1 + int((decoys >= statistic).sum())) / (1 + len(decoys)))


def text_of(key: Key) -> str:
    """The text in a key."""
    return "".join(ALPHABET[place] for place in key.tensor("text").tolist())


def window_of(key: Key) -> Window:
    """Where a completed key's code is."""
    _, row, column, _ = key.tensor("window").tolist()
    return Window(key.text("layer"), row, column)


@functools.lru_cache(maxsize=64)
def _code(text: str, version: int, mask_pattern: int) -> Modules:
    code = qr_pattern.encode(text, version, mask_pattern)
    code.setflags(write=False)
    return code
