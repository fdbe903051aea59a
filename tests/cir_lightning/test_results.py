"""What a run leaves: rows of the sibling run, ranked lists, picture grids."""

import json
import os
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from cir_lightning import results
from cir_lightning.pictures import CELL, FRAME, GAP, RIGHT, TEXT, result_grid, spread
from cir_lightning.predictions import Predictions
from cir_lightning.results import COMBINER, ResultsTable, make_row, published_rows, sibling_rows
from cir_lightning.retrieval import report
from cir_lightning.retrieval.ranking import rank
from data_modules.errors import UserError
from data_modules.records import EvaluationSet, Picture, Published, Query, Submission

NAMES = tuple("abcdefgh")
SET = EvaluationSet(
    "toy",
    (Query("q0", "a", "but blue", ("c", "d")), Query("q1", "b", "but größer", ("h",))),
    NAMES,
    recall_at=(1, 5),
)


def ranking(top=7):
    """Gallery in the order a, b, c ... for the first query and h, g, f ... for the second; references are removed."""
    gallery = torch.stack([torch.linspace(1, 0, 8), torch.linspace(0, 1, 8)], 1)
    return rank(torch.eye(2), gallery, SET, top=top)


def listed(evaluation, ranked):
    return evaluation, ranked.ranks.tolist(), [[evaluation.gallery[i] for i in top] for top in ranked.top.tolist()]


def row(method, fingerprint="f1", group="toy"):
    return report.Row(method, group, {"R@1": 1.0}, 2, 8, 0, fingerprint)


def write_run(root, run, rows, age):
    files = report.write(report.Report("Toy", "test", "", "0", "", 0, tuple(rows), ()), root / run / "test")
    os.utime(files["results.json"], (1e9 - age, 1e9 - age))


def test_make_row_has_the_figures_of_the_ranking():
    made = make_row("this", SET, ranking())
    assert made.figures == {"R@1": 50.0, "R@5": 100.0}  # c is second after b; h is first
    assert (made.method, made.group, made.queries, made.gallery, made.fingerprint) == ("this", "toy", 2, 8, SET.fingerprint)


def test_make_row_says_what_the_set_says():
    told = replace(SET, protocol="reference removed", average="toys/avg", skipped_queries=3, skipped_pictures=4)
    made = make_row("this", told, ranking())
    assert (made.protocol, made.average, made.skipped_queries, made.skipped_pictures) == ("reference removed", "toys/avg", 3, 4)
    assert made.incomplete
    assert not make_row("this", SET, ranking()).incomplete


def test_the_gallery_of_queries_with_their_own_is_the_largest_one():
    queries = (replace(SET.queries[0], members=tuple("abcd")), replace(SET.queries[1], members=tuple("bhc")))
    own = replace(SET, queries=queries, recall_at=(1,), subset_recall_at=(), members_only=True)
    assert make_row("this", own, ranking()).gallery == 4


def test_published_figures_are_rows_beside_ours():
    papers = (Published("SPRC", (("R@1", 51.96), ("mean", 81.39)), "Bai et al., table 2"), Published("CASE", (("R@1", 48.0),), "here"))
    known = replace(SET, published=papers, protocol="reference removed")
    own = make_row("this", known, ranking())
    assert published_rows(own, known) == [
        replace(own, method="SPRC (published)", figures={"R@1": 51.96, "mean": 81.39}, source="Bai et al., table 2"),
        replace(own, method="CASE (published)", figures={"R@1": 48.0}, source="here"),
    ]


@pytest.mark.parametrize(
    ("official", "expected"),
    [
        ({}, True),
        ({"val/toy queries": 2, "val/toy gallery": 8, "val/other queries": 9}, True),
        ({"val/toy queries": 3, "val/toy gallery": 8}, False),
        ({"val/toy queries": 2, "val/toy gallery": 7}, False),
        ({"test/toy queries": 3}, True),
    ],
)
def test_counts_are_official_or_not(official, expected):
    assert report.is_official(SET, "val", official) is expected


