from __future__ import annotations

from pathlib import Path

import pytest

from data_modules.errors import UserError
from data_modules.json_text import parse

FILE = Path("mine.json")


def test_whatever_json_can_say():
    assert parse('{"a": [1, 2.5, null, {"a": "é"}], "b": {}}', FILE, "mend it") == {"a": [1, 2.5, None, {"a": "é"}], "b": {}}


@pytest.mark.parametrize("line", [None, 7])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "lists or objects are nested too deep; mend it"),
        ('{"a":' * 100_000, "lists or objects are nested too deep; mend it"),
        ("[" + "1" * 5_000 + "]", "a whole number has thousands of digits; mend it"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' comes twice in one object; mend it"),
        ('[{"b": {"c": 1, "c": 1}}]', "the key 'c' comes twice in one object; mend it"),
    ],
)
def test_what_python_takes_or_stumbles_over_is_refused(text: str, message: str, line: int | None):
    with pytest.raises(UserError) as refusal:
        parse(text, FILE, "mend it", line)
    assert str(refusal.value) == f"mine.json{', line 7' if line else ''}: {message}"


@pytest.mark.parametrize(("line", "place"), [(None, "line 2, column 2"), (7, "line 7, column 2")])
def test_broken_json_is_located(line: int | None, place: str):
    with pytest.raises(UserError, match=rf"mine\.json, {place}: broken JSON \(Expecting value\); mend it"):
        parse("[\n }", FILE, "mend it", line)
