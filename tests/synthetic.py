"""Plans and journals made up for tests: cells are stated by what was measured, jobs follow from that."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyarrow as pa

from bench.planning.job import Cell, Input, Job, Plan
from bench.tables import records
from bench.tables.leaderboard import boards

CLEAN = 0.98
HELD, LOST = -20.0, -1.0
VERSIONS = {"python": "3.11", "torch": "2.13"}


class Suite:
    """A plan and a journal that grow cell by cell.

    Args:
        alpha: rate of false claims.
        budget: points.
        task: name of the task of all cells.
    """

    def __init__(self, alpha: float = 1e-6, budget: float = 5.0, task: str = "toy", name: str = "made-up") -> None:
        self.alpha, self.budget, self.task, self.name = alpha, budget, task, name
        self.jobs: dict[str, Job] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        self.cells: list[Cell] = []

    @property
    def plan(self) -> Plan:
        """The plan so far."""
        seeds = tuple(sorted({cell.seed for cell in self.cells}))
        return Plan(
            suite=self.name,
            source=f"suites/{self.name}.toml",
            alpha=self.alpha,
            accuracy_budget=self.budget,
            seeds=seeds,
            keep="all",
            timeout=60.0,
            threads=1,
            data_digests={self.task: "d1"},
            jobs=dict(self.jobs),
            cells=list(self.cells),
        )

    @property
    def records(self) -> pa.Table:
        """The records so far."""
        return records.build(self.plan, self.entries)[0]

    def job(self, kind: Any, label: str, result: Any = None, inputs: tuple[str, ...] = (), seconds: float = 1.0) -> str:
        """The id of the job with this label, made with a good entry when first asked for."""
        known = {job.label: job.id for job in self.jobs.values()}
        if label in known:
            return known[label]
        name = f"{len(self.jobs):04d}{abs(hash_of(label)):012x}"
        side = "attacker" if kind in ("attack", "forge") else "owner"
        parents = {f"in{i}": Input(parent, "public") for i, parent in enumerate(inputs)}
        self.jobs[name] = Job(name, kind, side, label, {}, parents, f"source of {kind}")
        self.entries[name] = {
            **{"v": 1, "job_id": name, "kind": kind, "label": label, "status": "ok", "result": result or {}},
            **{
                "error_type": None,
                "error": None,
                "traceback": None,
                "seconds": seconds,
                "peak_memory_mb": 100.0,
            },
            **{
                "device": "cpu",
                "threads": 1,
                "versions": dict(VERSIONS),
                "source_digest": f"source of {kind}",
            },
            **{"run_id": "run1", "created_at": f"2030-01-01T00:00:{len(self.jobs) % 60:02d}+00:00"},
        }
        return name

    def fail(self, job: str, error: str = "boom", error_type: str = "ValueError") -> None:
        """Make a job fail; what depends on it loses its entry."""
        for name, other in self.jobs.items():
            if name != job and job in {parent.job for parent in other.inputs.values()}:
                self.entries.pop(name, None)
        trouble = {"error_type": error_type, "error": error, "traceback": f"Traceback: {error}"}
        self.entries[job] = {**self.entries[job], "status": "failed", "result": {}, **trouble}

    def cell(
        self,
        defense: str = "mark",
        attack: str = "wear",
        kind: Any = "removal",
        *,
        seed: int = 0,
        log10_p: list[float] | float = HELD,
        accuracy: list[float] | float = 0.97,
        protected: float = 0.97,
        clean: float = CLEAN,
        reference: list[float] | None = None,
        cls: str = "in-place",
        access: str = "white-box",
        knowledge: str = "none",
        capacity: float | None = -30.0,
        defense_params: dict[str, Any] | None = None,
        attack_params: dict[str, Any] | None = None,
        decoys: list[float] | None = None,
        seconds: float = 10.0,
        seconds_protect: float = 4.0,
        reason: str | None = None,
        defense_access: str = "white-box",
        status: Any = "ok",
        figures: dict[str, float] | None = None,
        judged_key: Any = None,
        taken: list[dict[str, float]] | None = None,
        taken_before: dict[str, float] | None = None,
        time_model: str | None = None,
        derived: bool | None = None,
    ) -> Cell:
        """Add a cell and its jobs; lists have one item per surrogate, strengths are 1, 2, …

        `taken` are the figures of what each surrogate takes to store and to run, `taken_before` those of the protected
        model.
        """
        values = log10_p if isinstance(log10_p, list) else [log10_p]
        accuracies = accuracy if isinstance(accuracy, list) else [accuracy] * len(values)
        d, a = labelled(defense, defense_params), labelled(attack, attack_params)
        at = f"{d} {seed} {self.task}"
        protect = self.job("protect", f"protect {at}", seconds=seconds_protect)
        jobs = {
            "protect": protect,
            "clean": self.job("measure", f"measure clean {seed} {self.task}", {"accuracy": [clean]}),
        }
        jobs["protected"] = jobs["clean"]
        if kind != "control":
            jobs["protected"] = self.job("measure", f"measure {at}", {"accuracy": [protected]}, (protect,))
            if taken_before:
                self.entries[jobs["protected"]]["result"]["figures"] = [taken_before]
        if decoys is not None:
            found = {"statistic": [-p for p in decoys], "log10_p": decoys, "derived": derived}
            jobs["decoys"] = self.job("decoys", f"decoys {a} of {at}", found, (protect,), 3.0)
        else:
            evidence = [evidence_of(p, reason, figures) for p in values]
            jobs |= self._attacked(f"{a} on {kind} {at}", kind, protect, accuracies, evidence, seconds)
            if derived is not None:
                self.entries[jobs["judge"]]["result"]["derived"] = derived
            if taken:
                self.entries[jobs["measure"]]["result"]["figures"] = taken
        if reference is not None:
            jobs["reference"] = self.job("measure", f"measure reference {a} {at}", {"accuracy": reference})
        cell = Cell(
            **{"task": self.task, "dataset": "toy-set", "model": "net", "seed": seed},
            **{"defense": defense, "defense_params": defense_params or {}, "defense_label": d},
            **{"defense_family": "marks", "defense_access": defense_access},
            **{"attack": attack, "attack_params": attack_params or {}, "attack_label": a},
            **{"attack_family": "wearing", "attack_access": access, "attack_kind": kind, "attack_class": cls},
            **{"knowledge": knowledge, "strength_unit": "epochs", "capacity_log10_p": capacity},
            judged_key=judged_key or ("forger" if kind == "ambiguity" else "owner"),
            changes_task=reference is not None,
            jobs=jobs if status == "ok" else {},
            status=status,
            error_type=None if status == "ok" else "NotApplicable",
            error=None if status == "ok" else "no such layer",
            time_model=time_model,
        )
        self.cells.append(cell)
        return cell

    def _attacked(
        self, name: str, kind: str, protect: str, accuracies: list[float], evidence: list[Any], seconds: float
    ) -> dict[str, str]:
        count = len(accuracies)
        found: dict[str, Any] = {"inputs_used": 300, "labels_used": 100, "queries": 0}
        if kind == "ambiguity":
            attack = self.job("forge", f"forge {name}", {**found, "figures": {"tries": 2.0}}, (protect,), seconds)
        else:
            steps = [seconds * (i + 1) / count for i in range(count)]
            found |= {"strengths": [i + 1.0 for i in range(count)], "seconds": steps}
            attack = self.job("attack", f"attack {name}", found, (protect,), seconds)
        return {
            ("forge" if kind == "ambiguity" else "attack"): attack,
            "measure": self.job("measure", f"measure {name}", {"accuracy": accuracies}, (attack,)),
            "judge": self.job("judge", f"judge {name}", {"evidence": evidence}, (attack, protect)),
        }

    def base(self, defense: str = "mark", **values: Any) -> Cell:
        """The cell of the protected model itself."""
        values.setdefault("accuracy", values.get("protected", 0.97))
        return self.cell(defense, "still", "none", **{"cls": "none", "access": "none", **values})

    def yardstick(self, defense: str = "mark", accuracy: float = 0.85, **values: Any) -> Cell:
        """The cell of an attack that never touches the model."""
        given = {"cls": "extraction", "access": "none", "log10_p": 0.0, **values}
        return self.cell(defense, "anew", "removal", accuracy=accuracy, **given)


def evidence_of(log10_p: float, reason: str | None = None, figures: dict[str, float] | None = None) -> dict[str, Any]:
    """Evidence as a judging job reports it."""
    value = {
        "statistic": -log10_p,
        "log10_p": log10_p,
        "figures": figures or {},
        "reason": reason,
        "seconds": 0.5,
    }
    return value


def labelled(name: str, params: dict[str, Any] | None) -> str:
    """A label in the form of those of plugins."""
    inside = ",".join(f"{key}={value}" for key, value in (params or {}).items())
    return f"{name}[{inside}]" if inside else name


def hash_of(text: str) -> int:
    """A hash that is the same in every process."""
    value = 0
    for letter in text:
        value = (value * 131 + ord(letter)) % 16**12
    return value


def replaced(suite: Suite, cell: Cell, **changes: Any) -> None:
    """Change a cell that has been added."""
    suite.cells[suite.cells.index(cell)] = dataclasses.replace(cell, **changes)


def spelled(columns: pa.Schema) -> list[str]:
    """Each column as `name type`."""

    def name(kind: pa.DataType) -> str:
        if pa.types.is_map(kind):
            return f"map<{kind.key_type},{kind.item_type}>"
        return f"list<{kind.value_type}>" if pa.types.is_list(kind) else str(kind).replace(", ", ",")

    return [f"{field.name} {name(field.type)}" for field in columns]


def listed(text: str) -> list[str]:
    """The columns of a text that separates them by commas."""
    return [column.strip() for column in text.replace("\n", " ").split(", ")]


def board(suite: Suite, defense: str = "mark") -> dict[str, Any]:
    """The one row of a defense in the leaderboard."""
    (row,) = [row for row in boards(suite.records).leaderboard.to_pylist() if row["defense"] == defense]
    return row


def cell(suite: Suite, attack: str = "wear", defense: str = "mark", kind: str = "removal") -> dict[str, Any]:
    """The one row of a cell in the matrix."""
    (row,) = [
        row
        for row in boards(suite.records).matrix.to_pylist()
        if (row["attack"], row["defense"], row["attack_kind"]) == (attack, defense, kind)
    ]
    return row


def started(**values: Any) -> Suite:
    """A suite whose protected model claims at 0.97, with a ceiling of 12 points (0.85)."""
    suite = Suite(**values)
    suite.base()
    suite.yardstick()
    return suite
