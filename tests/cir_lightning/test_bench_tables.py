"""Figures of ``cir bench`` from hand-worked samples: results, tables, comparison, picture."""

from dataclasses import replace

import pytest
from PIL import ImageColor

from cir_lightning.bench.compare import comparison, differences
from cir_lightning.bench.plot import COLOURS, PLOT, bars_of, draw
from cir_lightning.bench.results import Arm, Bench, Work, read, write
from cir_lightning.bench.tables import details, overviews, summaries, to_markdown, to_text

MIB = 2**20
HEADER = {
    "cpu": "a processor",
    "cores": 2,
    "threads": 2,
    "memory_bytes": 8 * 2**30,
    "gpu": None,
    "gpu_memory_bytes": None,
    "python": "3.11.7",
    "torch": "2.13.0",
    "date": "2026-01-01",
}


def training(**changes):
    """A step of 4 triplets with 6 pictures: 100 ms in the middle one of three rounds."""
    times = [(10, 20, 30, 35, 5), (10, 30, 10, 40, 10), (11, 25, 20, 60, 4)]
    names = ("Connector", "template", "caption", "LLM forward", "other")
    work = Work(
        "training",
        4,
        pictures=6,
        seconds=[dict(zip(names, (ms / 1000 for ms in row), strict=True)) for row in times],
        unobserved=[0.1, 0.09, 0.2],
        flops={"LLM forward": 7e9, "Connector": 1e9},
        tokens={"LLM forward": (75.0, 100.0), "backward": (75.0, 100.0)},
        peak={"Connector": 3.0 * MIB, "LLM forward": 9.0 * MIB, "caption": 4.0 * MIB, "template": 1.0 * MIB},
        held=500.0 * MIB,
        matrix=160e9,
    )
    return replace(work, **changes)


def pictures(batch):
    """10 ms for a picture: 1 to read it, 2 for the square, 7 for the tower."""
    return Work(
        "pictures", batch, batch, seconds=[{"read and decode": 0.001 * batch, "transform": 0.002 * batch, "vision tower": 0.007 * batch}]
    )


def encoding(kind, ms):
    return Work(kind, 4, 4, seconds=[{"LLM forward": ms / 1000}], unobserved=[ms / 1000], tokens={"LLM forward": (40.0, 40.0)})


def arm(name="tiny.yaml", **changes):
    """Everything once."""
    works = [
        training(),
        Work("training", 8, refused="out of memory with 8 at once"),
        pictures(1),
        pictures(4),
        encoding("gallery", 40),
        encoding("queries", 80),
        Work("ranking", 50, seconds=[{"ranking": 0.5}], unobserved=[0.5]),
        Work("query, features cached", 1, 1, seconds=[{"LLM forward": ms / 1000} for ms in (3, 1, 8)]),
    ]
    full = Arm(
        name,
        label="CIR-LVLM",
        device="cpu",
        precision="32-true",
        config="data:\n  batch_size: 4\n",
        parameters={"language model": 1000, "all": 1500, "trained": 200},
        sizes={"queries": 50, "gallery": 100, "width": 8},
        works=works,
    )
    return replace(full, **changes)


def rows(table):
    """Cells by the first ones of their rows."""
    return {row[0]: dict(zip(table.cells[0], row, strict=True)) for row in table.cells[1:]}


def test_medians_of_the_whole_and_of_stages():
    work = training()
    assert work.whole == pytest.approx(0.1)
    assert work.time("template", "caption") == pytest.approx(0.045)  # 50, 40 and 45 ms: not the sum of the medians
    shares = work.shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["template and tokenising"] == pytest.approx(45 / (10 + 45 + 40 + 5))
    assert work.total_tokens() == (75, 100)  # a replay is not a further token


def test_a_stage_that_no_row_claims_is_other():
    work = training(seconds=[{"Connector": 0.01, "something": 0.02, "other": 0.03}])
    assert work.rows()["other"] == ("something", "other")
    assert work.shares()["other"] == pytest.approx(5 / 6)


