"""The results as a frame and as files, and averages of rows."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from cir_lightning.retrieval.report import Report, Row, averages, read, to_frame, write
from cir_lightning.retrieval.tables import to_markdown
from data_modules.errors import UserError

SEEN = {"group": "seen", "queries": 1200, "gallery": 3583, "unreachable": 0, "fingerprint": "00ff00ff00ff00ff"}
HELD = {"group": "held-out", "queries": 300, "gallery": 512, "unreachable": 2, "fingerprint": "abababababababab", "skipped_queries": 7}
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
        Row("image | text", figures={"R@1": 40.0, "R@10": 12.5, "R_subset@1": 80.0}, source="Doe 2024", **SEEN),
        Row("CIR-LVLM (this run)", figures={"R@1": 100 / 3}, **HELD),
    ),
    notes=("Two captions are empty.", "Ties count against the model."),
)


def test_frame_is_long():
    frame = to_frame(REPORT)
    origin = ["benchmark", "split", "checkpoint", "version", "commit", "seed"]
    counts = ["queries", "gallery", "unreachable"]
    protocol = ["fingerprint", "protocol", "average", "source", "skipped_queries", "skipped_pictures", "reduced_queries"]
    assert list(frame.columns) == ["method", "group", "R@1", "R@10", "R_subset@1", *counts, *protocol, *origin]
    assert len(frame) == 4
    assert frame.loc[3, "R@1"] == 100 / 3
    assert pd.isna(frame.loc[3, "R@10"])
    assert list(frame["skipped_queries"]) == [0, 0, 0, 7]
    assert frame.loc[2, "source"] == "Doe 2024"
    assert list(frame.loc[2, origin]) == ["EmojiCIR", "test", "", "", "", ""]  # no run of ours
    assert list(frame.loc[1, origin]) == ["EmojiCIR", "test", "runs/emoji/best.ckpt", "0.1.0", "6d59fbe", 0]


def category(method, group, figures, counts, average="cats/avg", **more):
    """A row of a set with 10 queries, 20 pictures and so on times its digit."""
    n = counts
    facts = {"queries": 10 * n, "gallery": 20 * n, "unreachable": n, "skipped_queries": 2 * n, "skipped_pictures": 3 * n}
    return Row(method, group, figures, fingerprint=f"print {group}", protocol="reference kept", average=average, **facts, **more)


def test_averages_are_unweighted_means_of_methods_with_rows_on_all_sets():
    rows = [
        category("ours", "cats/a", {"R@1": 10.0, "R@5": 30.0, "mean": 20.0}, 1),
        category("paper", "cats/a", {"R@1": 12.5}, 1, source="Doe 2024"),
        category("half", "cats/a", {"R@1": 99.0}, 1),
        category("ours", "cats/b", {"R@1": 20.0, "R@5": 60.0, "mean": 40.0}, 3),
        category("paper", "cats/b", {"R@1": 22.5, "R@9": 1.0}, 3, source="Doe 2024"),
        category("ours", "dogs", {"R@1": 77.0}, 1, average=""),
    ]
    ours, paper = averages(rows)
    assert ours == Row(
        "ours",
        "cats/avg",
        {"R@1": 15.0, "R@5": 45.0, "mean": 30.0},
        queries=40,
        gallery=60,  # the larger one
        unreachable=4,
        fingerprint=ours.fingerprint,
        protocol="reference kept",
        skipped_queries=8,
        skipped_pictures=9,
    )
    assert (paper.method, paper.source, paper.figures) == ("paper", "Doe 2024", {"R@1": 17.5})
    assert paper.fingerprint == ours.fingerprint
    assert len(ours.fingerprint) == 16
    (other,) = averages([replace(row, fingerprint="other") if row.group == "cats/b" else row for row in rows if row.method == "ours"])
    assert other.fingerprint != ours.fingerprint


def test_averages_never_mix_fingerprints():
    rows = [category("ours", "cats/a", {"R@1": 10.0}, 1), category("ours", "cats/b", {"R@1": 20.0}, 1)]
    other = replace(rows[1], method="other", fingerprint="fewer queries")
    assert averages([*rows, replace(rows[0], method="other"), other]) == ()  # three sets now, and nobody has rows on all
    assert averages([rows[0], rows[0], replace(rows[1], method="other")]) == ()  # twice on one set is not once on both
    assert averages([]) == ()


def test_write_and_read_back(tmp_path):
    folder = tmp_path / "new" / "run"
    paths = write(REPORT, folder)
    assert paths == {name: folder / name for name in ("results.md", "results.csv", "results.json")}
    assert sorted(path.name for path in folder.iterdir()) == ["results.csv", "results.json", "results.md"]  # no temporary file stays
    assert read(paths["results.json"]) == REPORT
    assert json.loads(paths["results.json"].read_text())["rows"][0]["figures"]["R@1"] == 0.027909572983533
    assert paths["results.md"].read_text() == to_markdown(REPORT)
    missing = {name: [""] for name in ("R@1", "R@10", "R_subset@1")}
    again = pd.read_csv(paths["results.csv"], keep_default_na=False, na_values=missing)
    pd.testing.assert_frame_equal(again, to_frame(REPORT).astype({"seed": str}), check_dtype=False)


def test_files_from_before_there_were_averages_are_read(tmp_path):
    old = {"method": "ours", "group": "seen", "figures": {"R@1": 1.0}, "queries": 2, "gallery": 8, "unreachable": 0, "fingerprint": "f"}
    origin = {"benchmark": "Toy", "split": "test", "checkpoint": "", "version": "0", "commit": "", "seed": 0}
    (tmp_path / "results.json").write_text(json.dumps({**origin, "rows": [old], "notes": []}))
    assert read(tmp_path / "results.json").rows == (Row("ours", "seen", {"R@1": 1.0}, 2, 8, 0, "f"),)


def test_write_replaces_whole_files(tmp_path, monkeypatch):
    write(REPORT, tmp_path)
    before = (tmp_path / "results.md").read_text()

    def full_disk(self, data, encoding):
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
        (b'{"benchmark": "x",\n"rows": [\n', r"results\.json, line 3, column 1: broken JSON \(Expecting value\); give a results\.json"),
        (b"", r"line 1, column 1: broken JSON"),
        (b'{"rows": [{"figures": {"R@1": 3, "R@1": 4}}], "notes": []}', r"results\.json: the key 'R@1' comes twice in one object"),
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
