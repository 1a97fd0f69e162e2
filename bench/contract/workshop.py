"""What the rules work with: the task, trainers as the harness makes them, protected and independent models."""

from __future__ import annotations

import copy
import dataclasses
import functools
import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

import models
from bench import data, parameters, registry
from bench.bundle import Bundle, key_to_bundle
from bench.contract.spy import Spy
from bench.defense import Defense
from bench.evidence import Evidence
from bench.key import Key
from bench.plugin import Plugin
from bench.running import work
from bench.split import Split
from bench.stage import Stage
from bench.stream import Stream
from bench.suspect import Suspect
from bench.task import Parts, Task
from bench.trainer import OwnerTrainer

T = TypeVar("T")
# What stages gave, as bytes, by class, parameters, task and owner.
Products = dict[tuple[type, str, Task, int], bytes]

QUICK_EPOCHS = 2
# Owners of a contract check; another number is another owner with a key and a net of its own.
OWNER, OTHER_OWNER = 0, 1


class Skip(Exception):
    """A rule cannot be checked here; the message says why."""


@dataclass(frozen=True)
class Made:
    """What protecting gave.

    Attributes:
        model: the published model.
        key: the completed key.
        release: what an honest user gets besides.
        drawn: the key as drawn, as bytes, from before protecting.
        trainer: the owner's, as the defense left it.
    """

    model: nn.Module
    key: Key
    release: Bundle
    drawn: bytes
    trainer: OwnerTrainer

    @property
    def published(self) -> Bundle:
        """What everybody gets, as the harness stores it."""
        return Bundle({**self.release.models, "model": self.model}, self.release.tensors, self.release.values)


