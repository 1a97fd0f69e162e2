"""How fast this machine trains and runs a task's model, by a few timed steps on random inputs."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import torch

from bench.effort import Effort
from bench.split import Split
from bench.stream import Stream
from bench.suspect import predict
from bench.task import Task
from bench.training import training

# Seconds after which the timing of one of the two figures ends, and inputs of the first, small batch.
_ENOUGH = 0.4
_SMALL = 8


@dataclass(frozen=True)
class Speed:
    """Seconds that one input takes.

    Attributes:
        trained: forward and backward, with its share of the step.
        answered: forward only.
    """

    trained: float
    answered: float

    def seconds(self, effort: Effort) -> float:
        """Seconds that an effort takes."""
        return effort.trained * self.trained + effort.answered * self.answered


def probe(task: Task, device: str = "cpu", threads: int = 1) -> Speed:
    """Train and run the task's model on noise for about a second.

    Args:
        task: its model, shape and recipe are used, not its data.
        device: of PyTorch.
        threads: of PyTorch; what was set before is set again.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        place = torch.device(device)
        model = task.new_model(Stream(("speed",))).to(place)
        # A net so slow that a whole batch would take seconds is timed on a small one.
        small = _trained(task, model, place, _SMALL, enough=0.0)
        size = task.recipe.batch_size if small * task.recipe.batch_size < _ENOUGH else _SMALL
        trained = _trained(task, model, place, size, enough=_ENOUGH)
        return Speed(trained, _answered(task, model, place, size if size == _SMALL else 8 * size))
    finally:
        torch.set_num_threads(before)


def _trained(task: Task, model: torch.nn.Module, device: torch.device, size: int, enough: float) -> float:
    stream = Stream(("speed", "training"))
    labels = torch.from_numpy(stream.child("labels").numpy().integers(0, task.classes, size))
    data = Split(task.noise(size, stream.child("inputs")), labels).to(device)
    # One batch is an epoch, so that the loop can be left after any step; compiling would take minutes.
    recipe = dataclasses.replace(task.recipe, batch_size=size, epochs=100_000, compile=False)
    steps = training(model, data, recipe, stream)
    # The first step of a shape sets things up that later ones find ready.
    next(steps)
    started, taken = _now(device), 0
    while taken == 0 or _now(device) - started < enough:
        next(steps)
        taken += 1
    return (_now(device) - started) / (taken * size)


def _answered(task: Task, model: torch.nn.Module, device: torch.device, size: int) -> float:
    inputs = task.noise(size, Stream(("speed", "answers"))).to(device)
    predict(model, inputs)
    started, taken = _now(device), 0
    while taken == 0 or _now(device) - started < _ENOUGH / 2:
        predict(model, inputs)
        taken += 1
    return (_now(device) - started) / (taken * size)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
