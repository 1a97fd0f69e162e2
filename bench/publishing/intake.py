"""Parquet that a stranger wrote: read when its footer fits the schema, and kept when its texts are texts."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.errors import InputError
from bench.tables import records as recorded
from bench.tables import schema

ROWS, ROW_GROUPS, VALUES = 4_000_000, 10_000, 100_000_000
# Bytes of all columns of a file, by its footer; and of all its texts, once those that repeat are written out.
LARGEST = 2 * 2**30
# Of the metadata of a file: bytes of one text, and how many lists of anything there are.
_THRIFT_TEXT, _THRIFT_LISTS = 32 * 2**20, 1_000_000
# Characters; of the columns that are not named, those of a name.
NAME = 500
_LONGEST = {"defense_params": 20_000, "attack_params": 20_000, "error": 20_000, "traceback": 200_000}
_PAIRS = 1_000
# Texts for reading: here signs that steer a terminal become visible, elsewhere they are refused.
_READ = ("error", "traceback")
_STEERING = "\\x{00}-\\x{08}\\x{0b}-\\x{1f}\\x{7f}-\\x{9f}\\x{200e}\\x{200f}\\x{2028}-\\x{202e}\\x{2066}-\\x{2069}"
_STEERS = f"[{_STEERING}]"
STEERS_NAME = f"[\\t\\n{_STEERING}]"


def table_of(content: bytes, kind: str) -> tuple[pa.Table, list[str]]:
    """A table in today's columns, and the names of those that its file has.

    Args:
        content: of the Parquet file.
        kind: one of `bench.tables.schema.TABLES`.

    Raises:
        InputError: no Parquet, too large, other columns or types than those of its version, values that its types do
            not allow, texts that are too long or steer a terminal.
    """
    name = f"{kind}.parquet"
    try:
        file = _opened(content)
        _require_size(file.metadata, name)
        _require_schema(file.schema_arrow, kind)
        texts = [field.name for field in file.schema_arrow if pa.types.is_string(field.type)]
        table = _opened(content, texts).read()
        table.validate(full=True)
        table = _written_out(table, texts, name)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        if isinstance(error, MemoryError):
            raise
        raise InputError(f"{name}: expected Parquet that can be read: {str(error)[:200]}") from error
    columns = table.column_names
    try:
        table = recorded.of_today(table, kind, name)
    except (pa.ArrowException, LookupError, ValueError, TypeError) as error:
        raise InputError(f"{name}: not what its schema version has: {str(error)[:200]}") from error
    return _with_texts(table, name), columns


def _opened(content: bytes, texts: Sequence[str] = ()) -> pq.ParquetFile:
    """The file; of the columns that are named each value once, however often it stands there."""
    return pq.ParquetFile(
        pa.BufferReader(content),
        read_dictionary=list(texts),
        thrift_string_size_limit=_THRIFT_TEXT,
        thrift_container_size_limit=_THRIFT_LISTS,
        arrow_extensions_enabled=False,
    )


def _require_size(footer: pq.FileMetaData, name: str) -> None:
    groups = [footer.row_group(place) for place in range(min(footer.num_row_groups, ROW_GROUPS))]
    values = max((one.column(place).num_values for one in groups for place in range(one.num_columns)), default=0)
    told = {
        "rows": (footer.num_rows, ROWS),
        "row groups": (footer.num_row_groups, ROW_GROUPS),
        "values in a column": (values, VALUES),
        "bytes": (sum(one.total_byte_size for one in groups), LARGEST),
    }
    for what, (found, most) in told.items():
        if not 0 <= found <= most:
            raise InputError(f"{name}: expected at most {most:,} {what}, got {found:,}")


def _written_out(table: pa.Table, texts: Sequence[str], name: str) -> pa.Table:
    """Texts as texts, where all of them together are not too large for that."""
    size = 0
    for column in texts:
        for chunk in table[column].chunks:
            lengths = pc.binary_length(chunk.dictionary).cast(pa.int64())
            size += pc.sum(lengths.take(chunk.indices)).as_py() or 0
            if size > LARGEST:
                raise InputError(f"{name}, column {column}: expected texts of at most {LARGEST:,} bytes, got more")
    for column in texts:
        place = table.schema.get_field_index(column)
        table = table.set_column(place, pa.field(column, pa.string()), table[column].cast(pa.string()))
    return table


def _require_schema(found: pa.Schema, kind: str) -> None:
    name, expected = f"{kind}.parquet", schema.TABLES[kind]
    version = (found.metadata or {}).get(f"{recorded.PREFIX}schema_version".encode(), b"")
    if not re.fullmatch(rb"[0-9]{1,3}", version):
        raise InputError(f"{name}: expected a schema version, got {version[:20]!r}")
    if len(set(found.names)) < len(found.names):
        raise InputError(f"{name}: a column stands twice")
    for field in found:
        if field.name not in expected.names:
            raise InputError(f"{name}: expected no column {field.name[:80]!r}")
        if field.type != expected.field(field.name).type:
            kinds = f"{expected.field(field.name).type}, got {str(field.type)[:80]}"
            raise InputError(f"{name}, column {field.name}: expected the type {kinds}")
    missing = [one for one in expected.names if one not in found.names]
    if missing and int(version) == schema.VERSION:
        raise InputError(f"{name}: missing the columns {', '.join(missing[:5])}")


def _with_texts(table: pa.Table, name: str) -> pa.Table:
    for place, field in enumerate(table.schema):
        column = table[field.name]
        if pa.types.is_map(field.type):
            _require_pairs(column, field.name, name)
            if field.type.item_type == pa.string():
                _require_texts(_items(column, "items"), f"{field.name}, a value", name, 20_000, _STEERS)
            _require_texts(_items(column, "keys"), f"{field.name}, a key", name, NAME, STEERS_NAME)
        elif pa.types.is_list(field.type):
            if field.type.value_type == pa.string():
                _require_texts(pc.list_flatten(column), field.name, name, NAME, STEERS_NAME)
        elif pa.types.is_string(field.type):
            steering = None if field.name in _READ else STEERS_NAME
            _require_texts(column, field.name, name, _LONGEST.get(field.name, NAME), steering)
            if field.name in _READ:
                table = table.set_column(place, field, pc.replace_substring_regex(column, _STEERS, "\ufffd"))
    return table


def _items(column: pa.ChunkedArray, part: str) -> pa.ChunkedArray:
    chunks = [getattr(chunk, part) for chunk in column.chunks]
    return pa.chunked_array(chunks, pa.string())


def _require_pairs(column: pa.ChunkedArray, what: str, name: str) -> None:
    for chunk in column.chunks:
        offsets = chunk.offsets.to_numpy()
        if len(offsets) > 1 and (offsets[1:] - offsets[:-1]).max() > _PAIRS:
            raise InputError(f"{name}, column {what}: expected at most {_PAIRS} pairs in a row")


def _require_texts(column: pa.ChunkedArray, what: str, name: str, most: int, steering: str | None) -> None:
    if (longest := pc.max(pc.utf8_length(column)).as_py() or 0) > most:
        raise InputError(f"{name}, column {what}: expected at most {most:,} characters, got {longest:,}")
    if steering is None:
        return
    wrong = pc.match_substring_regex(column, steering)
    if pc.any(wrong).as_py():
        first = column.filter(wrong)[0].as_py()
        raise InputError(f"{name}, column {what}: expected signs that are printed, got {ascii(first)[:80]}")
