"""From a suite to a plan: every defense with every attack, and the controls, as cells and the jobs that fill them."""

from __future__ import annotations

import functools
import hashlib
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench import data, parameters, registry
from bench.attack import Attack, DecoyAttack
from bench.defense import Defense
from bench.errors import InputError
from bench.pair import faced, members_of, refusal
from bench.planning import strangers
from bench.planning.dag import JobPlanner
from bench.planning.job import Cell, Input, Plan, roles
from bench.planning.suite import Suite, Unusable
from bench.registry import Registry
from bench.task import PartName, Task


def make(suite: Suite, device: str = "cpu", seeds: Iterable[int] | None = None) -> Plan:
    """The plan of a suite.

    Args:
        suite: checked.
        device: kind of device on which the jobs run, `cpu` or `cuda`; results on one are not those of another.
        seeds: instead of the suite's.
    """
    header = suite.header
    chosen = tuple(seeds) if seeds is not None else header.seeds
    prepared = functools.cache(data.prepare)
    digests = {task.name: prepared(task.info, task.sizes) for task in suite.tasks}
    plan = Plan(
        suite=header.name,
        source=suite.source,
        alpha=header.alpha,
        accuracy_budget=header.accuracy_budget,
        seeds=chosen,
        keep=header.keep,
        timeout=header.timeout,
        threads=header.threads,
        data_digests={name: _joined(parts) for name, parts in digests.items()},
        jobs={},
        cells=[],
    )

    @functools.cache
    def dag(task: Task, seed: int) -> JobPlanner:
        return JobPlanner(task, seed, header.threads, device, prepared(task.info, task.sizes), plan.jobs)

    for task in suite.tasks:
        for seed in chosen:
            _CellPlanner(suite, task, seed, dag(task, seed), plan.cells).cross()
        plan.trials.extend(strangers.trials(suite, task, plan, dag))
    return plan


def _joined(digests: Mapping[PartName, str]) -> str:
    return hashlib.sha256(parameters.canonical(digests).encode()).hexdigest()[:16]


