"""Published sets: what is merged, what is refused, and that the page shows all of it and runs none of it."""

from __future__ import annotations

import json
import re
import sqlite3
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.commands.cli import main
from bench.errors import InputError
from bench.publishing import curves, figures, folder, packing, page, sets
from bench.publishing.content import STATES, content
from bench.tables import records
from bench.tables.prices import CELL
from tests.synthetic import HELD, LOST, Suite, replaced

ROOT = Path(__file__).parent.parent
FILES = ["records.parquet", "decoys.parquet", "leaderboard.parquet", "matrix.parquet", "LEADERBOARD.md", "index.html"]
HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(1)>"


def example(seeds: int = 3, **values: Any) -> Suite:
    """Defenses in all states against attacks of all kinds; one cell fails, one does not apply."""
    suite = Suite(**values)
    for seed in range(seeds):
        nothing: dict[str, Any] = {"log10_p": 0.0, "reason": "nothing", "capacity": 0.0, "defense_access": "none"}
        suite.base("bare", seed=seed, protected=0.98, **nothing)
        suite.base("mute", seed=seed, log10_p=-1.0)
        suite.base("weak", seed=seed, log10_p=-2.0, capacity=-3.0)
        for name in ("soft", "hard"):
            suite.base(name, seed=seed, protected=0.96 if name == "soft" else 0.97)
            suite.yardstick(name, seed=seed)
            held = HELD if name == "hard" else LOST
            stored = [{"stored_bits": bits / 2, "stored_bits_indexed": bits} for bits in (32000.0, 8000.0, 4000.0)]
            suite.cell(
                *(name, "wear"), seed=seed, log10_p=[HELD, held, held], accuracy=[0.96, 0.95 - seed / 100, 0.94],
                taken=stored, taken_before={"weights": 1000.0},
            )  # fmt: skip
            suite.cell(name, "wear", kind="control", seed=seed, log10_p=[-1.0, -2.0], accuracy=[0.9, 0.9])
            forged = suite.cell(name, "fake", kind="ambiguity", seed=seed, log10_p=-7.0 if name == "soft" else -1.0)
            assert forged.judged_key == "forger"
            suite.cell(name, "draw", kind="ambiguity", seed=seed, decoys=[-0.3, -1.2, -2.5])
        suite.cell("soft", "copy", seed=seed, cls="extraction", status="not applicable")
        broken = suite.cell("hard", "copy", seed=seed, cls="extraction")
        suite.fail(broken.jobs["attack"], "out of luck")
    return suite


def saved(suite: Suite, path: Path) -> Path:
    """A folder with what a run leaves of its records."""
    path.mkdir(parents=True)
    made, decoys = records.build(suite.plan, suite.entries)
    records.write(made, path / "records.parquet")
    records.write(decoys, path / "decoys.parquet")
    return path


def later(suite: Suite, run: str) -> Suite:
    """The same jobs as of another run, an hour later."""
    for entry in suite.entries.values():
        entry |= {"run_id": run, "created_at": entry["created_at"].replace("T00", "T01")}
    return suite


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[sets.Published, dict[str, bytes]]:
    """A set and its files."""
    found = sets.gather([saved(example(), tmp_path_factory.mktemp("run") / "one")])
    return found, folder.files(found)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures, which take most of the time; they depend on nothing but the tables."""
    monkeypatch.setattr(figures, "draw", lambda leaderboard, matrix: {})


class Seen(HTMLParser):
    """The elements of a page: addresses, scripts and their texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.elements: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in ("href", "src", "action", "srcset", "data")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)


def data_of(text: str) -> dict[str, Any]:
    """The JSON inside a page."""
    (inside,) = [body for attributes, body in Seen(text).scripts if attributes.get("id") == "data"]
    found: dict[str, Any] = json.loads(inside)
    return found