def test_a_table_of_whole_steps():
    whole = overviews(arm(), 160e9)[0]
    (row,) = rows(whole).values()
    assert row == {
        "batch": "4",
        "ms": "100.00",
        "ms unobserved": "100.00",
        "ms per triplet": "25.00",
        "triplets/s": "40",
        "tokens": "75",
        "computed": "100",
        "padding": "25.0 %",
        "GFLOP": "8",
        "GFLOP/s": "80",
        "of peak": "50.0 %",
        "peak MiB": "9",
    }
    assert whole.notes == ["batch 8 is not measured: out of memory with 8 at once"]


def test_times_that_are_doubtful():
    slow = training(matrix=80e9, seconds=[{"LLM forward": seconds} for seconds in (0.1, 0.1, 0.14)])
    assert overviews(arm(works=[slow]), 160e9)[0].notes == [
        "batch 4: the slowest round took 1.4 times the fastest",
        "batch 4: a matrix product right afterwards ran at 50 % of its best: the machine was busy",
    ]


def test_the_best_matrix_product_of_all_arms_alike():
    arms = [arm(), arm(works=[training(matrix=170e9)]), arm(precision="bf16-mixed", works=[training(matrix=900e9)])]
    assert [Bench(HEADER, arms).matrix_peak(one) for one in arms] == [170e9, 170e9, 900e9]


def test_pictures_are_shown_as_what_a_cache_saves():
    stages = rows(overviews(arm(), 160e9)[1])
    assert stages["Connector"]["batch 4"] == "10.00 (10.0 %)"
    assert stages["vision tower (once per picture, ever)"]["batch 4"] == "[42.00 (26.2 %)]"  # 6 pictures: of 100 + 60 ms
    assert stages["optimizer"]["batch 4"] == "0.00 (0.0 %)"


def test_a_tower_that_is_trained_is_in_the_step():
    seen = training(seconds=[{"read and decode": 0.01, "vision tower": 0.03, "LLM forward": 0.06}])
    stages = rows(overviews(arm(works=[seen, pictures(4)]), 160e9)[1])
    assert stages["vision tower"]["batch 4"] == "30.00 (30.0 %)"
    assert not any("ever" in row for row in stages)


def test_all_of_one_batch_size():
    stages = rows(details(arm(), 160e9)[0])
    assert stages["LLM forward"] == {
        "stage": "LLM forward",
        "ms": "40.00",
        "fastest": "35.00",
        "slowest": "60.00",
        "share": "40.0 %",
        "tokens": "75",
        "computed": "100",
        "padding": "25.0 %",
        "GFLOP": "7",
        "GFLOP/s": "175",
        "of peak": "109.4 %",
        "peak MiB": "9",
    }
    assert stages["template and tokenising"]["peak MiB"] == "4"
    assert stages["template and tokenising"]["GFLOP/s"] == "-"
    assert (stages["whole"]["ms"], stages["whole"]["share"]) == ("100.00", "100.0 %")


def test_an_evaluation_and_the_latency():
    latency, evaluation = overviews(arm(), 160e9)[-2:]
    assert [row["features cached"] for name, row in rows(latency).items() if name.startswith("whole")] == ["3.00", "8.00", "1.00"]
    seconds = {name: row["seconds"] for name, row in rows(evaluation).items()}
    assert seconds == {"gallery, batch 4": "1.000", "queries, batch 4": "1.000", "ranking": "0.500", "whole": "2.500"}
    assert rows(evaluation)["ranking"]["share"] == "20.0 %"


