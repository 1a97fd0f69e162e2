"""The `publish` and `compare` commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.commands import submitting
from bench.publishing import folder, sets
from bench.tables import origins


def publish(runs: Sequence[Path], to: Path, readme: Path | None) -> str:
    """Publish runs as one set; returns what was written.

    Args:
        runs: run folders or published sets.
        to: the folder of the set.
        readme: a file whose block of tables is renewed, too.

    Raises:
        InputError: see `bench.publishing.sets.gather` and `bench.publishing.folder`.
    """
    left_out = submitting.unnamed(runs, to)
    found = sets.gather(runs)
    made = folder.files(found)
    changed = folder.write(made, to)
    lines = [f"note: {note}" for note in found.notes]
    lines += [f"note: {path} is not in this set any more; name it beside the runs to keep it" for path in left_out]
    lines += [f"{'written' if to / name in changed else 'as it was'}: {to / name}" for name in made]
    if readme is not None:
        written = folder.into_readme(readme, found)
        lines.append(f"{'written' if written else 'as it was'}: {readme}")
    return "\n".join(lines) + "\n"


def compare(first: Path, second: Path, form: str) -> str:
    """What changed from one run or set to another; a submission is compared under the names that it came with.

    Args:
        first: a run folder or a published set, A.
        second: likewise, B.
        form: `table` or `json`.

    Raises:
        InputError: a folder without records, or different protocols.
    """
    from bench.publishing import changes, comparison

    names = (str(first), str(second))
    one, other = (origins.unmarked(sets.records_of(run)) for run in (first, second))
    lines = comparison.compare(one, other, names)
    return changes.render(lines, names, form)
