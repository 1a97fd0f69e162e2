"""Building a model by name, describing any model that descends from one, and rebuilding it elsewhere.

A description is the name and arguments of the architecture, and each layer that differs from it: so a model
whose channels were cut, padded or whose normalization was merged is stored and judged like any other.
"""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Architecture name -> module that defines a class of that `name`.
_MODULES = {
    "vgg8": "models.vgg",
    "resnet8": "models.resnet",
    "resnet20": "models.resnet",
    "lenet5": "models.lenet",
    "resnet18": "models.torchvision_nets",
    "vgg16-bn": "models.torchvision_nets",
    "alexnet": "models.alexnet",
    "alexnet-small": "models.alexnet",
    "pointnet": "models.pointnet",
    "pointnet-basic": "models.pointnet",
}

# Layer type -> the attributes that its constructor takes.
_LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv1d: ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias"),
    nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias"),
    nn.Linear: ("in_features", "out_features", "bias"),
    nn.BatchNorm1d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    nn.BatchNorm2d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    nn.GroupNorm: ("num_groups", "num_channels", "eps", "affine"),
    nn.ReLU: (),
    nn.Identity: (),
    nn.Dropout: ("p",),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding"),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.AdaptiveMaxPool1d: ("output_size",),
}
_BY_NAME = {kind.__name__: kind for kind in _LAYERS}


def names() -> tuple[str, ...]:
    """The names of all architectures."""
    return tuple(_MODULES)


def module_of(name: str) -> str:
    """The module that holds an architecture."""
    return _MODULES[name]


def build(name: str, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """A freshly initialised model; it draws from torch's global generator.

    Args:
        name: one of `names()`.
        classes: number of outputs.
        shape: shape of one input, without the batch dimension.

    Raises:
        ValueError: an unknown name, or an input shape that the architecture does not take.
    """
    if name not in _MODULES:
        raise ValueError(f"unknown model {name!r}.{_nearest(name, _MODULES)}")
    module = importlib.import_module(_MODULES[name])
    model: nn.Module = module.ARCHITECTURES[name](classes, tuple(shape))
    model.architecture = {"name": name, "classes": classes, "shape": list(shape)}  # type: ignore[assignment]
    return model


def skeleton(name: str, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """The model without storage (on the meta device): shapes and layer names at no cost."""
    with torch.device("meta"):
        return build(name, classes, shape)


@functools.lru_cache(maxsize=256)
def refusal(name: str, classes: int, shape: tuple[int, ...]) -> str | None:
    """Why there is no such model, in the words of `build`, or None; asked for every cell of a plan."""
    try:
        skeleton(name, classes, shape)
    except ValueError as error:
        return str(error)
    return None


def layer(model: nn.Module, name: str) -> nn.Module:
    """The layer of that name.

    Raises:
        KeyError: no such layer; the message has the nearest names.
    """
    known: dict[str, nn.Module] = dict(model.named_modules())
    if not name or name not in known:
        raise KeyError(f"no layer {name!r}.{_nearest(name, [n for n in known if n])}")
    return known[name]


def weights_of(model: nn.Module, layers: Collection[str] = ()) -> dict[str, Tensor]:
    """The weights of convolutions and linear layers by the layer's name.

    Args:
        model: any.
        layers: names; empty for all.

    Raises:
        KeyError: no such layer, one of another type, or none at all.
    """
    chosen = {name: layer(model, name) for name in layers} if layers else dict(model.named_modules())
    found: dict[str, Tensor] = {}
    for name, module in chosen.items():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            found[name] = module.weight
        elif layers:
            raise KeyError(f"layer {name!r} is a {type(module).__name__}, neither a convolution nor linear")
    if not found:
        raise KeyError("the model has neither a convolution nor a linear layer")
    return found


def describe(model: nn.Module) -> dict[str, Any]:
    """The model's architecture as plain JSON values.

    Raises:
        ValueError: the model does not descend from an architecture of `names()`, or holds a layer of a type
            that cannot be described.
    """
    base = getattr(model, "architecture", None)
    if not isinstance(base, Mapping):
        raise ValueError(f"expected a model made by models.build, got {type(model).__name__} without architecture")
    layers: dict[str, Any] = {}
    _compare(model, _base(base["name"], base["classes"], tuple(base["shape"])), "", layers)
    return {**base, "layers": layers} if layers else dict(base)


def outline(description: Mapping[str, Any]) -> nn.Module:
    """The model of a description without storage (on the meta device)."""
    model = skeleton(description["name"], description["classes"], tuple(description["shape"]))
    with torch.device("meta"):
        for name, spec in description.get("layers", {}).items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _from_spec(spec))
    return model


def fresh(description: Mapping[str, Any]) -> nn.Module:
    """A freshly initialised model of a description; it draws from torch's global generator.

    Whatever is not described layer by layer is the same as `build` makes it. Layers that are described are initialised
    as their types are in PyTorch, and then as the architecture does with layers in their place: a module that has a
    method `initialise(name, layer)` is given all of them below it, with the name that they have there.
    """
    model = build(description["name"], description["classes"], tuple(description["shape"]))
    for name, spec in description.get("layers", {}).items():
        made, above = _from_spec(spec), name.split(".")
        for below, layer in made.named_modules(prefix=name):
            for depth in reversed(range(len(above))):
                initialise = getattr(model.get_submodule(".".join(above[:depth])), "initialise", None)
                if initialise:
                    initialise(below.split(".", depth)[-1], layer)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made)
    return model


