"""What a suspect says under passports: the signs of its raw scales, and what the owner's branch still answers in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.errors import Unreadable
from bench.evidence import Evidence
from bench.split import Split
from bench.statistics import binomial_tail
from bench.suspect import Suspect
from defenses.passports.branches import Branches, raw_scale

# Held-out inputs that the branch is asked, and fresh passports that it is compared with.
ASKED, FRESH = 100, 100


class Seen(NamedTuple):
    """What does not depend on the owner's bits.

    Attributes:
        signs: by layer, whether raw scales are positive; of the layers that can be read.
        held: how far the private branch still holds.
    """

    signs: Mapping[str, Tensor]
    held: Evidence


def signs_of(model: nn.Module, passports: Mapping[str, Tensor], widths: Mapping[str, int]) -> dict[str, Tensor]:
    """Whether raw scales are positive, by layer, bool of shape (C,) on the CPU.

    A layer that is not there any more, or of another width, is left out: a head that was replaced, say.

    Args:
        model: any.
        passports: by layer.
        widths: channels of each layer.

    Raises:
        Unreadable: no layer can be read.
    """
    found: dict[str, Tensor] = {}
    reasons = []
    for name, width in widths.items():
        try:
            raw = raw_scale(model, name, passports[name]).cpu()
            if len(raw) != width:
                raise Unreadable(f"expected {width} channels in {name!r}, got {len(raw)}")
            found[name] = raw > 0
        except Unreadable as error:
            reasons.append(str(error))
    if not found:
        raise Unreadable("; ".join(reasons))
    return found


def signature(signs: Mapping[str, Tensor], bits: Tensor, widths: Mapping[str, int]) -> Evidence:
    """Bits that signs agree with; binomial with rate 1/2, since the bits are uniform.

    Args:
        signs: from `signs_of`.
        bits: of all layers laid end to end, in {0, 1}.
        widths: bits of each layer, in the same order.
    """
    parts = dict(zip(widths, bits.split(list(widths.values())), strict=True))
    right = sum(int((one == (parts[name] == 1)).sum()) for name, one in signs.items())
    read = sum(len(one) for one in signs.values())
    figures = {"signature_match": right / read, "signature_bits": float(read)}
    return Evidence(right, binomial_tail(right, read, 0.5), figures)


def fidelity(net: Branches, asked: Split, fresh: Iterable[Mapping[str, Tensor]], classes: int) -> Evidence:
    """Right answers of the private branch; binomial at the best rate that fresh passports reach in the same net.

    Where fresh passports do as well p is 1, and no further ones are drawn.

    Args:
        net: the owner's branch in a suspect; its passports are others afterwards.
        asked: inputs with their labels, at least one.
        fresh: passports by layer, as many as are compared with.
        classes: the rate is never less than one over them.

    Raises:
        Unreadable: the suspect does not take such inputs.
    """
    right = _right(net, asked)
    best = 0
    for passports in fresh:
        for name, layer in net.passports.items():
            layer.renew(passports[name])
        best = max(best, _right(net, asked))
        if best >= right:
            break
    figures = {"private_accuracy": right / len(asked), "fresh_accuracy": best / len(asked)}
    if best >= right:
        return Evidence(right, 0.0, figures)
    return Evidence(right, binomial_tail(right, len(asked), max(best / len(asked), 1.0 / classes)), figures)


def same_state(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules hold the same tensors by the same names, bit for bit."""
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(one.cpu(), theirs[n].cpu()) for n, one in ours.items())


def _right(net: Branches, asked: Split) -> int:
    # As a suspect is asked: one that takes other inputs is no error.
    return int((Suspect.of(net.private).answers(asked.x).cpu() == asked.y.cpu()).sum())