def unpacked(table: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of `packing.packed`, as the page's script reads them."""

    def value(column: dict[str, Any], place: int) -> Any:
        if "codes" in column:
            return column["words"][column["codes"][place]]
        return column["values"][place] if "values" in column else column["all"]

    columns = table["columns"].items()
    return [{name: value(column, place) for name, column in columns} for place in range(table["n"])]


def test_figures_are_the_same_bytes_every_time_and_stand_in_the_set(published: Any) -> None:
    found, made = published
    drawn = figures.draw(found.leaderboard, found.matrix)
    assert sorted(drawn) == [f"{what}-toy-net.{form}" for what in ("matrix", "pareto") for form in ("png", "svg")]
    assert sorted(made) == sorted([*FILES, *drawn])
    assert all(made[name] == content for name, content in drawn.items())
    assert b"forged" in drawn["matrix-toy-net.svg"].lower()


def test_a_set_has_all_its_files_and_publishing_it_again_writes_none(tmp_path: Path, undrawn: None) -> None:
    run, to = saved(example(seeds=1), tmp_path / "run"), tmp_path / "set"
    first = CliRunner().invoke(main, ["publish", str(run), "--to", str(to)])
    assert first.exit_code == 0, first.output
    assert sorted(file.name for file in to.iterdir()) == sorted(FILES)
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ino) for file in to.iterdir()}
    again = CliRunner().invoke(main, ["publish", str(run), "--to", str(to)])
    assert "written" not in again.output
    assert before == {f.name: (f.read_bytes(), f.stat().st_mtime_ns, f.stat().st_ino) for f in to.iterdir()}
    assert records.read(to / "records.parquet").equals(records.read(run / "records.parquet"))


def test_a_published_set_published_again_is_the_same_set(tmp_path: Path, undrawn: None) -> None:
    found = sets.gather([saved(example(), tmp_path / "run")])
    made = folder.files(found)
    folder.write(made, tmp_path / "set")
    assert folder.files(sets.gather([tmp_path / "set"])) == made


def test_the_order_and_the_repetition_of_runs_change_nothing(tmp_path: Path, undrawn: None) -> None:
    other = later(example(seeds=1, name="other"), "run2")
    runs = [saved(example(), tmp_path / "a"), saved(other, tmp_path / "b")]
    made = folder.files(sets.gather(runs))
    assert folder.files(sets.gather(runs[::-1])) == made
    again = sets.gather([*runs, runs[1]])
    assert again.records.to_pylist() == sets.gather(runs).records.to_pylist()
    assert again.decoys.to_pylist() == sets.gather(runs).decoys.to_pylist()


def test_of_two_runs_of_a_cell_the_newest_counts_with_its_decoys_and_a_note_says_so(tmp_path: Path) -> None:
    old = example()
    new = Suite()
    new.base("soft", seed=0)
    new.cell("soft", "wear", seed=0, log10_p=[HELD, HELD, HELD], accuracy=[0.96, 0.95, 0.94])
    new.cell("soft", "draw", kind="ambiguity", seed=0, decoys=[-0.5, -0.6])
    runs = [saved(old, tmp_path / "old"), saved(later(new, "run2"), tmp_path / "new")]
    found = sets.gather(runs)
    frame = found.records.to_pandas()
    wear = frame[(frame.defense == "soft") & (frame.attack == "wear") & (frame.attack_kind == "removal")]
    assert set(wear[wear.seed == 0].run_id) == {"run2"}
    assert set(wear[wear.seed > 0].run_id) == {"run1"}
    decoys = found.decoys.to_pandas()
    drawn = decoys[(decoys.defense == "soft") & (decoys.seed == 0)]
    assert sorted(drawn.log10_p) == [-0.6, -0.5]
    assert len(decoys[(decoys.defense == "soft") & (decoys.seed == 1)]) == 3
    assert len(found.notes) >= 2
    assert any("different jobs" in note for note in found.notes)
    assert all(note[1:] in page.render(found, {"records.parquet": b""}) for note in found.notes)


def test_jobs_that_gave_other_numbers_in_another_run_are_counted(tmp_path: Path) -> None:
    one, other = example(seeds=1), later(example(seeds=1), "run2")
    cell = next(c for c in other.cells if c.attack == "wear" and c.attack_kind == "removal")
    other.entries[cell.jobs["judge"]]["result"]["evidence"][0]["log10_p"] = -19.0
    found = sets.gather([saved(one, tmp_path / "a"), saved(other, tmp_path / "b")])
    assert "1 jobs gave different numbers in different runs: the newest count" in found.notes


@pytest.mark.parametrize(
    ("values", "told"),
    [({"alpha": 1e-3}, "alpha 1e-06 and 0.001"), ({"budget": 2.0}, "accuracy_budget 2 and 5")],
)
def test_runs_under_other_rules_are_refused(tmp_path: Path, values: dict[str, float], told: str) -> None:
    runs = [saved(example(seeds=1), tmp_path / "a"), saved(example(seeds=1, **values), tmp_path / "b")]
    done = CliRunner().invoke(main, ["publish", *map(str, runs), "--to", str(tmp_path / "set")])
    assert done.exit_code == 2
    assert told in done.output
    assert not (tmp_path / "set").exists()