def test_arms_side_by_side():
    other = arm("other.yaml", works=[training(seconds=[{"LLM forward": 0.05}]), *arm().works[1:]])
    broken = Arm("clip.yaml", refused="there are no weights")
    whole, by_batch = summaries(Bench(HEADER, [arm(), other, broken]))
    assert whole.notes == ["clip.yaml is not measured: there are no weights"]
    assert rows(whole)["tiny.yaml"]["evaluation s"] == "2.500"
    assert [row[:4] for row in by_batch.cells[1:]] == [
        ["tiny.yaml", "4", "25.00", "40"],
        ["other.yaml", "4", "12.50", "80"],
        ["tiny.yaml", "8", "-", "-"],
        ["other.yaml", "8", "-", "-"],
    ]
    assert rows(by_batch)["tiny.yaml"]["tokens per query"] == "-"  # the last row, of batch 8
    assert by_batch.notes == ["12 of 14 times are doubtful (see their notes): run again on an idle machine"]  # all but the trainings
    assert summaries(Bench(HEADER, [arm()])) == []


def test_pages(tmp_path):
    bench = Bench(HEADER, [arm(), Arm("clip.yaml", refused="there are no weights")])
    page, text = to_markdown(bench), to_text(bench)
    for shown in (page, text):
        assert "memory: 8.0 GiB" in shown
        assert "tiny.yaml: CIR-LVLM; cpu, 32-true, seed 0, matrix product 160 GFLOP/s; parameters: language model 1,000" in shown
    assert "| LLM forward | 40.00 | 35.00 | 60.00 | 40.0 % |" in page
    assert "== clip.yaml: not measured: there are no weights" in text
    assert "### training, batch 4" in page
    assert "### training, batch 4" not in text


def test_the_file_comes_back_as_it_was(tmp_path):
    bench = Bench(HEADER, [arm()])
    write(bench, tmp_path / "bench.json")
    assert read(tmp_path / "bench.json") == bench
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def test_a_comparison():
    half = [{name: seconds / 2 for name, seconds in one.items()} for one in training().seconds]
    faster = arm(works=[training(seconds=half, peak=None), encoding("gallery", 60)])
    table = comparison("tiny.yaml", arm(), faster)
    by_stage = {(row[0], row[2]): row[3:] for row in table.cells[1:]}
    assert by_stage["training", "whole"] == ["100.00", "50.00", "0.50", "9.0", "-", "-"]
    assert by_stage["training", "LLM forward"] == ["40.00", "20.00", "0.50", "9.0", "-", "-"]
    assert by_stage["gallery", "whole"][:3] == ["40.00", "60.00", "1.50"]
    assert "queries, batch 4: not measured in B" in table.notes
    assert "training, batch 8: not measured in A and B" in table.notes


def test_differences_are_said():
    a = Bench(HEADER, [arm()])
    other = arm(precision="bf16-mixed", config="data:\n  batch_size: 8\nmodel:\n  chunk: 4\n")
    b = Bench(HEADER | {"cpu": "another", "torch": "2.12.0"}, [other])
    assert differences(a, a) == []
    assert differences(a, b) == [
        "The hardware differ, so ratios are not of the code alone: cpu a processor and another.",
        "The versions differ, so ratios are not of the code alone: torch 2.13.0 and 2.12.0.",
        "The precision differs: 32-true and bf16-mixed.",
        "The config differs in data.batch_size, model.chunk.",
    ]


def test_bars_are_as_high_as_their_milliseconds():
    (bar,) = bars_of(arm(), "training")
    assert dict(bar.parts)["LLM forward"] == pytest.approx(10)  # of a triplet
    assert (bar.warm, bar.height, bar.cold) == (pytest.approx(25), pytest.approx(25 + 15), 3)
    image = draw(Bench(HEADER, [arm()]))
    pixels = [image.getpixel((300, y)) for y in range(480)]  # through the middle of the first panel
    heights = {row: pixels.count(ImageColor.getrgb(COLOURS[row])) for row in ("Connector", "LLM forward", "vision tower")}
    scale = PLOT / 40  # the axis ends at 40 ms
    worked = {"Connector": 2.5, "LLM forward": 10, "vision tower": 10.5}
    assert heights == {row: pytest.approx(ms * scale, abs=1.5) for row, ms in worked.items()}


def test_nothing_to_draw():
    assert draw(Bench(HEADER, [Arm("clip.yaml", refused="no")])).width > 1000
    assert draw(Bench(HEADER, [arm(works=[])])).width > 1000
