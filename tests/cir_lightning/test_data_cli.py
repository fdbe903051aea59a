"""``cir data``: exit codes and sentences, and Ctrl-C in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest
from fakes.site import Site, picture, say

from cir_lightning import __version__
from cir_lightning.cli import main
from cir_lightning.data_cli import COMMANDS
from cir_lightning.data_download import NAMES

if TYPE_CHECKING:
    from pathlib import Path

JPG = picture()


def listed(site: Site, root: Path, *pictures: str) -> None:
    """Write a list of links as Fashion-IQ's are."""
    (root / "image_url").mkdir(parents=True)
    lines = [f"{name} \t {site.address}/{name}.jpg\n" for name in pictures]
    (root / "image_url" / "asin2url.dress.txt").write_text("".join(lines))


def test_the_whole_way(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data" / "fashioniq"
    listed(site, root, "a", "b", "c")
    site.answers = {"/a.jpg": [say(JPG)], "/b.jpg": [say(JPG)]}
    command = ["data", "download", "fashioniq", "--rate", "1000"]
    assert main(command) == 1
    assert capsys.readouterr().out.splitlines() == [
        "3 pictures: 0 were there, 2 fetched, 1 dead, 0 failed",
        "       1 dead: HTTP 404",
        "Dead links stand in data/fashioniq/dead_links.tsv and are tried again with --retry-dead only.",
        "Ask the data set's authors or colleagues for their pictures, and put them into data/fashioniq/images.",
    ]
    site.answers["/c.jpg"] = [say(JPG)]
    assert main(command) == 1
    assert main([*command, "--retry-dead"]) == 0
    assert "3 pictures: 2 were there, 1 fetched, 0 dead, 0 failed" in capsys.readouterr().out
    assert site.agents == {f"cir-lightning/{__version__}"}


def test_lists_from_elsewhere_and_failures(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    listed(site, tmp_path / "lists", "a")
    site.answers["/a.jpg"] = [say(status=500)]
    links = tmp_path / "lists" / "image_url"
    options = ["--root", str(tmp_path / "new"), "--links", str(links), "--retries", "0"]
    assert main(["data", "download", "fashioniq", *options]) == 1
    out = capsys.readouterr().out
    assert "1 failed: HTTP 500" in out
    assert "The same command tries the failed ones again." in out


def test_ctrl_c_leaves_no_half_file_and_the_next_run_goes_on(site: Site, tmp_path: Path):
    listed(site, tmp_path, "a", "b")
    site.answers = {"/a.jpg": [say(JPG)], "/b.jpg": [site.hang, say(JPG)]}
    command = [sys.executable, "-m", "cir_lightning.cli", "data", "download", "fashioniq", "--root", str(tmp_path)]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background processes ignore Ctrl-C
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    assert site.seen["/b.jpg"].wait(30)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert error.endswith("cir: stopped; the same command goes on\n")
    assert {path.name for path in (tmp_path / "images").iterdir()} <= {"a.jpg"}
    assert main(command[3:]) == 0
    assert site.asked["/b.jpg"] == 2


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fashioniq"])
def test_other_benchmarks_say_where_their_pictures_are(name: str, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "download", name, "--root", "/my/folder"]) == 0
    out = capsys.readouterr().out
    assert "{" not in out
    assert name == "emoji" or "/my/folder" in out
    assert name in {"emoji", "triplets"} or "https://" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["get"], f"unknown command 'data get'; commands are {', '.join(f'data {command}' for command in COMMANDS)}"),
        (["download"], "the following arguments are required: NAME; cir data download --help shows what there is"),
        (["download", "fasioniq"], f"unknown benchmark 'fasioniq'; there are {', '.join(NAMES)}"),
        (["download", "fashioniq", "--rate", "0"], "argument --rate: '0' is not a number from 0.01 to 1000; cir data download --help"),
        (["download", "fashioniq", "--rate", "nan"], "argument --rate: 'nan' is not a number"),
        (["download", "fashioniq", "--jobs", "2.5"], "argument --jobs: '2.5' is not a whole number from 1 to 64"),
        (["download", "fashioniq", "--retr", "2"], "unrecognized arguments: --retr 2"),
        (
            ["download", "fashioniq", "--root", "/nowhere"],
            "cannot read /nowhere/image_url (No such file or directory); get Fashion-IQ's lists",
        ),
    ],
)
def test_mistakes(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    assert main(["data", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"cir: {sentence}")
    assert error.count("\n") == 1


def test_downloading_needs_no_torch():
    code = "import sys, data_modules.download, cir_lightning.data_download; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "lightning", "transformers", "numpy"} & set(modules)


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]):
    assert main(["data"]) == 0
    bare = capsys.readouterr().out
    assert main(["data", "--help"]) == 0
    assert capsys.readouterr().out == bare
    assert all(f"cir data {command} " in bare for command in COMMANDS)


def test_help_is_light():
    code = "import sys; from cir_lightning.cli import main\ntry: main(sys.argv[1:])\nfinally: print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code, "data", "download", "--help"], capture_output=True, text=True, check=False)
    *text, modules = run.stdout.splitlines()
    assert run.returncode == 0
    assert text[0].startswith("usage: cir data download")
    assert not {"torch", "PIL", "tqdm"} & set(modules.split())