def test_a_task_that_is_another_in_another_run_is_refused(tmp_path: Path) -> None:
    other = example(seeds=1)
    for cell in list(other.cells):
        replaced(other, cell, dataset="other-set")
    with pytest.raises(InputError, match="task toy with dataset toy-set and other-set"):
        sets.gather([saved(example(seeds=1), tmp_path / "a"), saved(other, tmp_path / "b")])


def test_records_of_an_unknown_schema_version_and_missing_files_are_refused(tmp_path: Path) -> None:
    run = saved(example(seeds=1), tmp_path / "run")
    table = records.read(run / "records.parquet")
    described = {**table.schema.metadata, b"ownbench.schema_version": b"999"}
    records.write(table.replace_schema_metadata(described), run / "records.parquet")
    with pytest.raises(InputError, match="expected schema version"):
        sets.gather([run])
    with pytest.raises(InputError, match="no such file"):
        sets.gather([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="at least one run"):
        sets.gather([])


def test_the_page_holds_every_cell_every_defense_and_every_state(published: Any) -> None:
    found, made = published
    (task,) = data_of(made["index.html"].decode())["tasks"]
    cells, attacks, defenses = (unpacked(task[name]) for name in ("cells", "attacks", "defenses"))
    shown = {
        (defenses[c["d"]]["defense"], attacks[c["a"]]["attack"], attacks[c["a"]]["attack_kind"], c["verdict"])
        for c in cells
    }
    table = found.matrix.to_pylist()
    assert shown == {(row["defense"], row["attack"], row["attack_kind"], row["verdict"]) for row in table}
    assert len(cells) == len(table)
    verdicts = {row["verdict"] for row in table}
    assert verdicts <= set(STATES)
    assert {"survived", "removed", "forged", "withstood", "no claim", "failed", "not applicable", "ceiling"} <= verdicts
    assert "cannot claim at alpha" in {row["verdict"] for row in defenses}
    failed = next(c for c in cells if c["verdict"] == "failed")
    assert "out of luck" in failed["error"] and failed["text"] == "failed"
    for row in defenses:
        source = next(one for one in found.leaderboard.to_pylist() if one["defense"] == row["defense"])
        assert row["price"] == packing.plain(source["price"])
    assert next(one for one in defenses if one["defense"] == "hard")["cautions"] == ["3 of 21 cells failed"]


def test_every_cell_names_its_records_its_suite_and_the_command_that_makes_it_again(published: Any) -> None:
    found, made = published
    (task,) = data_of(made["index.html"].decode())["tasks"]
    cells, attacks, defenses = (unpacked(task[name]) for name in ("cells", "attacks", "defenses"))
    frame = found.records.to_pandas()
    for cell in cells:
        attack, defense = attacks[cell["a"]], defenses[cell["d"]]
        of_cell = frame[(frame.defense == defense["defense"]) & (frame.attack == attack["attack"])]
        of_cell = of_cell[of_cell.attack_kind == attack["attack_kind"]]
        assert set(cell["jobs"]) == set(of_cell.job_id.dropna())
        assert (cell["suite"], cell["seed_options"]) == ("made-up", "--seeds 3")
        assert defense["only"] == f"--only defense={defense['defense_label']}"


def test_curves_are_means_and_ranges_over_the_seeds_of_the_records(published: Any) -> None:
    found, _ = published
    lines = curves.curves(found.records)
    wear = lines[(lines.defense == "soft") & (lines.attack == "wear") & (lines.attack_kind == "removal")]
    assert wear.strength.tolist() == [1.0, 2.0, 3.0]
    second = wear.iloc[1]
    assert second.accuracy == pytest.approx(0.94)
    assert (second.accuracy_low, second.accuracy_high) == (pytest.approx(0.93), pytest.approx(0.95))
    assert (second.log10_p, second.seeds, second.claims) == (LOST, 3, 0)
    assert wear.iloc[0].claims == 3


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), most=st.integers(1, 120))
def test_curves_with_too_many_points_keep_their_ends_and_count_what_is_gone(sizes: list[int], most: int) -> None:
    rows = [
        {**dict.fromkeys(CELL, ""), "attack": f"a{place}", "strength": float(step)}
        for place, size in enumerate(sizes)
        for step in range(size)
    ]
    kept = curves._thinned(pd.DataFrame(rows), most)
    share = max(2, most // len(sizes))
    for place, size in enumerate(sizes):
        here = kept[kept.attack == f"a{place}"]
        assert len(here) == min(size, share)
        assert (here.strength.iloc[0], here.strength.iloc[-1]) == (0.0, size - 1.0)
        assert set(here.left_out) == {size - len(here)}


values = st.one_of(st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.floats(), st.text(max_size=3))


@given(
    rows=st.lists(
        st.fixed_dictionaries({"x": values, "y": st.one_of(st.none(), st.text("ab", max_size=1))}), max_size=9
    )
)
def test_packed_rows_come_back_as_json_could_say_them(rows: list[dict[str, Any]]) -> None:
    sent = json.loads(packing.embedded(packing.packed(rows)))
    expected = [{name: packing.plain(value) for name, value in row.items()} for row in rows]
    if rows:
        assert unpacked(sent) == expected
        kinds = [[{name: type(v) for name, v in row.items()} for row in rows] for rows in (unpacked(sent), expected)]
        assert kinds[0] == kinds[1]
    else:
        assert sent["n"] == 0


@given(st.text(st.characters(codec="utf-8")))
def test_embedded_json_has_no_character_that_html_reads(text: str) -> None:
    inside = packing.embedded({text: [text + HOSTILE]})
    assert not set(inside) & set("<>&")
    assert inside.isascii()
    assert json.loads(inside) == {text: [text + HOSTILE]}


def test_what_comes_from_data_is_text_on_the_page_and_never_markup(tmp_path: Path) -> None:
    suite = example(seeds=1, name=f"suite{HOSTILE}", task=f"task{HOSTILE}")
    for cell in list(suite.cells):
        labels = {"defense_label": cell.defense_label + HOSTILE, "attack_label": cell.attack_label + HOSTILE}
        replaced(suite, cell, **labels, defense_family=HOSTILE, error=HOSTILE if cell.error else None)
    made = folder.files(sets.gather([saved(suite, tmp_path / "run")]))
    text = made["index.html"].decode()
    seen = Seen(text)
    assert [attributes for attributes, _ in seen.scripts] == [{"type": "application/json", "id": "data"}, {}]
    assert "img" not in seen.elements
    assert seen.handlers == []
    assert "<script>alert" not in text
    assert "<" not in made["LEADERBOARD.md"].decode()
    (task,) = data_of(text)["tasks"]
    assert all(one["defense_label"].endswith(HOSTILE) for one in unpacked(task["defenses"]))
    assert (
        "alert(1)</script>"
        not in made["matrix-task-script-script-alert-1-script-img-src-x-onerror-alert-1-net.svg"].decode()
    )


def test_tasks_whose_names_differ_in_signs_alone_have_figures_of_their_own(tmp_path: Path) -> None:
    runs = [saved(example(seeds=1, task=task), tmp_path / str(place)) for place, task in enumerate(("a/b", "a b"))]
    found = sets.gather(runs)
    names = list(figures.draw(found.leaderboard, found.matrix))
    assert names[4:] == [name.replace("a-b-net", "a-b-net-again") for name in names[:4]]
    assert len(names) == 8


def test_the_script_makes_no_markup_of_anything() -> None:
    script = (ROOT / "bench" / "publishing" / "page.js").read_text()
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert way not in script
    assert len(script.splitlines()) <= 400


def test_the_page_asks_for_nothing_and_links_to_its_own_files(published: Any) -> None:
    _, made = published
    text = made["index.html"].decode()
    seen = Seen(text)
    assert set(seen.addresses) <= set(made)
    assert {"records.parquet", "leaderboard.parquet", "matrix.parquet", "decoys.parquet"} <= set(seen.addresses)
    # The name of SVG is no address.
    assert (
        re.findall(
            r"(?:https?:|wss?:)?//[\w.]+", re.sub(r"//[^\n]*\n", "\n", text.replace("http://www.w3.org/2000/svg", ""))
        )
        == []
    )
    assert not {"link", "iframe", "object", "embed", "img"} & set(seen.elements)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket|import\(", text)
    assert "default-src 'none'" in text


def test_the_policy_of_the_page_lets_its_own_script_run(published: Any) -> None:
    import base64
    import hashlib

    text = published[1]["index.html"].decode()
    script = Seen(text).scripts[1][1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}" in text or f"script-src 'sha256-{digest}'" in text


def test_the_page_does_not_grow_with_seeds_and_strengths(tmp_path: Path) -> None:
    def size(seeds: int, strengths: int) -> int:
        suite = Suite()
        for seed in range(seeds):
            suite.base(seed=seed)
            suite.cell(seed=seed, log10_p=[HELD] * strengths, accuracy=[0.9] * strengths)
        found = sets.gather([saved(suite, tmp_path / f"{seeds}-{strengths}")])
        return len(packing.embedded(content(found, points=40)))

    small = size(10, 20)
    assert size(60, 20) < small + 200
    assert size(10, 200) < small + 400


def test_the_citation_names_the_set_by_its_digest_and_nobody(published: Any) -> None:
    import hashlib

    found, made = published
    told = page.citation(found, made)
    assert hashlib.sha256(made["records.parquet"]).hexdigest() in told
    assert "author" not in told and "doi" not in told
    assert told.count("{") == told.count("}")
    assert "year = {2030}" in told


def test_a_readme_gets_the_tables_between_its_markers_and_keeps_the_rest(tmp_path: Path, published: Any) -> None:
    found, _ = published
    readme = tmp_path / "README.md"
    readme.write_text(f"# Mine\n\n{folder.BEGIN}\nstale words\n{folder.END}\n\nthe rest\n")
    assert folder.into_readme(readme, found)
    text = readme.read_text()
    assert text.startswith(f"# Mine\n\n{folder.BEGIN}\n```\nTask toy, model net")
    assert text.endswith(f"```\n{folder.END}\n\nthe rest\n")
    assert "stale words" not in text
    assert not folder.into_readme(readme, found)
    for wrong in ("no markers\n", f"{folder.BEGIN}\nno end\n", f"{folder.BEGIN}\n{folder.END}\n" * 2):
        readme.write_text(wrong)
        with pytest.raises(InputError, match="expected one block"):
            folder.into_readme(readme, found)
        assert readme.read_text() == wrong


def test_a_folder_that_cannot_be_written_is_an_error_in_words(tmp_path: Path, published: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder that can be written"):
        folder.write(published[1], tmp_path / "file" / "set")


def test_a_run_without_any_record_can_be_published(tmp_path: Path, undrawn: None) -> None:
    made = folder.files(sets.gather([saved(Suite(), tmp_path / "run")]))
    assert data_of(made["index.html"].decode())["tasks"] == []


def test_the_committed_set_of_digits_is_what_publishing_it_gives() -> None:
    found = sets.gather([ROOT / "results" / "digits"])
    for name, table in found.tables().items():
        assert table.equals(records.read(ROOT / "results" / "digits" / f"{name}.parquet", name)), name
    shown = content(found)
    (task,) = shown["tasks"]
    assert len(unpacked(task["cells"])) == found.matrix.num_rows
    assert len(packing.embedded(shown)) < 1_000_000


@pytest.mark.parametrize(
    ("seeds", "options"), [([0, 1, 2], "--seeds 3"), ([1, 3], "--seed 1 --seed 3"), ([0], "--seeds 1")]
)
def test_the_options_of_seeds_are_those_that_run_takes(seeds: list[int], options: str) -> None:
    assert curves.seed_options(seeds) == options


README = (ROOT / "README.md").read_text()


def test_the_questions_in_pandas_of_the_readme_have_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "read_parquet" in block]
    start, *questions = re.split(r"^# .*\n", code, flags=re.MULTILINE)
    space: dict[str, Any] = {}
    exec(start, space)
    best, removed, course, wrong = (eval(question, space) for question in questions)
    assert best.price.is_monotonic_decreasing and len(best) == 5
    of_attack = space["cells"][(space["cells"].attack_label == "distill") & (space["cells"].verdict == "removed")]
    assert removed.loc["distill", "removed"] == len(of_attack) > 0
    assert course.loc["removal"].accuracy.notna().all() and len(course) > 4
    assert wrong.empty


def test_the_questions_in_sql_of_the_readme_have_answers() -> None:
    # DuckDB reads the files by their names; the questions themselves are plain SQL, which SQLite can read too.
    (code,) = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
    base = sqlite3.connect(":memory:")
    for name in ("matrix", "leaderboard"):
        frame = pd.read_parquet(ROOT / "results" / "digits" / f"{name}.parquet")
        frame.drop(columns="devices", errors="ignore").to_sql(name, base)
    plain = re.sub(r"'results/digits/(\w+)\.parquet'", r"\1", code)
    moves, costs, times = (base.execute(question).fetchall() for question in plain.split(";\n") if question.strip())
    board = pd.read_parquet(ROOT / "results" / "digits" / "leaderboard.parquet")
    assert len(moves) == len(costs) == (board.verdict == "claim").sum()
    assert all(survived <= attacks for _, attacks, survived in moves) and moves[0][2] == moves[0][1]
    assert [points for _, points, _, _ in costs] == sorted(points for _, points, _, _ in costs)
    assert dict(times)["scratch"] == 1.0
