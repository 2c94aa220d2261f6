"""What was written is what a row holds: values, types and digits, in every kind of file."""

import bz2
import csv
import datetime
import gzip
import io
import json
import lzma
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rl.tasks.readers import format_of, read_file

QUICK = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    [
        "2024-01-01",
        "12:30",
        "1e5",
        "007",
        "NaN",
        "null",
        "true",
        "",
        " x ",
        "\u2028",
        "a\r\nb",
        '"',
        "1,5",
    ]
)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
DIGITS = st.from_regex(r"-?(0|[1-9][0-9]{0,40})\.[0-9]{1,40}(e-?[0-9]{1,3})?", fullmatch=True)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
JSON_ROWS = st.lists(st.dictionaries(NAMES, JSON_VALUES, min_size=1, max_size=4), max_size=5)

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
    ".GZ": gzip.compress,
}


def same(read: object, written: object) -> bool:
    """Whether two values are equal and of the same types throughout: 1, 1.0 and True are three values."""
    if type(read) is not type(written):
        return False
    if isinstance(read, dict):
        return list(read) == list(written) and all(same(read[k], written[k]) for k in read)
    if isinstance(read, list):
        return len(read) == len(written) and all(map(same, read, written))
    if isinstance(read, float):
        return read == written and math.copysign(1, read) == math.copysign(1, written)
    return read == written


@QUICK
@given(rows=JSON_ROWS, is_ascii=st.booleans(), ending=st.sampled_from(sorted(COMPRESS)))
def test_json_lines_hold_what_was_written(tmp_path, rows, is_ascii, ending):
    lines = "".join(json.dumps(row, ensure_ascii=is_ascii) + "\n" for row in rows)
    path = tmp_path / f"a.JSONL{ending}"
    path.write_bytes(COMPRESS[ending](lines.encode()))
    assert same(read_file(path), rows)


@QUICK
@given(rows=JSON_ROWS, shape=st.sampled_from(["list", "data", "splits", "lines"]))
def test_json_holds_what_was_written_in_each_shape(tmp_path, rows, shape):
    path = tmp_path / "a.json"
    other = [{"question": "another split"}]
    value = {
        "list": rows,
        "data": {"version": 1, "data": rows},
        "splits": {"test": other, "train": rows},
    }
    if shape == "lines":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) if len(rows) > 1 else "[]")
        rows = rows if len(rows) > 1 else []
    else:
        path.write_text(json.dumps(value[shape], indent=1))
    assert same(read_file(path, split="train"), rows)


@QUICK
@given(digits=st.lists(DIGITS, min_size=1, max_size=4))
def test_numbers_in_json_keep_all_their_digits(tmp_path, digits):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"answer": {number}}}\n' for number in digits))
    for row, number in zip(read_file(path), digits, strict=True):
        answer = row["answer"]
        assert Decimal(repr(answer) if isinstance(answer, float) else answer) == Decimal(number)


def test_digits_and_types_of_json_stay_side_by_side(tmp_path):
    path = tmp_path / "a.jsonl"
    texts = [
        "9007199254740993",
        "10000000000000000000",
        "1.5",
        "0.1",
        "3.14159265358979323846",
        "1e400",
    ]
    path.write_text("".join(f'{{"answer": {text}}}\n' for text in texts))
    assert same(
        [row["answer"] for row in read_file(path)],
        [9007199254740993, 10**19, 1.5, 0.1, Decimal("3.14159265358979323846"), Decimal("1e400")],
    )


@QUICK
@given(
    names=st.lists(NAMES, min_size=2, max_size=4, unique=True),
    data=st.data(),
    ending=st.sampled_from(sorted(COMPRESS)),
    kind=st.sampled_from(["csv", "tsv", "CSV"]),
)
def test_csv_holds_texts_as_they_were_written(tmp_path, names, data, ending, kind):
    width = len(names)
    values = data.draw(st.lists(st.lists(TEXTS, min_size=width, max_size=width), max_size=5))
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t" if kind == "tsv" else ",")
    writer.writerows([names, *values])
    path = tmp_path / f"a.{kind}{ending}"
    path.write_bytes(COMPRESS[ending](text.getvalue().encode()))
    assert same(read_file(path), [dict(zip(names, row, strict=True)) for row in values])


COLUMNS = {
    "int": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "text": (pa.string(), TEXTS),
    "float": (pa.float64(), st.floats(allow_nan=False)),
    "decimal": (pa.decimal128(38, 9), st.decimals(-(10**20), 10**20, places=9)),
    "bool": (pa.bool_(), st.booleans()),
    "day": (pa.date32(), st.dates()),
    "bytes": (pa.binary(), st.binary(max_size=5)),
    "list": (pa.list_(pa.string()), st.lists(TEXTS, max_size=3)),
    "chat": (
        pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        st.lists(
            st.tuples(TEXTS, TEXTS).map(
                lambda pair: dict(zip(("role", "content"), pair, strict=True))
            ),
            max_size=2,
        ),
    ),
}


@QUICK
@given(data=st.data(), ending=st.sampled_from(["a.parquet", "a.PARQUET", "a.arrow"]))
def test_parquet_and_arrow_hold_values_of_the_schema(tmp_path, data, ending):
    size = data.draw(st.integers(1, 4))
    columns = {
        name: data.draw(st.lists(values | st.none(), min_size=size, max_size=size))
        for name, (_, values) in COLUMNS.items()
    }
    table = pa.table({name: pa.array(columns[name], COLUMNS[name][0]) for name in columns})
    path = tmp_path / ending
    if ending == "a.arrow":
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    else:
        pq.write_table(table, path)
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    assert same(read_file(path), rows)


