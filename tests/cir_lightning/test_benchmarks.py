"""The recipe of every benchmark, the whole way from fit to predict, on a miniature of its files and with the tiny model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import pytest
import yaml
from fakes.circo import TEST, write_circo
from fakes.cirr import EMPTY, write_cirr
from fakes.fashioniq import CATEGORIES, write_fashioniq
from fakes.genecis import QUERIES, write_genecis
from fakes.shoes import write_shoes
from fakes.triplets import CATEGORIES as SHAPES
from fakes.triplets import write_triplets

from cir_lightning.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TINY = {
    "trainer": {"max_steps": 2, "val_check_interval": 2, "log_every_n_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
    "model": {
        "encoder": {
            "init_args": {
                "backbone": {"class_path": "fakes.tiny.TinyLVLM", "init_args": {"lora": {"rank": 2}}},
                "connector": {
                    "class_path": "cir_lightning.connector.Resampler",
                    "init_args": {"queries": 2, "width": 32, "depth": 1, "heads": 4},
                },
                "soft_prompt": {"class_path": "cir_lightning.prompt_pool.PromptPool", "init_args": {"size": 4, "tokens": 1, "chosen": 2}},
                "width": 16,
            }
        }
    },
    "data": {"init_args": {"batch_size": 8}},
}


class Miniature(NamedTuple):
    """What is expected of a benchmark.

    Attributes:
        write: writes the miniature into a folder.
        groups: name of each evaluation set in the results -> number of its queries.
        figures: their figures.
        predicted: queries in the ranked lists of ``cir predict``.
        zero_shot: whether it is trained on another benchmark, the miniature of which is needed, too.
    """

    write: Callable[[Path], object]
    groups: dict[str, int]
    figures: set[str]
    predicted: int
    zero_shot: bool = False


def at(name: str, *ks: int) -> set[str]:
    return {f"{name}@{k}" for k in ks}


PROTOCOLS = ("original", "original-noref", "val")
TASKS = ("focus_attribute", "change_attribute", "focus_object", "change_object")
MINIATURES = {
    "fashioniq": Miniature(
        write_fashioniq,
        {f"fashioniq/{protocol}/{category}": 27 for protocol in PROTOCOLS for category in CATEGORIES}
        | {f"fashioniq/{protocol}/avg": 3 * 27 for protocol in PROTOCOLS},
        at("R", 1, 5, 10, 50) | {"mean"},
        3 * 12,
    ),
    "shoes": Miniature(write_shoes, {"shoes": 21}, at("R", 1, 10, 50) | {"mean"}, 21),
    "cirr": Miniature(write_cirr, {"cirr": 18}, at("R", 1, 5, 10, 50) | at("R_subset", 1, 2, 3) | {"mean"}, 2 * 18),
    "circo": Miniature(write_circo, {"circo": 7}, at("mAP", 5, 10, 25, 50) | at("R", 5, 10, 25, 50), TEST, zero_shot=True),
    "genecis": Miniature(
        write_genecis,
        {f"genecis/{task}": QUERIES for task in TASKS} | {"genecis/avg": 4 * QUERIES},
        at("R", 1, 2, 3),
        4 * QUERIES,
        zero_shot=True,
    ),
    "triplets": Miniature(
        write_triplets,
        {f"triplets/{shape}": count for shape, count in SHAPES.items()} | {"triplets/avg": 56},
        at("R", 1, 5, 10) | at("R_subset", 1, 2),  # of 40 pictures, of 3 look-alikes
        56,
    ),
}


WITH_TEST = {"triplets"}  # elsewhere the answers are secret, or val is all that is scored


@pytest.fixture(scope="module", params=MINIATURES)
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with a benchmark's files and a finished run in ``runs``, and the benchmark's name; commands run in it."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    MINIATURES[name].write(folder / "data" / name)
    if MINIATURES[name].zero_shot:
        write_cirr(folder / "data" / "cirr")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIR_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert main(["fit", "--config", f"{name}.yaml", "--config", "tiny.yaml"]) == 0
        yield folder, name


def test_fit_and_test_give_every_figure(fitted: tuple[Path, str]):
    folder, name = fitted
    assert {path.name for path in (folder / "runs" / name / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert main(["test", "--ckpt_path", f"runs/{name}"]) == 0
    split = "test" if name in WITH_TEST else "val"
    assert not (folder / "runs" / name / ("val" if split == "test" else "test") / "results.json").exists()
    report = json.loads((folder / "runs" / name / split / "results.json").read_text())
    assert report["split"] == split
    rows = report["rows"]
    own = [row for row in rows if row["method"] == "CIR-LVLM"]
    assert {row["group"]: row["queries"] for row in own} == MINIATURES[name].groups
    for row in own:
        assert set(row["figures"]) == MINIATURES[name].figures
        assert all(0 <= figure <= 100 for figure in row["figures"].values())
        assert row["protocol"]


def test_predict_ranks_every_query(fitted: tuple[Path, str]):
    folder, name = fitted
    assert main(["predict", "--ckpt_path", f"runs/{name}"]) == 0
    lines = [json.loads(line) for line in (folder / "runs" / name / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == MINIATURES[name].predicted
    assert all(len(line["names"]) == len(set(line["names"])) > 0 for line in lines)


def test_ranked_lists_of_val_are_analysed_where_the_answers_to_test_are_secret(fitted: tuple[Path, str]):
    folder, name = fitted
    run = folder / "runs" / name
    for command in (
        ["predict", "--split", "val"],
        ["validate"],
        ["analyze", "failures", "--predictions", str(run / "predictions-val.jsonl")],
    ):
        assert main([*command, "--ckpt_path", f"runs/{name}"]) == 0
    rows = json.loads((run / "val" / "results.json").read_text())["rows"]
    own = [row for row in rows if row["method"] == "CIR-LVLM" and "avg" not in row["group"]]
    figure = "R@1" if "R@1" in MINIATURES[name].figures else "R@10"
    wanted = {row["group"]: row["figures"][figure] for row in own}
    table = pd.read_csv(run / "analysis" / "failures-predictions-val" / "failures.csv")
    table = table[(table["table"] == "Recall by caption") & (table["row"] == "all") & (table["column"] == figure)]
    assert {row.group: float(row.value) for row in table.itertuples()} == pytest.approx(wanted, abs=0.051)


def test_lists_without_answers_are_not_analysed(fitted: tuple[Path, str], capsys: pytest.CaptureFixture[str]):
    folder, name = fitted
    lists = folder / "runs" / name / "predictions.jsonl"
    assert main(["predict", "--ckpt_path", f"runs/{name}"]) == 0
    secret = all(json.loads(line)["rank"] is None for line in lists.read_text().splitlines())
    code = main(["analyze", "failures", "--predictions", str(lists), "--ckpt_path", f"runs/{name}"])
    assert code == (2 if secret else 0)
    refusal = "rank val instead, with cir predict --ckpt_path RUN --split val"
    assert (refusal in capsys.readouterr().err) is secret
    assert main(["predict", "--ckpt_path", f"runs/{name}", "--split", "val", "--print_config"]) == 0
    (folder / "val.yaml").write_text(capsys.readouterr().out)
    assert main(["analyze", "failures", "--predictions", str(lists), "--config", str(folder / "val.yaml")]) == code
    assert (refusal in capsys.readouterr().err) is secret


def test_the_files_for_the_servers(fitted: tuple[Path, str]):
    folder, name = fitted
    run = folder / "runs" / name
    assert main(["predict", "--ckpt_path", f"runs/{name}"]) == 0
    if name == "cirr":
        for metric, count in (("recall", 50), ("recall_subset", 3)):
            answers = json.loads((run / f"cirr_{metric}.json").read_text())
            assert (answers.pop("version"), answers.pop("metric")) == ("rc2", metric)
            assert len(answers) == 18
            assert {len(names) for names in answers.values()} == {count}
            assert "test1-8-0-img1" not in answers[EMPTY]  # its reference
    elif name == "circo":
        answers = json.loads((run / "circo.json").read_text())
        assert sorted(answers) == [str(number) for number in range(TEST)]
        assert all(len(set(names)) == 50 and all(isinstance(one, int) for one in names) for names in answers.values())
    else:
        assert not list(run.glob("*.json"))


def test_only_fit_needs_the_training_set_of_a_zero_shot_benchmark(fitted: tuple[Path, str], capsys: pytest.CaptureFixture[str]):
    folder, name = fitted
    without = "--data.train=null"
    if not MINIATURES[name].zero_shot:
        assert main(["test", "--ckpt_path", f"runs/{name}", without]) == 2
        return
    (folder / "data" / "cirr").rename(folder / "away")
    try:
        assert main(["test", "--ckpt_path", f"runs/{name}"]) == 2
        assert "data.train: cirr: no file 'image_splits/split.rc2.train.json'" in capsys.readouterr().err
        assert main(["test", "--ckpt_path", f"runs/{name}", without]) == 0
        assert main(["fit", "--config", f"{name}.yaml", "--config", "tiny.yaml", without, "--trainer.default_root_dir=new"]) == 2
        assert "is a zero-shot benchmark without training triplets; name the data set to train on" in capsys.readouterr().err
        assert not (folder / "new" / "config.yaml").exists()
    finally:
        (folder / "away").rename(folder / "data" / "cirr")
