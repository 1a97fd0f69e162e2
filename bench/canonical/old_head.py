"""The owner's classifier in the place of a suspect's, which may have been replaced."""

from __future__ import annotations

from torch import nn

import models
from bench.canonical import REFERENCE
from bench.errors import Unreadable
from bench.key import Key
from models.blocks import sharing

HEAD = "head"


def owned_head(model: nn.Module, key: Key) -> nn.Linear:
    """The owner's head out of the reference in a key, to be put on a suspect; on the suspect's device.

    Raises:
        Unreadable: the suspect has no head, or one that reads another number of features; or the key has none.
    """
    names = [part for part in ("weight", "bias") if f"{REFERENCE}{HEAD}.{part}" in key.facts]
    if "weight" not in names:
        raise Unreadable("the key has no head of the owner's")
    state = {part: key.tensor(f"{REFERENCE}{HEAD}.{part}") for part in names}
    try:
        there = models.layer(model, HEAD)
    except KeyError as error:
        raise Unreadable(str(error.args[0])) from error
    # By shape and not in place: the suspect's head may have been for another number of classes.
    classes, width = state["weight"].shape
    found = getattr(there, "in_features", type(there).__name__)
    if found != width:
        raise Unreadable(f"expected a head of {width} inputs, got {found}")
    head = nn.Linear(width, classes, bias="bias" in state)
    head.load_state_dict(state)
    return head.to(next(there.parameters()).device)


def with_old_head(model: nn.Module, key: Key) -> nn.Module:
    """The suspect with the owner's head, sharing all else; raises as `owned_head`."""
    return sharing(model, {HEAD: owned_head(model, key)})
