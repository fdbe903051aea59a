"""``make bench-gpu`` at tiny size on the CPU: its models, its commands, its tables."""

import gc
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cir_lightning.module import CIRModule

FILE = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture
def bench():
    spec = importlib.util.spec_from_file_location("bench_gpu", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_trains_both_models_and_writes_its_tables(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("CIR_CACHE", str(tmp_path / "cache"))
    assert bench.main(["--tiny", "--out", str(tmp_path / "out"), "--rows", "4"]) == 0
    written = json.loads((tmp_path / "out" / "bench-gpu.json").read_text())
    rows = written["rows"]
    assert [(row["model"], row["quantisation"]) for row in rows] == [
        (model, packed) for packed in ("none", "nf4") for model in ("Qwen2.5-VL-7B", "Qwen-VL-Chat")
    ]
    for number, row in enumerate(rows):
        tokens = row["tokens"] * row["step"]
        assert tokens == pytest.approx(round(tokens))
        assert abs(row["tokens off"]) < 3  # every word is a token, and no picture comes twice
        assert row["batch"] * 2 * (32 + 40 + 10) < tokens < row["batch"] * 2 * (32 + 40 + 20)  # image, soft prompt, words
        work = json.loads((tmp_path / "out" / f"row-{number}" / "estimate.json").read_text())["compute"]
        model = sum(work[f"{part} [TFLOP]"]["with checkpointing (recipe)"] for part in WORK)
        assert work["LLM, again [TFLOP]"]["with checkpointing (recipe)"] > 0  # which is no work of the model
        assert row["MFU data sheet"] * 989.4 / 100 == pytest.approx(model / row["step"])
        assert row["MFU measured"] * written["header"]["bf16 product TFLOP/s"] == pytest.approx(row["MFU data sheet"] * 989.4)
        assert row["estimated"] > 0
        assert not list((tmp_path / "out").rglob("*.ckpt"))
    lines = (tmp_path / "out" / "bench-gpu.md").read_text().splitlines()
    assert lines[0] == "- device: CPU, tiny models"
    assert sum(line.startswith("| Qwen") for line in lines) == 4


WORK = ("LLM, forward", "LLM, backward", "Connector and soft prompt")


def test_what_fails_is_a_row_and_leaves_nothing_in_memory(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("CIR_CACHE", str(tmp_path / "cache"))
    errors = iter(
        [(torch.OutOfMemoryError, "CUDA is full"), (RuntimeError, "CUDA error: out of memory"), (RuntimeError, "cuBLAS\nsays no")]
    )

    def fail(*_):
        kind, words = next(errors)
        raise kind(words)

    alive = []

    def forget(real=bench._forget):
        real()
        alive.append(sum(type(one) is CIRModule for one in gc.get_objects()))

    monkeypatch.setattr(CIRModule, "training_step", fail)
    monkeypatch.setattr(bench, "_forget", forget)
    assert bench.main(["--tiny", "--out", str(tmp_path / "out"), "--rows", "3"]) == 1
    rows = json.loads((tmp_path / "out" / "bench-gpu.json").read_text())["rows"]
    assert [row["step"] for row in rows] == ["out of memory", "out of memory", "failed: cuBLAS says no"]
    assert all(row["estimated"] > 0 for row in rows)
    assert "| none | True | 8 | out of memory |" in (tmp_path / "out" / "bench-gpu.md").read_text()
    assert alive == [0, 1, 0, 1, 0, 1]  # before a row's model is made, and when its training begins


def test_the_peak_is_that_of_training(bench, monkeypatch):
    """What reading the weights took is told apart."""
    log = []
    monkeypatch.setattr(bench, "_peak", lambda: log.append("peak") or float(len(log)))
    monkeypatch.setattr(bench, "_forget", lambda: log.append("reset"))
    clock, module = bench.Clock(), SimpleNamespace(encoder=SimpleNamespace(backbone=SimpleNamespace(llm=torch.nn.Identity())))
    clock.on_train_start(None, module)
    for step in range(2):
        clock.on_train_batch_start(None, module, None, step)
        clock.on_train_batch_end(None, module, None, None, step)
    assert log == ["peak", "reset", "peak", "peak"]
    assert (clock.loading, clock.peak) == (1.0, 4.0)


def test_the_most_important_rows_come_first(bench):
    rows = bench.rows((8, 16, 32, 64, 128))
    assert len(set(rows)) == len(rows) == 5 * 2 * 2 * 2
    assert rows[0] == ("Qwen2.5-VL-7B", "none", True, 32)
    assert {row.batch for row in rows[:8]} == {32}


def test_without_a_gpu_it_says_so(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["--out", str(tmp_path)]) == 1
    assert "there is no CUDA device here, so nothing was measured" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