@dataclass
class _CellPlanner:
    """Plans the cells of one task and seed."""

    suite: Suite
    task: Task
    seed: int
    dag: JobPlanner
    cells: list[Cell]
    _planned: set[tuple[str, str]] = field(default_factory=set)
    _asked: dict[tuple[Any, ...], Any] = field(default_factory=dict)

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
            for control in dict.fromkeys(filter(None, map(self._control_of, attacks))):
                self._beside_extraction(defense, control, clean, nothing)

    def _cell(self, defense: Any, attack: Any, clean: Defense, nothing: Attack) -> None:
        kind = attack.kind if isinstance(attack, Attack) else "removal"
        whose = "forger" if kind == "ambiguity" else "owner"
        if not (isinstance(attack, Attack) and isinstance(defense, Defense)):
            self._add(defense, attack, kind, whose, {}, status="failed", **_broken(defense, attack))
            return
        if defense.undefended and (kind == "ambiguity" or attack.knowledge != "none"):
            return
        try:
            reason = self._ask(defense, "applies_to", self.task) or self._ask(attack, "applies_to", self.task)
            reason = reason or refusal(defense, attack)
            made = [] if reason else self._jobs_of(defense, attack, clean, nothing)
            capacity = None if reason else self._ask(defense, "capacity", self.task)
        except InputError:
            raise
        # A plugin may raise anything while it is asked; its cells fail, the others are planned.
        except Exception as error:  # noqa: BLE001
            text = "".join(traceback.format_exception(error))
            why = {"error_type": type(error).__name__, "error": str(error), "traceback": text}
            self._add(defense, attack, kind, whose, {}, status="failed", **why)
            return
        if reason:
            self._add(defense, attack, kind, whose, {}, status="not applicable", error=reason)
        for judged_key, jobs in made:
            self._add(defense, attack, kind, judged_key, jobs, capacity_log10_p=capacity)

    def _control(self, defense: Any, attack: Any, clean: Defense, nothing: Attack) -> None:
        """The clean model and its attacked versions under the owner's own key: any claim is false."""
        if not (isinstance(defense, Defense) and isinstance(attack, Attack)):
            return
        if defense.undefended or attack.kind == "ambiguity" or attack.knowledge != "none":
            return
        # What cannot be planned, or not be run, has its row beside the defense already.
        # Where the clean model cannot be attacked, there is no surrogate of it to judge.
        label = self._ask(attack, "label")
        if not {(self._ask(one, "label"), label) for one in (defense, clean)} <= self._planned:
            return
        self._add_control(defense, attack, self.dag.attack(clean, attack), clean, nothing)

    def _control_of(self, attack: Any) -> Attack | None:
        """The control of an attack that is planned at all."""
        usable = isinstance(attack, Attack) and any(self._ask(attack, "label") == label for _, label in self._planned)
        return attack.control() if usable else None

    def _beside_extraction(self, defense: Any, control: Attack, clean: Defense, nothing: Attack) -> None:
        """What never met the model, under the owner's own key: any claim is false, as for the clean model."""
        planned = any(self._ask(defense, "label") == label for label, _ in self._planned)
        if isinstance(defense, Defense) and not defense.undefended and planned:
            self._add_control(defense, control, self.dag.control(defense, control), clean, nothing)

    def _add_control(self, defense: Defense, attack: Attack, surrogates: str, clean: Defense, nothing: Attack) -> None:
        measured = self.dag.measure(self.dag.attack(clean, nothing), nothing)
        jobs = {
            "protect": self.dag.protect(defense),
            "attack": surrogates,
            "measure": self.dag.measure(surrogates, attack),
            "clean": measured,
            "protected": measured,
        }
        jobs |= self._judged("judge", defense, surrogates) | self._reference(clean, attack)
        self._add(defense, attack, "control", "owner", jobs, capacity_log10_p=self._ask(defense, "capacity", self.task))

    def _judged(self, role: str, defense: Defense, surrogates: str) -> dict[str, str]:
        """The owner's evidence, under a role; of a pair under one more the second one's."""
        pairs = zip(members_of(defense), self.dag.keys(defense), strict=True)
        made = [self.dag.judge(member, surrogates, Input(key, "secret")) for member, key in pairs]
        return dict(zip(roles(role, len(made)), made, strict=True))

    def _ask(self, plugin: Any, name: str, *about: Any) -> Any:
        """What a plugin declares, asked once: it takes part in hundreds of cells."""
        key = (type(plugin), plugin, name)
        if key not in self._asked:
            declared = getattr(plugin, name)
            self._asked[key] = declared(*about) if callable(declared) else declared
        return self._asked[key]

    def _jobs_of(
        self, defense: Defense, attack: Attack, clean: Defense, nothing: Attack
    ) -> list[tuple[str, dict[str, str]]]:
        protect = self.dag.protect(defense)
        common = {
            "protect": protect,
            "clean": self.dag.measure(self.dag.attack(clean, nothing), nothing),
            "protected": self.dag.measure(self.dag.attack(defense, nothing), nothing),
        }
        if isinstance(attack, DecoyAttack):
            return [("forger", {**common, "decoys": self.dag.decoys(defense, attack)})]
        surrogates = self.dag.attack(defense, attack)
        role = "forge" if attack.kind == "ambiguity" else "attack"
        common |= {role: surrogates, "measure": self.dag.measure(surrogates, attack)}
        common |= self._reference(clean, attack)
        owner = {**common, **self._judged("judge", defense, surrogates)}
        if attack.kind != "ambiguity":
            return [("owner", {**owner, **self._beside(defense, attack)})]
        scheme = faced(defense, attack)
        forged, secret = Input(surrogates, "public"), Input(self.dag.key_of(defense, scheme), "secret")
        forger = {**common, "judge": self.dag.judge(scheme, surrogates, forged, owner=secret)}
        # Who marked a stolen copy cannot have marked the original: the fourth pair of a key and a model.
        forger["original"] = self.dag.judge(scheme, self.dag.attack(defense, nothing), forged)
        return [("forger", forger), ("owner", owner)]

    def _reference(self, clean: Defense, attack: Attack) -> dict[str, str]:
        return {"reference": self.dag.measure(self.dag.attack(clean, attack), attack)} if attack.changes_task else {}

    def _beside(self, defense: Defense, attack: Attack) -> dict[str, str]:
        """The owner's key on what the attack's control left, and that one's accuracy."""
        control = attack.control()
        if control is None or defense.undefended:
            return {}
        surrogates = self.dag.control(defense, control)
        measured = {"control_measure": self.dag.measure(surrogates, control)}
        return self._judged("control", defense, surrogates) | measured

    def _add(self, defense: Any, attack: Any, kind: str, judged_key: str, jobs: dict[str, str], **more: Any) -> None:
        usable = defense if isinstance(defense, Defense) else None
        doing = attack if isinstance(attack, Attack) else None
        labels = [self._ask(one, "label") if known else one.name for one, known in ((defense, usable), (attack, doing))]
        if jobs:
            self._planned.add((labels[0], labels[1]))
        self.cells.append(
            Cell(
                task=self.task.name,
                dataset=self.task.info.name,
                model=self.task.model,
                seed=self.seed,
                defense=defense.name,
                defense_params=self._ask(usable, "params") if usable else {},
                defense_label=labels[0],
                defense_family=usable.family if usable else "",
                defense_access=usable.access_used() if usable else "",
                attack=attack.name,
                attack_params=self._ask(doing, "params") if doing else {},
                attack_label=labels[1],
                attack_family=doing.family if doing else "",
                attack_access=doing.access_used() if doing else "",
                attack_kind=kind,  # type: ignore[arg-type]
                attack_class=getattr(attack, "attack_class", ""),
                knowledge=doing.knowledge if doing else "",
                strength_unit=getattr(attack, "strength_unit", ""),
                judged_key=judged_key,  # type: ignore[arg-type]
                changes_task=doing.changes_task if doing else False,
                time_model=getattr(attack, "time_model", None) if kind == "ambiguity" else None,
                jobs=jobs,
                readings=_readings(defense, attack if judged_key == "forger" else None) if jobs else (),
                **{"capacity_log10_p": None, **more},
            )
        )


def _readings(defense: Defense, forged_by: Attack | None) -> tuple[str, ...]:
    """The labels of a pair's members; that of the one first which an attack forges a key for."""
    members = members_of(defense)
    if len(members) == 1:
        return ()
    first = faced(defense, forged_by) if forged_by else members[0]
    return (first.label, *(member.label for member in members if member != first))


def _missing(known: Registry, attacks: list[Any]) -> list[Attack]:
    """The attack that does nothing and the one that sets the ceiling, where the suite does not name them."""
    chosen = [attack for attack in attacks if isinstance(attack, Attack)]
    found: list[Attack] = []
    if not any(attack.kind == "none" for attack in chosen):
        found.append(next(cls() for cls in known.attack.values() if cls.kind == "none"))
    if not any(attack.ceiling for attack in chosen):
        found += [cls() for cls in known.attack.values() if cls.ceiling][:1]
    return found


def _broken(defense: Any, attack: Any) -> dict[str, str]:
    broken = (defense if isinstance(defense, Unusable) else attack).broken
    return {
        "error_type": broken.error_type,
        "error": f"{broken.where}: {broken.error}",
        "traceback": broken.traceback,
    }
