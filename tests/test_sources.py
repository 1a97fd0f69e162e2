"""Digests follow definitions: what a change redoes, and what it leaves alone."""

import ast
import importlib
import sys
import textwrap

import pytest

from bench.planning import sources

PLUGIN = """
    '''A module docstring.'''
    from dataclasses import dataclass
    import helpers
    from helpers import shared as renamed, Thing

    LIMIT = 3

    @dataclass(frozen=True)
    class Scheme:
        bits: int = 4

        def protect(self, key: Thing):
            return renamed(self._private())

        def _private(self):
            return LIMIT

        def verify(self):
            '''What verify does.'''
            return only_verify(helpers.deep.tail(1))

    def only_verify(x):
        return x  # a comment
"""
HELPERS = """
    from helpers.other import far

    def shared(x):
        return far(x)

    def unused():
        return 1

    class Thing:
        def method(self):
            return 2
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project whose files can be edited; `digest` reads them anew."""
    (tmp_path / "helpers").mkdir()
    files = {
        "scheme.py": PLUGIN,
        "helpers/__init__.py": HELPERS,
        "helpers/other.py": "def far(x):\n    return x + 1\n\ndef lonely():\n    return 0\n",
        "helpers/deep.py": "STEP = 1\n\ndef tail(x):\n    return x + STEP\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sources, "PACKAGES", frozenset({"scheme", "helpers"}))

    class Project:
        def edit(self, name, old, new):
            text = (tmp_path / name).read_text()
            assert old in text
            (tmp_path / name).write_text(text.replace(old, new))

        def digest(self, *methods):
            sources.forget()
            for name in ("scheme", "helpers", "helpers.other", "helpers.deep"):
                sys.modules.pop(name, None)
            return sources.digest([("scheme", "Scheme#header"), *(("scheme", f"Scheme.{m}") for m in methods)])

    yield Project()
    sources.forget()


CASES = [
    # file, old, new, protect changes, verify changes
    ("scheme.py", "return x  # a comment", "return x  # another", False, False),
    ("scheme.py", "What verify does", "What it does", False, False),
    ("scheme.py", "key: Thing", "key: int", False, False),
    ("scheme.py", "A module docstring", "Another", False, False),
    ("scheme.py", "return x  # a comment", "return -x", False, True),
    ("scheme.py", "tail(1)", "tail(2)", False, True),
    ("scheme.py", "LIMIT = 3", "LIMIT = 4", True, False),
    ("scheme.py", "return LIMIT", "return -LIMIT", True, False),
    ("scheme.py", "bits: int = 4", "bits: int = 5", True, True),
    ("helpers/__init__.py", "return far(x)", "return -far(x)", True, False),
    ("helpers/__init__.py", "return 1", "return 2", False, False),
    ("helpers/__init__.py", "return 2", "return 3", False, False),
    ("helpers/other.py", "return x + 1", "return x + 2", True, False),
    ("helpers/other.py", "return 0", "return 1", False, False),
    ("helpers/deep.py", "STEP = 1", "STEP = 2", False, True),
]


@pytest.mark.parametrize(("file", "old", "new", "protect", "verify"), CASES)
def test_an_edit_changes_just_the_digests_that_it_reaches(project, file, old, new, protect, verify):
    before = project.digest("protect"), project.digest("verify")
    project.edit(file, old, new)
    after = project.digest("protect"), project.digest("verify")
    assert (before[0] != after[0], before[1] != after[1]) == (protect, verify)


def test_a_statement_that_runs_at_import_counts_everywhere(project):
    before = project.digest("protect")
    project.edit("scheme.py", "LIMIT = 3\n", "LIMIT = 3\nif True:\n    LIMIT += 0\n")
    assert project.digest("protect") != before


def test_a_module_passed_as_a_value_counts_whole(project):
    project.edit("scheme.py", "return renamed(self._private())", "return helpers")
    before = project.digest("protect")
    project.edit("helpers/__init__.py", "return 1", "return 2")
    assert project.digest("protect") != before


def test_real_plugins_reach_what_they_run():
    from defenses.uchida import Uchida

    def reached(*methods):
        return sources._reachable(frozenset(sources.plugin_roots(Uchida, methods)))

    verify, protect = reached("verify"), reached("draw", "protect")
    assert ("bench.statistics", "binomial_tail") in verify
    assert ("models.architecture", "layer") in verify
    assert ("bench.statistics", "binomial_tail") not in protect
    assert ("defenses.uchida", "Uchida.verify") not in protect
    assert ("defenses.uchida", "mean_filter") in verify & protect
    work = sources._reachable(frozenset([("bench.running.work", "protect")]))
    assert ("bench.training", "training") in work
    assert ("bench.running.work", "judge") not in work
    assert ("bench.running.work", "_verify") not in work
    assert ("bench.trainer", "AttackerTrainer") not in work
    attack = sources._reachable(frozenset([("bench.running.work", "attack")]))
    assert {("bench.trainer", "AttackerTrainer"), ("bench.training", "training"), ("bench.suspect", "Target")} <= attack
    assert ("bench.evidence", "Evidence") not in work | attack


def test_digests_are_the_same_in_another_process():
    import subprocess

    code = "from bench.planning import sources; print(sources.digest([('bench.running.work', 'judge')]))"
    given = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert given == sources.digest([("bench.running.work", "judge")])


INHERITED = """
    class Base:
        bits = 1

        def protect(self):
            return self.mark()

        def mark(self):
            return 1

        def verify(self):
            return 2

    class Sub(Base):
        def mark(self):
            return 3
"""


def test_methods_are_followed_along_the_bases(tmp_path, monkeypatch):
    """A base's `protect` runs what a subclass overrides; an inherited `verify` is still judging alone."""
    path = tmp_path / "family.py"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sources, "PACKAGES", frozenset({"family"}))

    def digests(text):
        path.write_text(textwrap.dedent(text))
        sources.forget()
        sys.modules.pop("family", None)
        import family

        return tuple(sources.digest(sources.plugin_roots(family.Sub, [m])) for m in ("protect", "verify"))

    base = digests(INHERITED)
    overridden, judged, fields = (
        digests(INHERITED.replace(old, new))
        for old, new in (("return 3", "return 4"), ("return 2", "return 5"), ("bits = 1", "bits = 2"))
    )
    assert (overridden[0] != base[0], overridden[1] != base[1]) == (True, False)
    assert (judged[0] != base[0], judged[1] != base[1]) == (False, True)
    assert (fields[0] != base[0], fields[1] != base[1]) == (True, True)
    sources.forget()


