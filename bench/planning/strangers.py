"""The null models of a suite: strangers, which never met the owners, and the trials of every defense against them.

No training of their own is invented for them. Seeds from `FIRST` on are other people's: their clean models, what they
train of the attacker's data alone, and what they protect as owners are the jobs that any suite plans for a seed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from bench import registry
from bench.defense import Defense
from bench.errors import InputError
from bench.pair import Pair
from bench.planning.dag import JobPlanner
from bench.planning.job import Plan, Trial
from bench.planning.suite import Null, Suite
from bench.task import Task

# The seed of the first stranger; no owner has it or a later one.
FIRST = 1000

Dag = Callable[[Task, int], JobPlanner]


@dataclass(frozen=True)
class Stranger:
    """A model that bears no mark of the owners.

    Attributes:
        name: unlike that of any other.
        kind, model: as for `bench.planning.job.Trial`.
        seed: of whoever made it.
        job: that made it.
    """

    name: str
    kind: Literal["same", "architecture", "data", "stolen"]
    model: str
    seed: int
    job: str


def trials(suite: Suite, task: Task, plan: Plan, dag: Dag) -> Iterator[Trial]:
    """Every defense of which the task has a protected model against every stranger; none without `[null]`.

    Args:
        suite: as narrowed.
        task: one of it.
        plan: with all cells of the task; the owners are its seeds.
        dag: the jobs of a task and seed.

    Raises:
        InputError: an owner has a stranger's seed.
    """
    if suite.null is None:
        return
    if max(plan.seeds) >= FIRST:
        raise InputError(f"suite {plan.suite}: expected seeds below {FIRST} beside [null], got {max(plan.seeds)}")
    # What cannot be planned has its row in the records.
    usable = {cell.defense_label for cell in plan.cells if cell.task == task.name and cell.jobs}
    # A pair claims no oftener than its members do, each of which is tried alone.
    alone = [d for d in suite.defenses if isinstance(d, Defense) and not (d.undefended or isinstance(d, Pair))]
    defenses = [one for one in alone if one.label in usable]
    if not defenses:
        return
    met = list(strangers(suite.null, suite.schemes, task, dag))
    for defense in defenses:
        keys = {seed: dag(task, seed).protect(defense) for seed in plan.seeds}
        for one in met:
            own = dag(task, one.seed)
            yield Trial(
                task=task.name,
                defense=defense.name,
                defense_params=defense.params,
                defense_label=defense.label,
                stranger=one.name,
                kind=one.kind,
                model=one.model,
                owners=plan.seeds,
                decoys=suite.null.decoys,
                source=own.judging_source(defense),
                job=own.null(defense, one.name, one.job, keys, suite.null.decoys),
            )


def strangers(null: Null, schemes: tuple[Defense, ...], task: Task, dag: Dag) -> Iterator[Stranger]:
    """The null models of a task, in the order of their seeds.

    Args:
        null: how many of each kind.
        schemes: of other owners; those that the task has no use for are passed over.
        task: theirs and the owners'.
        dag: the jobs of a task and seed.
    """
    known = registry.discover()
    undefended: Any = next(cls() for cls in known.defense.values() if cls.undefended)
    alone: Any = next(cls() for cls in known.attack.values() if cls.ceiling)
    usable = [scheme for scheme in schemes if scheme.applies_to(task) is None]
    # Numbers of their own for each kind, so that one more of a kind leaves the others as they are.
    same, others, data, stolen = (itertools.count(FIRST * kind) for kind in range(1, 5))
    for seed in itertools.islice(same, null.same):
        yield Stranger(f"seed {seed}", "same", task.model, seed, dag(task, seed).protect(undefended))
    for model, seed in zip(null.architectures, others, strict=False):
        other = dataclasses.replace(task, model=model)
        yield Stranger(f"{model}, seed {seed}", "architecture", model, seed, dag(other, seed).protect(undefended))
    for seed in itertools.islice(data, null.data):
        made = dag(task, seed).attack(undefended, alone)
        yield Stranger(f"other data, seed {seed}", "data", task.model, seed, made)
    for scheme, seed in zip(itertools.islice(itertools.cycle(usable), null.stolen), stolen, strict=False):
        yield Stranger(f"{scheme.label}, seed {seed}", "stolen", task.model, seed, dag(task, seed).protect(scheme))
