"""``cir data check``: exit codes, lists and sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fakes.triplets import write_triplets

from cir_lightning.cli import main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The user's own data in miniature."""
    write_triplets(tmp_path / "mine")
    return tmp_path / "mine"


def test_exit_codes_and_lists(root: Path, capsys: pytest.CaptureFixture[str]):
    command = ["data", "check", "triplets", "--root", str(root)]
    assert main(command) == 0
    assert "complete: 40 picture files" in capsys.readouterr().out
    (root / "images" / "red bar.png").write_bytes(b"no picture")
    assert main([*command, "--fast"]) == 0
    assert main(command) == 1
    assert "1 of 40 picture files cannot be read" in capsys.readouterr().out
    assert (root / "unreadable.tsv").is_file()
    (root / "images" / "red bar.png").unlink()
    assert main([*command, "--fast"]) == 1
    assert (root / "missing.tsv").read_text() == "images/red bar.png\tno such file\n"


def test_a_folder_that_cannot_be_written_does_not_cost_the_report(root: Path, capsys: pytest.CaptureFixture[str]):
    (root / "images" / "red bar.png").unlink()
    (root / "missing.tsv").mkdir()
    assert main(["data", "check", "triplets", "--root", str(root)]) == 2
    out, error = capsys.readouterr()
    assert "1 of 40 picture files do not exist" in out
    assert "cannot write" in error


def test_options_of_the_benchmark(root: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "check", "triplets", "--fast", f"--root={root}", "--gallery=split", "--val_share", "0.2"]) == 0
    out = capsys.readouterr().out
    assert "val/triplets/" in out
    with pytest.raises(SystemExit, match="0"):
        main(["data", "check", "triplets", "--help"])
    assert "--val_share" in capsys.readouterr().out


def test_options_may_be_written_as_the_remedies_of_messages_do(root: Path):
    assert main(["data", "check", "triplets", "--data.root", str(root), "--data.gallery=split", "--fast"]) == 0


@pytest.mark.parametrize("options", [[], ["--help"]])
def test_help_names_the_benchmarks(options: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["data", "check", *options]) == 0
    out = capsys.readouterr().out
    assert "usage: cir data check NAME" in out
    assert "fashioniq, shoes, cirr, circo, genecis, emoji, triplets" in out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["fashion"], "unknown benchmark 'fashion'; there are fashioniq, "),
        (["--root", "x"], "unknown benchmark '--root'; there are fashioniq, "),
        (["triplets", "--rooot", "x"], "unrecognized arguments: --rooot x; cir data check triplets --help shows what there is"),
        (["triplets", "--data.rooot=x"], "unrecognized arguments: --rooot=x"),
        (["triplets", "--roo", "x"], "unrecognized arguments: --roo x"),
        (["triplets", "--gallery=all"], "gallery"),
        (["triplets", "--val_share=2"], "data.val_share is 2.0"),
        (["triplets", "--root", "nowhere"], "there is no folder root="),
    ],
)
def test_mistakes(options: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cir: ")
    assert sentence in error
    assert error.count("\n") == 1
