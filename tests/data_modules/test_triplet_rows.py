from __future__ import annotations

import codecs
import json
from typing import TYPE_CHECKING

import pytest

from data_modules.errors import UserError
from data_modules.triplet_rows import Row, read_rows, unused_columns

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TABLE = """\
reference,caption,target,split,category,id
red shoe.jpg,"in blue, please",blue shoe.jpg,,,
été/a.png,"two
lines of ""text"" here",b|c.png,val,dresses,seven
"a, b.png",wider,d.png,test,,
"""


def write(folder: Path, text: str | bytes, name: str = "mine.csv") -> Path:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


def rows(folder: Path, text: str | bytes, name: str = "mine.csv") -> list[Row]:
    return list(read_rows(write(folder, text, name)))


def json_lines(*records: object) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def test_csv(tmp_path: Path):
    file = f"{tmp_path}/mine.csv, line"
    assert rows(tmp_path, TABLE) == [
        Row(f"{file} 2", "2", "red shoe.jpg", "in blue, please", ("blue shoe.jpg",), (), "train", ""),
        Row(f"{file} 3", "seven", "été/a.png", 'two\nlines of "text" here', ("b|c.png",), (), "val", "dresses"),
        Row(f"{file} 5", "5", "a, b.png", "wider", ("d.png",), (), "test", ""),
    ]


@pytest.mark.parametrize(
    "change", [str, lambda text: f"\ufeff{text}", lambda text: text.replace("\n", "\r\n"), lambda text: f"{text[:-1]}\n\n,,,,,\n"]
)
def test_byte_order_mark_line_ends_and_empty_lines_change_nothing(tmp_path: Path, change: Callable[[str], str]):
    assert [row.reference for row in rows(tmp_path, change(TABLE))] == ["red shoe.jpg", "été/a.png", "a, b.png"]


@pytest.mark.parametrize(("separator", "caption"), [(",", "red; then|small"), (";", "red, then|small"), ("\t", "red, then; small")])
def test_the_header_shows_the_separator(tmp_path: Path, separator: str, caption: str):
    lines = (("reference", "caption", "target"), ("a b.png", caption, "c.png"))
    (row,) = rows(tmp_path, "\n".join(map(separator.join, lines)))
    assert (row.reference, row.caption, row.targets) == ("a b.png", caption, ("c.png",))


def test_bars_separate_several_names_in_csv(tmp_path: Path):
    (row,) = rows(tmp_path, 'reference,caption,targets,subset\na,x,"b, c | d|b, c","e|b, c"\n')
    assert row.targets == ("b, c", "d")
    assert row.subset == ("e", "b, c")


def test_json_lines(tmp_path: Path):
    record = {"reference": "été.png", "caption": " red ", "targets": ["b|c", "d"], "subset": ["d", "b|c"], "split": "val", "id": 7}
    one = {"reference": "a", "caption": "x", "target": "b|c", "split": None, "category": "dresses"}
    file = f"{tmp_path}/mine.jsonl, line"
    assert rows(tmp_path, json_lines(record) + "\n" + json_lines(one), "mine.jsonl") == [
        Row(f"{file} 1", "7", "été.png", "red", ("b|c", "d"), ("d", "b|c"), "val", ""),
        Row(f"{file} 3", "3", "a", "x", ("b|c",), (), "train", "dresses"),
    ]


def test_columns_that_nothing_reads_are_named(tmp_path: Path):
    assert unused_columns(write(tmp_path, "spilt,reference,caption,target,price\nval,a,x,b,1\n")) == ("spilt", "price")
    assert unused_columns(write(tmp_path, json_lines({"reference": "a", "caption": "x", "target": "b", "tag": 1}), "a.jsonl")) == ("tag",)


def test_rows_come_one_at_a_time(tmp_path: Path):
    """A mistake in the third row does not hold back the first two."""
    stream = read_rows(write(tmp_path, "reference,caption,target\na,x,b\nc,y,d\ne,,f\n"))
    assert [next(stream).reference, next(stream).reference] == ["a", "c"]
    with pytest.raises(UserError, match="line 4: empty caption"):
        next(stream)


