"""The jobs of one task and seed: who needs what of whom, and the hash of all that a job depends on."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import models
from bench import images, parameters, registry, specs
from bench.attack import AmbiguityAttack, Attack, DecoyAttack, Insider, require_modest_stages
from bench.chain import links_of
from bench.defense import Defense
from bench.pair import faced, members_of
from bench.planning import sources
from bench.planning.job import Channel, Input, Job, JobKind, Side
from bench.plugin import Plugin
from bench.stage import Stage
from bench.stream import Stream
from bench.task import PartName, Task

# Raised when the meaning of a job's spec or of the streams changes: results of before are then redone.
PROTOCOL = 1

# What a job runs of its plugin, beside its fields; `verify` and what only it calls enter judging alone.
_METHODS: dict[str, tuple[str, ...]] = {
    "protect": ("draw", "protect", "__post_init__"),
    # A forged key is drawn again by its seed.
    "judge": ("draw", "verify", "access_used", "__post_init__"),
    "decoys": ("draw", "verify", "access_used", "__post_init__"),
    "null": ("draw", "verify", "access_used", "__post_init__"),
}

# Objects that every job is handed, so that no name in its code leads to them.
_HANDED: tuple[sources.Node, ...] = (
    ("bench.clouds", "decoded"),
    ("bench.data.parts", "cut"),
    ("bench.data.parts", "read"),
    ("bench.data.source", "decoded"),
    ("bench.recipe", "Recipe"),
    ("bench.split", "Inputs"),
    ("bench.split", "Split"),
    ("bench.stream", "Stream"),
    ("bench.task", "Task"),
    ("models.architecture", "rebuild"),
)


@dataclass(frozen=True)
class _Met:
    """The model that an attack meets.

    Attributes:
        defense: that protected it.
        left_by: the job of the attack whose last surrogate it is; None for the protected model itself.
        link: number of attacks before.
    """

    defense: Defense
    left_by: str | None = None
    link: int = 0


@dataclass
class JobPlanner:
    """Makes jobs, each once; every method returns a job's id.

    Attributes:
        task: the task.
        seed: of the repetition.
        threads: of PyTorch, per job.
        device: kind of device.
        data_digests: of the content of each part of the data.
        jobs: where new jobs are put, parents before children.
    """

    task: Task
    seed: int
    threads: int
    device: str
    data_digests: Mapping[PartName, str]
    jobs: dict[str, Job]
    _files: dict[str, str] = field(default_factory=dict)
    # What is made of the same plugins is made once: a plan of thousands of cells asks for it at each of them.
    _made: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _sources: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _specs: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)

    def stage(self, stage: Stage, met: _Met | None) -> str:
        """A shared stage; of the attacker's side, for the model that is attacked."""
        whose = (met.defense, met.left_by) if met and stage.side == "attacker" else ()
        return self._once(("stage", stage, *whose), lambda: self._stage(stage, met))

    def _stage(self, stage: Stage, met: _Met | None) -> str:
        inputs = {f"stage:{one.key}": self._input(one, met) for one in stage.stages()}
        label = stage.label
        if stage.side == "attacker":
            assert met is not None
            inputs["target"] = self._target(met)
            label = f"{stage.label} of {self._whom(met)}"
        spec = {"plugin": self._spec(stage), "files": self._digests(stage)}
        return self._job("stage", stage.side, f"stage {label}", spec, inputs, [(stage, ("run", "stages"))])

    def _input(self, stage: Stage, met: _Met | None) -> Input:
        channel: Channel = "secret" if stage.side == "owner" else "public"
        return Input(self.stage(stage, met), channel)

    def _target(self, met: _Met) -> Input:
        return Input(met.left_by or self.protect(met.defense), "public")

    def _whom(self, met: _Met) -> str:
        label = parameters.AND.join(_label_of(member) for member in members_of(met.defense))
        return f"what {self.jobs[met.left_by].label} left" if met.left_by else label

    def protect(self, defense: Defense) -> str:
        """The job that makes the protected model; fields that only `verify` reads make no difference."""
        return self.keys(defense)[-1]

    def keys(self, defense: Defense) -> list[str]:
        """The jobs that complete a key: one, or of a pair one for each member, of which the last makes the model."""
        made: list[str] = []
        for member in members_of(defense):
            before = made[-1] if made else None
            protect = functools.partial(self._protect, member, before)
            made.append(self._once(("protect", member, before), protect))
        return made

    def key_of(self, defense: Defense, member: Defense) -> str:
        """The job that completes the key of one member of a pair; of any other defense its own."""
        return self.keys(defense)[members_of(defense).index(member)]

    def _protect(self, defense: Defense, before: str | None) -> str:
        label = f"protect {_label_of(defense)}"
        if before is None:
            inputs = {f"stage:{stage.key}": self._input(stage, None) for stage in defense.stages()}
        else:
            # Stages of this model are computed on the way: they start from the mark that is there.
            inputs = {"before": Input(before, "public")}
            label += f" after {self.jobs[before].label}"
        spec = {
            "plugin": self._spec(defense, judged_too=False),
            "files": self._digests(defense),
        }
        return self._job("protect", "owner", label, spec, inputs, [(defense, _METHODS["protect"])])

    def attack(self, defense: Defense, attack: Attack) -> str:
        """The surrogates, or the forgery, of an attack on a defense; of a chain those of its last link."""
        return self._along(defense, attack, "attacker")

    def control(self, defense: Defense, control: Attack) -> str:
        """The surrogates of an attack's control; its first link has labels that the attacker lacks."""
        return self._along(defense, control, "owner")

    def _along(self, defense: Defense, attack: Attack, side: Side) -> str:
        """The last job of an attack, whose first link runs on this side."""
        first, *rest = links_of(attack)
        left_by = self._link(first, _Met(defense), side)
        for number, link in enumerate(rest, start=1):
            left_by = self._link(link, _Met(defense, left_by, number), "attacker")
        return left_by

    def _link(self, attack: Attack, met: _Met, side: Side) -> str:
        made = ("attack", attack, met.defense, met.left_by, side)
        return self._once(made, lambda: self._attack(attack, met, side))

    def _attack(self, attack: Attack, met: _Met, side: Side) -> str:
        scheme = faced(met.defense, attack)
        require_modest_stages(attack)
        touches = attack.access_used() != "none"
        knows = attack.knowledge != "none"
        inputs = {"target": self._target(met)} if touches else {}
        inputs |= {f"stage:{stage.key}": self._input(stage, met) for stage in attack.stages()}
        spec: dict[str, Any] = {"plugin": self._spec(attack), "files": self._digests(attack)}
        roots: list[tuple[Plugin, tuple[str, ...]]] = [(attack, ("*",))]
        if knows:
            spec["scheme"] = self._spec(scheme, judged_too=False)
            # An attack that knows the scheme may call whatever it offers.
            roots.append((scheme, ("*",)))
        part = attack.part if isinstance(attack, Insider) else None
        if part is not None:
            key = {"key": Input(self.key_of(met.defense, scheme), "secret")}
            label = f"disclose {part} of {scheme.label}"
            disclosed = self._job("disclose", "owner", label, {"options": {"part": part}}, key, [])
            inputs["part"] = Input(disclosed, "public")
        if met.link:
            # What a second link draws is not what the first one drew.
            spec["options"] = {"link": met.link}
        whom = f" on {self._whom(met)}" if touches or knows else ""
        kind: JobKind = "forge" if isinstance(attack, AmbiguityAttack) else "attack"
        return self._job(kind, side, f"{kind} {attack.label}{whom}", spec, inputs, roots)

    def measure(self, surrogates: str, attack: Attack) -> str:
        """The accuracy of what an attack left."""
        return self._once(("measure", surrogates, attack.changes_task), lambda: self._measure(surrogates, attack))

    def _measure(self, surrogates: str, attack: Attack) -> str:
        spec = {"options": {"changes_task": attack.changes_task}}
        label = f"measure {self.jobs[surrogates].label}"
        return self._job("measure", "owner", label, spec, {"surrogates": Input(surrogates, "public")}, [])

    def judge(self, defense: Defense, surrogates: str, key: Input, owner: Input | None = None) -> str:
        """A key's evidence on surrogates, by its defense; of a forged one also how far it agrees with the owner's."""
        inputs = {"surrogates": Input(surrogates, "public"), "key": key}
        if owner is not None:
            inputs["owner"] = owner
        label = f"judge {self.jobs[surrogates].label} by {defense.label}"
        return self._job(
            "judge", "owner", label, {"plugin": self._spec(defense)}, inputs, [(defense, _METHODS["judge"])]
        )

    def decoys(self, defense: Defense, attack: DecoyAttack) -> str:
        """Fresh keys on the protected model."""
        protect = self.protect(defense)
        inputs = {"target": Input(protect, "public"), "key": Input(protect, "secret")}
        spec = {"plugin": self._spec(defense), "options": {"decoys": attack.decoys}}
        label = f"decoys {attack.label} for {defense.label}"
        return self._job("decoys", "owner", label, spec, inputs, [(defense, _METHODS["decoys"])])

    def null(self, defense: Defense, name: str, stranger: str, keys: Mapping[int, str], decoys: int) -> str:
        """Owners' completed keys, and fresh ones, on a model that bears no mark of theirs.

        Args:
            defense: whose keys.
            name: of the model.
            stranger: the job that made it.
            keys: the jobs that completed the owners' keys, by seed.
            decoys: how many fresh keys.
        """
        inputs = {"target": Input(stranger, "public")}
        inputs |= {f"key:{seed}": Input(job, "secret") for seed, job in keys.items()}
        options = {"decoys": decoys, "owners": [str(seed) for seed in keys]}
        spec = {"plugin": self._spec(defense), "options": options}
        label = f"null {defense.label} on {name}"
        return self._job("null", "owner", label, spec, inputs, [(defense, _METHODS["null"])])

    def judging_source(self, defense: Defense) -> str:
        """The digest of what a job runs that judges by a defense."""
        return self._source("judge", [(defense, _METHODS["judge"])])

    def _once(self, key: tuple[Any, ...], make: Callable[[], str]) -> str:
        # By class as well: two plugins without fields are equal whatever their classes.
        whole = (*key, *(type(one) for one in key))
        if whole not in self._made:
            self._made[whole] = make()
        return self._made[whole]

    def _spec(self, plugin: Plugin, judged_too: bool = True) -> dict[str, Any]:
        key = (type(plugin), plugin, judged_too)
        if key not in self._specs:
            self._specs[key] = _spec(plugin, judged_too)
        return self._specs[key]

    def _source(self, kind: JobKind, plugins: Iterable[tuple[Plugin, tuple[str, ...]]]) -> str:
        used = tuple((type(plugin), methods, plugin.architectures()) for plugin, methods in plugins)
        if (kind, used) not in self._sources:
            roots = [("bench.running.work", kind), sources.whole_module(models.module_of(self.task.model)), *_HANDED]
            for cls, methods, architectures in used:
                roots += _roots(cls, methods)
                roots += [sources.whole_module(models.module_of(name)) for name in architectures]
            self._sources[kind, used] = sources.digest(roots)
        return self._sources[kind, used]

    def _job(
        self,
        kind: JobKind,
        side: Side,
        label: str,
        spec: Mapping[str, Any],
        inputs: Mapping[str, Input],
        plugins: Iterable[tuple[Plugin, tuple[str, ...]]],
    ) -> str:
        source = self._source(kind, plugins)
        # A control begins as the attack does: the same student, in the same order of the same inputs.
        begun = "attacker" if kind == "attack" else side
        whole = {**spec, "task": self._task_spec, "seed": self._seed_for(begun), "threads": self.threads}
        identity = {
            "protocol": PROTOCOL,
            "kind": kind,
            "spec": whole,
            "inputs": {role: [one.job, one.channel] for role, one in inputs.items()},
            "data": self.data_digests,
            "device": self.device,
            "source": source,
        }
        digest = hashlib.sha256(parameters.canonical(identity).encode()).hexdigest()[:16]
        if digest not in self.jobs:
            # Outside the identity, because the same data may lie elsewhere tomorrow.
            found = {**whole, "data": self._data_spec}
            self.jobs[digest] = Job(digest, kind, side, label, found, dict(inputs), source)
        return digest

    def _seed_for(self, side: Side) -> str:
        return str(self.seed) if side == "owner" else self._attackers_seed

    @functools.cached_property
    def _attackers_seed(self) -> str:
        # An attack that knows the scheme could draw the owner's key if it were told the seed.
        return Stream((str(self.seed), "attacker")).bytes(16).hex()

    @functools.cached_property
    def _task_spec(self) -> dict[str, Any]:
        return specs.task_spec(self.task)

    @functools.cached_property
    def _data_spec(self) -> dict[str, Any]:
        return specs.data_spec(self.task, self.data_digests)

    def _digests(self, plugin: Plugin) -> dict[str, str]:
        return {path: self._file_digest(path) for path in plugin.files()}

    def _file_digest(self, path: str) -> str:
        if path not in self._files:
            self._files[path] = images.digest(path)
        return self._files[path]


def _spec(plugin: Plugin, judged_too: bool = True) -> dict[str, Any]:
    values = parameters.values_of(plugin, judged_too=judged_too)
    return {"name": plugin.name, "path": registry.path_of(type(plugin)), "params": values}


def _label_of(defense: Defense) -> str:
    """Without the fields that only `verify` reads."""
    return parameters.label(defense.name, _without_judged(defense))


def _without_judged(defense: Defense) -> Defense:
    return type(defense)(**{n: getattr(defense, n) for n in parameters.values_of(defense, judged_too=False)})


def _roots(cls: type, methods: tuple[str, ...]) -> list[sources.Node]:
    if methods == ("*",):
        return [(cls.__module__, cls.__qualname__), *sources.declared_roots(cls)]
    return sources.plugin_roots(cls, methods)
