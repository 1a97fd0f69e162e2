"""Labels of triggers, and the evidence of answers that agree with them."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.errors import Unreadable
from bench.evidence import Evidence
from bench.key import Key
from bench.statistics import binomial_tail
from bench.stream import Stream
from bench.suspect import Suspect
from bench.task import Task
from bench.trainer import OwnerTrainer

TRUE = "true"


def uniform_labels(task: Task, count: int, stream: Stream) -> Tensor:
    """Labels of triggers, int64 of shape (count,), uniform over the task's classes."""
    return torch.from_numpy(stream.numpy().integers(0, task.classes, count))


def targets(key: Key, task: Task) -> Tensor:
    """The label of each trigger, int64 of shape (T,): as drawn, of training inputs counted on from the true label."""
    labels = key.tensor("labels")
    if TRUE not in key.facts:
        return labels
    true = key.tensor(TRUE)
    return (true + labels[: len(true)]) % task.classes


def right_answers(suspect: Suspect, key: Key, trainer: OwnerTrainer) -> Evidence:
    """The key's triggers that get their label; binomial with rate 1/K, since labels are uniform over all K classes.

    Those of training inputs are uniform over the K - 1 wrong ones. Whatever the suspect answers it agrees with
    probability 1/(K - 1), or never where it gives the true label.
    """
    inputs, labels = key.tensor("inputs").to(trainer.device), targets(key, trainer.task)
    try:
        given = suspect.answers(inputs).cpu()
    except Unreadable as error:
        return Evidence.unreadable(str(error))
    right = int((given == labels).sum())
    figures = {"trigger_accuracy": right / len(labels)}
    choices = trainer.task.classes - (TRUE in key.facts)
    return Evidence(right, binomial_tail(right, len(labels), 1.0 / choices), figures)
