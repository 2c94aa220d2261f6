"""Readers of data files. Values keep the digits and types of the file; nothing is guessed.

JSON: integers are exact; a number with a decimal point is a float, or a Decimal if a float would lose digits; texts
stay texts, even if they look like dates. CSV and TSV: all values are texts. Parquet and Arrow: values have the types
of the schema; a float32 becomes the float with the same shortest decimal form, 0.1 and not 0.10000000149.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

__all__ = ["FORMATS", "Row", "format_of", "read_file", "rows_of_table"]

Row = dict[str, Any]

_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
"""Escape of a surrogate: in pairs they are a character, one of them is none and cannot be written as UTF-8."""


def _open_zstd(path: Path) -> IO[bytes]:
    with pa.input_stream(str(path), compression="zstd") as stream:
        return io.BytesIO(stream.read())


_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}


def format_of(path: Path) -> str:
    """Return the file extension that decides how a file is read, in lower case and without that of a compression;
    empty if no reader supports it."""
    name = path.name.lower()
    for compression in _OPENERS:
        name = name.removesuffix(compression)
    ending = Path(name).suffix
    return ending if ending in _READERS else ""


def read_file(path: Path, *, split: str = "train") -> list[Row]:
    """Return the rows of a file.

    Args:
        path: path that ends in one of `FORMATS`, and in .gz, .bz2, .xz or .zst if it is compressed.
        split: split to select if a .json file has several lists.

    Raises:
        ValueError: the file cannot be read; the message has the path, the line if there are lines, and the reason.
    """
    ending = format_of(path)
    if not ending:
        raise ValueError(
            f"{path} must end in {', '.join(FORMATS)}, also with .gz, .bz2, .xz or .zst"
        )
    try:
        rows = _READERS[ending](path, split)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read: it is not UTF-8: {error.reason}") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} cannot be read: {reason}") from error
    return rows


def rows_of_table(table: pa.Table) -> list[Row]:
    """Return the rows of an Arrow table.

    Raises:
        ValueError: two columns have the same name.
    """
    if twice := _names_twice(table.column_names):
        raise ValueError(twice)
    shortest = _replace_floats(table.schema, pa.string())
    if shortest != table.schema:
        table = table.cast(shortest).cast(_replace_floats(table.schema, pa.float64()))
    return table.to_pylist()


def _read_json_lines(path: Path, split: str) -> list[Row]:
    rows = []
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            text = _decode(line, path, number)
            if text.strip():
                rows.append(_object(_parse(text, path, number), path, number))
    return rows


def _read_json(path: Path, split: str) -> list[Row]:
    with _open(path) as file:
        text = file.read().decode("utf-8-sig")
    try:
        value = _loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # several objects, as in JSON lines
            return _read_json_lines(path, split)
        raise ValueError(f"{path} cannot be read: line {error.lineno}: {error.msg}") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    rows = _list_in(value, path, split) if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise ValueError(f"{path} must hold a list of objects, got a {type(value).__name__}")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} of {path} must be an object, got {row!r:.80}")
    return rows


def _list_in(value: dict[str, Any], path: Path, split: str) -> Any:
    """Return the rows in `{"data": [...]}`, or those of the split in `{"train": [...], "test": [...]}`."""
    lists = [key for key, item in value.items() if isinstance(item, list)]
    if len(lists) > 1:  # tags and the like hold no rows
        lists = [key for key in lists if all(isinstance(row, dict) for row in value[key])] or lists
    if split in lists:
        return value[split]
    if len(lists) == 1:
        return value[lists[0]]
    if not lists:
        return [value]  # JSON lines with one row
    raise ValueError(f"{path} must hold one list of rows, got the lists {', '.join(lists)}")


def _read_csv(path: Path, split: str) -> list[Row]:
    delimiter = "\t" if format_of(path) == ".tsv" else ","
    csv.field_size_limit(2**31 - 1)  # a solution may be longer than 131,072 characters
    rows = []
    with _open(path) as file:
        lines = (_decode(line, path, number) for number, line in enumerate(file, start=1))
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            if twice := _names_twice(header):
                raise csv.Error(twice)
            for values in filter(None, reader):
                if len(values) != len(header):
                    raise csv.Error(
                        f"{len(values)} values, and the first line names {len(header)} columns"
                    )
                rows.append(dict(zip(header, values, strict=True)))
        except csv.Error as error:
            raise ValueError(f"{path} cannot be read: line {reader.line_num}: {error}") from error
    return rows


def _read_parquet(path: Path, split: str) -> list[Row]:
    import pyarrow.parquet as pq

    with _open(path) as file:
        source = path if type(file) is io.BufferedReader else pa.BufferReader(file.read())
        return _rows_of(lambda: pq.ParquetFile(source).read(), path)


def _read_arrow(path: Path, split: str) -> list[Row]:
    with _open(path) as file:
        data = pa.BufferReader(file.read())
    try:
        return _rows_of(lambda: pa.ipc.open_file(data).read_all(), path)
    except pa.ArrowInvalid:  # the stream format, which the library datasets writes
        data.seek(0)
        return _rows_of(lambda: pa.ipc.open_stream(data).read_all(), path)


def _rows_of(read: Callable[[], pa.Table], path: Path) -> list[Row]:
    table = read()
    try:
        return rows_of_table(table)
    except pa.ArrowException:
        raise
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


_READERS: dict[str, Callable[[Path, str], list[Row]]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
FORMATS = tuple(_READERS)
"""File extensions that can be read."""


def _open(path: Path) -> AbstractContextManager[IO[bytes]]:
    opener = _OPENERS.get(path.suffix.lower())
    return path.open("rb") if opener is None else opener(path)


def _decode(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} cannot be read: line {number} is not UTF-8: {error.reason}"
        ) from error


def _parse(text: str, path: Path, number: int) -> Any:
    try:
        return _loads(text)
    except json.JSONDecodeError as error:
        place = f"line {number}, character {error.pos + 1}"
        raise ValueError(f"{path} cannot be read: {place}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: line {number}: {error}") from error


def _loads(text: str) -> Any:
    value = json.loads(text, parse_float=_exact, object_pairs_hook=_unique)
    if _HALF_CHARACTER.search(text):
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])[1:-1]
            raise ValueError(f"{half} is half a character (a lone surrogate)") from error
    return value


def _exact(digits: str) -> float | Decimal:
    number, exact = float(digits), Decimal(digits)
    return number if Decimal(repr(number)) == exact else exact


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError(_names_twice([key for key, _ in pairs]))
    return row


def _names_twice(names: list[str]) -> str:
    """Return an error about names that occur more than once; empty if there are none."""
    twice = sorted({name for name in names if names.count(name) > 1})
    return f"the name {', '.join(map(repr, twice))} occurs twice" if twice else ""


def _object(value: Any, path: Path, number: int) -> Row:
    if not isinstance(value, dict):
        cure = "; name a file that holds one list .json" if isinstance(value, list) else ""
        raise ValueError(
            f"{path} cannot be read: line {number} must hold an object, got {value!r:.80}{cure}"
        )
    return value


def _replace_floats(schema: pa.Schema, kind: pa.DataType) -> pa.Schema:
    return pa.schema([_with_type(field, _replaced(field.type, kind)) for field in schema])


def _with_type(field: pa.Field, kind: pa.DataType) -> pa.Field:
    return pa.field(field.name, kind, field.nullable)


def _replaced(old: pa.DataType, kind: pa.DataType) -> pa.DataType:
    """Return a type with `kind` in place of each float32 and float16 in it."""
    if pa.types.is_float32(old) or pa.types.is_float16(old):
        return kind
    if pa.types.is_struct(old):
        return pa.struct([_with_type(field, _replaced(field.type, kind)) for field in old.fields])
    if pa.types.is_list(old):
        return pa.list_(_with_type(old.value_field, _replaced(old.value_type, kind)))
    if pa.types.is_large_list(old):
        return pa.large_list(_with_type(old.value_field, _replaced(old.value_type, kind)))
    if pa.types.is_fixed_size_list(old):
        inner = _with_type(old.value_field, _replaced(old.value_type, kind))
        return pa.list_(inner, old.list_size)
    if pa.types.is_map(old):
        items = _with_type(old.item_field, _replaced(old.item_type, kind))
        return pa.map_(old.key_field, items, keys_sorted=old.keys_sorted)
    return old
