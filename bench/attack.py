"""The contracts of attacks: removal, insider, ambiguity, and the drawing of decoys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple

from torch import nn

from bench.defense import Defense
from bench.errors import AccessError
from bench.key import Key
from bench.plugin import ACCESSES, Access, Plugin
from bench.stage import Stage
from bench.suspect import ANSWERS, Answer, Target
from bench.trainer import AttackerTrainer

Data = Literal["none", "inputs", "labels"]
AttackClass = Literal["none", "in-place", "reparametrisation", "extraction"]
Kind = Literal["none", "removal", "ambiguity"]
Knowledge = Literal["none", "scheme", "insider"]
TimeModel = Literal["after the fact", "committed before"]


@dataclass(frozen=True)
class Attack(Plugin):
    """What all attacks declare.

    Attributes:
        kind: `none` for the attack that leaves the model as it is.
        access: to the protected model; an attack with `none` never touches it, so that its price is what
            the task costs anyone.
        answers: the most telling kind that it takes of the model that it queries, its stages included.
        data: the most that it uses of the attacker's data.
        knowledge: whether it knows the scheme (`target.scheme`) or even a part of the key.
        ceiling: True for the attack that trains from the attacker's labels alone, which is in every suite.
        changes_task: whether surrogates are for the dataset's second task.
    """

    kind: ClassVar[Kind] = "removal"
    access: ClassVar[Access] = "white-box"
    answers: ClassVar[Answer] = "logits"
    data: ClassVar[Data] = "none"
    knowledge: ClassVar[Knowledge] = "none"
    ceiling: ClassVar[bool] = False
    changes_task: ClassVar[bool] = False

    def access_used(self) -> Access:
        """The access to the protected model that it takes with these parameters."""
        return self.access

    def data_used(self) -> Data:
        """The most that it uses of the attacker's data with these parameters."""
        return self.data

    def surrogates(self) -> int:
        """How many surrogates it yields, for forecasts of a run's time and disk."""
        return 1

    def against(self, scheme: Defense) -> str | None:
        """Why it cannot be tried on this scheme (another kind of key, say), or None where it can."""
        del scheme
        return None

    def control(self) -> Attack | None:
        """What leaves the same model without the protected one's answers, or None where there is no such thing.

        It is handed the labels of all inputs, those that the attacker lacks among them. A mark survives the attack
        where its evidence is stronger than in the control's surrogate of the same strength.
        """
        return None


def require_modest_stages(attack: Attack) -> None:
    """Refuse stages that take more from the protected model than the attack that wants them declares.

    Raises:
        AccessError: a stage, or one that it rests on, has more access; or its product tells of answers of a kind
            that the attack must not see.
    """
    for stage in attack.stages():
        given = stage.answers_given()
        if stage.side == "attacker" and ANSWERS.index(given) > ANSWERS.index(attack.answers):
            raise AccessError(f"stage {stage.label!r} gives {given}, {attack.label} declares {attack.answers!r}")
        _require_access(stage, attack)


def _require_access(stage: Stage, attack: Attack) -> None:
    allowed = attack.access_used()
    if stage.side == "attacker" and ACCESSES.index(stage.access) > ACCESSES.index(allowed):
        raise AccessError(f"stage {stage.label!r} has access {stage.access!r}, {attack.label} declares {allowed!r}")
    for one in stage.stages():
        _require_access(one, attack)


@dataclass(frozen=True)
class RemovalAttack(Attack):
    """Takes a protected model and yields surrogates. There is no key anywhere in its interface.

    Attributes:
        attack_class: `in-place` changes weights, `reparametrisation` keeps the function, `extraction`
            makes a new model from answers or data.
        strength_unit: of the strengths that it yields.
    """

    attack_class: ClassVar[AttackClass] = "in-place"
    strength_unit: ClassVar[str] = ""

    def control(self) -> RemovalAttack | None:
        """As of any attack."""
        return None

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Yield (strength, surrogate) along the way; a yielded model may be changed further afterwards."""
        raise NotImplementedError


@dataclass(frozen=True)
class Insider(Attack):
    """What those share that hold one part of the key, as `target.part`; they stay out of the headline.

    Attributes:
        part: name of that part.
    """

    knowledge: ClassVar[Knowledge] = "insider"
    part: ClassVar[str] = ""

    def against(self, scheme: Defense) -> str | None:
        """Needs a scheme whose key has that part."""
        if self.part in scheme.parts:
            return None
        return f"needs the part {self.part!r} of the key, {scheme.name} has {', '.join(scheme.parts) or 'none'}"


@dataclass(frozen=True)
class InsiderAttack(Insider, RemovalAttack):
    """A removal attack that holds one part of the key."""


class Forgery(NamedTuple):
    """A forged key and the model on which it is claimed.

    Attributes:
        key: completed.
        model: the protected one, a copy of it, or another.
        figures: numbers for the record.
        seed: 32 bytes from which the drawn part follows (`bench.derivation.derived_stream`, under the name `FORGER`),
            where the forger drew it so; the judge draws again. None where the key was chosen.
    """

    key: Key
    model: nn.Module
    figures: Mapping[str, float] = MappingProxyType({})
    seed: bytes | None = None


@dataclass(frozen=True)
class AmbiguityAttack(Attack):
    """Makes a second, false proof: it knows the scheme (`target.scheme`), the release and the model.

    Attributes:
        time_model: `after the fact` where the completed key depends on the model of the claim, or on the one from which
            its maker got that: a commitment to it cannot be older than the publication. `committed before` where
            nothing of the key does, so that the forger can have committed to it before that model was there.
    """

    kind: ClassVar[Kind] = "ambiguity"
    knowledge: ClassVar[Knowledge] = "scheme"
    time_model: ClassVar[TimeModel] = "after the fact"

    def forge(self, target: Target, trainer: AttackerTrainer) -> Forgery:
        """A forged key, and the model on which it is claimed."""
        raise NotImplementedError


@dataclass(frozen=True)
class InsiderForgery(Insider, AmbiguityAttack):
    """An ambiguity attack that holds one part of the key."""


@dataclass(frozen=True)
class DecoyAttack(Attack):
    """Draws fresh keys, completed with the owner's facts, and takes the best.

    The harness does the drawing where the key is, so that no attacking process holds the facts. What is drawn depends
    on no model, and the facts stand for those that a forger would have learnt elsewhere.

    Attributes:
        time_model: as for `AmbiguityAttack`; of a thousand keys each would have to be committed to.
        decoys: how many.
    """

    kind: ClassVar[Kind] = "ambiguity"
    time_model: ClassVar[TimeModel] = "committed before"
    access: ClassVar[Access] = "none"
    knowledge: ClassVar[Knowledge] = "scheme"
    decoys: int = field(default=1000)
