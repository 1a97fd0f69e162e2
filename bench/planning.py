"""From a suite to a plan: the DAG of jobs, each named by the hash of all that it depends on, and the cells."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench import data, images, parameters, registry, sources, work
from bench.attack import Attack, DecoyAttack
from bench.defense import Defense
from bench.job import Cell, Channel, Input, Job, JobKind, Plan, Side
from bench.plugin import Plugin
from bench.registry import Registry
from bench.stage import Stage
from bench.suite import Suite, Unusable
from bench.task import Task

# Raised when the meaning of a job's spec or of the streams changes: results of before are then redone.
PROTOCOL = 1

# What a job runs of its plugin, beside its fields; `verify` and what only it calls enter judging alone.
_METHODS: dict[str, tuple[str, ...]] = {
    "protect": ("draw", "protect", "__post_init__"),
    "judge": ("verify", "access_used", "__post_init__"),
    "decoys": ("draw", "verify", "access_used", "__post_init__"),
}

# Objects that every job is handed, so that no name in its code leads to them.
_HANDED: tuple[sources.Node, ...] = (
    ("bench.recipe", "Recipe"),
    ("bench.stream", "Stream"),
    ("bench.task", "Task"),
    ("bench.training", "Split"),
)


def make(suite: Suite, device: str = "cpu", seeds: Iterable[int] | None = None) -> Plan:
    """The plan of a suite.

    Args:
        suite: checked.
        device: kind of device on which the jobs run, `cpu` or `cuda`; results on one are not those of another.
        seeds: instead of the suite's.
    """
    header = suite.header
    chosen = tuple(seeds) if seeds is not None else header.seeds
    digests = {task.info.name: data.load(task.info.name).digest for task in suite.tasks}
    plan = Plan(
        suite=header.name,
        source=suite.source,
        alpha=header.alpha,
        accuracy_budget=header.accuracy_budget,
        seeds=chosen,
        keep=header.keep,
        timeout=header.timeout,
        threads=header.threads,
        data_digests=digests,
        jobs={},
        cells=[],
    )
    for task in suite.tasks:
        for seed in chosen:
            _Planner(suite, task, seed, device, digests[task.info.name], plan.jobs, plan.cells).cross()
    return plan


@dataclass
class _Planner:
    """Plans one task and seed into the jobs and cells of the whole plan."""

    suite: Suite
    task: Task
    seed: int
    device: str
    data_digest: str
    jobs: dict[str, Job]
    cells: list[Cell]
    _files: dict[str, str] = field(default_factory=dict)

    def cross(self) -> None:
        """Every defense with every attack, and the controls."""
        known = registry.discover()
        defenses = [*self.suite.defenses]
        attacks = [*self.suite.attacks]
        clean = next((d for d in defenses if isinstance(d, Defense) and d.undefended), None)
        if clean is None:
            clean = next(cls() for cls in known.defense.values() if cls.undefended)
            defenses.insert(0, clean)
        attacks = [*_missing(known, attacks), *attacks]
        nothing = next(a for a in attacks if isinstance(a, Attack) and a.kind == "none")
        for defense in defenses:
            for attack in attacks:
                self._cell(defense, attack, clean, nothing)
        for defense in defenses:
            for attack in attacks:
                self._control(defense, attack, clean, nothing)

    def _cell(self, defense: Any, attack: Any, clean: Defense, nothing: Attack) -> None:
        if isinstance(attack, Attack) and isinstance(defense, Defense):
            if defense.undefended and (attack.kind == "ambiguity" or attack.knowledge != "none"):
                return
            reason = defense.applies_to(self.task) or attack.applies_to(self.task) or attack.against(defense)
            if reason is None:
                for judged_key, jobs in self._jobs_of(defense, attack, clean, nothing):
                    self._add(defense, attack, attack.kind, judged_key, jobs)
                return
            whose = "forger" if attack.kind == "ambiguity" else "owner"
            self._add(defense, attack, attack.kind, whose, {}, status="not applicable", error=reason)
            return
        kind = attack.kind if isinstance(attack, Attack) else "removal"
        whose = "forger" if kind == "ambiguity" else "owner"
        self._add(defense, attack, kind, whose, {}, status="failed", **_reason(defense, attack))

    def _control(self, defense: Any, attack: Any, clean: Defense, nothing: Attack) -> None:
        """The clean model and its attacked versions under the owner's own key: any claim is false."""
        if not (isinstance(defense, Defense) and isinstance(attack, Attack)):
            return
        if defense.undefended or attack.kind == "ambiguity" or attack.knowledge != "none":
            return
        if defense.applies_to(self.task) or clean.applies_to(self.task) or attack.applies_to(self.task):
            return
        key = self._protect(defense)
        surrogates = self._attack(clean, attack)
        measured = self._measure(self._attack(clean, nothing), nothing)
        jobs = {
            "protect": key,
            "attack": surrogates,
            "measure": self._measure(surrogates, attack),
            "judge": self._judge(defense, surrogates, Input(key, "secret")),
            "clean": measured,
            "protected": measured,
        }
        self._add(defense, attack, "control", "owner", {**jobs, **self._reference(clean, attack)})

    def _jobs_of(
        self, defense: Defense, attack: Attack, clean: Defense, nothing: Attack
    ) -> list[tuple[str, dict[str, str]]]:
        protect = self._protect(defense)
        common = {
            "protect": protect,
            "clean": self._measure(self._attack(clean, nothing), nothing),
            "protected": self._measure(self._attack(defense, nothing), nothing),
        }
        if isinstance(attack, DecoyAttack):
            return [("forger", {**common, "decoys": self._decoys(defense, attack)})]
        surrogates = self._attack(defense, attack)
        role = "forge" if attack.kind == "ambiguity" else "attack"
        common |= {role: surrogates, "measure": self._measure(surrogates, attack)}
        common |= self._reference(clean, attack)
        owner = {**common, "judge": self._judge(defense, surrogates, Input(protect, "secret"))}
        if attack.kind != "ambiguity":
            return [("owner", owner)]
        forger = {**common, "judge": self._judge(defense, surrogates, Input(surrogates, "public"))}
        return [("forger", forger), ("owner", owner)]

    def _reference(self, clean: Defense, attack: Attack) -> dict[str, str]:
        return {"reference": self._measure(self._attack(clean, attack), attack)} if attack.changes_task else {}

    def _stage(self, stage: Stage, target: Defense | None) -> str:
        inputs = {f"stage:{one.label}": self._input(one, target) for one in stage.stages()}
        label = stage.label
        if stage.side == "attacker":
            assert target is not None
            inputs["target"] = Input(self._protect(target), "public")
            label = f"{stage.label} of {target.label}"
        spec = {"plugin": _spec(stage)}
        return self._job("stage", stage.side, f"stage {label}", spec, inputs, [(stage, ("run", "stages"))])

    def _input(self, stage: Stage, target: Defense | None) -> Input:
        channel: Channel = "secret" if stage.side == "owner" else "public"
        return Input(self._stage(stage, target), channel)

    def _protect(self, defense: Defense) -> str:
        inputs = {f"stage:{stage.label}": self._input(stage, None) for stage in defense.stages()}
        spec = {
            "plugin": _spec(defense, judged_too=False),
            "files": {path: self._file_digest(path) for path in defense.files()},
        }
        label = parameters.label(defense.name, _without_judged(defense))
        return self._job("protect", "owner", f"protect {label}", spec, inputs, [(defense, _METHODS["protect"])])

    def _attack(self, defense: Defense, attack: Attack) -> str:
        touches = attack.access != "none"
        knows = attack.knowledge != "none"
        inputs = {"target": Input(self._protect(defense), "public")} if touches else {}
        inputs |= {f"stage:{stage.label}": self._input(stage, defense) for stage in attack.stages()}
        spec: dict[str, Any] = {"plugin": _spec(attack)}
        roots: list[tuple[Plugin, tuple[str, ...]]] = [(attack, ("*",))]
        if knows:
            spec["scheme"] = _spec(defense, judged_too=False)
            roots.append((defense, _METHODS["decoys"] + _METHODS["protect"]))
        part = work.part_of(attack)
        if part is not None:
            key = {"key": Input(self._protect(defense), "secret")}
            label = f"disclose {part} of {defense.label}"
            disclosed = self._job("disclose", "owner", label, {"options": {"part": part}}, key, [])
            inputs["part"] = Input(disclosed, "public")
        whom = f" on {parameters.label(defense.name, _without_judged(defense))}" if touches or knows else ""
        kind: JobKind = "forge" if work.kind_of(attack) == "forge" else "attack"
        return self._job(kind, "attacker", f"{kind} {attack.label}{whom}", spec, inputs, roots)

    def _measure(self, surrogates: str, attack: Attack) -> str:
        spec = {"options": {"changes_task": attack.changes_task}}
        label = f"measure {self.jobs[surrogates].label}"
        return self._job("measure", "owner", label, spec, {"surrogates": Input(surrogates, "public")}, [])

    def _judge(self, defense: Defense, surrogates: str, key: Input) -> str:
        inputs = {"surrogates": Input(surrogates, "public"), "key": key}
        label = f"judge {self.jobs[surrogates].label} by {defense.label}"
        return self._job("judge", "owner", label, {"plugin": _spec(defense)}, inputs, [(defense, _METHODS["judge"])])

    def _decoys(self, defense: Defense, attack: DecoyAttack) -> str:
        protect = self._protect(defense)
        inputs = {"target": Input(protect, "public"), "key": Input(protect, "secret")}
        spec = {"plugin": _spec(defense), "options": {"decoys": attack.decoys}}
        label = f"decoys {attack.label} for {defense.label}"
        return self._job("decoys", "owner", label, spec, inputs, [(defense, _METHODS["decoys"])])

    def _job(
        self,
        kind: JobKind,
        side: Side,
        label: str,
        spec: Mapping[str, Any],
        inputs: Mapping[str, Input],
        plugins: Iterable[tuple[Plugin, tuple[str, ...]]],
    ) -> str:
        roots = [("bench.work", kind), sources.whole_module(self._model_module), *_HANDED]
        for plugin, methods in plugins:
            roots += _roots(type(plugin), methods)
        source = sources.digest(roots)
        whole = {**spec, "task": self._task_spec, "seed": self.seed, "threads": self.suite.header.threads}
        identity = {
            "protocol": PROTOCOL,
            "kind": kind,
            "spec": whole,
            "inputs": {role: [one.job, one.channel] for role, one in inputs.items()},
            "data": self.data_digest,
            "device": self.device,
            "source": source,
        }
        digest = hashlib.sha256(parameters.canonical(identity).encode()).hexdigest()[:16]
        if digest not in self.jobs:
            self.jobs[digest] = Job(digest, kind, side, label, whole, dict(inputs), source)
        return digest

    @property
    def _task_spec(self) -> dict[str, Any]:
        recipe = parameters.values_of(self.task.recipe)
        return {"dataset": self.task.info.name, "model": self.task.model, "recipe": recipe}

    @property
    def _model_module(self) -> str:
        return type(self.task.skeleton).__module__

    def _file_digest(self, path: str) -> str:
        if path not in self._files:
            self._files[path] = images.digest(path)
        return self._files[path]

    def _add(self, defense: Any, attack: Any, kind: str, judged_key: str, jobs: dict[str, str], **status: Any) -> None:
        usable = defense if isinstance(defense, Defense) else None
        doing = attack if isinstance(attack, Attack) else None
        applicable = usable is not None and usable.applies_to(self.task) is None
        self.cells.append(
            Cell(
                task=f"{self.task.info.name}/{self.task.model}",
                dataset=self.task.info.name,
                model=self.task.model,
                seed=self.seed,
                defense=defense.name,
                defense_params=usable.params if usable else {},
                defense_label=usable.label if usable else defense.name,
                defense_family=usable.family if usable else "",
                defense_access=usable.access_used() if usable else "",
                attack=attack.name,
                attack_params=doing.params if doing else {},
                attack_label=doing.label if doing else attack.name,
                attack_family=doing.family if doing else "",
                attack_access=doing.access if doing else "",
                attack_kind=kind,  # type: ignore[arg-type]
                attack_class=getattr(attack, "attack_class", ""),
                knowledge=doing.knowledge if doing else "",
                strength_unit=getattr(attack, "strength_unit", ""),
                judged_key=judged_key,  # type: ignore[arg-type]
                capacity_log10_p=usable.capacity(self.task) if usable and applicable else None,
                changes_task=doing.changes_task if doing else False,
                jobs=jobs,
                **status,
            )
        )


