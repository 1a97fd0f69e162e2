"""Walking a suspect's layers along the reference's: what feeds a layer is in order before its rows are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.canonical import alignment
from bench.canonical.alignment import Affine, Part, Rows
from bench.canonical.stripping import Stripping
from bench.errors import Unreadable
from models.channels import Channels, Layer, Side, channels
from models.frames import Normalization, gathered, of_gauges, placed
from models.tracing import NOTHING

_UNSETTLED = -2


class Walk:
    """One pass over the layers, from the input on; arguments as for `bench.canonical.canonicalise`.

    Raises:
        Unreadable: the suspect has another graph than the reference, or takes other inputs.
    """

    def __init__(
        self, suspect: nn.Module, reference: nn.Module, counted: Mapping[str, Tensor], *, signs: bool = True
    ) -> None:
        self._suspect: dict[str, Any] = dict(suspect.named_modules())
        self._reference: dict[str, Any] = dict(reference.named_modules())
        self._counted, self._signs = counted, signs
        self._ours, self._theirs = _graph(reference, "the reference"), _graph(suspect, "the suspect")
        _require_same_graph(self._ours, self._theirs)
        _require_counted(counted, reference)
        # At each of the reference's atoms the suspect's; what the suspect's gauges are multiplied by.
        self._order = np.full(len(self._ours.classes), _UNSETTLED)
        self._factors = np.ones(len(self._theirs.scalable))
        self._fixed = ~self._theirs.scalable
        self._alive, self._weights = _stripped(suspect, self._theirs, self._ours)
        self._rows: dict[str, Rows] = {}
        self._state: dict[str, Tensor] = {}

    def run(self) -> dict[str, Tensor]:
        """The state of the canonical form, by the reference's names; on the CPU."""
        behind = {layer.norm for layer in self._ours.layers}
        for layer in self._ours.layers:
            if layer.kind == "weight":
                self._weigh(layer)
            elif layer.name not in behind:
                self._normalize(layer)
        return self._state

    def _weigh(self, layer: Layer) -> None:
        """Settle and write a convolution or linear layer, with the normalization directly behind it."""
        there, module = self._theirs.by_name[layer.name], self._suspect[layer.name]
        self._pin(layer.inputs, there.inputs, layer.name)
        self._pin(layer.outputs, there.outputs, layer.name)
        for number in np.unique(self._ours.classes[layer.outputs.atoms]):
            if number != NOTHING and self._order[self._ours.members[number][0]] == _UNSETTLED:
                self._settle(number)
        places = self._places(layer.outputs, there.outputs)
        scales = self._scales_before(layer, there, places)
        weight = gathered(self._read_columns(layer), places, scales)
        bias = torch.zeros(len(there.outputs)) if module.bias is None else module.bias.detach().cpu()
        if layer.norm is not None and layer.norm not in self._theirs.by_name:
            bias = self._write_merged(layer, layer.norm, places, scales, gathered(bias, places))
        else:
            bias = gathered(bias, places, scales)
            if layer.norm is not None:
                self._write_norm(layer.norm, places, scales)
        if module.bias is not None and layer.norm is None and self._reference[layer.name].bias is None:
            raise Unreadable(f"layer {layer.name!r} of the suspect has a bias, that of the reference has none")
        self._write(layer.name, {"weight": weight, "bias": bias})
        del self._weights[layer.name]
        self._rows.pop(layer.name, None)

    def _normalize(self, layer: Layer) -> None:
        """Settle and write a normalization that stands alone; its channels are settled."""
        there = self._theirs.by_name.get(layer.name)
        if there is None:
            raise Unreadable(f"expected the suspect to have the normalization {layer.name!r}, got none")
        self._pin(layer.inputs, there.inputs, layer.name)
        places = self._places(layer.inputs, there.inputs)
        before = of_gauges(self._factors, there.inputs)[places]
        theirs = Normalization.of(self._suspect[layer.name]).at(places).between(before, np.ones(len(places)))
        ours = Normalization.of(self._reference[layer.name])
        if not any(f"{layer.name}.{name}" in self._counted for name in ours.state()):
            ours_rows, rows = (torch.stack([norm.slope, norm.offset], 1) for norm in (ours, theirs))
            every = np.arange(len(places))
            products = Rows(ours_rows, rows).pair(every, every)
            self._scale(layer.outputs, there.outputs.gauges[places], places != NOTHING, products)
        self._write_norm(layer.name, places, before)

    # Settling

    def _settle(self, number: int) -> None:
        """Assign the channels of a class and undo their scales, by all layers that make them and can be read by now."""
        atoms, same = self._ours.members[number], self._theirs.class_of.get(self._ours.signatures[number])
        found = np.empty(0, np.int64) if same is None else self._theirs.members[same]
        found = found[self._alive[found]]
        if not len(found):
            self._order[atoms] = NOTHING
            return
        makers = [layer for layer in self._ours.makers[number] if self._is_settled(layer.inputs)]
        parts = [self._part(layer, atoms, found) for layer in makers]
        # Through a gain that is counted a row is known up to its sign.
        blind = any(self._gain_counted(layer) for layer in makers)
        first = makers[0]
        last = self._ours.by_name[first.norm or first.name].outputs
        there = (self._theirs.by_name.get(first.norm or "") or self._theirs.by_name[first.name]).outputs
        side = last.at(_find(last, atoms))
        signed = blind or bool(self._ours.signable[side.gauges].all())
        chosen = alignment.assign(parts, (len(atoms), len(found)), signed=signed)
        self._order[atoms] = np.where(chosen == NOTHING, NOTHING, found[chosen.clip(0)])
        if not blind:
            products = alignment.paired(parts, chosen)
            self._scale(side, there.gauges[_find(there, self._order[atoms])], chosen != NOTHING, products)

    def _scale(self, ours: Side, gauges: np.ndarray, present: np.ndarray, products: alignment.Products) -> None:
        """Undo the scales of the suspect's gauges where they are free and no layer before has settled them."""
        wanted = alignment.ratios(products, signed=bool(self._ours.signable[ours.gauges].all()))
        free = present & ~self._fixed[gauges] & self._ours.scalable[ours.gauges]
        self._factors[gauges[free]] = wanted[free]
        self._fixed[gauges[free]] = True

    def _scales_before(self, layer: Layer, there: Layer, places: np.ndarray) -> np.ndarray:
        """By what the rows of a layer are multiplied: between it and its normalization, its own rows alone decide."""
        gauges = there.outputs.gauges[places]
        if layer.norm is None:
            settled: np.ndarray = self._factors[gauges]
            return settled
        products = self._compared(layer).pair(np.arange(len(places)), places.clip(0), plain=True)
        scales: np.ndarray = np.where(places == NOTHING, 1.0, alignment.ratios(products, signed=self._signs))
        if layer.norm in self._theirs.by_name:
            scales = np.where(self._theirs.scalable[gauges], scales, 1.0)
            scales = np.where(self._theirs.signable[gauges], scales, np.abs(scales))
            self._factors[gauges[places != NOTHING]] = scales[places != NOTHING]
        return scales

    def _pin(self, ours: Side, theirs: Side, name: str) -> None:
        """Settle frozen channels, each in its place."""
        frozen = (ours.atoms != NOTHING) & (self._ours.classes[ours.atoms] == NOTHING)
        frozen &= self._order[ours.atoms] == _UNSETTLED
        if not frozen.any():
            return
        if len(ours) != len(theirs):
            # Only what the model answers may be of another number: nothing reads it.
            if any(np.isin(ours.atoms[frozen], layer.inputs.atoms).any() for layer in self._ours.layers):
                raise Unreadable(f"expected {len(ours)} fixed channels at layer {name!r}, got {len(theirs)}")
            self._order[ours.atoms[len(theirs) :]] = NOTHING
            frozen[len(theirs) :] = False
        self._order[ours.atoms[frozen]] = theirs.atoms[np.flatnonzero(frozen)]

    def _is_settled(self, side: Side) -> bool:
        return bool((self._order[side.atoms[side.atoms != NOTHING]] != _UNSETTLED).all())

    # Reading

    def _places(self, ours: Side, theirs: Side) -> np.ndarray:
        """Where the suspect has what is to stand at each of the reference's indices."""
        return placed(theirs, np.where(ours.atoms == NOTHING, NOTHING, self._order[ours.atoms]), ours.tags)

    def _read_columns(self, layer: Layer) -> Tensor:
        """The suspect's weight with columns as the reference has them; rows are still the suspect's."""
        if layer.name not in self._rows:
            there = self._theirs.by_name[layer.name]
            places = self._places(layer.inputs, there.inputs)
            scales = 1.0 / of_gauges(self._factors, there.inputs)[places]
            self._weights[layer.name] = gathered(self._weights[layer.name], places, scales, dim=1)
            self._rows[layer.name] = self._new_rows(layer)
        return self._weights[layer.name]

    def _compared(self, layer: Layer) -> Rows:
        self._read_columns(layer)
        return self._rows[layer.name]

    def _part(self, layer: Layer, atoms: np.ndarray, found: np.ndarray) -> Part:
        there = self._theirs.by_name[layer.name].outputs
        return Part(self._compared(layer), _find(layer.outputs, atoms), _find(there, found))

    def _new_rows(self, layer: Layer) -> Rows:
        """The rows of both, without what the key counts, and with what is directly behind them folded in."""
        weight, counted = self._reference[layer.name].weight.detach().cpu(), self._counted.get(f"{layer.name}.weight")
        mask = directions = affine = None
        if counted is not None and counted.dtype == torch.bool:
            mask = counted.cpu().flatten(1)
        elif counted is not None:
            directions = counted.cpu()
        if not self._gain_counted(layer):
            names = [f"{layer.name}.bias", f"{layer.norm}.bias", f"{layer.norm}.running_mean"]
            plain = any(name in self._counted for name in names)
            affine = (_affine(self._reference, layer, plain), _affine(self._suspect, layer, plain))
        theirs = self._weights[layer.name].flatten(1).to(weight)
        return Rows(weight.flatten(1), theirs, mask, directions, affine)

    def _gain_counted(self, layer: Layer) -> bool:
        return any(f"{layer.norm}.{name}" in self._counted for name in ("weight", "running_var"))

    # Writing

    def _write_norm(self, name: str, places: np.ndarray, before: np.ndarray) -> None:
        """Write a normalization whose inputs were multiplied by `before`."""
        behind = of_gauges(self._factors, self._theirs.by_name[name].outputs)[places]
        norm = Normalization.of(self._suspect[name]).at(places)
        self._write(name, norm.between(before, behind, self._reference[name].eps).state())
        self._state[f"{name}.num_batches_tracked"] = self._suspect[name].num_batches_tracked.detach().cpu().clone()

    def _write_merged(self, layer: Layer, name: str, places: np.ndarray, before: np.ndarray, bias: Tensor) -> Tensor:
        """Write a normalization where the suspect has it merged: with the reference's statistics, the same function.

        Returns:
            The bias of the layer before it: the reference's, where it has one.
        """
        ours, s = Normalization.of(self._reference[name]), torch.from_numpy(before)
        held = self._reference[layer.name].bias
        own = torch.zeros(len(places)) if held is None else held.detach().cpu()
        # What is counted is no business of the reference's.
        own = self._uncounted(f"{layer.name}.bias", own, 0.0)
        mean = self._uncounted(f"{name}.running_mean", ours.mean, 0.0) - own
        var = self._uncounted(f"{name}.running_var", ours.var, 1.0)
        norm = Normalization.standing_for(bias.double(), mean / s, var / s**2, ours.eps)
        norm = norm._replace(gain=norm.gain * torch.from_numpy(places != NOTHING))
        behind = of_gauges(self._factors, self._theirs.by_name[layer.name].outputs)[places]
        norm = norm.between(before, behind)
        self._write(name, norm._replace(mean=norm.mean + own).state())
        self._state[f"{name}.num_batches_tracked"] = self._reference[name].num_batches_tracked.detach().cpu().clone()
        return own

    def _uncounted(self, name: str, values: Tensor, instead: float) -> Tensor:
        mask = self._counted.get(name)
        return values if mask is None else values.masked_fill(mask.cpu(), instead)

    def _write(self, name: str, values: Mapping[str, Tensor]) -> None:
        for part, value in values.items():
            held = getattr(self._reference[name], part)
            if held is not None:
                # A copy, because what needed no change may still be the suspect's own.
                self._state[f"{name}.{part}"] = value.to(held.dtype, copy=True)


