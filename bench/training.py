"""The one training loop, for owner and attacker: data on the device, augmentation by batch, no loader processes."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.augmentation import Augmentation
from bench.hooks import Hooks
from bench.recipe import Recipe
from bench.split import Split
from bench.stream import Stream


def training(
    model: nn.Module,
    data: Split,
    recipe: Recipe,
    stream: Stream,
    *,
    hooks: Hooks | None = None,
    trainable: Collection[str] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    every: int = 1,
) -> Generator[int]:
    """Train the model in place, epoch by epoch.

    Args:
        model: on the device of the data. While it trains its convolutions are in channels_last order, which
            every device computes faster: index their weights, `view(-1)` is an error.
        data: what it is trained on.
        recipe: how.
        stream: data order, augmentation and what layers draw (dropout) come from it.
        hooks: what a method adds.
        trainable: names of layers; everything outside them is frozen, its statistics too. None for all.
        masks: parameter name to a 0/1 mask of its shape; held after each step.
        every: how many epochs lie between two stops, at least 1.

    Yields:
        The number of epochs done: each multiple of `every`, and at the end.

    Raises:
        ValueError: no data, or a name in `trainable` that is no layer.
    """
    if len(data) == 0:
        raise ValueError("expected at least one training input, got none")
    hooks = hooks or Hooks()
    parameters = _free(model, trainable)
    size = min(recipe.batch_size, len(data))
    held = [(model.get_parameter(name), mask) for name, mask in (masks or {}).items()]
    step = _Step(model, parameters, recipe, hooks, held, recipe.epochs * (len(data) // size))
    order, chance = stream.child("order").torch(), stream.child("augment").torch()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _apply(held)
    try:
        for epoch in range(1, recipe.epochs + 1):
            _mode(model, trainable)
            with _drawing_from(stream.child("layers", epoch), data.y.device):
                for x, y in _batches(data, recipe, size, order, chance):
                    step(x, y)
            if hooks.after_epoch:
                hooks.after_epoch(model, epoch)
            if epoch % every == 0 or epoch == recipe.epochs:
                yield epoch
    finally:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _batches(
    data: Split, recipe: Recipe, size: int, order: torch.Generator, chance: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: whole batches in a new order, augmented; rows that fill no batch are left out."""
    shuffled = torch.randperm(len(data), generator=order)
    rows, labels = data.inputs.indices(shuffled), data.y[shuffled.to(data.y.device)]
    whole = len(data) // size * size
    augmented = Augmentation.draw(recipe, whole, chance, data.inputs.place, data.inputs.stored.shape[1:])
    for start in range(0, whole, size):
        yield augmented(data.inputs.batch(rows[start : start + size]), start), labels[start : start + size]


@contextlib.contextmanager
def _drawing_from(stream: Stream, device: torch.device) -> Iterator[None]:
    """What layers draw comes from the stream; torch's own generators are left as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stream.seed)
        yield


@dataclass
class _Step:
    """One step after another."""

    model: nn.Module
    parameters: list[nn.Parameter]
    recipe: Recipe
    hooks: Hooks
    held: list[tuple[nn.Parameter, Tensor]]
    steps: int
    done: int = 0

    def __post_init__(self) -> None:
        self.optimizer = _optimizer(self.parameters, self.recipe)
        # An objective gets the model itself, which it may look into.
        self.forward = torch.compile(self.model) if self.recipe.compile else self.model

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """Take a step on a batch."""
        hooks, number = self.hooks, self.done
        if hooks.extra_inputs:
            more_x, more_y = hooks.extra_inputs(number)
            x, y = torch.cat([x, more_x]), torch.cat([y, more_y])
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(number, self.steps)
        loss = self._loss(x, y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm)
        if number == 0:
            _seed_momentum(self.optimizer)
        self.optimizer.step()
        _apply(self.held)
        if hooks.after_step:
            hooks.after_step(self.model, number)
        self.done += 1

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=x.device.type == "cuda"):
            if self.hooks.objective:
                loss = self.hooks.objective(self.model, x, y)
            else:
                loss = F.cross_entropy(self.forward(x).float(), y, label_smoothing=self.recipe.label_smoothing)
        return loss + self.hooks.loss_term(self.model) if self.hooks.loss_term else loss


def _optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=True)
    nesterov = recipe.nesterov and recipe.momentum > 0
    return torch.optim.SGD(
        parameters, lr=rate, momentum=recipe.momentum, nesterov=nesterov, weight_decay=decay, fused=True
    )


def _seed_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Let parameters that this step leaves out join a later one: fused SGD expects a momentum of all or of none."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if group.get("momentum") and parameter.grad is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _inside(name: str, layers: Collection[str]) -> bool:
    return any(name == layer or name.startswith(f"{layer}.") for layer in layers)


def _free(model: nn.Module, trainable: Collection[str] | None) -> list[nn.Parameter]:
    """Set which parameters take gradients; returns those that do."""
    if trainable is not None:
        known = {name for name, _ in model.named_modules()}
        for name in trainable:
            if name not in known:
                raise ValueError(f"expected a layer of the model in `trainable`, got {name!r}")
    chosen = []
    for name, parameter in model.named_parameters():
        free = trainable is None or _inside(name, trainable)
        parameter.requires_grad_(free)
        parameter.grad = None
        if free:
            chosen.append(parameter)
    return chosen


def _mode(model: nn.Module, trainable: Collection[str] | None) -> None:
    model.train()
    if trainable is not None:
        for name, module in model.named_modules():
            if name and not any(True for _ in module.children()) and not _inside(name, trainable):
                module.eval()


@torch.no_grad()
def _apply(held: list[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, mask in held:
        parameter.mul_(mask)
