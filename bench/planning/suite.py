"""A suite: which defenses are crossed with which attacks on which tasks, read from TOML and checked."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import models
from bench import data, parameters
from bench.attack import Attack
from bench.chain import Chain
from bench.defense import Defense
from bench.errors import InputError, unknown
from bench.pair import Pair
from bench.recipe import Recipe
from bench.registry import Broken, Registry, Role, discover
from bench.task import Sizes, Task

SHIPPED = Path(__file__).parent.parent / "suites"
_TASK_KEYS = ("dataset", "model", "recipe", "parts")
_TABLES = ("tasks", "defenses", "attacks", "null")
# What a table may list in the place of a name, what each one of the list is, and what is made of it.
_COMPOSED: dict[Role, tuple[str, str, Callable[[tuple[Any, ...]], Any]]] = {
    "attack": ("chain", "link", Chain),
    "defense": ("pair", "member", Pair),
}


@dataclass(frozen=True)
class Header:
    """The values of a suite outside its tables.

    Attributes:
        name: of the suite.
        alpha: rate of false claims, one for every defense, in (0, 1).
        accuracy_budget: points of accuracy that a successful removal may cost.
        seeds: each is a repetition of everything.
        threads: of PyTorch, per job.
        keep: which products stay on disk after a run.
        timeout: hard limit of one job in seconds.
        gpu: whether it is meant for a GPU; on a CPU it runs too, for days.
        description: one line for `list`.
    """

    name: str
    alpha: float = 1e-6
    accuracy_budget: float = 5.0
    seeds: tuple[int, ...] = (0,)
    threads: int = 1
    keep: Literal["all", "protected", "none"] = "protected"
    timeout: float = 3600.0
    gpu: bool = False
    description: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"expected alpha in (0, 1), got {self.alpha}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"expected different seeds from 0 on, got {list(self.seeds)}")
        if self.threads < 1 or self.timeout <= 0 or self.accuracy_budget < 0:
            raise ValueError("expected threads >= 1, timeout > 0 and accuracy_budget >= 0")


@dataclass(frozen=True)
class Null:
    """The table `[null]`: every defense against models that bear no mark of its owners, which are the suite's seeds.

    Attributes:
        models: how many such models in all; those that are of no kind below are of the task's own architecture and
            trained on the owner's data, with other seeds.
        architectures: names of other ones; a model of each, trained on the owner's data.
        data: how many have the task's architecture and the attacker's labelled inputs.
        stolen: how many are another owner's protected models, by the suite's schemes in turn.
        decoys: fresh keys for each defense and model, completed with the facts of the owners in turn; of each owner's
            every eighth is drawn as a whole, the others between them anew in their uniform part.
    """

    models: int = 20
    architectures: tuple[str, ...] = ()
    data: int = 5
    stolen: int = 5
    decoys: int = 1000

    def __post_init__(self) -> None:
        if min(self.models, self.decoys) < 1 or min(self.data, self.stolen) < 0:
            raise ValueError("expected models >= 1, decoys >= 1, data >= 0 and stolen >= 0")
        if self.same < 0:
            kinds = f"{len(self.architectures)} architectures, {self.data} data, {self.stolen} stolen"
            raise ValueError(f"expected at least as many models as there are of some kind, got {self.models}: {kinds}")

    @property
    def same(self) -> int:
        """How many differ from the clean model in their seed alone."""
        return self.models - len(self.architectures) - self.data - self.stolen


@dataclass(frozen=True)
class Unusable:
    """A plugin that a suite names and whose file is broken: its cells become failed rows."""

    role: Role
    name: str
    broken: Broken

    @property
    def label(self) -> str:
        """How messages call it; its parameters could not be read."""
        return self.name


@dataclass(frozen=True)
class Suite:
    """A checked suite.

    Attributes:
        header: the values outside the tables.
        source: how it was named on the command line.
        tasks: with their recipes.
        defenses: every combination of parameters that it names, in order, each once.
        attacks: likewise.
        null: what the defenses are held against beside, where the suite says so.
        schemes: of other owners, for `null`: one for each way of protecting in the suite, whatever `--only` leaves.
    """

    header: Header
    source: str
    tasks: tuple[Task, ...]
    defenses: tuple[Defense | Unusable, ...]
    attacks: tuple[Attack | Unusable, ...]
    null: Null | None = None
    schemes: tuple[Defense, ...] = ()


def shipped() -> dict[str, Path]:
    """The suites that come with the package, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.toml"))}


