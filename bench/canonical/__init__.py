"""The canonical form of a suspect: the owner's reference decides the order, the scale and the sign of every channel.

Moves that keep a model's function (`models.channels`) hide a white-box mark at no cost; this undoes them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import models
from bench.canonical.stripping import Stripping
from bench.canonical.walk import Walk
from bench.errors import Unreadable
from bench.evidence import Evidence, any_of
from bench.key import Key
from bench.question import Question
from bench.suspect import Suspect
from models.channels import Channels, channels

# Before the names of its state in a key.
REFERENCE = "reference."
# What it is, beside its state.
ARCHITECTURE = "reference"


def canonicalise(
    suspect: nn.Module, reference: nn.Module, counted: Mapping[str, Tensor], *, signs: bool = True
) -> nn.Module:
    """A copy of the suspect in the reference's architecture, order, scales and signs.

    The function stays, unless the suspect has more channels than the reference that do something: those that fit
    least are left out. Where it has fewer, zeros stand in their places; where its normalization was merged, the
    reference's statistics give it one again. Scales are undone by the ratio of norms, signs by correlation.

    Args:
        suspect: stays as it is.
        reference: a model of the owner.
        counted: what the key counts, which is neither compared nor measured. Parameter name to a bool mask of its
            shape, or to float directions (T, D) over a layer's flattened fan-in, all of whose combinations are
            taken out of every row. Where a normalization's gain or variance is counted, the positive scales behind
            it stay as they are.
        signs: whether the signs between a layer and its normalization are undone as well; not where they are what
            the key counts, since the reference's own would be read instead.

    Returns:
        A model on the CPU in evaluation mode.

    Raises:
        Unreadable: the suspect has another graph than the reference, or takes other inputs.
    """
    return models.holding(reference, Walk(suspect, reference, counted, signs=signs).run())


def needed_widths(model: nn.Module) -> tuple[int, ...]:
    """How many channels each layer makes, as `models.widths.widths`, without those that the function does not need.

    Raises:
        Unreadable: the model cannot be followed.
    """
    try:
        graph = channels(model)
    except ValueError as error:
        raise Unreadable(str(error)) from error
    structure = json.dumps(models.describe(model), sort_keys=True)
    names = ("needed widths", structure)
    return Question.about(names, model.state_dict().values(), lambda: _needed(model, graph)).answer()


def _needed(model: nn.Module, graph: Channels) -> tuple[int, ...]:
    stripping = Stripping(model, graph)
    stripping.run()
    layers = [layer for layer in graph.layers if layer.kind == "weight"]
    return tuple(int(stripping.alive[layer.outputs.atoms].sum()) for layer in layers)


def reference_of(model: nn.Module) -> dict[str, Tensor | str]:
    """What a key has to keep of the published model, for `Key.complete`."""
    kept = {f"{REFERENCE}{name}": value.detach().cpu().clone() for name, value in model.state_dict().items()}
    return {**kept, ARCHITECTURE: json.dumps(models.describe(model), sort_keys=True)}


def readings(
    suspect: Suspect,
    key: Key,
    read: Callable[[nn.Module], Evidence],
    counted: Mapping[str, Tensor],
    *,
    canonical: bool,
) -> Evidence:
    """What a white-box defense reads in a suspect as it is, and, if asked, in its canonical form as well.

    Args:
        suspect: of white-box access.
        key: with what `reference_of` gave.
        read: evidence of one model; may raise Unreadable.
        counted: as for `canonicalise`.
        canonical: whether both readings are taken; then the smaller p counts twice.
    """
    taken = each_reading(suspect, key, read, counted, canonical=canonical)
    return any_of(taken) if canonical else taken["raw"]


def each_reading(
    suspect: Suspect,
    key: Key,
    read: Callable[[nn.Module], Evidence],
    counted: Mapping[str, Tensor],
    *,
    canonical: bool,
) -> dict[str, Evidence]:
    """The readings by themselves, `raw` and, if asked, `canonical`, for schemes that have further ones.

    Arguments as for `readings`.
    """
    module = suspect.module
    taken = {"raw": _read(read, module)}
    if canonical:
        taken["canonical"] = _read(lambda model: read(canonical_form(model, key, counted)), module)
    return taken


def canonical_form(suspect: nn.Module, key: Key, counted: Mapping[str, Tensor], *, signs: bool = True) -> nn.Module:
    """The suspect aligned to the reference in the key, on the suspect's device; see `canonicalise`."""
    device = next((parameter.device for parameter in suspect.parameters()), torch.device("cpu"))
    return canonicalise(suspect, stored_reference(key), counted, signs=signs).to(device)


def stored_reference(key: Key) -> nn.Module:
    """The owner's model that a key keeps, in evaluation mode; shares the key's tensors.

    Raises:
        Unreadable: it keeps none.
    """
    stored = {name.removeprefix(REFERENCE): value for name, value in key.facts.items() if name.startswith(REFERENCE)}
    state = {name: value for name, value in stored.items() if isinstance(value, Tensor)}
    text = key.facts.get(ARCHITECTURE)
    if not isinstance(text, str):
        raise Unreadable("the key has no reference model")
    empty = _outlined(text)
    if {name: value.shape for name, value in state.items()} != {n: v.shape for n, v in empty.state_dict().items()}:
        raise Unreadable("the key's reference model is not whole")
    return models.holding(empty, state)


@functools.lru_cache(maxsize=32)
def _outlined(text: str) -> nn.Module:
    return models.outline(json.loads(text))


def _read(read: Callable[[nn.Module], Evidence], model: nn.Module) -> Evidence:
    try:
        return read(model)
    except Unreadable as error:
        return Evidence.unreadable(str(error))