def rebuild(description: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """The model of a description with the weights of a state dict, in evaluation mode.

    Raises:
        RuntimeError: the weights do not fit the description.
    """
    model = outline(description)
    model.to_empty(device="cpu")
    model.load_state_dict(dict(state), strict=True)
    # As a published model is used; training sets its own mode.
    return model.eval()


@functools.lru_cache(maxsize=32)
def _base(name: str, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """A skeleton to compare with, which nobody changes: building one takes longer than comparing."""
    return skeleton(name, classes, shape)


def holding(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A model of the same structure around these tensors, in evaluation mode; no tensor is copied.

    Args:
        model: may be on the meta device; shares nothing with the result that could be changed.
        state: all of its parameters and persistent buffers by name.
    """
    return _around(model, state, "", {})


def _around(module: nn.Module, state: Mapping[str, Tensor], prefix: str, known: dict[int, nn.Module]) -> nn.Module:
    # Not copy.deepcopy, which takes several milliseconds: white-box verification makes such models by the thousand.
    if id(module) in known:
        return known[id(module)]
    made = known[id(module)] = module.__new__(type(module))
    made.__dict__ = {name: value.copy() if isinstance(value, dict) else value for name, value in vars(module).items()}
    made.training = False
    for name, old in module._parameters.items():
        if old is not None:
            made._parameters[name] = nn.Parameter(state[prefix + name].detach())
    for name in module._buffers:
        if prefix + name in state:
            made._buffers[name] = state[prefix + name]
    for name, child in module._modules.items():
        if child is not None:
            made._modules[name] = _around(child, state, f"{prefix}{name}.", known)
    return made


def resized(layer: nn.Module, inputs: int, outputs: int) -> nn.Module:
    """A layer of the same kind for other numbers of channels, on the same device; its values are yet to be set.

    Args:
        layer: a convolution, a linear layer or a batch normalization.
        inputs: channels, or features, that come in.
        outputs: those that go out; for a normalization the same.

    Raises:
        ValueError: a layer of another type, or one of a type that has no widths.
    """
    spec = _to_spec(layer, type(layer).__name__)
    known = {"in_channels": inputs, "in_features": inputs, "num_features": inputs}
    known |= {"out_channels": outputs, "out_features": outputs}
    found = {name: width for name, width in known.items() if name in spec}
    if not found:
        raise ValueError(f"expected a layer with numbers of channels, got {type(layer).__name__}")
    with torch.device("meta"):
        made = _from_spec({**spec, **found})
    like = next(layer.parameters())
    return made.to(like.dtype).to_empty(device=like.device)


def _compare(model: nn.Module, base: nn.Module, prefix: str, layers: dict[str, Any]) -> None:
    mine, theirs = dict(model.named_children()), dict(base.named_children())
    if set(mine) != set(theirs):
        odd = sorted(set(mine) ^ set(theirs))
        raise ValueError(f"cannot describe {prefix or 'the model'}: layers {odd} are not those of its architecture")
    for name, child in mine.items():
        path = f"{prefix}{name}"
        if type(child) not in _LAYERS and type(child) is type(theirs[name]):
            _compare(child, theirs[name], f"{path}.", layers)
            continue
        spec = _to_spec(child, path)
        if type(theirs[name]) not in _LAYERS or spec != _to_spec(theirs[name], path):
            layers[path] = spec


def _to_spec(layer: nn.Module, path: str) -> dict[str, Any]:
    if type(layer) is nn.Sequential:
        children = {name: _to_spec(child, f"{path}.{name}") for name, child in layer.named_children()}
        return {"type": "Sequential", "children": children}
    if type(layer) not in _LAYERS:
        raise ValueError(f"cannot describe layer {path!r}: its type {type(layer).__name__} is not known")
    spec: dict[str, Any] = {"type": type(layer).__name__}
    for name in _LAYERS[type(layer)]:
        value = getattr(layer, name)
        if name == "bias":
            value = value is not None
        spec[name] = list(value) if isinstance(value, tuple) else value
    return spec


def _from_spec(spec: Mapping[str, Any]) -> nn.Module:
    if spec["type"] == "Sequential":
        made = nn.Sequential()
        for name, child in spec["children"].items():
            made.add_module(name, _from_spec(child))
        return made
    arguments = {n: tuple(v) if isinstance(v, list) else v for n, v in spec.items() if n != "type"}
    return _BY_NAME[spec["type"]](**arguments)


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=3)
    hint = f" Did you mean {' or '.join(repr(n) for n in close)}?" if close else ""
    return f"{hint} Known: {', '.join(known)}."