def fake_run(*sets, scored="test", official=None, skipped=0):
    """A module that has ranked these sets, its trainer, and yardsticks that rank nothing."""
    benchmark = SimpleNamespace(skipped_triplets=skipped)
    data = type(
        "ToyCIR",
        (),
        {
            "seed": 0,
            "recipe": "toy",
            "official": official or {},
            "benchmark": benchmark,
            "scored": lambda _, split: scored,
            "describe": lambda _, query: {"edits": ("1",), "rank": ("none",), "kind": ("a", query.id)},
        },
    )()
    rankings = {evaluation.name: (evaluation, ranking()) for evaluation in sets}
    module = SimpleNamespace(rankings=rankings, yardsticks=True, encoder=SimpleNamespace(label="this"), data=data)
    return SimpleNamespace(is_global_zero=True), module


@pytest.fixture
def no_yardsticks(monkeypatch):
    monkeypatch.setattr(results, "Yardsticks", lambda module: SimpleNamespace(rank_vectors=lambda evaluation: ()))


@pytest.mark.usefixtures("no_yardsticks")
def test_the_table_has_published_figures_the_sibling_run_and_averages(tmp_path, capsys):
    paper = (Published("SPRC", (("R@1", 10.0), ("R@5", 20.0)), "Bai et al.", (("R@5", 20.01),)),)
    sets = [replace(SET, name=f"toy/{name}", average="toy/avg", protocol="as ever", published=paper) for name in ("one", "two")]
    write_run(tmp_path, "sibling", [replace(row(COMBINER, sets[1].fingerprint, "toy/two"), average="toy/avg")], age=10)
    ResultsTable(tmp_path / "mine", "best.ckpt").on_test_end(*fake_run(*sets))
    rows = report.read(tmp_path / "mine" / "test" / "results.json").rows
    assert [(r.group, r.method) for r in rows] == [
        ("toy/one", "SPRC (published)"),
        ("toy/one", "this"),
        ("toy/two", "SPRC (published)"),
        ("toy/two", COMBINER),
        ("toy/two", "this"),
        ("toy/avg", "SPRC (published)"),
        ("toy/avg", "this"),
    ]
    assert rows[5].figures == {"R@1": 10.0, "R@5": 20.01}  # the mean, and what the paper prints
    out = capsys.readouterr().out
    assert re.search(r"\n +one +two +avg\n", out)
    assert re.search(r"\n  this( +50\.00 +100\.00){3}\n", out)
    assert "Note" not in out


@pytest.mark.usefixtures("no_yardsticks")
def test_the_table_says_why_published_figures_are_not_there(tmp_path, capsys):
    paper = (Published("SPRC", (("R@1", 10.0),), "Bai et al."),)
    sets = [replace(SET, name="whole", published=paper), replace(SET, name="torn", published=paper, skipped_pictures=2)]
    run = fake_run(*sets, official={"test/whole gallery": 8, "test/torn gallery": 10}, skipped=1234)
    ResultsTable(tmp_path / "mine", "best.ckpt").on_test_end(*run)
    out = capsys.readouterr().out
    assert out.count("SPRC (published)  ") == 1
    assert "Note: torn: not the published counts, so no published figures can stand beside these\n" in out
    assert "Note: 1,234 training triplets are left out because pictures are missing\n" in out
    assert "no row for the late-fusion combiner" in out


