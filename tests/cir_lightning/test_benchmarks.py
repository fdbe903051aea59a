"""Every recipe of a benchmark trains, tests and predicts on its miniature, with the tiny model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import yaml
from fakes.triplets import write_triplets

from cir_lightning.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MINIATURES = {"triplets.yaml": write_triplets}  # recipe -> writes the files of the benchmark into a folder

TINY = {
    "trainer": {"accelerator": "cpu", "max_steps": 2, "val_check_interval": 2, "enable_progress_bar": False},
    "model": {
        "encoder": {
            "class_path": "cir_lightning.encoder.IntentEncoder",
            "init_args": {
                "backbone": {"class_path": "fakes.tiny.TinyLVLM", "init_args": {"lora": {"rank": 2}}},
                "connector": {
                    "class_path": "cir_lightning.connector.Resampler",
                    "init_args": {"queries": 2, "width": 32, "depth": 1, "heads": 4},
                },
                "width": 16,
            },
        }
    },
}


@pytest.fixture(scope="module", params=MINIATURES)
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A recipe and the folder that it was trained in; commands run there."""
    folder = tmp_path_factory.mktemp("benchmark")
    MINIATURES[request.param](folder / "data")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIR_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        options = ["--data.root", "data", "--data.batch_size", "8", "--trainer.default_root_dir", "run"]
        assert main(["fit", "--config", request.param, "--config", "tiny.yaml", *options]) == 0
        yield request.param, folder


def test_fit_chooses_a_best_checkpoint(fitted: tuple[str, Path]):
    _, folder = fitted
    assert {path.name for path in (folder / "run" / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_test_writes_a_table(fitted: tuple[str, Path]):
    recipe, folder = fitted
    assert main(["test", "--ckpt_path", "run"]) == 0
    (results,) = (folder / "run").glob("*/results.json")
    rows = json.loads(results.read_text())["rows"]
    assert {row["group"].split("/")[0] for row in rows} == {recipe.removesuffix(".yaml")}
    assert {"R@1"} < set(rows[0]["figures"])


def test_predict_ranks_every_query(fitted: tuple[str, Path]):
    _, folder = fitted
    assert main(["predict", "--ckpt_path", "run", "--model.top", "3"]) == 0
    lines = [json.loads(line) for line in (folder / "run" / "predictions.jsonl").read_text().splitlines()]
    assert lines
    assert all(len(line["names"]) == 3 for line in lines)