def _missing(known: Registry, attacks: list[Any]) -> list[Attack]:
    """The attack that does nothing and the one that sets the ceiling, where the suite does not name them."""
    chosen = [attack for attack in attacks if isinstance(attack, Attack)]
    found: list[Attack] = []
    if not any(attack.kind == "none" for attack in chosen):
        found.append(next(cls() for cls in known.attack.values() if cls.kind == "none"))
    if not any(_is_ceiling(attack) for attack in chosen):
        found += [cls() for cls in known.attack.values() if _is_ceiling(cls)][:1]
    return found


def _is_ceiling(attack: Attack | type[Attack]) -> bool:
    return attack.kind == "removal" and attack.access == "none"


def _reason(defense: Any, attack: Any) -> dict[str, str]:
    broken = (defense if isinstance(defense, Unusable) else attack).broken
    return {
        "error_type": broken.error_type,
        "error": f"{broken.where}: {broken.error}",
        "traceback": broken.traceback,
    }


def _spec(plugin: Plugin, judged_too: bool = True) -> dict[str, Any]:
    values = parameters.values_of(plugin, judged_too=judged_too)
    return {"name": plugin.name, "path": registry.path_of(type(plugin)), "params": values}


def _without_judged(defense: Defense) -> Defense:
    return type(defense)(**{n: getattr(defense, n) for n in parameters.values_of(defense, judged_too=False)})


def _roots(cls: type, methods: tuple[str, ...]) -> list[sources.Node]:
    if methods == ("*",):
        return [(cls.__module__, cls.__qualname__)]
    return sources.plugin_roots(cls, methods)
