"""Whether each row of records can be what a run has left."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bench.errors import InputError
from bench.parameters import canonical
from bench.publishing import declared
from bench.tables.schema import COMPRESSION

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_TEXTS = (
    *("suite", "task", "dataset", "model", "defense", "defense_params", "attack", "attack_params", "attack_kind"),
    *("attack_class", "knowledge", "judged_key", "strength_unit", "defense_family", "defense_access"),
    *("attack_family", "attack_access", "status"),
)
_ACCESSES = ("none", "black-box", "white-box")
# The words of the contracts; importing those would import PyTorch.
WORDS: dict[str, tuple[str, ...]] = {
    "attack_kind": ("none", "removal", "ambiguity", "control"),
    "attack_class": ("none", "in-place", "reparametrisation", "extraction", ""),
    "knowledge": ("none", "scheme", "insider"),
    "judged_key": ("owner", "forger"),
    "time_model": ("after the fact", "committed before"),
    "status": ("ok", "not applicable", "failed"),
    "defense_access": _ACCESSES,
    "attack_access": _ACCESSES,
}
_NAMES = {"suite": NAME, "defense": NAME, "attack": NAME, "run_id": _ID, "job_id": _ID, "parent_id": _ID}
# The least and the most that a number may be; infinite where that is one of them.
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("accuracy_clean", "accuracy_protected", "accuracy_reference", "accuracy"), (0.0, 1.0)),
    **dict.fromkeys(("log10_p", "capacity_log10_p"), (-math.inf, 0.0)),
    "statistic": (-math.inf, math.inf),
    "strength": (-1e12, 1e12),
    **dict.fromkeys(("seconds_protect", "seconds", "seconds_verify", "peak_memory_mb"), (0.0, 1e12)),
    **dict.fromkeys(("data_inputs", "data_labels", "queries"), (0.0, 1e15)),
    "seed": (0.0, 2.0**62),
    "threads": (1.0, 1e6),
    "decoy": (0.0, 1e9),
}
# Of the figures of records those that the tables are made of.
_FIGURES: dict[str, tuple[float, float]] = {
    "log10_p_floor": (-math.inf, 0.0),
    "share_1e-2": (0.0, 1.0),
    **dict.fromkeys(COMPRESSION, (0.0, 1e9)),
}
_JUDGED = ("accuracy", "statistic", "log10_p", "claim")


def require_sound(records: pa.Table, decoys: pa.Table, alpha: float) -> None:
    """Raise InputError, naming row and column, unless each row of records and decoys is possible by itself.

    Args:
        records, decoys: with texts as `bench.publishing.intake` lets them through.
        alpha: rate of false claims, by which claims are computed anew.
    """
    for table, name in ((records, "records.parquet"), (decoys, "decoys.parquet")):
        present = [column for column in table.column_names if column in _TEXTS]
        always = () if table is records else ("run_id", "job_id", "decoy", "statistic", "log10_p")
        for column in (*present, "seed", *always):
            _require(table, name, column, pc.is_valid(table[column]), "a value")
        _require_words(table, name)
        _require_ranges(table, name)
    _require_states(records)
    _require_figures(records)
    _require_claims(records, alpha)


def _require(table: pa.Table, name: str, column: str, holds: Any, expected: str) -> None:
    """Raise InputError for the first row where a condition does not hold; where it is null, it does."""
    wrong = np.flatnonzero(~np.asarray(pc.fill_null(holds, True).combine_chunks().to_numpy(zero_copy_only=False), bool))
    if wrong.size:
        value = table[column][int(wrong[0])].as_py()
        shown = ascii(value) if isinstance(value, str) else repr(value)
        raise InputError(f"{name}: row {wrong[0] + 1}, column {column}: expected {expected}, got {shown[:80]}")


def _require_words(table: pa.Table, name: str) -> None:
    for column, words in WORDS.items():
        if column in table.column_names:
            known = pc.is_in(table[column], pa.array(words, pa.string()))
            holds = pc.or_(known, pc.is_null(table[column]))
            _require(table, name, column, holds, "one of " + ", ".join(map(repr, words)))
    for column, form in _NAMES.items():
        if column in table.column_names:
            holds = pc.match_substring_regex(table[column], f"^(?:{form.pattern})\\z")
            _require(table, name, column, holds, "a name of letters, digits and hyphens")
    for column in ("defense_params", "attack_params"):
        if column in table.column_names:
            told = [text for text in pc.unique(table[column]).to_pylist() if not _is_canonical(text)]
            holds = pc.invert(pc.is_in(table[column], pa.array(told, pa.string())))
            _require(table, name, column, holds, "an object as canonical JSON")


def _is_canonical(text: str) -> bool:
    try:
        found = json.loads(text)
        return isinstance(found, dict) and canonical(found) == text
    except (ValueError, RecursionError):
        return False


def _require_ranges(table: pa.Table, name: str) -> None:
    for column, (least, most) in _RANGES.items():
        if column in table.column_names:
            values = table[column].cast(pa.float64(), safe=False)
            # Comparisons with NaN are false.
            holds = pc.and_(pc.greater_equal(values, least), pc.less_equal(values, most))
            _require(table, name, column, holds, f"a number from {least:g} to {most:g}")
    if "created_at" in table.column_names:
        latest = pa.scalar(declared.now() + declared.DAY, table["created_at"].type)
        first = pa.scalar(declared.FIRST, table["created_at"].type)
        holds = pc.and_(pc.greater_equal(table["created_at"], first), pc.less_equal(table["created_at"], latest))
        _require(table, name, "created_at", holds, "a time from 2020 until now")


def _require_states(records: pa.Table) -> None:
    """A row that is ok has been judged, and any other says why not."""
    ok = pc.equal(records["status"], "ok")
    for column in (*_JUDGED, "job_id", "run_id", "created_at"):
        holds = pc.or_(pc.invert(ok), pc.is_valid(records[column]))
        _require(records, "records.parquet", column, holds, "a value where the status is ok")
    for column in _JUDGED:
        holds = pc.or_(ok, pc.is_null(records[column]))
        _require(records, "records.parquet", column, holds, "nothing where the status is not ok")
    holds = pc.or_(ok, pc.is_valid(records["error"]))
    _require(records, "records.parquet", "error", holds, "a reason where the status is not ok")


def figure(records: pa.Table, name: str) -> pa.ChunkedArray:
    """One of the figures of each record, null where it has no such."""
    return pc.map_lookup(records["figures"], pa.scalar(name), "first")


def _require_figures(records: pa.Table) -> None:
    for name, (least, most) in _FIGURES.items():
        values = figure(records, name)
        holds = pc.and_(pc.greater_equal(values, least), pc.less_equal(values, most))
        _require(records, "records.parquet", "figures", holds, f"{name} from {least:g} to {most:g}")


def _require_claims(records: pa.Table, alpha: float) -> None:
    """A claim is what log10_p and alpha make of it, and no claim where a control shows as much."""
    claimed = pc.less_equal(records["log10_p"], math.log10(alpha))
    beside = pc.fill_null(pc.less(records["log10_p"], figure(records, "control.log10_p")), True)
    expected = pc.and_(claimed, beside)
    holds = pc.equal(records["claim"], expected)
    _require(records, "records.parquet", "claim", holds, f"what log10_p and alpha {alpha:g} give")
