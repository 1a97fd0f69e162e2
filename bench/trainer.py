"""What a plugin is handed to work with: the training loop, its side's data, the shared stages, the device."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from bench.bundle import Bundle
from bench.errors import AccessError
from bench.hooks import Hooks
from bench.recipe import Recipe
from bench.split import Inputs, Split
from bench.stage import CleanModel, Stage
from bench.stream import Stream
from bench.suspect import Target
from bench.task import Task
from bench.training import training


class Trainer:
    """The training loop bound to a task, a device and a random stream.

    Args:
        task: what the model is for.
        stream: all randomness of this side descends from it.
        device: set by the harness, never by a plugin.
        stages: finished stages by key. Where it is None, a stage is computed when first asked for, which
            suits a notebook; the harness hands over those that the plugin declared.
        hooks: added to every training, so that two methods can share one model.
    """

    def __init__(
        self,
        task: Task,
        stream: Stream,
        device: torch.device | str = "cpu",
        stages: Mapping[str, Bundle] | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        self.task = task
        self.stream = stream
        self.device = torch.device(device)
        self.hooks = hooks or Hooks()
        self._stages: dict[str, Bundle] = dict(stages or {})
        self._lazy = stages is None
        self._trainings = 0

    def new_model(self) -> nn.Module:
        """A freshly initialised model of the task; the same one at each call."""
        return self.task.new_model(self.stream.child("init")).to(self.device)

    def recipe(self, **changes: float | int | str | bool) -> Recipe:
        """The task's recipe with some fields changed."""
        return dataclasses.replace(self.task.recipe, **changes)  # type: ignore[arg-type]

    def training(
        self,
        model: nn.Module,
        data: Split,
        recipe: Recipe | None = None,
        *,
        hooks: Hooks | None = None,
        trainable: Collection[str] | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> Iterator[int]:
        """Train in place and yield the number of epochs done; arguments as for `bench.training.training`.

        The data order is that of this trainer's stream; a second training in the same job takes another.
        """
        stream = self.stream.child("training", self._trainings)
        self._trainings += 1
        return training(
            model,
            data.to(self.device),
            recipe or self.task.recipe,
            stream,
            hooks=self.hooks & (hooks or Hooks()),
            trainable=trainable,
            masks=masks,
        )

    def fit(
        self,
        model: nn.Module,
        data: Split,
        recipe: Recipe | None = None,
        *,
        hooks: Hooks | None = None,
        trainable: Collection[str] | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> nn.Module:
        """Train in place to the end and return the model."""
        for _ in self.training(model, data, recipe, hooks=hooks, trainable=trainable, masks=masks):
            pass
        return model

    def stage(self, stage: Stage) -> Bundle:
        """The product of a shared stage.

        Raises:
            AccessError: the plugin did not declare it in `stages()`.
        """
        if stage.key not in self._stages:
            if not self._lazy:
                raise AccessError(
                    f"stage {stage.label!r} was not declared; stages() gave: {', '.join(self._stages) or '(none)'}"
                )
            self._stages[stage.key] = self._compute(stage)
        return self._stages[stage.key]

    def _compute(self, stage: Stage) -> Bundle:
        raise NotImplementedError


class OwnerTrainer(Trainer):
    """The owner's side.

    Attributes:
        train: the owner's training data.
        heldout: the owner's inputs that no training saw, for verification.
    """

    def __init__(
        self,
        task: Task,
        train: Split,
        heldout: Split,
        stream: Stream,
        device: torch.device | str = "cpu",
        stages: Mapping[str, Bundle] | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        super().__init__(task, stream, device, stages, hooks)
        self.train = train.to(self.device)
        self.heldout = heldout.to(self.device)

    def clean(self) -> nn.Module:
        """A copy of the clean model of this seed; declare `CleanModel()` in `stages()`."""
        return copy.deepcopy(self.stage(CleanModel()).models["model"]).to(self.device)

    def _compute(self, stage: Stage) -> Bundle:
        fresh = OwnerTrainer(self.task, self.train, self.heldout, self.stream, self.device)
        return stage.run(fresh, None)


class AttackerTrainer(Trainer):
    """The attacker's side: inputs, some of them labelled, and the protected model as its target.

    What of it is touched is counted, for the record.
    """

    def __init__(
        self,
        task: Task,
        inputs: Tensor | Inputs,
        labelled: Split,
        stream: Stream,
        device: torch.device | str = "cpu",
        stages: Mapping[str, Bundle] | None = None,
        target: Target | None = None,
        data: str = "labels",
    ) -> None:
        super().__init__(task, stream, device, stages)
        stored = inputs if isinstance(inputs, Inputs) else Inputs(inputs)
        self._inputs = stored.placed(self.device)
        self._labelled = labelled.to(self.device)
        self._target = target
        self._data = data
        self.inputs_used = 0
        self.labels_used = 0

    @property
    def inputs(self) -> Tensor:
        """The attacker's inputs without labels, as a model takes them; AccessError with declared data `none`."""
        if self._data == "none":
            raise AccessError("used the attacker's inputs with declared data 'none'")
        self.inputs_used = max(self.inputs_used, len(self._inputs))
        return self._inputs.x

    @property
    def labelled(self) -> Split:
        """The attacker's labelled inputs; AccessError where the attack declared less than `labels`."""
        if self._data != "labels":
            raise AccessError(f"used the attacker's labels with declared data {self._data!r}")
        self.inputs_used = max(self.inputs_used, len(self._labelled))
        self.labels_used = len(self._labelled)
        return self._labelled

    def _compute(self, stage: Stage) -> Bundle:
        return stage.run(self, self._target)