class Workshop:
    """Makes what rules need, each once.

    Args:
        epochs: of the owner's training; None for the task's whole recipe.
        claim: log10 of the rate of false claims at which a protected model must verify.
        schemes: on which attacks that know a scheme are tried; None for all that are registered.
        dataset: of the task.
        keys: fresh ones, with which the protected and the clean model are each asked for p-values; a tenth of them for
            each other model.
        sharing: another workshop, with which the independent nets, the stages and the spying process are shared.
    """

    def __init__(
        self,
        epochs: int | None = None,
        claim: float = -6.0,
        schemes: Sequence[Defense] | None = None,
        dataset: str = "digits",
        keys: int = 500,
        sharing: Workshop | None = None,
    ) -> None:
        info = data.info(dataset)
        self.whole = Task(info, info.model, info.recipe)
        self.task = self.whole if epochs is None else _shortened(self.whole, epochs)
        self.quick = _shortened(self.whole, min(QUICK_EPOCHS, self.task.recipe.epochs))
        self.claim = claim
        self.keys = keys
        self.parts = _as_floats(data.whole(self.whole))
        self._schemes = schemes
        self._made: dict[tuple[str, Task, int], Made | Exception] = {}
        self._products: Products = sharing._products if sharing else {}
        self._products_anew: Products = sharing._products_anew if sharing else {}
        self._nets: dict[tuple[Task, int], nn.Module] = sharing._nets if sharing else {}
        self._untrained: dict[tuple[Task, int], nn.Module] = sharing._untrained if sharing else {}
        self._kept: dict[Hashable, Any] = {}
        self._sharing = sharing
        self._spy: Spy | None = None

    def __enter__(self) -> Workshop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the spying process, where one was started."""
        if self._spy is not None:
            self._spy.close()
            self._spy = None

    @property
    def spy(self) -> Spy:
        """The process that spies, started when first asked for, so that it inherits no secret of later."""
        if self._sharing is not None:
            return self._sharing.spy
        if self._spy is None:
            self._spy = Spy(self.task.info.name)
        return self._spy

    def start_spy(self) -> None:
        """Start the process that spies before any key is drawn: what it has before its first job is not searched."""
        self._spy = Spy(self.task.info.name, early=True)

    @functools.cached_property
    def schemes(self) -> tuple[Defense, ...]:
        """The defenses that attacks can be tried on."""
        if self._schemes is not None:
            return tuple(self._schemes)
        return tuple(cls() for _, cls in sorted(registry.discover().defense.items()) if not cls.undefended)

    @functools.cached_property
    def undefended(self) -> Defense:
        """The defense that protects nothing."""
        return next(cls() for cls in registry.discover().defense.values() if cls.undefended)

    @functools.cached_property
    def dataset_bytes(self) -> bytes:
        """All inputs and labels of the dataset, as they lie in memory: anybody has them."""
        parts = self.parts
        splits = (parts.train, parts.heldout, parts.attacker, parts.test)
        return b"".join(one.numpy().tobytes() for split in splits for one in (split.x, split.y))

    # The owner's side

    def stream(self, owner: int = OWNER) -> Stream:
        """From which everything random of an owner descends, as in the harness."""
        return Stream((str(owner), "owner"))

    def key_stream(self, defense: Defense, owner: int = OWNER) -> Stream:
        """From which an owner's key is drawn."""
        return self.stream(owner).child("key", defense.name)

    def owner(self, defense: Defense, task: Task, owner: int = OWNER) -> OwnerTrainer:
        """A trainer with data of its own and the declared stages, as for protecting."""
        return self._owner(defense, task, owner, {})

    def _owner(self, defense: Defense, task: Task, owner: int, made: Products) -> OwnerTrainer:
        stages = {stage.key: self._stage(stage, task, owner, made) for stage in defense.stages()}
        return self._trainer(task, owner, stages)

    def judging(self, task: Task | None = None, owner: int = OWNER) -> OwnerTrainer:
        """A trainer as `verify` gets it: data of its own, and no stage."""
        return self._trainer(task or self.task, owner, {})

    def _trainer(self, task: Task, owner: int, stages: dict[str, Bundle]) -> OwnerTrainer:
        return OwnerTrainer(
            task, self.parts.train.copy(), self.parts.heldout.copy(), self.stream(owner), "cpu", stages=stages
        )

    def _stage(self, stage: Stage, task: Task, owner: int, made: Products) -> Bundle:
        if stage.side != "owner":
            raise ValueError(f"a defense declared the stage {stage.label!r} of the attacker's side")
        at = (type(stage), stage.key, task, owner)
        if at not in made:
            rest = {one.key: self._stage(one, task, owner, made) for one in stage.stages()}
            made[at] = stage.run(self._trainer(task, owner, rest), None).to_bytes()
        # As the harness hands it over: rebuilt from bytes, so that nobody changes another's.
        return Bundle.from_bytes(made[at])

    def protect(self, defense: Defense, task: Task | None = None, owner: int = OWNER) -> Made:
        """Protect a model; raises whatever the defense raises. The first result is kept."""
        task = task or self.task
        at = (_identity(defense), task, owner)
        if at not in self._made:
            try:
                self._made[at] = self._protect(defense, task, owner, self._products)
            except Exception as error:  # noqa: BLE001 - kept, to be raised to each who asks.
                self._made[at] = error
        made = self._made[at]
        if isinstance(made, Exception):
            raise made
        return made

    def protect_anew(self, defense: Defense, task: Task, owner: int = OWNER) -> Made:
        """Protect a model once more, on stages of which none was computed for `protect`."""
        return self._protect(defense, task, owner, self._products_anew)

    def _protect(self, defense: Defense, task: Task, owner: int, made: Products) -> Made:
        key = defense.draw(task, self.key_stream(defense, owner))
        drawn = key_to_bundle(Key(key.drawn)).to_bytes()
        trainer = self._owner(defense, task, owner, made)
        model, completed, release = defense.protect(trainer, key)
        work.require_finite(model)
        return Made(model, completed, release, drawn, trainer)

    def protected(self, defense: Defense, task: Task | None = None, owner: int = OWNER) -> Made:
        """As `protect`, for rules about other things: Skip where the defense raises."""
        try:
            return self.protect(defense, task, owner)
        except Exception as error:
            raise Skip("protecting failed, see the rule 'protects'") from error

    def once(self, name: Hashable, make: Callable[[], T]) -> T:
        """What `make` gave when first asked for under this name."""
        if name not in self._kept:
            self._kept[name] = make()
        found: T = self._kept[name]
        return found

    # Models

    def net(self, seed: int, task: Task) -> nn.Module:
        """A net without any mark, trained by an owner whom nobody knows."""
        if (task, seed) not in self._nets:
            trainer = OwnerTrainer(task, self.parts.train, self.parts.heldout, Stream((str(seed), "stranger")))
            self._nets[task, seed] = trainer.fit(trainer.new_model(), trainer.train)
        return self._nets[task, seed]

    @property
    def clean(self) -> nn.Module:
        """An independent net of the whole recipe."""
        return self.net(0, self.whole)

    def untrained(self, seed: int) -> nn.Module:
        """A freshly initialised net of the task."""
        if (self.task, seed) not in self._untrained:
            self._untrained[self.task, seed] = self.task.new_model(Stream((str(seed), "stranger", "init")))
        return self._untrained[self.task, seed]

    def constant(self, value: float) -> nn.Module:
        """A net of the task, all of whose parameters have one value."""
        model = copy.deepcopy(self.untrained(0))
        for parameter in model.parameters():
            nn.init.constant_(parameter, value)
        return model

    # Verification

    def verify(
        self, defense: Defense, model: nn.Module, key: Key, task: Task | None = None, owner: int = OWNER
    ) -> Evidence:
        """What the defense says of a model under a key, with a trainer of its own."""
        return work.evidence_on(defense, Suspect.of(model, defense.access_used()), key, self.judging(task, owner))


def disturb(seed: int) -> None:
    """Leave the global generators as some earlier work might have."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.rand(seed % 7 + 1)


def contents(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights and statistics."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> str | None:
    """The first tensor in which two models are not bit for bit the same."""
    if set(first) != set(second):
        return ", ".join(sorted(set(first) ^ set(second)))
    return next((name for name, value in first.items() if not torch.equal(value, second[name])), None)


def other_architecture(task: Task) -> Task:
    """The same data with the first other architecture that takes its inputs."""
    for name in models.names():
        if name != task.model and models.refusal(name, task.classes, task.shape) is None:
            return dataclasses.replace(task, model=name)
    raise Skip(f"no other architecture takes the inputs of {task.info.name}")


def _as_floats(parts: Parts) -> Parts:
    """The same with inputs as tensors of their own, in which a plugin's changes in place can be seen."""
    splits = (Split(split.x, split.y) for split in (parts.train, parts.heldout, parts.attacker, parts.test))
    train, heldout, attacker, test = splits
    return Parts(train, heldout, attacker, parts.labelled, test)


def _shortened(task: Task, epochs: int) -> Task:
    return dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, epochs=epochs))


def _identity(plugin: Plugin) -> str:
    values: dict[str, Any] = plugin.params
    return parameters.canonical([registry.path_of(type(plugin)), values])
