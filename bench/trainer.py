"""What a plugin is handed to work with: the training loop, its side's data, the shared stages, the device."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Generator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from bench.bundle import Bundle
from bench.errors import AccessError
from bench.hooks import Hooks
from bench.recipe import Recipe
from bench.split import Inputs, Split, portion
from bench.stage import CleanModel, Stage
from bench.stream import Stream
from bench.suspect import Target
from bench.task import Task
from bench.training import training

# Of an attacker who acts as an owner: two inputs to train on, for normalization by batch, and one to hold out.
LEAST_LABELLED = 3


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

    def model_of(self, description: Mapping[str, Any]) -> nn.Module:
        """A freshly initialised model of any description (`models.describe`); the same one at each call.

        Of the description of the task's own architecture it is `new_model()`, bit for bit.
        """
        return self.task.new_model(self.stream.child("init"), description).to(self.device)

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
        every: int = 1,
    ) -> Generator[int]:
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
            every=every,
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
        fresh._stages = self._stages
        return stage.run(fresh, None)


class Successor(OwnerTrainer):
    """An owner who starts from a given model: an attacker in an owner's place, or one whose model has a mark already.

    `new_model()` and `clean()` are copies of that model. Other stages are computed when first asked for, from
    the same data and the same start.

    Args:
        task: what the model is for.
        train, heldout: of whoever acts as the owner.
        stream: likewise.
        device: as for any trainer.
        model: to start from; it stays as it is.
        fixed: fields of the recipe that hold in every training, whatever the scheme asks for.
        hooks: added to every training.
    """

    def __init__(
        self,
        task: Task,
        train: Split,
        heldout: Split,
        stream: Stream,
        device: torch.device | str,
        model: nn.Module,
        fixed: Mapping[str, float | int] = MappingProxyType({}),
        hooks: Hooks | None = None,
    ) -> None:
        fitted = dataclasses.replace(task.recipe, **fixed)  # type: ignore[arg-type]
        super().__init__(dataclasses.replace(task, recipe=fitted), train, heldout, stream, device, hooks=hooks)
        self._model = model
        self._fixed = dict(fixed)

    def new_model(self) -> nn.Module:
        """A copy of the model that is there."""
        return copy.deepcopy(self._model).to(self.device)

    def recipe(self, **changes: float | int | str | bool) -> Recipe:
        """The task's recipe with some fields changed, except those that are fixed."""
        return super().recipe(**{**changes, **self._fixed})

    def _compute(self, stage: Stage) -> Bundle:
        if stage.key == CleanModel().key:
            return Bundle(models={"model": self.new_model()})
        same = (self.task, self.train, self.heldout, self.stream, self.device, self._model, self._fixed, self.hooks)
        fresh = Successor(*same)
        fresh._stages = self._stages
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
        self._noted: dict[str, float] = {}

    def note(self, figures: Mapping[str, float]) -> None:
        """Numbers that say how a removal attack got on; the surrogate yielded next has them in its record.

        Args:
            figures: by name; in the record with `attack.` before it.
        """
        self._noted |= {name: float(value) for name, value in figures.items()}

    def noted(self) -> dict[str, float]:
        """What was noted since this was called last."""
        found, self._noted = self._noted, {}
        return found

    @property
    def inputs(self) -> Tensor:
        """The attacker's inputs without labels, as a model takes them; AccessError with declared data `none`."""
        return self.first_inputs(1.0)

    def first_inputs(self, share: float) -> Tensor:
        """The first of `inputs`, a share in (0, 1] of them; AccessError likewise."""
        if self._data == "none":
            raise AccessError("used the attacker's inputs with declared data 'none'")
        count = portion(len(self._inputs), share)
        self.inputs_used = max(self.inputs_used, count)
        return self._inputs.take(count).x

    @property
    def labelled(self) -> Split:
        """The attacker's labelled inputs, the first of `inputs`; AccessError with less declared than `labels`."""
        return self.first_labelled(1.0)

    def first_labelled(self, share: float) -> Split:
        """Those of `first_inputs` that carry labels, which are the first of them; AccessError likewise."""
        if self._data != "labels":
            raise AccessError(f"used the attacker's labels with declared data {self._data!r}")
        count = min(len(self._labelled), portion(len(self._inputs), share))
        self.inputs_used = max(self.inputs_used, count)
        self.labels_used = max(self.labels_used, count)
        return self._labelled.take(count)

    def as_owner(self, epochs: int | None = None, learning_rate: float | None = None) -> OwnerTrainer:
        """What a scheme's `protect` takes, so that the attacker can run it on a copy of the target.

        All labelled inputs count as used; the last of them are held out (see `held_out`). Its randomness is the
        attacker's own, and the same at each call.

        Args:
            epochs: of every training, also where the scheme sets its own; None to leave that to the scheme.
            learning_rate: likewise.

        Raises:
            AccessError: the attack declared less than white-box access or less than `labels`.
            ValueError: fewer than `LEAST_LABELLED` labelled inputs, or no target.
        """
        if self._target is None:
            raise ValueError("expected a target to start from, got none")
        known = self.labelled
        if len(known) < LEAST_LABELLED:
            raise ValueError(f"expected at least {LEAST_LABELLED} labelled inputs, got {len(known)}")
        count = len(known) - held_out(self.task, len(known))
        chosen = {"epochs": epochs, "learning_rate": learning_rate}
        fixed = {name: value for name, value in chosen.items() if value is not None}
        stream, model = self.stream.child("as-owner"), self._target.copy()
        return Successor(self.task, known.take(count), known.skip(count), stream, self.device, model, fixed)

    def _compute(self, stage: Stage) -> Bundle:
        return stage.run(self, self._target)


def held_out(task: Task, labelled: int) -> int:
    """How many labelled inputs an attacker who acts as an owner holds out: the share that the task's owner does.

    Args:
        task: whose owner.
        labelled: how many there are, at least `LEAST_LABELLED`.
    """
    sizes = task.sizes
    share = sizes.heldout / (sizes.train + sizes.heldout)
    return min(max(1, round(share * labelled)), labelled - (LEAST_LABELLED - 1))