def find(name: str) -> Path:
    """The file of a suite given by name or by path.

    Raises:
        InputError: neither a shipped suite nor a file.
    """
    if name in shipped():
        return shipped()[name]
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix == ".toml" or "/" in name:
        raise InputError(f"run: expected a suite file, {name!r} does not exist")
    raise unknown("suite", name, shipped(), "run")


def read(name: str) -> Suite:
    """Read and check a suite.

    Raises:
        InputError: with file, key, what was expected, what was got and the nearest names.
    """
    path = find(name)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected TOML: {error}") from error
    return parse(table, str(path), name)


def parse(table: Mapping[str, Any], where: str, source: str) -> Suite:
    """The suite of a parsed TOML table; errors as for `read`."""
    scalars = {key: value for key, value in table.items() if key not in _TABLES}
    known = [*parameters.types_of(Header), *_TABLES]
    for key in scalars:
        if key not in known:
            raise unknown("key", key, known, where)
    header = parameters.build(Header, scalars, where)
    registry = discover()
    tasks = [_task(one, at) for one, at in _tables(table, "tasks", where)]
    defenses = [p for one, at in _tables(table, "defenses", where) for p in _plugins(one, "defense", registry, at)]
    attacks = [p for one, at in _tables(table, "attacks", where) for p in _plugins(one, "attack", registry, at)]
    twice = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
    if twice:
        raise InputError(f"{where}: expected tasks that differ in dataset or model, got {twice[0]!r} twice")
    schemes = _schemes(defenses)
    null = _null(table["null"], tasks, schemes, where) if "null" in table else None
    return Suite(header, source, tuple(tasks), _once(defenses), _once(attacks), null, schemes)


def _null(table: Any, tasks: Iterable[Task], schemes: tuple[Defense, ...], where: str) -> Null:
    at = f"{where}, [null]"
    if not isinstance(table, Mapping):
        raise InputError(f"{at}: expected a table, got {table!r}")
    null = parameters.build(Null, table, at)
    for name in null.architectures:
        if name not in models.names():
            raise unknown("model", name, models.names(), f"{at}, key 'architectures'")
        for task in tasks:
            if name == task.model:
                raise InputError(f"{at}, key 'architectures': expected others than that of {task.name}, got {name!r}")
            if reason := models.refusal(name, task.classes, task.shape):
                raise InputError(f"{at}, key 'architectures': {reason}")
    if not schemes:
        raise InputError(f"{at}: expected a defense that protects something, got none")
    return null


def _schemes(plugins: Iterable[Any]) -> tuple[Defense, ...]:
    """The first of the defenses that protect alike, for each way of protecting; of pairs nobody is robbed."""
    found: dict[str, Defense] = {}
    for one in plugins:
        if isinstance(one, Defense) and not (one.undefended or isinstance(one, Pair)):
            found.setdefault(parameters.canonical([one.name, parameters.values_of(one, judged_too=False)]), one)
    return tuple(found.values())


def _tables(table: Mapping[str, Any], key: str, where: str) -> list[tuple[Mapping[str, Any], str]]:
    found = table.get(key)
    if not isinstance(found, list) or not found or not all(isinstance(one, Mapping) for one in found):
        raise InputError(f"{where}: expected at least one table [[{key}]], got {found!r}")
    return [(one, f"{where}, [[{key}]] number {i}") for i, one in enumerate(found, start=1)]