def _graph(model: nn.Module, whose: str) -> Channels:
    try:
        return channels(model)
    except ValueError as error:
        raise Unreadable(f"{whose} cannot be aligned: {error}") from error


def _require_same_graph(ours: Channels, theirs: Channels) -> None:
    for (name, what), (other, found) in zip(ours.graph, theirs.graph, strict=False):
        merged = what.startswith("BatchNorm") and found.startswith("Identity")
        if name != other or (what != found and not merged):
            raise Unreadable(f"another graph than the reference: expected {name} to be {what}, got {other}: {found}")
    if len(ours.graph) != len(theirs.graph):
        raise Unreadable(f"another graph than the reference: expected {len(ours.graph)} nodes, got {len(theirs.graph)}")


def _require_counted(counted: Mapping[str, Tensor], reference: nn.Module) -> None:
    state = reference.state_dict()
    for name, what in counted.items():
        if name not in state:
            raise Unreadable(f"the key counts {name}, which the reference has not")
        shape = tuple(state[name].shape)
        if what.dtype == torch.bool and what.shape != state[name].shape:
            raise Unreadable(f"the key counts positions of {tuple(what.shape)} in {name}, which has shape {shape}")
        if what.dtype != torch.bool and (what.dim() != 2 or what.shape[1:] != state[name][0].flatten().shape):
            raise Unreadable(f"the key counts directions of {tuple(what.shape)} in {name}, which has shape {shape}")