@pytest.mark.usefixtures("no_yardsticks")
def test_a_table_of_val_never_says_test(tmp_path, capsys):
    """Where only a server knows the answers of test, ``cir test`` scores val."""
    ResultsTable(tmp_path, "best.ckpt").on_test_end(*fake_run(SET, scored="val"))
    assert report.read(tmp_path / "val" / "results.json").split == "val"
    assert not (tmp_path / "test").exists()
    out = capsys.readouterr().out
    assert "ToyCIR, val\n" in out
    lines = (tmp_path / "val" / "queries.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == '"group","query","reference","caption","rank","words","edits","kind"'
    assert lines[1:] == ['"toy","q0","a","but blue",2,2,"1","a; q0"', '"toy","q1","b","but größer",1,2,"1","a; q1"']
    assert "Note: scored on val: there is no test split with answers\n" in out


def test_sibling_rows_are_of_the_newest_run_on_the_same_queries(tmp_path):
    mine = tmp_path / "mine" / "test"
    assert sibling_rows(mine, "combiner", {"f1"}) == ()
    write_run(tmp_path, "old", [row("combiner"), row("combiner", "f2", "two")], age=100)
    write_run(tmp_path, "new", [replace(row("combiner"), queries=3), row("random")], age=50)
    write_run(tmp_path, "other queries", [row("combiner", "f9")], age=20)
    write_run(tmp_path, "other method", [row("random")], age=10)
    write_run(tmp_path, "mine", [row("combiner")], age=0)
    assert [r.queries for r in sibling_rows(mine, "combiner", {"f1"})] == [3]
    assert sibling_rows(mine, "combiner", {"f2"}) == (row("combiner", "f2", "two"),)
    assert sibling_rows(mine, "combiner", {"f3"}) == ()
    assert sibling_rows(tmp_path / "mine" / "val", "combiner", {"f1"}) == ()


def test_sibling_rows_pass_over_a_damaged_file(tmp_path):
    write_run(tmp_path, "old", [row("combiner")], age=100)
    write_run(tmp_path, "new", [row("combiner")], age=50)
    (tmp_path / "new" / "test" / "results.json").write_text("{")
    assert sibling_rows(tmp_path / "mine" / "test", "combiner", {"f1"}) == (row("combiner"),)


def test_predictions_are_one_line_per_query(tmp_path, capsys):
    callback = Predictions(tmp_path / "run")
    other = replace(SET, name="groß/zwei")
    file = tmp_path / "run" / "predictions.jsonl"
    data = SimpleNamespace(predicts="test")
    module = SimpleNamespace(rankings={"toy": (SET, ranking(3)), "groß/zwei": (other, ranking(1))}, data=data)
    callback.on_predict_end(SimpleNamespace(is_global_zero=False), module)
    assert not file.exists()
    callback.on_predict_end(SimpleNamespace(is_global_zero=True), module)
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [(line["query"], line["group"]) for line in lines] == [("q0", "toy"), ("q1", "toy"), ("q0", "groß/zwei"), ("q1", "groß/zwei")]
    assert lines[0] == {
        "query": "q0",
        "group": "toy",
        "reference": "a",
        "caption": "but blue",
        "names": ["b", "c", "d"],
        "scores": pytest.approx([6 / 7, 5 / 7, 4 / 7], abs=1e-6),
        "rank": 2,
    }
    assert lines[1]["names"] == ["h", "g", "f"]
    assert lines[1]["caption"] == "but größer"
    assert str(file) in capsys.readouterr().out
    data.predicts = "val"
    callback.on_predict_end(SimpleNamespace(is_global_zero=True), module)
    assert file.with_name("predictions-val.jsonl").read_bytes() == file.read_bytes()


HIDDEN = replace(
    SET,
    queries=tuple(replace(query, targets=()) for query in SET.queries),
    submission=Submission("server.json", 2, (("version", "rc2"),)),
)
OFFICIAL = SimpleNamespace(predicts="test", official={"hidden/toy queries": 2, "hidden/toy gallery": 8})


def test_predict_writes_and_checks_the_files_of_test_servers(tmp_path, capsys):
    module = SimpleNamespace(rankings={"toy": (SET, ranking(3)), "hidden": (HIDDEN, ranking(3))}, data=OFFICIAL)
    Predictions(tmp_path).on_predict_end(SimpleNamespace(is_global_zero=True), module)
    text = '{"version": "rc2", "q0": ["b", "c"], "q1": ["h", "g"]}'
    path = tmp_path / "server.json"
    assert path.read_text() == text
    assert {file.name for file in tmp_path.iterdir()} == {"predictions.jsonl", "server.json"}
    assert capsys.readouterr().out.endswith(f"{path}: ready for the test server (2 queries, 8 gallery pictures, {len(text)} bytes)\n")
    OFFICIAL.official["hidden/toy queries"] = 3
    Predictions(tmp_path).on_predict_end(SimpleNamespace(is_global_zero=True), module)
    assert f"{path}: not ready for the test server, other counts than the official ones (2 queries, 8 " in capsys.readouterr().out


def test_predict_never_calls_a_file_ready_that_breaks_a_rule(tmp_path, capsys):
    queries = (HIDDEN.queries[0], replace(HIDDEN.queries[1], reference="h"))
    module = SimpleNamespace(rankings={"hidden": (replace(HIDDEN, queries=queries), ranking(3))}, data=OFFICIAL)
    with pytest.raises(UserError, match=r"server\.json, query 'q1': 'h' is its own reference image"):
        Predictions(tmp_path).on_predict_end(SimpleNamespace(is_global_zero=True), module)
    assert "ready" not in capsys.readouterr().out


def test_predict_refuses_short_lists_before_anything_is_encoded(tmp_path):
    module = SimpleNamespace(top=1, data=SimpleNamespace(evaluation_sets={"predict": (replace(SET, name="plain"), HIDDEN)}.get))
    with pytest.raises(UserError, match=r"server\.json: the test server wants 2 names .* have 1; set --model\.top to 2 or more"):
        Predictions(tmp_path).setup(SimpleNamespace(), module, "predict")
    module.top = 2
    Predictions(tmp_path).setup(SimpleNamespace(), module, "predict")


@pytest.mark.parametrize(("count", "rows", "expected"), [(8, 4, [0, 2, 4, 6]), (3, 8, [0, 1, 2]), (1000, 2, [0, 500]), (1, 1, [0])])
def test_spread(count, rows, expected):
    assert spread(count, rows) == expected


@pytest.fixture
def pictures(tmp_path):
    """Pictures whose red channel says which they are; one is wide, one large."""
    pictures = {}
    for at, name in enumerate(NAMES):
        size = {"b": (400, 100), "c": (300, 300)}.get(name, (120, 120))
        Image.new("RGB", size, (20 * at + 10, 0, 0)).save(tmp_path / f"{name}.png")
        pictures[name] = Picture(name, tmp_path / f"{name}.png", name)
    return pictures


def test_the_grid_shows_reference_target_and_the_first_five_with_right_answers_framed(pictures):
    sheet = result_grid(*listed(SET, ranking()), pictures, [0, 1])
    header, cell = 34, CELL + GAP
    assert sheet.size == (2 * cell + TEXT + 5 * cell + 4 * GAP, header + 2 * cell + GAP)
    target_x = GAP + cell + TEXT + GAP
    first_x = target_x + CELL + 3 * GAP
    shown = [["a", "c", "b", "c", "d", "e", "f"], ["b", "h", "h", "g", "f", "e", "d"]]
    right = [{"c", "d"}, {"h"}]
    frame = tuple(int(RIGHT[i : i + 2], 16) for i in (1, 3, 5))
    for line, names in enumerate(shown):
        for place, name in enumerate(names):
            x = [GAP, target_x, *(first_x + i * cell for i in range(5))][place]
            y = header + line * cell
            assert sheet.getpixel((x + CELL // 2, y + CELL // 2)) == (20 * NAMES.index(name) + 10, 0, 0), (line, place)
            framed = place >= 2 and name in right[line]
            corners = [(x - FRAME, y - FRAME), (x + CELL + FRAME - 1, y - 1), (x + CELL // 2, y + CELL + FRAME - 1)]
            assert all((sheet.getpixel(c) == frame) is framed for c in corners), (line, place)


def test_the_grid_keeps_proportions(pictures):
    sheet = result_grid(*listed(SET, ranking()), pictures, [1])  # the reference is 400 x 100
    column = [sheet.getpixel((GAP + CELL // 2, 34 + y)) for y in range(CELL)]
    assert sum(pixel != (255, 255, 255) for pixel in column) == 30


def test_the_grid_shows_the_box_of_a_picture(pictures):
    box = {"b": replace(pictures["b"], box=(0, 0, 100, 100))}
    sheet = result_grid(*listed(SET, ranking()), pictures | box, [1])
    assert [sheet.getpixel((GAP + CELL // 2, 34 + y)) for y in (15, 105)] == [(30, 0, 0)] * 2


def test_the_grid_prints_captions_and_ranks_in_the_text_column(pictures):
    lines = [
        result_grid(*listed(SET, ranking()), pictures, [row]).crop((2 * GAP + CELL, 34, 2 * GAP + CELL + TEXT, 160)) for row in (0, 1, 0)
    ]
    assert lines[0].tobytes() == lines[2].tobytes() != lines[1].tobytes()
    assert lines[0].convert("L").getextrema()[0] < 100
