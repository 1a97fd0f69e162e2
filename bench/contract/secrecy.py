"""The rule that an attacker's process holds no key, and what of a key can be told from other things."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

import models
from bench import data
from bench.bundle import Bundle
from bench.contract import spying
from bench.contract.rule import Rule, demand, rule
from bench.contract.spy import LONGEST
from bench.contract.workshop import OWNER, Made, Skip, Workshop
from bench.defense import Defense
from bench.key import Value
from bench.planning.dag import JobPlanner

# What has fewer bits, or texts of fewer characters, is found by chance.
LEAST_BITS = 30.0
LEAST_TEXT = 16
# Of a long part, so many bytes are looked for in memory, from one of so many places in it.
WINDOW = LONGEST
PLACES = 8


@dataclass(frozen=True)
class Secret:
    """One way in which one part of a key can be written down.

    Attributes:
        part: its name in the key.
        form: how it is written.
        content: the bytes.
    """

    part: str
    form: str
    content: bytes

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.part} ({self.form})"


@rule("a-spy-finds-no-key", "An attacker's process holds no part of the key: not in any object, not in its memory")
def _a_spy_finds_no_key(defense: Defense, workshop: Workshop) -> str:
    if defense.undefended:
        raise Skip("it protects nothing")
    spy, made = workshop.spy, workshop.protected(defense)
    published = made.published
    secrets, told_apart = secrets_of(defense, made, published)
    if not secrets:
        raise Skip("no part of the key is long enough to be told from other things, or all of it is published")
    task = workshop.task
    planner = JobPlanner(task, OWNER, 1, "cpu", data.prepare(task.info, task.sizes), {})
    job = planner.jobs[planner.attack(defense, spying.Spying())]
    wanted = {one.name: window for one in secrets if (window := _window(one, published, defense, workshop))}
    report = spy.run(job, {"target": published.to_bytes()}, wanted)
    seen = [one.name for one in secrets if hashlib.sha256(one.content).digest() in report.fingerprints]
    demand(not seen, f"expected nothing of the key with the attacker, whose process was handed {', '.join(seen)}")
    held = ", ".join(sorted(report.in_memory))
    demand(not held, f"expected nothing of the key with the attacker, in whose memory stands {held}")
    where = report.unread or "and in its memory"
    return f"{', '.join(told_apart)}: not among {report.objects} objects, {where}"


RULES: tuple[Rule, ...] = (_a_spy_finds_no_key,)


def secrets_of(defense: Defense, made: Made, published: Bundle) -> tuple[list[Secret], list[str]]:
    """What of a key must not be found, in all its forms, and the names of these parts.

    What is in the release or the published model, byte for byte, is no secret, unless the evidence counts
    agreement with it: the uniform part is never public.
    """
    tensors = [*published.tensors.values(), *(t for m in published.models.values() for t in m.state_dict().values())]
    public = {form.content for tensor in tensors for form in _of_tensor("", tensor.detach().cpu())}
    public |= {text.encode() for text in _texts(published.values)}
    public |= {json.dumps(models.describe(m), sort_keys=True).encode() for m in published.models.values()}
    found: list[Secret] = []
    names: list[str] = []
    for part, value in {**made.key.drawn, **made.key.facts}.items():
        forms = list(forms_of(part, value))
        if part not in defense.uniform:
            forms = [] if any(form.content in public for form in forms) else forms
        found += forms
        names += [part] if forms else []
    return found, names


def forms_of(part: str, value: Value) -> Iterator[Secret]:
    """The ways in which a part can be written down; none where it is too short to be told from other things."""
    if isinstance(value, str):
        if len(value) >= LEAST_TEXT:
            yield Secret(part, "text", value.encode())
    elif isinstance(value, torch.Tensor) and _bits(value) >= LEAST_BITS:
        yield from _of_tensor(part, value.detach().cpu())


def _of_tensor(part: str, tensor: torch.Tensor) -> Iterator[Secret]:
    raw = tensor.contiguous()
    content = raw.view(-1).view(torch.uint8).numpy().tobytes() if raw.numel() else b""
    yield Secret(part, "as it is", content)
    yield Secret(part, "hexadecimal", content.hex().encode())
    if tensor.is_floating_point() or tensor.numel() > WINDOW * PLACES:
        return
    numbers = raw.view(-1).numpy()
    yield Secret(part, "as a list", spying.as_list(numbers.tolist()))
    for kind in (np.uint8, np.int32, np.int64, np.float32):
        if numbers.dtype != kind and np.array_equal(numbers.astype(kind), numbers):
            yield Secret(part, f"as {np.dtype(kind).name}", numbers.astype(kind).tobytes())
    if len(numbers) and numbers.min() >= 0 and numbers.max() <= 9:
        yield Secret(part, "as digits", "".join(map(str, numbers.astype(int))).encode())


def _bits(tensor: torch.Tensor) -> float:
    """About how much there is to know of a tensor."""
    distinct = len(torch.unique(tensor))
    return tensor.numel() * math.log2(distinct) if distinct > 1 else 0.0


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def _window(secret: Secret, published: Bundle, defense: Defense, workshop: Workshop) -> bytes | None:
    """So much of a secret as to be unmistakable, and not in what anybody has: the publication and the dataset."""
    content = secret.content
    if secret.form == "as a list":
        # No process keeps it like that; the spy has looked for it among its objects.
        return None
    starts = sorted({(len(content) - WINDOW) * i // PLACES for i in range(PLACES)}) if len(content) > WINDOW else [0]
    known = [] if secret.part in defense.uniform else [published.to_bytes(), workshop.dataset_bytes]
    for start in starts:
        window = content[start : start + WINDOW]
        telling = torch.frombuffer(bytearray(window), dtype=torch.uint8)
        if len(torch.unique(telling)) > 1 and not any(window in one for one in known):
            return window
    return None
