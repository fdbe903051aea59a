"""Files for the test servers: what is written, and every rule of the servers with a file that breaks it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cir_lightning.retrieval.submission import check, require_possible, write
from data_modules.errors import UserError
from data_modules.records import EvaluationSet, Query, Submission

GALLERY = ("img-a", "img-b", "img-c", "img-d", "img-e", "img-f")
QUERIES = (
    Query("12063", "img-a", "remove one", (), ("img-a", "img-b", "img-c", "img-d")),
    Query("7", "img-f", "größer", (), ("img-c", "img-d", "img-e", "img-f")),
)
RECALL = EvaluationSet(
    "cirr/test1", QUERIES, GALLERY, submission=Submission("recall.json", 4, (("version", "rc2"), ("metric", "recall")), max_bytes=400)
)
SUBSET = replace(RECALL, members_only=True, submission=Submission("subset.json", 2, (("version", "rc2"), ("metric", "recall_subset"))))
CIRCO = EvaluationSet(
    "circo/test",
    (Query("0", "000000000030", "at night", ()), Query("1", "000000000009", "two of them", ())),
    ("000000000009", "000000000025", "000000000030"),
    remove_reference=False,
    submission=Submission("circo.json", 3, integers=True),
)


def ranking(top):
    """A ranking of which nothing but the lists matters."""
    return SimpleNamespace(top=torch.tensor(top))


WRITTEN = {
    "recall": (
        RECALL,
        [[1, 3, 2, 5, 4], [4, 0, 1, 2, 3]],
        '{"version": "rc2", "metric": "recall", "12063": ["img-b", "img-d", "img-c", "img-f"], "7": ["img-e", "img-a", "img-b", "img-c"]}',
    ),
    "subset": (
        SUBSET,
        [[3, 1, 2], [4, 2, 3]],
        '{"version": "rc2", "metric": "recall_subset", "12063": ["img-d", "img-b"], "7": ["img-e", "img-c"]}',
    ),
    "circo": (CIRCO, [[2, 0, 1], [1, 0, 2]], '{"0": [30, 9, 25], "1": [25, 9, 30]}'),
}


@pytest.mark.parametrize("server", WRITTEN)
def test_what_is_written_is_what_the_server_wants(tmp_path, server):
    evaluation, top, expected = WRITTEN[server]
    path = write(ranking(top), evaluation, tmp_path / "run")
    assert path == tmp_path / "run" / evaluation.submission.file
    assert path.read_text() == expected
    check(path, evaluation)
    assert list(path.parent.iterdir()) == [path]  # no temporary file stays


def test_the_order_of_keys_does_not_matter(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"7": ["img-c", "img-d"], "metric": "recall_subset",\n"12063": ["img-d", "img-b"], "version": "rc2"}')
    check(path, SUBSET)


GOOD = json.loads(WRITTEN["recall"][2])


def without(key):
    return {name: value for name, value in GOOD.items() if name != key}


BROKEN = {
    "version missing": (without("version"), "the key 'version' is missing; the test server wants 'rc2'"),
    "version": ({**GOOD, "version": "rc1"}, "the key 'version' is 'rc1'; the test server wants 'rc2'"),
    "metric": ({**GOOD, "metric": "recall_subset"}, "the key 'metric' is 'recall_subset'; the test server wants 'recall'"),
    "query missing": (without("7"), r"query '7' is missing \(1 of 2 are\); the test server wants every query"),
    "query unknown": ({**GOOD, "8": GOOD["7"]}, r"'8' is no query of cirr/test1 \(1 such keys\); take it out"),
    "too few": ({**GOOD, "7": GOOD["7"][:3]}, "query '7': 3 names; the test server wants 4 names"),
    "too many": ({**GOOD, "7": [*GOOD["7"], "img-d"]}, "query '7': 5 names; the test server wants 4 names"),
    "no list": ({**GOOD, "7": "img-e"}, "query '7': 'img-e' instead of a list; the test server wants 4 names"),
    "twice": ({**GOOD, "7": ["img-e", "img-a", "img-e", "img-c"]}, "query '7': 'img-e' comes twice; the test server refuses duplicates"),
    "not in the gallery": (
        {**GOOD, "7": ["img-e.png", "img-a", "img-b", "img-c"]},
        "query '7': 'img-e.png' is not in the gallery of cirr/test1",
    ),
    "reference": ({**GOOD, "12063": ["img-b", "img-a", "img-c", "img-f"]}, "query '12063': 'img-a' is its own reference image"),
    "number": ({**GOOD, "7": [1, "img-a", "img-b", "img-c"]}, "query '7': 1 is of the wrong type; the test server wants strings"),
    "nested": ({**GOOD, "7": [["img-e"], "img-a", "img-b", "img-c"]}, r"query '7': \['img-e'\] is of the wrong type"),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_every_rule(tmp_path, rule):
    content, message = BROKEN[rule]
    path = tmp_path / "recall.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"recall\.json[:,] {message}"):
        check(path, RECALL)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"version": "rc2",\n "7": [}', r"line 2, column 8: broken JSON \(Expecting value\)"),
        (b"", "line 1, column 1: broken JSON"),
        (b"\xff\xfe", "cannot be read"),
        (b'["img-a"]', "a JSON list instead of an object"),
        (b'{"7": ["img-e"], "version": "rc2", "7": ["img-a"]}', "the key '7' comes twice in one object; write it again"),
        (b"{" + b" " * 400 + b"}", "402 bytes; the test server takes 400 at most"),
    ],
)
def test_files_that_are_none(tmp_path, content, message):
    path = tmp_path / "recall.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"recall\.json[:,] {message}"):
        check(path, RECALL)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: cannot be read \(.*No such file"):
        check(tmp_path / "none.json", RECALL)


def test_only_members_among_members(tmp_path):
    path = tmp_path / "subset.json"
    path.write_text('{"version": "rc2", "metric": "recall_subset", "12063": ["img-d", "img-f"], "7": ["img-e", "img-c"]}')
    with pytest.raises(UserError, match=r"subset\.json, query '12063': 'img-f' is not among its members"):
        check(path, SUBSET)


@pytest.mark.parametrize("wrong", ['"9"', "9.0", "true", "null"])
def test_only_integers_where_they_are_wanted(tmp_path, wrong):
    path = tmp_path / "circo.json"
    path.write_text(f'{{"0": [30, {wrong}, 25], "1": [25, 9, 30]}}')
    with pytest.raises(UserError, match=r"query '0': .* is of the wrong type; the test server wants integers"):
        check(path, CIRCO)


def test_a_query_id_like_a_key_of_the_header_is_not_lost_unseen(tmp_path):
    evaluation = replace(RECALL, queries=(replace(QUERIES[0], id="metric"), QUERIES[1]))
    path = write(ranking(WRITTEN["recall"][1]), evaluation, tmp_path)
    with pytest.raises(UserError, match=r"the key 'metric' is \['img-b'"):
        check(path, evaluation)


def test_lists_that_are_too_short_write_nothing(tmp_path):
    with pytest.raises(
        UserError, match=r"recall\.json: the test server wants 4 names .* cirr/test1, .* have 3; set --model\.top to 4 or more"
    ):
        write(ranking([[1, 3, 2], [4, 0, 1]]), RECALL, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_skipped_queries_are_refused():
    with pytest.raises(UserError, match=r"recall\.json: 2 queries of cirr/test1 were skipped because pictures are missing"):
        require_possible(replace(RECALL, skipped_queries=2), 50)
    require_possible(replace(RECALL, skipped_pictures=2), 4)


def test_a_set_without_a_server_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="evaluation set 'cirr/test1' has no test server"):
        require_possible(replace(RECALL, submission=None), 50)
