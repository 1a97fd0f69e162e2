"""Which inputs a black box is asked for: the attacker's own, noise, or images from elsewhere."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from bench import images
from bench.split import portion
from bench.task import Task

Source = Literal["own", "noise", "images"]


def asked(trainer: Any, source: Source, share: float, path: str = "") -> Tensor:
    """The inputs as a model takes them, the same at each call.

    Args:
        trainer: an `AttackerTrainer`.
        source: `own` inputs, the first in their order; `noise`, uniform over the raw range; or `images` of a path.
        share: of the number of own inputs, in (0, 1]; as many are asked of every source.
        path: of images, for `bench.images.read`.

    Raises:
        AccessError: own inputs are not declared.
        InputError: no such images, or too few.
    """
    if source == "own":
        own: Tensor = trainer.first_inputs(share)
        return own
    task: Task = trainer.task
    count = portion(task.sizes.attacker, share)
    if source == "images":
        return task.normalised(images.read(path, count, task.shape)).to(trainer.device)
    return task.noise(count, trainer.stream.child("queries")).to(trainer.device)


def reason_of(source: Source, task: Task) -> str | None:
    """Why a source makes no sense on a task, or None."""
    if source == "images" and task.kind != "image":
        return f"images as queries need a task on images, {task.info.name} has {task.kind}"
    return None
