"""``make bench-gpu`` at tiny size on the CPU: its models, its commands, its tables."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

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
    for row in rows:
        tokens = row["tokens"] * row["step"]
        assert tokens == pytest.approx(round(tokens))
        assert row["batch"] * (32 + 40 + 12) < tokens < row["batch"] * 2 * (32 + 40 + 100)  # image, soft prompt, words
        assert row["MFU measured"] * written["header"]["bf16 product TFLOP/s"] == pytest.approx(row["MFU data sheet"] * 989.4)
        assert row["estimated"] > 0
    lines = (tmp_path / "out" / "bench-gpu.md").read_text().splitlines()
    assert lines[0] == "- device: CPU, tiny models"
    assert sum(line.startswith("| Qwen") for line in lines) == 4


def test_what_does_not_fit_is_a_row(bench, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bench, "run", full)
    assert bench.measure([], tmp_path, "h100-80", 1.0) == {"step": "out of memory"}
    bench.write_tables(tmp_path, {}, [bench.Row("a", "nf4", True, 8)._asdict() | {"step": "out of memory"}])
    assert "| a | nf4 | True | 8 | out of memory |" in (tmp_path / "bench-gpu.md").read_text()


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