def _task(table: Mapping[str, Any], where: str) -> Task:
    for key in table:
        if key not in _TASK_KEYS:
            raise unknown("key", key, _TASK_KEYS, where)
    dataset = parameters.convert(table.get("dataset"), str, f"{where}, key 'dataset'")
    info = data.info(dataset, f"{where}, key 'dataset'")
    model = parameters.convert(table.get("model", info.model), str, f"{where}, key 'model'")
    if model not in models.names():
        raise unknown("model", model, models.names(), f"{where}, key 'model'")
    if reason := models.refusal(model, info.classes, info.shape):
        raise InputError(f"{where}, key 'model': {reason}")
    recipe = parameters.build(Recipe, _changed(info.recipe, table, "recipe", where), f"{where}, recipe")
    return Task(
        info, model, recipe, parameters.build(Sizes, _changed(info.sizes, table, "parts", where), f"{where}, parts")
    )


def _changed(default: Recipe | Sizes, table: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    changes = table.get(key, {})
    if not isinstance(changes, Mapping):
        raise InputError(f"{where}, key {key!r}: expected a table, got {changes!r}")
    return {**parameters.values_of(default), **changes}


def _plugins(table: Mapping[str, Any], role: Role, registry: Registry, where: str) -> Iterable[Any]:
    if _COMPOSED[role][0] in table:
        return [_composed(table, role, registry, where)]
    found = _named(table, role, registry, where)
    if isinstance(found, Unusable):
        return [found]
    return list(parameters.crossed(found, _rest(table), f"{where} ({found.name})"))


def _composed(table: Mapping[str, Any], role: Role, registry: Registry, where: str) -> Any:
    """A chain or a pair as it stands: lists in it are values, and nothing is crossed."""
    key, one_of_it, compose = _COMPOSED[role]
    parts, at = table[key], f"{where}, key {key!r}"
    if len(table) > 1:
        raise InputError(f"{where}: expected nothing beside {key!r}, got {', '.join(sorted({*table} - {key}))}")
    if not isinstance(parts, list) or not all(isinstance(one, Mapping) for one in parts):
        raise InputError(f"{at}: expected a list of tables with a name each, got {parts!r}")
    made = [_part(part, role, registry, f"{at}, {one_of_it} {number}") for number, part in enumerate(parts, start=1)]
    broken = next((one for one in made if isinstance(one, Unusable)), None)
    if broken:
        return broken
    try:
        return compose(tuple(made))
    except ValueError as error:
        raise InputError(f"{at}: {error}") from error


def _part(table: Mapping[str, Any], role: Role, registry: Registry, where: str) -> Any:
    found = _named(table, role, registry, where)
    if isinstance(found, Unusable):
        return found
    return parameters.build(found, _rest(table), f"{where} ({found.name})")


def _named(table: Mapping[str, Any], role: Role, registry: Registry, where: str) -> Any:
    """The class of a plugin, or what is wrong with its file."""
    name = parameters.convert(table.get("name"), str, f"{where}, key 'name'")
    known = registry.of(role)
    if name in known:
        return known[name]
    broken = registry.broken_named(name)
    if broken:
        return Unusable(role, name, broken)
    raise unknown(role, name, known, f"{where}, key 'name'")


def _rest(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key != "name"}


def _once(plugins: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(plugins))


def published(suite: Suite) -> Literal["never", "older", "whole"]:
    """Whether a whole run of a shipped suite stands in the project's `results/`: none, of fewer plugins, or of all."""
    from pyarrow import parquet  # slow to import, and of no use to whoever only reads a suite

    path = Path(__file__).parent.parent.parent / "results" / suite.header.name / "records.parquet"
    if not path.exists():
        return "never"
    labels = json.loads(parquet.read_schema(path).metadata[b"ownbench.labels"])
    ran = {label for side in labels.values() for label in side.values()}
    asked = {one.label for one in (*suite.defenses, *suite.attacks) if not isinstance(one, Unusable)}
    return "whole" if asked <= ran else "older"
