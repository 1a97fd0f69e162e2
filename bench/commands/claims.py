"""The commands `claim`, `verify` and `resolve`: claims on files."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bench import claims, data
from bench.bundle import Bundle, bundle_to_key
from bench.claims.files import COMMITMENT, KEY, MODEL
from bench.claims.judging import is_committed
from bench.claims.opening import moment_of
from bench.errors import InputError, unknown
from bench.evidence import Evidence
from bench.planning.job import Cell, Channel, Plan
from bench.running import jobs
from bench.specs import task_of
from bench.storage.store import RunFolder
from bench.text import verdicts


def claim(run: Path, defense: str, seed: int, owner: str, to: Path, task: str | None = None) -> str:
    """Commit to a protected model of a run folder, and write model, key and commitment.

    Args:
        run: folder that kept its protected models.
        defense: label, as the leaderboard prints it.
        seed: of the repetition.
        owner: who claims.
        to: folder for the three files.
        task: where the run has several.

    Returns:
        What was written, for people.

    Raises:
        InputError: no such run, defense, seed or product; a claim lies in the folder already.
    """
    folder = RunFolder.open_for_reading(run)
    plan = folder.plan()
    cell = _cell(plan, defense, seed, task)
    judged = plan.jobs[cell.jobs["judge"]].spec
    model = _product(folder, cell, "public").models["model"]
    key = bundle_to_key(_product(folder, cell, "secret"))
    scheme, about = jobs.plugin_of(judged["plugin"]), task_of(judged["task"], judged["data"])
    made = claims.commit(model, key, scheme, about, owner, digests=judged["data"]["digests"])
    paths = claims.write(made, model, to)
    found = _own_evidence(folder, cell)
    told = verdicts.claim_text(made, found, plan.alpha, (str(paths[0]), str(paths[1]), str(paths[2])))
    return told + (
        f"CAUTION: this key follows from the seed {seed} of a benchmark, which others can try. For a model that\n"
        "matters protect with a secret seed: docs/claims.md shows how.\n"
    )


def verify(
    model: Path,
    key: Path,
    commitment: Path | None = None,
    alpha: float = 1e-6,
    at: str | None = None,
    which: str = "",
    form: str = "text",
) -> tuple[bool, str]:
    """Judge a suspect file by an opened commitment.

    Args:
        model: the suspect's file.
        key: the key file.
        commitment: the published one; None to judge the evidence alone.
        alpha: rate of false claims.
        at: where the owner's own data lies here; None for where the key file says.
        which: the model of a file with several.
        form: `text` or `json`.

    Returns:
        Whether the claim holds, and the verdict.

    Raises:
        InputError: a file that is missing or not what it should be, or data that is not there.
    """
    torch.set_num_threads(1)
    published = None if commitment is None else claims.read_commitment(commitment)
    opening = _located(claims.read_opening(key), at)
    suspect = claims.read_model(model, opening.statement["architecture"], which)
    verdict = claims.verify(suspect, opening, published, alpha)
    write = verdicts.verdict_json if form == "json" else verdicts.verdict_text
    return verdict.holds, write(verdict, opening, published)


def resolve(
    folders: tuple[Path, Path],
    times: tuple[str | None, str | None] = (None, None),
    alpha: float = 1e-6,
    at: str | None = None,
    form: str = "text",
) -> tuple[bool, str]:
    """Rule on two claims that contradict each other.

    Args:
        folders: of both sides, each with the three files that `claim` writes.
        times: of both commitments where a log says otherwise than their files.
        alpha: rate of false claims.
        at: as for `verify`, for both.
        form: `text` or `json`.

    Returns:
        Whether somebody wins, and the ruling.

    Raises:
        InputError: as for `verify`.
    """
    torch.set_num_threads(1)
    if not 0.0 < alpha < 1.0:
        raise InputError(f"--alpha: expected a rate in (0, 1), got {alpha:g}")
    openings = [_located(claims.read_opening(folder / KEY), at) for folder in folders]
    suspects = [
        claims.read_model(folder / MODEL, opening.statement["architecture"])
        for folder, opening in zip(folders, openings, strict=True)
    ]
    standings = []
    for folder, opening, suspect, time, side in zip(folders, openings, suspects, times, "ab", strict=True):
        published = claims.read_commitment(folder / COMMITMENT)
        sound = published.digest == opening.digest and opening.derived is not False and is_committed(suspect, opening)
        moment = published.moment if time is None else moment_of(time, f"--time-{side}")
        standings.append(claims.Standing(sound, moment.astimezone(datetime.UTC), opening.derived is True))
    found = []
    for opening in openings:
        trainer = claims.Judge(opening, opening.task, "cpu")
        found += [claims.judge(one, opening, trainer).log10_p <= math.log10(alpha) for one in suspects]
    pairs, both = claims.Pairs(*found), (standings[0], standings[1])
    ruling = claims.resolve(pairs, *both)
    write = verdicts.ruling_json if form == "json" else verdicts.ruling_text
    return ruling.winner is not None, write(ruling, pairs, (openings[0].owner, openings[1].owner), both)


def _cell(plan: Plan, defense: str, seed: int, task: str | None) -> Cell:
    """The cell of a protected model itself, narrowed one step at a time so that messages name what there is."""
    found = [cell for cell in plan.cells if cell.attack_kind == "none" and cell.defense_access != "none"]
    found = _narrowed(found, "defense", defense, [cell.defense_label for cell in found], "--defense")
    tasks = [cell.task for cell in found]
    if task is None and len(set(tasks)) > 1:
        raise InputError(f"--task: expected one of {', '.join(dict.fromkeys(tasks))}, since the run has several")
    if task is not None:
        found = _narrowed(found, "task", task, tasks, "--task")
    found = _narrowed(found, "seed", str(seed), [str(cell.seed) for cell in found], "--seed")
    if not found[0].jobs:
        raise InputError(f"--defense: {defense!r} was not run on {found[0].task}: {found[0].error}")
    if found[0].readings:
        raise InputError(f"--defense: {defense!r} has a key for each of its two defenses: commit to each by itself")
    return found[0]


def _narrowed(cells: list[Cell], what: str, name: str, names: Sequence[str], where: str) -> list[Cell]:
    if name not in names:
        raise unknown(what, name, set(names), where)
    return [cell for cell, own in zip(cells, names, strict=True) if own == name]


def _product(folder: RunFolder, cell: Cell, channel: Channel) -> Bundle:
    content = folder.load(cell.jobs["protect"], channel)
    if content is None:
        raise InputError(
            f"{folder.path}: the protected model of {cell.defense_label} was not kept, or is not whole; run the suite "
            'with keep = "protected"'
        )
    return Bundle.from_bytes(content)


def _own_evidence(folder: RunFolder, cell: Cell) -> Evidence:
    (found,) = folder.entries[cell.jobs["judge"]]["result"]["evidence"]
    return Evidence(found["statistic"], found["log10_p"], found["figures"], found["reason"])


def _located(opening: claims.Opening, at: str | None) -> claims.Opening:
    """The opening with its data elsewhere."""
    if at is None:
        return opening
    if not opening.at:
        name = opening.statement["task"]["dataset"]
        raise InputError(f"--data: {name!r} comes by name; the folder of such sets is what OWNBENCH_DATA names")
    return replace(opening, at=data.info(at, "--data").at)
