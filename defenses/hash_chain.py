"""Hash chain: triggers and their labels are derived from a secret seed, not chosen (Zhu et al. 2020)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bench.defense import Protected
from bench.evidence import Evidence
from bench.key import Key
from bench.stream import Stream
from bench.suspect import Suspect
from bench.task import Task
from bench.trainer import OwnerTrainer
from defenses.triggers.answers import right_answers
from defenses.triggers.scheme import TrainedIn

SEED_BYTES = 32
# What SHAKE-256 is asked for at one link, so that no two of its answers are of one question.
INPUT, LABEL = b"hash-chain input", b"hash-chain label"
WORD_BYTES = 4


@dataclass(frozen=True)
class HashChain(TrainedIn):
    """Noise and labels that follow from the links of a one-way chain, so that nobody can fit triggers to a model."""

    name: ClassVar[str] = "hash-chain"
    source: ClassVar[str] = "Zhu et al. 2020, EURASIP Journal on Image and Video Processing, 10.1186/s13640-020-00527-1"
    uniform: ClassVar[tuple[str, ...]] = ("seed",)
    parts: ClassVar[tuple[str, ...]] = ("seed",)

    def draw(self, task: Task, stream: Stream) -> Key:
        """The seed, uint8 of shape (32,)."""
        del task
        return Key({"seed": _bytes(stream.child("seed").bytes(SEED_BYTES))})

    def protect(self, trainer: OwnerTrainer, key: Key) -> Protected:
        """Train with the chain's triggers appended to each batch; the seed is all that the owner keeps."""
        return Protected(self.trained(trainer, trainer.train, self.derived(key, trainer.task)), key)

    def verify(self, suspect: Suspect, key: Key, trainer: OwnerTrainer) -> Evidence:
        """The chain's triggers that get their label; binomial with rate 1/K."""
        return right_answers(suspect, self.derived(key, trainer.task), trainer)

    # For forgeries (attacks/forging/offers.py)

    def withheld(self) -> str | None:
        """The seed is all there is."""
        return None

    def completed(self, key: Key, model: nn.Module, task: Task) -> Key:
        """The key as it was drawn."""
        del model, task
        return key

    def advanced(self, key: Key, links: int) -> Key:
        """The key whose triggers begin so many links later in this one's chain; its seed is the link before them."""
        return key.redraw(Key({"seed": _bytes(advance(key.tensor("seed").cpu().numpy().tobytes(), links))}), ("seed",))

    def derived(self, key: Key, task: Task) -> Key:
        """The triggers of the seed: `inputs` (T, …) as the model takes them, `labels` int64 (T,)."""
        found = list(links(key.tensor("seed").cpu().numpy().tobytes(), self.triggers))
        raw = torch.stack([raw_input(link, task) for link in found])
        labels = torch.tensor([label(link, task.classes) for link in found])
        return Key({"inputs": task.normalised(raw), "labels": labels})


def links(seed: bytes, count: int) -> Iterator[bytes]:
    """The first links of the chain, 32 bytes each: h_0 = SHA-256(seed), h_(i+1) = SHA-256(h_i)."""
    link = seed
    for _ in range(count):
        link = hashlib.sha256(link).digest()
        yield link


def advance(seed: bytes, count: int) -> bytes:
    """Link h_(count - 1) of a seed's chain: as a seed it has the links from h_count on; the seed itself for 0."""
    link = seed
    for _ in range(count):
        link = hashlib.sha256(link).digest()
    return link


def _bytes(content: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())


def raw_input(link: bytes, task: Task) -> Tensor:
    """The trigger of a link: a byte of SHAKE-256 for each number, in the order of memory.

    Returns:
        float32 of the task's shape, in [0, 1] in steps of 1/255; of points in [-1, 1] in steps of 2/255.
    """
    content = hashlib.shake_256(INPUT + link).digest(int(np.prod(task.shape)))
    raw = torch.frombuffer(bytearray(content), dtype=torch.uint8).float().view(task.shape) / 255
    return 2 * raw - 1 if task.kind == "points" else raw


def label(link: bytes, classes: int) -> int:
    """The label of a link, in [0, classes): of the words of SHAKE-256 the first that is taken."""
    words = 1
    while True:
        # Asked for more it begins with what it gave before.
        last = hashlib.shake_256(LABEL + link).digest(words * WORD_BYTES)[-WORD_BYTES:]
        found = accepted(int.from_bytes(last, "big"), classes, 256**WORD_BYTES)
        if found is not None:
            return found
        words += 1


def accepted(word: int, classes: int, words: int) -> int | None:
    """The label of a word that is uniform in [0, words), or None; so each label belongs to equally many words.

    Raises:
        ValueError: more classes than words.
    """
    if not 1 <= classes <= words:
        raise ValueError(f"expected 1 to {words} classes, got {classes}")
    return word % classes if word < words // classes * classes else None
