"""A device that is only told of: its tensors say that they lie on it, and the CPU computes them.

What a GPU refuses it refuses: tensors of two places in one operation, a generator of the host, memory for NumPy. It
takes PyTorch's one place for devices of others, so it wants a process of its own.
"""

from __future__ import annotations

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "card"
_aten = torch.ops.aten
# What a GPU takes from the host: numbers without dimensions, what is copied, and indices (the second argument).
_COPYING = {_aten.copy_.default, _aten._to_copy.default, _aten._foreach_copy_.default}
_INDEXING = {_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default}
# An operation is there for as long as its library is.
_LIBRARIES: list[torch.library.Library] = []


class OnCard(torch.Tensor):
    """A tensor on the card; `inner` has its numbers."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, inner):
        self.inner = inner

    @property
    def data(self):
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value):
        # PyTorch exchanges what it knows of: shape, strides and device.
        self.inner = value.inner
        torch.Tensor.data.__set__(self, value)

    def __repr__(self):
        return f"OnCard({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _computed(operation, args, kwargs or {})


def install():
    """Make the card known: `.to("card")` and `device="card"` work from here on."""
    _setup_privateuseone_for_python_backend(NAME)
    getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16]
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", _empty, "PrivateUse1")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    _LIBRARIES.append(library)


def _empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return OnCard(torch.empty(size, dtype=dtype, memory_format=memory_format))


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    return OnCard(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source, target, non_blocking=False):
    with torch.no_grad():
        _inside(target).copy_(_inside(source))
    return target


def _inside(one):
    if isinstance(one, OnCard):
        return one.inner
    return torch.device("cpu") if isinstance(one, torch.device) and one.type == NAME else one


def _computed(operation, args, kwargs):
    given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    device = kwargs.get("device")
    here = any(isinstance(one, OnCard) for one in given) if device is None else torch.device(device).type == NAME
    _refuse(operation, args, kwargs, here)
    with torch.no_grad():
        found = operation(*tree_map(_inside, args), **tree_map(_inside, kwargs))
    # What was written into is the tensor that was handed over.
    known = {id(one.inner): one for one in given if isinstance(one, OnCard)}

    def outside(one):
        if not here or not isinstance(one, torch.Tensor):
            return one
        return known[id(one)] if id(one) in known else OnCard(one)

    return tree_map(outside, found)


def _refuse(operation, args, kwargs, here):
    together = (args[0], args[2:], kwargs) if operation in _INDEXING else (args, kwargs)
    hosts = [one for one in tree_leaves(together) if isinstance(one, torch.Tensor) and not isinstance(one, OnCard)]
    if operation not in _COPYING and any(one.dim() > 0 for one in hosts):
        raise RuntimeError(f"Expected all tensors on the same device, found {NAME}:0 and cpu in {operation}")
    if here and any(isinstance(one, torch.Generator) for one in tree_leaves((args, kwargs))):
        raise RuntimeError(f"Expected a generator of {NAME!r}, found one of the cpu in {operation}")