DECLARING = """
    class Wear:
        def run(self):
            return 1

        def effort(self, task):
            return 2

        def surrogates(self):
            return 3
"""


@pytest.mark.parametrize(("old", "new", "counts"), [
    ("return 1", "return 4", True), ("return 2", "return 4", False), ("return 3", "return 4", False),
])  # fmt: skip
def test_what_only_a_forecast_calls_does_not_count(tmp_path, monkeypatch, old, new, counts):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sources, "PACKAGES", frozenset({"wearing"}))

    def digest(text):
        (tmp_path / "wearing.py").write_text(textwrap.dedent(text))
        sources.forget()
        sys.modules.pop("wearing", None)
        return sources.digest([("wearing", "Wear")])

    assert (digest(DECLARING) != digest(DECLARING.replace(old, new))) is counts
    # Where a job's own code calls it, it counts as any other method.
    calling = DECLARING.replace("return 1", "return self.effort(0) + self.surrogates() + 1")
    assert digest(calling) != digest(calling.replace(old, new) if old != "return 1" else DECLARING)
    sources.forget()


def test_a_declaration_that_the_method_itself_uses_counts(tmp_path, monkeypatch):
    def digest_with(number):
        name = f"declaring{number}"
        (tmp_path / f"{name}.py").write_text(
            "class Base:\n    def run(self):\n        return self.surrogates()\n"
            "    def surrogates(self):\n        return 1\n"
            f"class Sub(Base):\n    def surrogates(self):\n        return {number}\n"
            f"class Other:\n    def surrogates(self):\n        return {number}\n"
        )
        module = importlib.import_module(name)
        used, unused = (
            [statement for node in sources.declared_roots(cls) for statement in sources._statements(node)]
            for cls in (module.Sub, module.Other)
        )
        return [ast.unparse(one) for one in used], unused

    monkeypatch.syspath_prepend(str(tmp_path))
    first, unused = digest_with(3)
    assert not unused
    assert first != digest_with(5)[0]
    assert len(first) == 2
