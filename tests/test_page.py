"""The page in a real browser: it opens from disk, sorts, filters, switches task and tells of cells, wide and narrow.

Chromium is driven by its own command line. A probe, a script beside a copy of the page, does what a person would do
and writes down what is seen; `--dump-dom` brings it back. Screenshots: `OWNBENCH_SCREENSHOTS=FOLDER`.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench.publishing import page, sets
from tests.synthetic import replaced
from tests.test_publish import HOSTILE, example, saved

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chromium-headless-shell")
DIGITS = Path(__file__).parent.parent / "results" / "digits"
BROWSER = next((found for found in map(shutil.which, NAMES) if found), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser on this machine: none of {', '.join(NAMES)}")

# Runs in the frame of the page before its script: errors and messages to the console are written down.
LISTEN = """
window.seen = [];
addEventListener("error", (event) => seen.push("error: " + event.message));
addEventListener("securitypolicyviolation", (event) => seen.push("policy: " + event.violatedDirective));
for (const kind of ["error", "warn"]) console[kind] = (...words) => seen.push(`${kind}: ${words.join(" ")}`);
"""
# The page in a frame of the wanted width, which a window need not have; what the probe returns goes into the document.
FRAME = """<!doctype html><title>frame</title>
<body style="margin:0"><iframe id="page" style="border:0;width:{width}px;height:1200px"></iframe>
<pre id="told"></pre>
<script>
const frame = document.getElementById("page");
frame.onload = async () => {{
  const view = frame.contentWindow, $ = (id) => view.document.getElementById(id);
  const all = (selector) => [...view.document.querySelectorAll(selector)];
  const shown = (name) => all(`#${{name}} tbody tr`).length;
  const pick = (id, value) => {{
    $(id).value = value;
    for (const kind of ["input", "change"]) $(id).dispatchEvent(new view.Event(kind));
  }};
  let told;
  try {{ told = await (async () => {{ {probe} }})(); }} catch (error) {{ told = {{ failed: String(error) }}; }}
  told.seen = view.seen;
  told.requests = view.performance.getEntriesByType("resource").map((entry) => entry.name);
  document.getElementById("told").textContent = JSON.stringify(told);
}};
frame.srcdoc = {page};
</script>"""


def browse(
    folder: Path, address: Path, *options: str, virtual_time: int | None = 8000
) -> subprocess.CompletedProcess[str]:
    """Chromium on a file, with no network, a home of its own and time to finish.

    Args:
        folder: for its home, and for what it leaves.
        address: the file.
        options: more of its command line.
        virtual_time: milliseconds that the page may wait for something, at no cost; None for the real clock, by which
            it is looked at as soon as it has loaded.
    """
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += [
        f"--user-data-dir={folder / 'profile'}",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--force-color-profile=srgb",
    ]
    command += [f"--virtual-time-budget={virtual_time}"] if virtual_time is not None else []
    command += [*options, address.as_uri()]
    env = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=env)


def probed(folder: Path, text: str, probe: str, width: int = 1440, virtual_time: int | None = 8000) -> dict[str, Any]:
    """What a probe finds in the page, with `seen` (errors) and `requests`."""
    # The policy would stop the listener and tell nothing of it; another test has the page as it is.
    opened = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', f"<script>{LISTEN}</script>", text)
    assert opened != text
    quoted = json.dumps(opened).replace("<", "\\u003c")
    (folder / "frame.html").write_text(FRAME.format(width=width, probe=probe, page=quoted))
    size = f"--window-size={max(width, 800)},1300"
    done = browse(folder, folder / "frame.html", size, "--dump-dom", virtual_time=virtual_time)
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(html.unescape(found.group(1)))
    assert "failed" not in told, told
    assert told["seen"] == []
    assert told["requests"] == []
    return told


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with two tasks, the second one with labels that try to be markup."""
    runs = [saved(example(), tmp_path_factory.mktemp("runs") / "a")]
    hostile = example(seeds=1, task="yonder")
    for cell in list(hostile.cells):
        replaced(hostile, cell, defense_label=cell.defense_label + HOSTILE, attack_label=cell.attack_label + HOSTILE)
    # Labels go by name and parameters, so that the other task keeps its own only under other names.
    for cell in list(hostile.cells):
        replaced(hostile, cell, defense=f"{cell.defense}-x", attack=f"{cell.attack}-x")
    runs.append(saved(hostile, tmp_path_factory.mktemp("runs") / "b"))
    found = sets.gather(runs)
    return page.render(found, {"records.parquet": b"", "matrix.parquet": b""})


def test_it_opens_from_disk_under_its_own_policy_and_says_nothing_to_the_console(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.html").write_text(text)
    done = browse(tmp_path, tmp_path / "index.html", "--dump-dom", "--enable-logging=stderr", "--v=0")
    assert 'data-verdict="forged"' in done.stdout
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]


