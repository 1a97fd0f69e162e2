"""Parameters of several layers laid end to end, and taken apart again."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def joined(parts: Mapping[str, Tensor]) -> Tensor:
    """Tensors laid end to end in their order, each in row-major order; on the CPU."""
    laid = [part.detach().flatten().cpu() for part in parts.values()]
    return torch.cat(laid) if laid else torch.zeros(0)


def parted(whole: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `joined` laid end to end, in the shapes of `like` and on its devices."""
    parts = whole.split([one.numel() for one in like.values()])
    return {name: part.view(one.shape).to(one.device) for part, (name, one) in zip(parts, like.items(), strict=True)}
