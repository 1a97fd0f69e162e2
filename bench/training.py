"""The one training loop, for owner and attacker: data on the device, augmentation by batch, no loader processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.recipe import Recipe
from bench.stream import Stream

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Split:
    """Inputs with their targets on one device.

    Attributes:
        x: float inputs of shape (N, …), normalised.
        y: int64 labels of shape (N,), or float targets of shape (N, …) for an objective that takes them.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def take(self, count: int) -> Split:
        """The first `count` of them."""
        return Split(self.x[:count], self.y[:count])

    def copy(self) -> Split:
        """The same in storage of its own."""
        return Split(self.x.clone(), self.y.clone())

    def to(self, device: torch.device) -> Split:
        """The same on the device."""
        return Split(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Hooks:
    """What a method adds to training; two sets of hooks join with `&`.

    Attributes:
        objective: replaces the cross-entropy: (model, inputs, targets) to a loss.
        loss_term: added to the loss, in full precision: model to a scalar.
        extra_inputs: appended to each batch after augmentation: step to (inputs, targets).
        after_step: called after each step with the model and the step's number from 0.
        after_epoch: called after each epoch with the model and the epoch's number from 1.
    """

    objective: Objective | None = None
    loss_term: Callable[[nn.Module], Tensor] | None = None
    extra_inputs: Callable[[int], tuple[Tensor, Tensor]] | None = None
    after_step: Callable[[nn.Module, int], None] | None = None
    after_epoch: Callable[[nn.Module, int], None] | None = None

    def __and__(self, other: Hooks) -> Hooks:
        if self.objective and other.objective:
            raise ValueError("expected at most one objective, got two")
        return Hooks(
            self.objective or other.objective,
            _sum(self.loss_term, other.loss_term),
            _joined(self.extra_inputs, other.extra_inputs),
            _both(self.after_step, other.after_step),
            _both(self.after_epoch, other.after_epoch),
        )


def training(
    model: nn.Module,
    data: Split,
    recipe: Recipe,
    stream: Stream,
    *,
    hooks: Hooks | None = None,
    trainable: Collection[str] | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> Iterator[int]:
    """Train the model in place, epoch by epoch.

    Args:
        model: on the device of the data.
        data: what it is trained on.
        recipe: how.
        stream: data order and augmentation come from it.
        hooks: what a method adds.
        trainable: names of layers; everything outside them is frozen, its statistics too. None for all.
        masks: parameter name to a 0/1 mask of its shape; held after each step.

    Yields:
        The number of epochs done, from 1.

    Raises:
        ValueError: no data, or a name in `trainable` that is no layer.
    """
    if len(data) == 0:
        raise ValueError("expected at least one training input, got none")
    hooks = hooks or Hooks()
    parameters = _free(model, trainable)
    optimizer = _optimizer(parameters, recipe)
    held = [(model.get_parameter(name), mask) for name, mask in (masks or {}).items()]
    device = data.x.device
    on_cuda = device.type == "cuda"
    if on_cuda:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    order, chance = stream.child("order").torch(), stream.child("augment").torch()
    size = min(recipe.batch_size, len(data))
    per_epoch = len(data) // size
    step, steps = 0, recipe.epochs * per_epoch
    _apply(held)
    for epoch in range(1, recipe.epochs + 1):
        _mode(model, trainable)
        shuffled = torch.randperm(len(data), generator=order).to(device)
        for batch in range(per_epoch):
            chosen = shuffled[batch * size : (batch + 1) * size]
            x, y = augmented(data.x[chosen], recipe, chance), data.y[chosen]
            if hooks.extra_inputs:
                more_x, more_y = hooks.extra_inputs(step)
                x, y = torch.cat([x, more_x]), torch.cat([y, more_y])
            if on_cuda and x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step, steps)
            with torch.autocast("cuda", torch.bfloat16, enabled=on_cuda):
                loss = _loss(model, x, y, recipe, hooks.objective)
            if hooks.loss_term:
                loss = loss + hooks.loss_term(model)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if recipe.clip_norm:
                nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
            optimizer.step()
            _apply(held)
            if hooks.after_step:
                hooks.after_step(model, step)
            step += 1
        if hooks.after_epoch:
            hooks.after_epoch(model, epoch)
        yield epoch


def augmented(x: Tensor, recipe: Recipe, chance: torch.Generator) -> Tensor:
    """The batch with random shifts and flips, each input its own.

    Args:
        x: (N, C, H, W); anything else is returned as it is.
        recipe: `shift` and `flip` are read.
        chance: a generator on the CPU, so that every device sees the same augmentation.
    """
    if x.dim() != 4 or not (recipe.shift or recipe.flip):
        return x
    count, _, height, width = x.shape
    if recipe.shift:
        reach = recipe.shift
        moved = torch.randint(0, 2 * reach + 1, (2, count), generator=chance).to(x.device)
        rows = moved[0, :, None] + torch.arange(height, device=x.device)
        columns = moved[1, :, None] + torch.arange(width, device=x.device)
        padded = F.pad(x, (reach,) * 4, mode="replicate").permute(0, 2, 3, 1)
        which = torch.arange(count, device=x.device)[:, None, None]
        x = padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if recipe.flip:
        mirrored = torch.rand(count, generator=chance).to(x.device) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x.contiguous()


def _loss(model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, objective: Objective | None) -> Tensor:
    if objective:
        return objective(model, x, y)
    return F.cross_entropy(model(x).float(), y, label_smoothing=recipe.label_smoothing)


def _optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=True)
    nesterov = recipe.nesterov and recipe.momentum > 0
    return torch.optim.SGD(
        parameters, lr=rate, momentum=recipe.momentum, nesterov=nesterov, weight_decay=decay, fused=True
    )


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


def _sum(
    first: Callable[[nn.Module], Tensor] | None, second: Callable[[nn.Module], Tensor] | None
) -> Callable[[nn.Module], Tensor] | None:
    if first is None or second is None:
        return first or second
    return lambda model: first(model) + second(model)


def _joined(
    first: Callable[[int], tuple[Tensor, Tensor]] | None, second: Callable[[int], tuple[Tensor, Tensor]] | None
) -> Callable[[int], tuple[Tensor, Tensor]] | None:
    if first is None or second is None:
        return first or second

    def join(step: int) -> tuple[Tensor, Tensor]:
        (x1, y1), (x2, y2) = first(step), second(step)
        return torch.cat([x1, x2]), torch.cat([y1, y2])

    return join


def _both(
    first: Callable[[nn.Module, int], None] | None, second: Callable[[nn.Module, int], None] | None
) -> Callable[[nn.Module, int], None] | None:
    if first is None or second is None:
        return first or second

    def both(model: nn.Module, number: int) -> None:
        first(model, number)
        second(model, number)

    return both