def test_it_sorts_by_any_heading_both_ways(tmp_path: Path, text: str) -> None:
    told = probed(
        tmp_path,
        text,
        """
        const names = () => all("#ranking tbody th").map((cell) => cell.textContent);
        const heading = () => all('[data-sort="defense"]')[0];
        const state = () => heading().closest("th").getAttribute("aria-sort");
        const before = names();
        heading().click();
        const up = [names(), state()];
        heading().click();
        return { before, up, down: [names(), state()], headings: all("#ranking [data-sort]").length };
        """,
    )
    assert told["up"] == [sorted(told["before"]), "ascending"]
    assert told["down"] == [sorted(told["before"], reverse=True), "descending"]
    assert told["before"][0] == "hard"
    assert told["headings"] >= 14


def test_it_filters_by_class_by_access_and_by_name_and_shows_all_again(tmp_path: Path, text: str) -> None:
    told = probed(
        tmp_path,
        text,
        """
        const counts = () => [shown("ranking"), all("#matrix tbody tr:not(.section)").length];
        const every = counts();
        pick("class", "extraction");
        const extraction = counts();
        pick("access", "white-box");
        const white = counts();
        pick("defense", "SOFT");
        const soft = counts();
        $("clear").click();
        return { every, extraction, white, soft, again: counts(), gone: $("defense").value };
        """,
    )
    assert told["extraction"] == [5, 2]
    assert told["white"] == [4, 2]
    assert told["soft"] == [1, 2]
    assert (told["again"], told["gone"]) == (told["every"], "")


def test_a_cell_opens_with_its_curve_its_records_and_its_command(tmp_path: Path, text: str) -> None:
    told = probed(
        tmp_path,
        text,
        """
        const named = (one) => one.getAttribute("aria-label").startsWith("wear on soft");
        const cell = all('#matrix button[data-verdict="removed"]').find(named);
        cell.focus();
        cell.click();
        const body = $("detail-body");
        const count = (selector) => body.querySelectorAll(selector).length;
        const found = { open: $("detail").open, title: $("detail-title").textContent, text: body.textContent };
        Object.assign(found, { charts: count("svg"), bands: count("svg .band"), rows: count("tbody tr") });
        $("detail").close();
        return { ...found, closed: !$("detail").open, focused: view.document.activeElement === cell };
        """,
    )
    assert (told["open"], told["title"], told["charts"], told["rows"]) == (True, "wear on soft", 3, 3)
    assert told["bands"] >= 2
    assert "ownbench run made-up --only defense=soft --only attack=wear --seeds 3" in told["text"]
    assert "job_id" in told["text"]
    assert told["closed"] and told["focused"]


def test_failures_and_gaps_are_cells_with_words_like_all_others(tmp_path: Path, text: str) -> None:
    told = probed(
        tmp_path,
        text,
        """
        const words = {};
        for (const one of all("#matrix button.cell")) (words[one.dataset.verdict] ??= new Set()).add(one.textContent);
        all('#matrix button[data-verdict="failed"]')[0].click();
        const lists = Object.entries(words).map(([verdict, found]) => [verdict, [...found]]);
        return { words: Object.fromEntries(lists), error: $("detail-body").textContent };
        """,
    )
    glyphs = {kind: {word[0] for word in words} for kind, words in told["words"].items()}
    assert {"failed", "not applicable", "removed", "survived", "forged", "no claim", "cannot claim at alpha"} <= set(
        glyphs
    )
    # Without colour a state is told by its glyph or its word.
    spoken = [
        (kind, word) for kind, words in told["words"].items() for word in words if kind in ("failed", "not applicable")
    ]
    assert sorted(spoken) == [("failed", "! failed"), ("not applicable", "· n/a")]
    assert glyphs["removed"].isdisjoint(glyphs["survived"])
    assert "out of luck" in told["error"]


def test_what_compressing_brings_stands_beside_its_attack(tmp_path: Path, text: str) -> None:
    told = probed(tmp_path, text, 'return { gains: all("#matrix .gain").map((one) => one.parentNode.textContent) };')
    assert told["gains"] == ["wear 8.0x smaller"]


def test_it_switches_task_and_labels_that_try_to_be_markup_are_text(tmp_path: Path, text: str) -> None:
    told = probed(
        tmp_path,
        text,
        """
        const before = $("facts").textContent;
        pick("task", "1");
        const first = all("#ranking tbody th button")[0];
        first.click();
        all("#matrix button.cell").forEach((cell) => cell.click());
        const elements = { images: all("img").length, scripts: all("script").length };
        return { before, after: $("facts").textContent, label: first.textContent, ...elements };
        """,
    )
    assert "3 seeds" in told["before"] and "1 seed," in told["after"]
    assert told["label"].endswith(HOSTILE)
    # The data, the page's own script and the listener.
    assert (told["images"], told["scripts"]) == (0, 3)


