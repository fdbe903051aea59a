"""The report of a study: tables against hand-worked numbers, notes, files, pictures."""

import csv
import io
import json
from xml.etree import ElementTree

import pytest
from PIL import Image

from cir_lightning.study.outcomes import Outcome, Outcomes, collect
from cir_lightning.study.plan import Study
from cir_lightning.study.report import caption_tables, notes, show, tables, to_csv, to_latex, to_markdown, to_summary, write
from data_modules.errors import UserError

FIGURES = {"pool": (60.0, 62.0, 64.0), "none_50%": (58.0, 61.0, 61.0)}


def slices(value):
    return {("emoji/seen", "edits"): {"1 (10)": value, "2 (30)": value - 20}}


def outcome(arm, seed, value, commit="a1", **costs):
    figures = {"emoji/seen R@1": value, "emoji/seen R@5": value + 10}
    return Outcome(
        arm, seed, figures, {"trained parameters": 3e6 + len(arm), **costs}, commit, ("EmojiCIR", "test", "emoji/seen 12"), slices(value)
    )


def study(**changes):
    plan = {"name": "pools", "about": "Pools?", "configs": ({},), "seeds": (0, 1, 2), "reference": "pool"}
    plan |= {"headline": ("emoji/seen R@1",), "arms": dict.fromkeys(FIGURES, ())}
    return Study(**plan | changes)


@pytest.fixture
def outcomes():
    return Outcomes(study(), [outcome(arm, seed, value) for arm, some in FIGURES.items() for seed, value in enumerate(some)], [])


def test_the_tables(outcomes):
    main, others, costs = tables(outcomes)
    assert main.cells == [
        ["arm", "seeds", "emoji/seen R@1", "less pool"],
        ["pool", "3", "62.00 ± 2.00", "-"],
        ["none_50%", "3", "60.00 ± 1.73", "-2.00 [-4.48, +0.48]"],  # 4.3027 * 1 / sqrt(3)
    ]
    assert others.cells[1] == ["pool", "72.00 ± 2.00"]
    assert costs.cells[2] == ["none_50%", "3,000,008"]


def test_tables_by_caption(outcomes):
    (table,) = caption_tables(outcomes._replace(done=[*outcomes.done, outcome("none_50%", 3, 50.0)._replace(slices={})]))
    assert table.title == "emoji/seen R@1 by edits: percent"
    assert table.cells == [
        ["arm", "1 (10)", "2 (30)"],
        ["pool", "62.00 ± 2.00", "42.00 ± 2.00"],
        ["none_50%", "60.00 ± 1.73", "40.00 ± 1.73"],
    ]
    assert "emoji/seen R@1 by edits" in to_markdown(outcomes).replace("Emoji", "emoji")
    assert 'R@1 of queries,"emoji/seen, edits 2 (30)",42.0' in to_csv(outcomes)


def test_a_difference_that_excludes_zero_is_marked(outcomes):
    better = outcomes._replace(
        done=[*outcomes.done[:3], *(outcome("none_50%", seed, value) for seed, value in enumerate((66.0, 68.2, 70.0)))]
    )
    assert tables(better)[0].cells[2][-1] == "+6.07 [+5.78, +6.35] *"


def test_notes(outcomes):
    assert len(notes(outcomes)) == 3
    some = outcomes._replace(done=[*outcomes.done[:3], outcome("none_50%", 1, 5.0, commit="b2")], unfinished=["none_50% seed 0 is stopped"])
    said = "\n".join(notes(some))
    assert "One seed, so no spread and no interval: none_50%." in said
    assert "Not of the same seeds as pool, so that only common ones are paired: none_50%." in said
    assert "Not finished: none_50% seed 0 is stopped." in said
    assert "different states of the source: a1, b2" in said
    older = outcomes._replace(done=[*outcomes.done[:5], outcomes.done[5]._replace(slices={})])
    assert "Without ranks of single queries, so not in the tables by caption: none_50% seed 2." in "\n".join(notes(older))
    assert tables(some)[0].cells[2] == ["none_50%", "1", "5.00", "-57.00"]
    alone = outcomes._replace(done=outcomes.done[3:])
    assert "The reference pool has no finished run, so there are no differences." in notes(alone)
    assert "No run has the figure gone R@1." in notes(outcomes._replace(study=study(headline=("gone R@1",))))


def test_files(outcomes, tmp_path):
    paths = write(outcomes, tmp_path / "report")
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "report").iterdir()}
    for name in ("figures", "costs"):
        with Image.open(tmp_path / "report" / f"{name}.png") as picture:
            assert min(picture.size) > 300
        texts = [part.text for part in ElementTree.parse(tmp_path / "report" / f"{name}.svg").iter() if part.tag.endswith("text")]
        assert any("none_50%" in text for text in texts)
    record = json.loads((tmp_path / "report" / "report.json").read_text())
    assert record["runs"][0]["figures"]["emoji/seen R@1"] == 60.0


def test_texts(outcomes):
    assert r"none\_50\% & 3 & 60.00 $\pm$ 1.73 & -2.00 [-4.48, +0.48] \\" in to_latex(outcomes)
    assert "| none_50% | 3 | 60.00 ± 1.73 | -2.00 [-4.48, +0.48] |" in to_markdown(outcomes)
    assert "none_50%      3    60.00 ± 1.73  -2.00 [-4.48, +0.48]" in show(outcomes)
    lines = list(csv.DictReader(io.StringIO(to_csv(outcomes))))
    assert [line["value"] for line in lines if (line["arm"], line["name"]) == ("pool", "emoji/seen R@1")] == ["60.0", "62.0", "64.0"]
    (line,) = [
        one for one in csv.DictReader(io.StringIO(to_summary(outcomes))) if (one["arm"], one["name"]) == ("none_50%", "emoji/seen R@1")
    ]
    assert (line["mean"], line["seeds"], line["difference"]) == ("60.0", "3", "-2.0")
    assert float(line["difference_low"]) == pytest.approx(-4.4841, abs=1e-4)


def test_a_study_of_one_run_can_be_drawn(tmp_path):
    one = Outcomes(study(), [outcome("pool", 0, 0.0)], ["none_50% seed 0 is not begun"])
    assert write(one, tmp_path)
    assert tables(one)[0].cells[1] == ["pool", "1", "0.00", "-"]


def test_nothing_finished(tmp_path):
    with pytest.raises(UserError, match=r"study pools: no run in .*pools is finished; cir study run pools does them"):
        collect(study(), tmp_path)
