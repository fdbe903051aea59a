"""The results table in its three file formats and on the terminal."""

import json
import re
from dataclasses import replace

import pandas as pd
import pytest

from cir_lightning.retrieval.report import Report, Row, read, to_frame, to_markdown, to_text, write
from data_modules.errors import UserError

SEEN = {"group": "seen", "queries": 1200, "gallery": 3583, "unreachable": 0, "fingerprint": "00ff00ff00ff00ff"}
HELD = {"group": "held-out", "queries": 300, "gallery": 512, "unreachable": 2, "fingerprint": "abababababababab"}
REPORT = Report(
    benchmark="EmojiCIR",
    split="test",
    checkpoint="runs/emoji/best.ckpt",
    version="0.1.0",
    commit="6d59fbe",
    seed=0,
    rows=(
        Row("random", figures={"R@1": 0.027909572983533, "R@10": 0.3}, **SEEN),
        Row("CIR-LVLM (this run)", figures={"R@1": 40.04, "R@10": 90.0, "R_subset@1": 71.25}, **SEEN),
        Row("image | text", figures={"R@1": 40.0, "R@10": 12.5, "R_subset@1": 80.0}, **SEEN),
        Row("CIR-LVLM (this run)", figures={"R@1": 100 / 3}, **HELD),
    ),
    notes=("Two captions are empty.", "Ties count against the model."),
)


def test_markdown():
    assert to_markdown(REPORT) == (
        "# EmojiCIR, test\n\n"
        "Checkpoint: runs/emoji/best.ckpt; cir-lightning 0.1.0 (commit 6d59fbe); seed 0.\n\n"
        "## seen\n\n"
        "| Method | R@1 | R@10 | R_subset@1 |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| random | 0.0 | 0.3 | - |\n"
        "| CIR-LVLM (this run) | **40.0** | **90.0** | 71.2 |\n"
        "| image \\| text | **40.0** | 12.5 | **80.0** |\n\n"
        "Gallery 3,583 pictures; 1,200 queries, all reachable; protocol 00ff00ff00ff00ff. Percent.\n\n"
        "## held-out\n\n"
        "| Method | R@1 |\n"
        "| --- | ---: |\n"
        "| CIR-LVLM (this run) | 33.3 |\n\n"
        "Gallery 512 pictures; 300 queries, 2 of them unreachable (counted as misses); protocol abababababababab. Percent.\n\n"
        "- Two captions are empty.\n"
        "- Ties count against the model.\n"
    )


def test_text_has_the_same_figures_in_columns_and_no_markup():
    text = to_text(REPORT)
    assert "*" not in text
    assert (
        "seen\n"
        + "\n".join(
            [
                "  Method                R@1  R@10  R_subset@1",
                "  random                0.0   0.3           -",
                "  CIR-LVLM (this run)  40.0  90.0        71.2",
                "  image | text         40.0  12.5        80.0",
                "  Gallery 3,583 pictures; 1,200 queries, all reachable; protocol 00ff00ff00ff00ff. Percent.",
            ]
        )
        in text
    )
    assert text.endswith("\n\nNote: Two captions are empty.\n\nNote: Ties count against the model.\n")
    assert set(re.findall(r"\d+\.\d", text)) == set(re.findall(r"\d+\.\d", to_markdown(REPORT)))


def test_different_protocols_never_share_a_table():
    other = replace(REPORT.rows[0], method="other gallery", fingerprint="", gallery=10)
    text = to_markdown(replace(REPORT, rows=(*REPORT.rows, other)))
    assert text.count("## seen") == 2
    assert "| other gallery | 0.0 | 0.3 |\n\nGallery 10 pictures; 1,200 queries, all reachable; protocol not stated." in text


def test_unknown_origin():
    assert "Checkpoint: none; cir-lightning 0.1.0; seed 0." in to_text(replace(REPORT, checkpoint="", commit="", notes=()))


def test_frame_is_long():
    frame = to_frame(REPORT)
    origin = ["benchmark", "split", "checkpoint", "version", "commit", "seed"]
    counts = ["queries", "gallery", "unreachable", "fingerprint"]
    assert list(frame.columns) == ["method", "group", "R@1", "R@10", "R_subset@1", *counts, *origin]
    assert len(frame) == 4
    assert frame.loc[3, "R@1"] == 100 / 3
    assert pd.isna(frame.loc[3, "R@10"])


def test_write_and_read_back(tmp_path):
    folder = tmp_path / "new" / "run"
    paths = write(REPORT, folder)
    assert paths == {name: folder / name for name in ("results.md", "results.csv", "results.json")}
    assert sorted(path.name for path in folder.iterdir()) == ["results.csv", "results.json", "results.md"]  # no temporary file stays
    assert read(paths["results.json"]) == REPORT
    assert json.loads(paths["results.json"].read_text())["rows"][0]["figures"]["R@1"] == 0.027909572983533
    assert paths["results.md"].read_text() == to_markdown(REPORT)
    pd.testing.assert_frame_equal(pd.read_csv(paths["results.csv"]), to_frame(REPORT))


def test_write_replaces_whole_files(tmp_path, monkeypatch):
    write(REPORT, tmp_path)
    before = (tmp_path / "results.md").read_text()

    def full_disk(self, text, encoding):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write(replace(REPORT, seed=1), tmp_path)
    assert (tmp_path / "results.md").read_text() == before
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"benchmark": "x",\n"rows": [\n', r"results\.json, line 3: broken JSON \(Expecting value\); give a results\.json"),
        (b"", r"line 1: broken JSON"),
        (b"\xff\xfe\x00PK", r"results\.json: cannot be read as a results file"),
        (b"[1, 2]", r"line 1: JSON, but not a report \(TypeError"),
        (b'{"epoch": 3}', r"line 1: JSON, but not a report \(KeyError: 'rows'\); give a results\.json that `cir test` wrote"),
        (b'{"rows": [], "notes": []}', r"not a report \(TypeError: .*'benchmark'"),
        (b'{"rows": [{"method": "m", "figures": {"R@1": "high"}}], "notes": []}', r"not a report \(ValueError: .*'high'"),
    ],
)
def test_broken_and_foreign_files(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(path)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: cannot be read .*No such file.*; give a results\.json"):
        read(tmp_path / "none.json")