@QUICK
@given(numbers=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5))
def test_a_float32_becomes_the_shortest_digits_that_stand_for_it(tmp_path, numbers):
    nested = [{"x": [number]} for number in numbers]
    kinds = {"answer": pa.float32(), "nested": pa.struct({"x": pa.list_(pa.float32())})}
    table = pa.table({"answer": numbers, "nested": nested}, schema=pa.schema(kinds))
    pq.write_table(table, tmp_path / "a.parquet")
    for row, number in zip(read_file(tmp_path / "a.parquet"), numbers, strict=True):
        assert row["answer"] == float(str(np.float32(number)))
        assert row["nested"]["x"] == [row["answer"]]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.list_(pa.float32(), 2), [[0.1, 0.2], None]),
        (pa.list_(pa.float32()), [[0.1], []]),
        (pa.map_(pa.string(), pa.float32()), [[("k", 0.1)], None]),
        (pa.struct([("k", pa.list_(pa.float32()))]), [{"k": [0.1]}]),
    ],
)
def test_float32_within_lists_maps_and_structs_has_the_shortest_digits_too(tmp_path, kind, values):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": pa.array(values, kind)}), path)
    assert [row["a"] for row in read_file(path)] == values


def test_half_a_character_is_named_and_a_whole_one_written_as_two_escapes_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "\\ud83d\\ude00"}\n')
    assert read_file(path) == [{"a": "\U0001f600"}]
    path.write_text('{"a": "ok"}\n{"a": "\\ud800"}\n')
    with pytest.raises(ValueError, match=r"line 2: .ud800 is half a character"):
        read_file(path)


def test_rows_stand_in_the_one_list_of_objects_beside_lists_of_other_things(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"version": 1, "tags": ["a"], "data": [{"q": "x"}, {"q": "y"}]}))
    assert read_file(path) == [{"q": "x"}, {"q": "y"}]


def test_dates_in_parquet_stay_dates_and_texts_that_look_like_them_stay_texts(tmp_path):
    day = datetime.date(2024, 1, 1)
    table = pa.table({"day": pa.array([day]), "text": ["2024-01-01"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert same(read_file(tmp_path / "a.parquet"), [{"day": day, "text": "2024-01-01"}])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n\n{"a": 1\n', r"line 3, character \d+: "),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "line 2 is not UTF-8"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "line 2 must hold an object, got .* name a file .* .json"),
        ("a.jsonl", b'{"a": 1, "a": 2}\n', "line 1: the name 'a' occurs twice"),
        ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}\n", "line 1: Exceeds the limit"),
        ("a.jsonl", b"[" * 100_000, "line 1: maximum recursion depth"),
        ("a.json", b'[\n{"a": 1},\n{"a" 1}]', "line 3: "),
        ("a.json", b'[{"a": 1}, 7]', "row 2 of .* must be an object, got 7"),
        ("a.json", b'{"a": [], "b": []}', "must hold one list of rows, got the lists a, b"),
        ("a.json", b"7", "must hold a list of objects, got a int"),
        ("a.csv", b"a,b\n1,2\n3\n", "line 3: 1 values, and the first line names 2 columns"),
        ("a.csv", b'a,b\n1,"2\n', "line 2: unexpected end of data"),
        ("a.csv", b"a,a\n1,2\n", "line 1: the name 'a' occurs twice"),
        ("a.csv", b"a,b\n1,\xff\n", "line 2 is not UTF-8"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99)[:-9], "Compressed file ended"),
        ("a.jsonl.xz", lzma.compress(b'{"a": 1}\n' * 99)[:-9], "Compressed file ended"),
        ("a.jsonl.bz2", bz2.compress(b'{"a": 1}\n' * 99)[:-9], "Compressed file ended"),
        ("a.jsonl.zst", pa.Codec("zstd").compress(b'{"a": 1}\n' * 99, asbytes=True)[:-4], "."),
        ("a.parquet", b"PAR1", "."),
        ("a.arrow", b"ARROW", "."),
        ("a.txt", b"{}", "must end in .jsonl, "),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_line_and_the_reason(
    tmp_path, name, content, message
):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s)^(?=.*{path}).*{message}"):
        read_file(path)


def test_a_file_that_may_not_be_read_says_so(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"a\.jsonl cannot be read: Is a directory"):
        read_file(tmp_path / "a.jsonl")


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer\nq,1\n", encoding="utf-8-sig")
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": "1"}\n', encoding="utf-8-sig")
    (tmp_path / "a.json").write_text('[{"question": "q", "answer": "1"}]', encoding="utf-8-sig")
    for name in ("a.csv", "a.jsonl", "a.json"):
        assert read_file(tmp_path / name) == [{"question": "q", "answer": "1"}]


def test_endings_are_known_in_any_case_and_below_a_compression():
    names = {
        "a.jsonl": ".jsonl",
        "a.JSON.Gz": ".json",
        "a.b.csv.zst": ".csv",
        "a.gz": "",
        "jsonl": "",
        "a.txt": "",
    }
    assert {name: format_of(Path(name)) for name in names} == names
