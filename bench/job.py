"""The vocabulary of a run: jobs, what they leave behind, and the cells of the leaderboard. No torch here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

JobKind = Literal["stage", "protect", "disclose", "attack", "forge", "measure", "judge", "decoys"]
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
        kind: which function of `bench.jobs` runs it.
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

    def to_json(self) -> dict[str, Any]:
        """The job as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Job:
        """The job of `to_json`."""
        inputs = {role: Input(**one) for role, one in values["inputs"].items()}
        return cls(**{**values, "inputs": inputs})


@dataclass
class Outcome:
    """What a job came to.

    Attributes:
        status: `ok` or `failed`.
        result: numbers for the journal, as plain JSON values; by kind:
            attack: strengths, seconds (so far, per surrogate), inputs_used, labels_used, queries;
            forge: figures, inputs_used, labels_used, queries; measure: accuracy (per surrogate);
            judge: evidence (per surrogate: statistic, log10_p, figures, reason, seconds);
            decoys: statistic, log10_p (per decoy).
        products: bytes of bundles by channel.
        error_type: class name of the error.
        error: its message.
        traceback: where it came from.
        seconds: wall time inside the worker, inputs unpacked and products packed.
        peak_memory_mb: of the process while the job ran; of the device on a GPU.
        device: `cpu`, or `cuda` with the GPU's name.
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
        capacity_log10_p: the least that the defense can reach on the task.
        changes_task: accuracies are on the second task; the price is measured from `jobs["reference"]`.
        jobs: role to job id: `protect` (completes the key), `attack` (or `forge`), `measure` (accuracy of its
            surrogates), `judge` (or `decoys`), `clean` and `protected` (measured accuracy of the clean and of
            the protected model), `reference` (measured accuracy of the same attack on the clean model,
            where `changes_task`). Empty where the cell cannot be run.
        status: `ok` where the cell is to be run; otherwise why not.
        error_type, error, traceback: the reason where it cannot be run.
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

    def to_json(self) -> dict[str, Any]:
        """The cell as plain JSON values."""
        return asdict(self)


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
        data_digests: dataset to the digest of its content.
        jobs: by id, parents before children.
        cells: in the order of the suite.
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

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("jobs", "cells")}
        values["seeds"] = list(self.seeds)
        return {**values, "jobs": [j.to_json() for j in self.jobs.values()], "cells": [c.to_json() for c in self.cells]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Plan:
        """The plan of `to_json`."""
        jobs = {job["id"]: Job.from_json(job) for job in values["jobs"]}
        cells = [Cell(**cell) for cell in values["cells"]]
        return cls(**{**values, "seeds": tuple(values["seeds"]), "jobs": jobs, "cells": cells})
