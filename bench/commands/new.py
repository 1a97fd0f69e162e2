"""The `new` command: a commented skeleton of a plugin that runs as it stands."""

from __future__ import annotations

import ast
import builtins
import keyword
import os
import shlex
from pathlib import Path
from string import Template

import attacks
import defenses
from bench.contract.general import NAME
from bench.errors import InputError
from bench.planning.suite import shipped
from bench.registry import Role, discover, path_of

_TEMPLATES = Path(__file__).parent.parent / "templates"
_FOLDERS = {"defense": defenses, "attack": attacks}


def new(role: Role, name: str, to: Path | None = None) -> str:
    """Write a skeleton and a small suite that names it; an existing file is never touched.

    Args:
        role: of the plugin.
        name: in kebab-case, not taken by another plugin.
        to: folder; None for the project's own where it is the current folder, else the current folder.

    Returns:
        What to do next, for people.

    Raises:
        InputError: a name that is not kebab-case or is taken, no such folder, or a file that exists.
    """
    _require_free(role, name)
    project = Path(str(_FOLDERS[role].__file__)).parent
    here = Path.cwd()
    folder = to if to is not None else (Path(f"{role}s") if here.resolve() == project.parent.resolve() else Path())
    if not folder.is_dir():
        raise InputError(f"--to: expected a folder, {str(folder)!r} does not exist")
    known = folder.resolve() == project.resolve()
    path = folder / f"{name.replace('-', '_')}.py"
    suite = (Path() if known else folder) / f"{name}.toml"
    for file in (path, suite):
        if file.exists():
            raise InputError(f"new: {file} exists and is left as it is; choose another name, or --to another folder")
    try:
        for file, text in ((path, skeleton(role, name)), (suite, _suite(role, name))):
            with open(file, "x", encoding="utf-8") as opened:
                opened.write(text)
    except OSError as error:
        raise InputError(f"new: expected a folder that can be written, got {folder}: {error}") from error
    return _next(role, name, path, suite, known)


def skeleton(role: Role, name: str) -> str:
    """The text of a plugin that runs as it stands."""
    template = Template((_TEMPLATES / f"{role}.py.txt").read_text(encoding="utf-8"))
    return template.substitute(
        name=name, cls=_class_name(role, name, template), title=name.replace("-", " ").capitalize()
    )


def _class_name(role: Role, name: str, template: Template) -> str:
    made = "".join(word.capitalize() for word in name.split("-"))
    # Names that the file itself imports, and those that Python keeps, would not work.
    tree = ast.parse(template.substitute(name="", cls="Skeleton", title=""))
    taken = {
        one.asname or one.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for one in node.names
    }
    taken |= set(dir(builtins)) | set(keyword.kwlist)
    return f"{made}{role.capitalize()}" if made in taken else made


def _require_free(role: Role, name: str) -> None:
    if not NAME.fullmatch(name):
        hint = "-".join("".join(c if c.isalnum() and c.isascii() else " " for c in name.lower()).split())
        tail = f"; did you mean {hint!r}?" if NAME.fullmatch(hint) else ""
        raise InputError(f"new: expected a name in kebab-case, such as my-mark, got {name!r}{tail}")
    if name in shipped():
        raise InputError(f"new: {name!r} is taken by a suite; choose another name")
    registry = discover()
    known = registry.of(role)
    if name in known:
        raise InputError(f"new: {role} {name!r} is taken, by {path_of(known[name])}; choose another name")
    if broken := registry.broken_named(name):
        raise InputError(f"new: {name!r} is taken, by {broken.where}, which cannot be used: {broken.error}")


def _next(role: Role, name: str, path: Path, suite: Path, known: bool) -> str:
    lines = [
        f"wrote {path}: {_ARTICLE[role]} that runs as it stands",
        f"wrote {suite}: a small suite for it",
        "",
    ]
    if not known:
        lines += ["first, in each new shell, make it known (a file, or a folder of them):"]
        rest = os.environ.get("OWNBENCH_PLUGINS")
        named = os.pathsep.join([*([rest] if rest else []), str(path.resolve())])
        lines += [f"    export OWNBENCH_PLUGINS={shlex.quote(named)}", ""]
    lines += ["hold it to the contract, now and after each edit:", f"    ownbench check {name}", ""]
    return "\n".join([*lines, "get its row in a leaderboard:", f"    ownbench run {suite}", ""])


def _suite(role: Role, name: str) -> str:
    """The new plugin against one of each kind of what is there."""
    # Training anew on the attacker's labels costs about three points there; a removal should cost less.
    budget = "accuracy_budget = 2.0"
    lines = [f'name = "{name}"', budget, "", "[[tasks]]", 'dataset = "digits"', "", f"[[{role}s]]", f'name = "{name}"']
    registry, others = discover(), dict[str, str]()
    if role == "defense":
        for other, attack in sorted(registry.attack.items()):
            nothing = attack.kind == "none" or attack.ceiling or attack.knowledge == "insider"
            if not nothing and attack.__module__.startswith("attacks."):
                others.setdefault(getattr(attack, "attack_class", attack.kind), other)
    else:
        for other, defense in sorted(registry.defense.items()):
            if not defense.undefended and defense.__module__.startswith("defenses."):
                others.setdefault(defense.key_kind, other)
    opposite = "attack" if role == "defense" else "defense"
    lines += [line for other in others.values() for line in ("", f"[[{opposite}s]]", f'name = "{other}"')]
    return "\n".join(lines) + "\n"


_ARTICLE = {"defense": "a defense", "attack": "an attack"}