def test_the_arrow_keys_move_through_the_cells(tmp_path: Path, text: str) -> None:
    told = probed(
        tmp_path,
        text,
        """
        const cells = all("#matrix tbody tr:not(.section)").map((row) => [...row.querySelectorAll("button.cell")]);
        const active = () => view.document.activeElement;
        const press = (key) => {
          active().dispatchEvent(new view.KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
        };
        const row = cells.find((line) => line.length > 1);
        row[0].focus();
        press("ArrowRight");
        const right = active() === row[1];
        press("ArrowLeft");
        const back = active() === row[0];
        press("ArrowDown");
        const down = active().matches("button.cell") && active().closest("tr") !== row[0].closest("tr");
        return { right, back, down, reachable: all("#matrix button.cell").filter((one) => one.tabIndex === 0).length };
        """,
    )
    assert told["right"] and told["back"] and told["down"]
    assert told["reachable"] == 1


@pytest.mark.parametrize("width", [375, 1440])
def test_nothing_is_wider_than_the_page_and_everything_can_be_touched(tmp_path: Path, text: str, width: int) -> None:
    told = probed(
        tmp_path,
        text,
        """
        all("#matrix button.cell")[0].click();
        const size = (one) => one.getBoundingClientRect();
        const touched = all("#matrix button.cell, .filters select, .filters input");
        const small = touched.filter((one) => size(one).height < 24);
        const isNamed = (one) => one.textContent || one.getAttribute("aria-label") || one.labels?.length;
        const nameless = all("button, select, input").filter((one) => !isNamed(one)).length;
        const wide = view.document.documentElement.scrollWidth;
        return { inner: view.innerWidth, wide, dialog: size($("detail")).width, small: small.length, nameless };
        """,
        width,
    )
    assert told["inner"] == width
    assert told["wide"] <= width
    assert told["dialog"] <= width
    assert (told["small"], told["nameless"]) == (0, 0)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_its_ground_in_both_themes(tmp_path: Path, text: str, theme: str) -> None:
    told = probed(
        tmp_path,
        text,
        f"""
        const now = () => view.getComputedStyle(view.document.body).backgroundColor;
        view.document.documentElement.dataset.theme = "{theme}";
        """
        + """
        const ground = now();
        $("theme").click();
        const other = now();
        $("theme").click();
        // Whatever form a colour has, a canvas says it in bytes.
        const bytes = (colour) => {
          const canvas = view.document.createElement("canvas").getContext("2d");
          canvas.fillStyle = colour;
          canvas.fillRect(0, 0, 1, 1);
          return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
        };
        const pairs = ["kept", "lost", "void", "fail", "rule"].map((kind) => {
          const style = view.getComputedStyle(all(`.legend .cell.${kind}`)[0]);
          return [kind, bytes(style.color), bytes(style.backgroundColor)];
        });
        return { ground, other, pairs };
        """,
    )
    assert told["ground"] != told["other"]
    assert len(told["pairs"]) == 5
    for name, ink, paper in told["pairs"]:
        # WCAG 2.2, 1.4.3: at least 4.5 to 1.
        assert contrast(ink, paper) >= 4.5, name


def contrast(one: list[int], other: list[int]) -> float:
    """The contrast ratio of two colours (WCAG 2.2)."""

    def light(colour: list[int]) -> float:
        parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted([light(one), light(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("width", [500, 1440])
def test_it_can_be_photographed(tmp_path: Path, text: str, width: int) -> None:
    (tmp_path / "index.html").write_text(text)
    to = Path(os.environ.get("OWNBENCH_SCREENSHOTS", tmp_path)) / f"page-{width}.png"
    done = browse(tmp_path, tmp_path / "index.html", f"--window-size={width},1600", f"--screenshot={to}")
    assert to.is_file(), done.stderr[-2000:]
    assert to.read_bytes().startswith(b"\x89PNG")


def test_labels_break_between_their_parts_and_what_cannot_be_judged_says_why(tmp_path: Path) -> None:
    found = sets.gather([DIGITS])
    told = probed(
        tmp_path,
        page.render(found, {"records.parquet": b"", "matrix.parquet": b""}),
        """
        const parts = (cell) => { const lines = [""]; cell.childNodes.forEach((node) =>
          node.nodeName === "WBR" ? lines.push("") : lines[lines.length - 1] += node.textContent); return lines; };
        const absent = all("#matrix .absent").map((cell) => cell.textContent);
        return { heads: all("#matrix thead th").map(parts), rows: all("#matrix tbody th").map(parts), absent };
        """,
    )
    assert ["uchida", "[canonical=true]"] in told["heads"]
    assert ["fine-tune", "[learning_rate=0.15]"] in told["rows"]
    assert {"".join(parts) for parts in told["heads"]} == {"attack", *found.leaderboard["defense_label"].to_pylist()}
    # Owners are not judged where there is no forgery, and nothing is claimed without a mark.
    assert set(told["absent"]) == {"· n/a", "\N{EN DASH}"}
