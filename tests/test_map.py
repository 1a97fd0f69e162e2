"""The map of the code says in which direction packages import, and so it is."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ORDER = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "code.md").read_text(), re.MULTILINE)
# Its only import is the command line: it is what `python -m bench` runs.
FILES = sorted(set((ROOT / "bench").rglob("*.py")) - {ROOT / "bench" / "__main__.py"})


def package(file):
    inside = file.relative_to(ROOT / "bench").parts
    return inside[0] if len(inside) > 1 else ""


def imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, file
            names = [f"{node.module}.{name}" for name in names]
        for name in names:
            if re.match(r"bench\.\w", name):
                part = name.split(".")[1]
                yield part if (ROOT / "bench" / part).is_dir() else ""


def test_every_package_with_code_is_in_the_table():
    code = {file.parent.name for file in FILES if package(file) and file.name != "__init__.py"}
    assert code == set(ORDER)
    assert len(ORDER) == len(code)


def test_packages_import_what_is_flat_and_what_stands_above_them():
    allowed = {"": {""}} | {one: {"", *ORDER[: place + 1]} for place, one in enumerate(ORDER)}
    wrong = {
        (str(file.relative_to(ROOT)), part)
        for file in FILES
        for part in set(imported(file)) - allowed.get(package(file), {""})
    }
    assert not wrong
