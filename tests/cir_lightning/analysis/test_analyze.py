"""``cir analyze`` on a tiny run, its figures beside those of ``cir test``, and what it refuses."""

import json
import re
import shutil

import pandas as pd
import pytest
import yaml
from fakes.runs import tiny_run
from PIL import Image

from cir_lightning.cli import main


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A folder with ``tiny.yaml`` and the finished, tested and predicted run ``run``."""
    with tiny_run(tmp_path_factory.mktemp("analyze")) as folder:
        for command in ("test", "predict"):
            assert main([command, "--ckpt_path", str(folder / "run")]) == 0
        yield folder


def figures(folder):
    """R@1 and R@10 of each group by ``cir test``."""
    rows = json.loads((folder / "run" / "test" / "results.json").read_text())["rows"]
    mine = [row for row in rows if row["method"] == rows[-1]["method"]]
    return {row["group"]: {name: row["figures"][name] for name in ("R@1", "R@10")} for row in mine if "avg" not in row["group"]}


def overall(file):
    """The same by the analysis."""
    table = pd.read_csv(file)
    table = table[(table["table"] == "Recall by caption") & (table["row"] == "all")]
    return {
        group: {name: float(table[(table.group == group) & (table.column == name)].value.iloc[0]) for name in ("R@1", "R@10")}
        for group in table.group.unique()
    }


def test_failures_have_the_figures_of_cir_test(fitted, capsys):
    assert main(["analyze", "failures", "--ckpt_path", str(fitted / "run")]) == 0
    folder = fitted / "run" / "analysis" / "failures-test"
    assert f"failures: {folder / 'failures.html'}" in capsys.readouterr().out
    assert overall(folder / "failures.csv") == {group: pytest.approx(figures, abs=0.051) for group, figures in figures(fitted).items()}
    page = (folder / "failures.html").read_text(encoding="utf-8")
    for title in ("Recall by caption", "Over-reliance", "Rank of the target before and after", "Hubs", "The worst queries"):
        assert page.count(f">{title}<") == len(figures(fitted))
    assert not re.search(r'(?:src|href)="(?!data:)', page)  # nothing outside
    assert Image.open(folder / "tiny-colour-worst.png").width > 500
    assert "### Hubs" in (folder / "failures.md").read_text(encoding="utf-8")


def test_failures_of_val_lie_apart(fitted):
    assert main(["analyze", "failures", "--split", "val", "--ckpt_path", str(fitted / "run")]) == 0
    assert (fitted / "run" / "analysis" / "failures-val" / "failures.html").is_file()


def test_failures_from_ranked_lists_need_no_model(fitted, monkeypatch):
    monkeypatch.setattr("cir_lightning.module.CIRModule.configure_model", None)
    lists = fitted / "run" / "predictions.jsonl"
    assert main(["analyze", "failures", "--predictions", str(lists), "--ckpt_path", str(fitted / "run")]) == 0
    folder = fitted / "run" / "analysis" / "failures-predictions"
    assert overall(folder / "failures.csv") == {group: pytest.approx(figures, abs=0.051) for group, figures in figures(fitted).items()}
    assert "Over-reliance" not in (folder / "failures.html").read_text(encoding="utf-8")


def test_ranked_lists_of_any_name_leave_the_analysis_of_the_checkpoint(fitted):
    lists = fitted / "run" / "test.jsonl"
    shutil.copy(fitted / "run" / "predictions.jsonl", lists)
    assert main(["analyze", "failures", "--predictions", str(lists), "--ckpt_path", str(fitted / "run")]) == 0
    assert (fitted / "run" / "analysis" / "failures-predictions-test" / "failures.html").is_file()


def test_prompts_are_analysed(fitted, capsys):
    assert main(["analyze", "prompts", "--ckpt_path", str(fitted / "run")]) == 0
    folder = fitted / "run" / "analysis" / "prompts-test"
    assert f"prompts: {folder / 'prompts.html'}" in capsys.readouterr().out
    size = yaml.safe_load((fitted / "run" / "config.yaml").read_text())["model"]["encoder"]["init_args"]["soft_prompt"]["init_args"]
    table = pd.read_csv(folder / "prompts.csv")
    assert len(table) == size["size"]
    assert table["pictures"].sum() == size["chosen"] * table["first"].sum()
    assert {"edits", "kind of edit"} <= set(pd.read_csv(folder / "information.csv").name)
    page = (folder / "prompts.html").read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    for name in ("strips", "keys", "prompts", "map"):
        assert Image.open(folder / f"{name}.png").width >= 8


def refused(arguments, capsys):
    assert main(arguments) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("cir: ")
    return line


def test_a_model_without_a_pool_has_no_prompts_to_analyse(fitted, tmp_path, capsys):
    recipe = yaml.safe_load((fitted / "tiny.yaml").read_text())
    encoder = recipe["model"]["encoder"]["init_args"]
    encoder["soft_prompt"] = {"class_path": "cir_lightning.prompt_pool.UniversalPrompt", "init_args": {"tokens": 2}}
    recipe["trainer"]["default_root_dir"] = str(tmp_path / "universal")
    (tmp_path / "universal.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["fit", "--config", str(tmp_path / "universal.yaml"), "--trainer.max_steps", "1"]) == 0
    line = refused(["analyze", "prompts", "--ckpt_path", str(tmp_path / "universal")], capsys)
    assert "has no prompt pool to analyse but UniversalPrompt" in line


def test_what_is_refused(fitted, tmp_path, capsys):
    run, lists = str(fitted / "run"), fitted / "run" / "predictions.jsonl"
    assert "unknown command 'analyze nothing'" in refused(["analyze", "nothing"], capsys)
    assert "needs a model: give --ckpt_path" in refused(["analyze", "failures"], capsys)
    assert "needs a model: give --ckpt_path" in refused(["analyze", "prompts"], capsys)
    assert "invalid choice: 'train'" in refused(["analyze", "failures", "--split", "train", "--ckpt_path", run], capsys)
    both = ["analyze", "failures", "--split", "val", "--predictions", str(lists), "--ckpt_path", run]
    assert "--split does not go with --predictions" in refused(both, capsys)
    assert "needs trained weights" in refused(["analyze", "prompts", "--config", str(fitted / "tiny.yaml")], capsys)
    assert "cannot be read" in refused(["analyze", "failures", "--predictions", str(tmp_path / "no"), "--ckpt_path", run], capsys)
    damaged = tmp_path / "predictions.jsonl"
    for text, said in (
        ("", "is empty"),
        ("{}\n", ", line 1: no ranked list (KeyError"),
        ("[1]\n", "line 1: no ranked list"),
        ('{"query": "c0", "group": "tiny/colour", "names": ["a"], "rank": 1}', "line 1: no ranked list (KeyError: 'reference')"),
        ("{", "line 1"),
    ):
        damaged.write_text(text)
        assert said in refused(["analyze", "failures", "--predictions", str(damaged), "--ckpt_path", run], capsys)
    damaged.write_text("".join(lists.read_text().splitlines(keepends=True)[1:]))
    line = refused(["analyze", "failures", "--predictions", str(damaged), "--ckpt_path", run], capsys)
    assert "are not those of TinyCIR with these options" in line


CHANGES = [
    ({"names": ["nobody"]}, "not as TinyCIR has it"),
    ({"names": "abc"}, "no ranked list"),
    ({"names": []}, "no ranked list"),
    ({"rank": "3"}, "no ranked list"),
    ({"rank": -3}, "no ranked list"),
    ({"rank": True}, "no ranked list"),
    ({"rank": None}, "not as TinyCIR has it"),
    ({"caption": "another one"}, "not as TinyCIR has it"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_a_changed_line_is_refused(fitted, tmp_path, capsys, change, said):
    first, *rest = (fitted / "run" / "predictions.jsonl").read_text().splitlines()
    changed = tmp_path / "predictions.jsonl"
    changed.write_text("\n".join([json.dumps(json.loads(first) | change), *rest]))
    assert said in refused(["analyze", "failures", "--predictions", str(changed), "--ckpt_path", str(fitted / "run")], capsys)


@pytest.mark.parametrize("command", ["failures", "prompts"])
def test_a_folder_that_cannot_be_written_is_a_sentence(fitted, tmp_path, capsys, command):
    shutil.copytree(fitted / "run" / "checkpoints", tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "analysis").write_text("in the way")
    assert "cannot use" in refused(["analyze", command, "--ckpt_path", str(tmp_path / "run")], capsys)