def _stripped(suspect: nn.Module, theirs: Channels, ours: Channels) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Which of the suspect's atoms are to be assigned, and its weights by layer without what the others gave."""
    widths = {signature: len(members) for signature, members in zip(ours.signatures, ours.members, strict=True)}
    classes = zip(theirs.signatures, theirs.members, strict=True)
    if any(len(members) > widths.get(signature, 0) for signature, members in classes):
        stripping = Stripping(suspect, theirs)
        stripping.run()
        return stripping.alive, stripping.weights
    names = [layer.name for layer in theirs.layers if layer.kind == "weight"]
    modules: list[Any] = [suspect.get_submodule(name) for name in names]
    weights = {name: module.weight.detach().cpu() for name, module in zip(names, modules, strict=True)}
    return np.ones(len(theirs.classes), bool), weights


def _affine(modules: Mapping[str, Any], layer: Layer, plain: bool) -> Affine:
    """What a layer's bias and the normalization directly behind it make of its rows; `plain` without offsets."""
    module = modules[layer.name]
    count = len(module.weight)
    offset = torch.zeros(count).double() if module.bias is None else module.bias.detach().cpu().double()
    slope = torch.ones(count).double()
    if layer.norm is not None and not isinstance(modules[layer.norm], nn.Identity):
        norm = Normalization.of(modules[layer.norm])
        slope, offset = norm.slope, norm.slope * offset + norm.offset
    return Affine(slope, torch.zeros_like(offset) if plain else offset)


def _find(side: Side, atoms: np.ndarray) -> np.ndarray:
    """Where channels stand among the rows of a layer; NOTHING for those that are none."""
    return side.find(atoms, np.zeros(len(atoms), np.int64))
