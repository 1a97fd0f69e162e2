"""PyTorch's own static int8 model of a net, and what it comes to in floats."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bench.suspect import BATCH
from models.blocks import NORMALIZATIONS

_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear)


def integer_model(model: nn.Module, inputs: Tensor, engine: str) -> tuple[nn.Module, Tensor]:
    """The library's int8 model, and its answers to the inputs that calibrated it.

    Args:
        model: on the CPU, in evaluation mode; stays as it is.
        inputs: on the CPU, first dimension N.
        engine: the kernels; one of `torch.backends.quantized.supported_engines`.

    Returns:
        The converted graph, whose layers have the names that they have in the model, and logits of shape (N, K).

    Raises:
        RuntimeError: this PyTorch has no quantization by graph any more, or not these kernels.
    """
    try:
        # Imported late, since it takes seconds and no other attack wants it.
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
    except ImportError as error:
        raise RuntimeError(
            f"expected a PyTorch with torch.ao.quantization.quantize_fx, got {torch.__version__}: {error}"
        ) from error
    with _kernels(engine), warnings.catch_warnings(), torch.no_grad():
        # That it is deprecated, and what its own observers are told.
        warnings.simplefilter("ignore")
        observed = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping(engine), (inputs[:1],))
        for part in inputs.split(BATCH):
            observed(part)
        integers = convert_fx(observed)
        return integers, torch.cat([integers(part) for part in inputs.split(BATCH)])


def dequantized(model: nn.Module, integers: nn.Module) -> nn.Module:
    """A copy of a model with the weights of its int8 model as floats: scale x (an integer), channel by channel.

    Args:
        model: from which `integer_model` made the other one; stays as it is.
        integers: the int8 model.

    Returns:
        A model of the same architecture in evaluation mode; normalizations that were folded are gone from it.

    Raises:
        RuntimeError: the library left a layer in floats.
    """
    made = copy.deepcopy(model).eval()
    known = dict(integers.named_modules())
    for name, layer in model.named_modules():
        if isinstance(layer, _WEIGHTED):
            _put(made, name, layer, known.get(name))
        elif isinstance(layer, NORMALIZATIONS) and name not in known:
            made.set_submodule(name, nn.Identity().eval())
    return made


def _put(made: nn.Module, name: str, old: nn.Module, integers: Any) -> None:
    read = getattr(integers, "weight", None)
    if not callable(read):
        raise RuntimeError(f"expected the library to quantize layer {name!r}, it left it in floats")
    weight, bias = read().dequantize(), integers.bias()
    layer: Any = copy.deepcopy(old)
    layer.weight = nn.Parameter(weight.clone().contiguous())
    layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())
    made.set_submodule(name, layer.eval())


@contextlib.contextmanager
def _kernels(engine: str) -> Iterator[None]:
    """With these kernels, which PyTorch chooses by a global setting."""
    supported = torch.backends.quantized.supported_engines
    if engine not in supported:
        raise RuntimeError(f"expected an engine of this PyTorch ({', '.join(supported)}), got {engine!r}")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
