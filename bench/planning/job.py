"""The vocabulary of a run: jobs, what they leave behind, and the cells of the leaderboard. No torch here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any, Literal

JobKind = Literal["stage", "protect", "disclose", "attack", "forge", "measure", "judge", "decoys", "null"]
Side = Literal["owner", "attacker"]
Channel = Literal["public", "secret"]
Status = Literal["ok", "not applicable", "failed"]


@dataclass(frozen=True)
class Input:
    """A product of another job.

    Attributes:
        job: the id of that job.
        channel: `secret` products hold keys and never go to a job of the attacker's side.
    """

    job: str
    channel: Channel


@dataclass(frozen=True)
class Job:
    """One unit of work, named by the hash of all that it depends on.

    Attributes:
        id: 16 hexadecimal digits.
        kind: which function of `bench.running.jobs` runs it.
        side: processes of the attacker's side never hold a key, so each side has processes of its own.
        label: what it does, for people and for finding earlier times of the same work.
        spec: everything the job needs to know, as plain JSON values.
        inputs: what it needs of other jobs, by role.
        source_digest: digest of the sources that it runs.
    """

    id: str
    kind: JobKind
    side: Side
    label: str
    spec: dict[str, Any]
    inputs: dict[str, Input]
    source_digest: str


@dataclass
class Outcome:
    """What a job came to.

    Attributes:
        status: `ok` or `failed`.
        result: numbers for the journal, as plain JSON values; by kind:
            attack: strengths, seconds (so far) and figures (per surrogate), inputs_used, labels_used, queries;
            forge: figures, inputs_used, labels_used, queries; measure: accuracy, figures (per surrogate);
            judge: evidence (per surrogate: statistic, log10_p, figures, texts, reason, seconds), and of a forged key
            derived; decoys: statistic, log10_p (per decoy), derived;
            null: decoys, owners (log10_p of each), unreadable_decoys, unreadable_owners (how many), reason.
        products: bytes of bundles by channel.
        error_type: class name of the error.
        error: its message.
        traceback: where it came from.
        seconds: wall time inside the worker, inputs unpacked and products packed.
        peak_memory_mb: of the process while the job ran; of the device on a GPU.
        device: `cpu` or `cuda`, with the processor's or the GPU's name.
        threads: of PyTorch.
        versions: library versions.
    """

    status: Literal["ok", "failed"]
    result: dict[str, Any] = field(default_factory=dict)
    products: dict[Channel, Any] = field(default_factory=dict)
    error_type: str | None = None
    error: str | None = None
    traceback: str | None = None
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    device: str = ""
    threads: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def failure(cls, error_type: str, error: str, traceback: str | None = None, seconds: float = 0.0) -> Outcome:
        """A failed outcome."""
        return cls("failed", error_type=error_type, error=error, traceback=traceback, seconds=seconds)


@dataclass(frozen=True)
class Cell:
    """One cell of the cross: a defense, an attack, a seed and a judged key, with the jobs that fill it.

    Attributes:
        attack_kind: `none` (the protected model itself), `removal`, `ambiguity` or `control` (the clean
            model and its attacked versions under the owner's own key of `defense`).
        judged_key: `owner` or `forger`.
        time_model: of an ambiguity attack, `after the fact` or `committed before`; None of others.
        capacity_log10_p: the least that the defense can reach on the task.
        changes_task: accuracies are on the second task; the price is measured from `jobs["reference"]`.
        jobs: role to job id: `protect` (completes the key), `attack` (or `forge`), `measure` (accuracy of its
            surrogates), `judge` (or `decoys`), `clean` and `protected` (measured accuracy of the clean and of
            the protected model), `reference` (measured accuracy of the same attack on the clean model,
            where `changes_task`), `control` and `control_measure` (evidence and accuracy of the attack's control),
            `original` (a forged key's evidence on the protected model, whatever it is claimed on).
            Empty where the cell cannot be run.
        status: `ok` where the cell is to be run; otherwise why not.
        error_type, error, traceback: the reason where it cannot be run.
        readings: labels of the two defenses of a pair, one of which is enough for a claim; empty for any other. What
            the second one says is in `jobs["judge:1"]` and `jobs["control:1"]`; of a forged key, which is for one of
            them, the label of that one comes first and there is one judge.
    """

    task: str
    dataset: str
    model: str
    seed: int
    defense: str
    defense_params: dict[str, Any]
    defense_label: str
    defense_family: str
    defense_access: str
    attack: str
    attack_params: dict[str, Any]
    attack_label: str
    attack_family: str
    attack_access: str
    attack_kind: Literal["none", "removal", "ambiguity", "control"]
    attack_class: str
    knowledge: str
    strength_unit: str
    judged_key: Literal["owner", "forger"]
    capacity_log10_p: float | None
    changes_task: bool
    jobs: dict[str, str]
    status: Status = "ok"
    error_type: str | None = None
    error: str | None = None
    traceback: str | None = None
    time_model: str | None = None
    readings: tuple[str, ...] = ()


def roles(role: str, readings: int) -> list[str]:
    """Under which names a cell has the jobs that judge for a role: as many as a defense has readings of its own."""
    return [role, *(f"{role}:{number}" for number in range(1, readings))]


@dataclass(frozen=True)
class Trial:
    """One defense against one model that bears no mark of its owners (the suite's `[null]`).

    Attributes:
        stranger: name of that model.
        kind: `same` architecture and data with another seed, another `architecture`, other `data`, or `stolen`:
            another owner's protected model.
        model: architecture of the stranger.
        owners: seeds of the owners whose completed keys are held against it.
        decoys: how many fresh keys are.
        source: digest of what a job runs that judges by this defense.
        job: the id of the job.
    """

    task: str
    defense: str
    defense_params: dict[str, Any]
    defense_label: str
    stranger: str
    kind: Literal["same", "architecture", "data", "stolen"]
    model: str
    owners: tuple[int, ...]
    decoys: int
    source: str
    job: str


@dataclass(frozen=True)
class Plan:
    """A suite as a DAG of jobs, and the cells that they fill.

    Attributes:
        suite: its name.
        source: how the suite was named on the command line.
        alpha: rate of false claims, the same for every defense.
        accuracy_budget: points of accuracy that a successful removal may cost.
        seeds: those planned.
        keep: which products stay on disk.
        timeout: hard limit of one job in seconds.
        threads: of PyTorch, per job.
        data_digests: task to the digest of its data's content.
        jobs: by id, parents before children.
        cells: in the order of the suite.
        trials: of defenses against models without their mark, likewise.
    """

    suite: str
    source: str
    alpha: float
    accuracy_budget: float
    seeds: tuple[int, ...]
    keep: Literal["all", "protected", "none"]
    timeout: float
    threads: int
    data_digests: dict[str, str]
    jobs: dict[str, Job]
    cells: list[Cell]
    trials: list[Trial] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values.

        Jobs and cells are rows under named columns; the tables in specs and cells, tasks and plugins above
        all, stand once under `shared` and are referred to by their place there.
        """
        shared = _Shared()
        jobs = [
            [job.id, job.kind, job.side, job.label, *shared.parted(job.spec), _pairs(job.inputs), job.source_digest]
            for job in self.jobs.values()
        ]
        cells = [
            [shared.place(known[name]) if name in _PARAMS else known[name] for name in _CELL]
            for known in map(vars, self.cells)
        ]
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in _ROWS}
        values["seeds"] = list(self.seeds)
        tables = {"jobs": {"columns": _JOB, "rows": jobs}, "cells": {"columns": _CELL, "rows": cells}}
        trials = [{**vars(one), "owners": list(one.owners)} for one in self.trials]
        return {**values, "shared": shared.values, **tables, "trials": trials}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Plan:
        """The plan of `to_json`.

        Raises:
            ValueError, LookupError, TypeError: not such values.
        """
        head = {name: value for name, value in values.items() if name not in ("shared", *_ROWS)}
        shared, jobs, cells = values["shared"], {}, []
        for row in _rows(values["jobs"], _JOB):
            name, kind, side, label, plain, places, pairs, source = row
            spec = {**plain, **{part: shared[place] for part, place in places.items()}}
            inputs = {role: Input(*pair) for role, pair in pairs.items()}
            jobs[name] = Job(name, kind, side, label, spec, inputs, source)
        known = [name for name in _CELL if name not in _LATER or name in values["cells"]["columns"]]
        for row in _rows(values["cells"], known):
            found = dict(zip(known, row, strict=True))
            placed = {name: shared[found[name]] for name in _PARAMS}
            cells.append(Cell(**{**found, **placed, "readings": tuple(found.get("readings", ()))}))
        # A plan of before the first trial has none.
        trials = [Trial(**{**one, "owners": tuple(one["owners"])}) for one in values.get("trials", [])]
        return cls(**{**head, "seeds": tuple(values["seeds"]), "jobs": jobs, "cells": cells, "trials": trials})


_JOB = ["id", "kind", "side", "label", "spec", "spec_shared", "inputs", "source_digest"]
_CELL = [one.name for one in fields(Cell)]
_PARAMS = ("defense_params", "attack_params")
# What plans of earlier versions lack; each has a default.
_LATER = ("time_model", "readings")
_ROWS = ("jobs", "cells", "trials")


class _Shared:
    """Tables that many jobs have in common, each once."""

    def __init__(self) -> None:
        self.values: list[dict[str, Any]] = []
        self._places: dict[str, int] = {}
        self._seen: dict[int, int] = {}

    def place(self, value: dict[str, Any]) -> int:
        """Where the table stands."""
        # Most are one object, and that is cheaper to see than equal content; the plan keeps them all alive.
        if id(value) not in self._seen:
            place = self._places.setdefault(json.dumps(value, sort_keys=True), len(self.values))
            if place == len(self.values):
                self.values.append(value)
            self._seen[id(value)] = place
        return self._seen[id(value)]

    def parted(self, spec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
        """The plain values of a spec, and the places of its tables."""
        tables = {name: self.place(value) for name, value in spec.items() if isinstance(value, dict)}
        return {name: value for name, value in spec.items() if name not in tables}, tables


def _pairs(inputs: dict[str, Input]) -> dict[str, list[str]]:
    return {role: [one.job, one.channel] for role, one in inputs.items()}


def _rows(table: dict[str, Any], columns: list[str]) -> list[list[Any]]:
    if table["columns"] != columns:
        raise ValueError(f"expected the columns {', '.join(columns)}, got {', '.join(table['columns'])}")
    rows: list[list[Any]] = table["rows"]
    return rows
