"""The widths of a model's layers, from its architecture alone: of a live module, and of an exported program."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram

from models.channels import channels

# What multiplies by a weight, and what may stand between it and the weight.
_WEIGHTED = {"conv1d", "conv2d", "convolution", "linear", "addmm", "mm"}
_TURNED = {"permute", "t", "transpose", "numpy_T"}


def widths(model: nn.Module) -> tuple[int, ...]:
    """How many channels each convolution and linear layer makes, in the order in which they run.

    Args:
        model: descends from `models.build`; of any other, see `exported_widths`.

    Raises:
        ValueError: its forward pass cannot be followed.
    """
    return tuple(len(layer.outputs) for layer in channels(model).layers if layer.kind == "weight")


def exported_widths(program: ExportedProgram) -> tuple[int, ...]:
    """The same of a program made by `torch.export`, decomposed or not, whatever its layers are called.

    Args:
        program: stays as it is; only the shapes of its parameters are looked at.
    """
    signature = program.graph_signature
    found: dict[str, int] = {}
    parameters = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    for node in program.graph.nodes:
        if node.op != "call_function" or _operation(node) not in _WEIGHTED:
            continue
        for one in map(_unturned, node.args):
            if isinstance(one, fx.Node) and one.name in parameters:
                weight = program.state_dict[parameters[one.name]]
                if weight.dim() > 1:
                    # Met again, it is the same layer.
                    found.setdefault(one.name, len(weight))
    return tuple(found.values())


def _operation(node: fx.Node) -> str:
    # Such as aten.conv2d.default.
    return [*str(node.target).split("."), ""][1]


def _unturned(one: Any) -> Any:
    while isinstance(one, fx.Node) and one.op == "call_function" and _operation(one) in _TURNED:
        one = one.args[0]
    return one