HEAD = "reference,caption,target\n"
WRONG_TABLES = [
    ("", r"mine\.csv, line 1: no 'reference'; it has nothing; needed are reference, caption, and target or targets in columns"),
    (HEAD, r"mine\.csv has no rows; write one line for each triplet"),
    ("reference,target\na,b\n", "line 1: no 'caption'; it has 'reference', 'target'; needed are reference"),
    ("reference|caption|target\n", r"no 'reference'; it has 'reference\|caption\|target'; .* that commas, semicolons or tabs separate"),
    ("reference,caption\n", "line 1: neither 'target' and 'targets'"),
    ("reference,caption,target,targets\n", "line 1: both 'target' and 'targets'; .* one of the two"),
    ("reference,caption,target,caption\n", "line 1: the column 'caption' comes twice; rename or delete one"),
    (HEAD + "a,x,b\na,x\n", r"line 3 has 2 fields, but the header has 3 \(reference, caption, target\)"),
    (HEAD + 'a,"x\ny",b\na,red, please,b\n', r"line 4 has 4 fields.*put a text with ',' or a line break inside into \"\.\.\.\""),
    (HEAD + "a,x,b\n" + 'a,"x,b\n' * 3, r'line 3: broken CSV \(.*\); close every ", write "" for one inside a text'),
    (HEAD + 'a,"x"y,b\n', "line 2: broken CSV"),
    ((HEAD + "a,x,b\n").replace("\n", "\r"), r"line 1: broken CSV \(new-line .* unquoted field\); .* and end lines with LF or CRLF"),
    (HEAD + "a,x,b\n" + "a,x\r,b\n", r"line 3: broken CSV \(new-line .* unquoted field\); .* and end lines with LF or CRLF"),
    (HEAD.replace("target", "x" * 200_000), r"line 1: broken CSV \(field larger than field limit"),
    (HEAD + "a, ,b\n", "line 2: empty caption; fill it in, or delete the row"),
    (HEAD + ",x,b\n", "line 2: empty reference"),
    (HEAD + "a,x,\n", "line 2: empty target"),
    ("reference,caption,targets\na,x,b||c\n", "line 2: empty target"),
    (f"split,{HEAD}val,a,x,b\ndev,a,y,b\n", "line 3: split 'dev' is none of train, val, test; correct it"),
    (f"id,{HEAD}q,a,x,b\np,a,x,b\nq,a,y,b\n", "line 4: the id 'q' is that of line 2, too; give every row its own, or none"),
    (f"id,{HEAD},a,x,b\n,a,x,b\n3,a,y,b\n", "line 4: the id '3' is that of line 3, too; give every row its own, or none"),
    (f"id,{HEAD}4,a,x,b\n,a,x,b\n,a,y,b\n", "line 4: the id '4', which a row without one has from its line number, is that of line 2, too"),
    (f"subset,{HEAD}a|c,a,x,b\n", "line 2: the subset does not have the target 'b'; add it to the subset"),
    (f"subset,{HEAD}b||c,a,x,b\n", "line 2: empty name in the subset"),
    (f"subset,{HEAD}a|c,a,x,a\n", "line 2: the target 'a' is the reference, .* leave the subset empty"),
    (f"{HEAD}é,x,b\n".encode() + "é,x,b\n".encode("latin-1"), r"line 3 is not UTF-8 \(byte 0xe9 after ''\); save the whole file as UTF-8"),
    (HEAD.encode() + b"a,gr\xf6\xdfer,b\n", r"line 2 is not UTF-8 \(byte 0xf6 after 'a,gr'\)"),
    (HEAD.encode() + b"a,x\0,b\n", "line 2 has a NUL byte, as damaged and UTF-16 files have; save the file as UTF-8"),
    (codecs.BOM_UTF16_LE + HEAD.encode("utf-16-le"), "line 1 (has a NUL byte|is not UTF-8)"),
]


@pytest.mark.parametrize(("table", "message"), WRONG_TABLES)
def test_wrong_csv_is_refused_with_its_line(tmp_path: Path, table: str | bytes, message: str):
    with pytest.raises(UserError, match=message):
        rows(tmp_path, table)


FINE = {"reference": "a", "caption": "x", "target": "b"}
WRONG_LINES = [
    (json_lines(FINE) + '{"reference": "a", caption: "x"}\n', r"mine\.jsonl, line 2, column 20: broken JSON \(.*\); mend it there"),
    (json_lines(FINE)[:-10], "line 1, column 36: broken JSON"),
    (json_lines([FINE]), "line 1: .* is no JSON object; write one {\\.\\.\\.} with all its keys per line"),
    (json_lines({"reference": "a", "target": "b"}), "line 1: no 'caption'; it has 'reference', 'target'"),
    (json_lines(FINE, {**FINE, "caption": 5}), "line 2: 'caption' is 5, not a text; put one into quotes"),
    (json_lines({**FINE, "caption": ""}), "line 1: empty caption"),
    (json_lines({**FINE, "target": None}), "line 1: empty target"),
    (json_lines({"reference": "a", "caption": "x", "targets": []}), "line 1: empty target"),
    (json_lines({"reference": "a", "caption": "x", "targets": "b|c"}), r"'targets' is 'b\|c', not a list; write \[\.\.\.\] with all names"),
    (json_lines({"reference": "a", "caption": "x", "targets": ["b", 3]}), "'targets' is 3, not a text"),
    ('{"reference": "a", "caption": "cut \\ud83d", "target": "b"}', r"'caption' is 'cut \\ud83d', not a text"),
    (json_lines({**FINE, "category": "a\0b"}), r"'category' is 'a\\x00b', not a text"),
    (json_lines(FINE, {**FINE, "target": "b\x0e"}), r"mine\.jsonl, line 2: 'b\\x0e' has a control character, which no name can have"),
    (json_lines({**FINE, "category": "a\tb"}), r"mine\.jsonl, line 1: 'a\\tb' has a control character"),
    (json_lines({**FINE, "id": 7}, {**FINE, "id": "7"}), "line 2: the id '7' is that of line 1, too"),
    (json_lines(FINE) + "[" * 100_000 + "\n", r"mine\.jsonl, line 2: lists or objects are nested too deep; mend it there"),
    ('{"reference": "a", "reference": "c", "caption": "x", "target": "b"}', r"line 1: the key 'reference' comes twice in one object"),
    ("\n\n", r"mine\.jsonl has no rows"),
]


@pytest.mark.parametrize(("lines", "message"), WRONG_LINES)
def test_wrong_json_lines_are_refused_with_their_line(tmp_path: Path, lines: str, message: str):
    with pytest.raises(UserError, match=message):
        rows(tmp_path, lines, "mine.jsonl")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere\.csv: cannot be read \(No such file or directory\); check the path"):
        list(read_rows(tmp_path / "nowhere.csv"))
