"""``cir cache``: what is there, and what goes."""

import json
import os
import time

import pytest
import torch
from fakes.runs import write_recipe
from fakes.tiny import COLOURS, TinyTower, draw

from cir_lightning import cache_hashes
from cir_lightning.cache import FeatureCache
from cir_lightning.cache_claims import claim
from cir_lightning.cli import main
from data_modules.images import TRANSFORM_VERSION
from data_modules.records import Picture

NAMES = [f"{key}-letterbox-{TRANSFORM_VERSION}" for key in ("other", "tiny")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Eight pictures in the caches of two towers."""
    monkeypatch.setenv("CIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache_hashes, "SETTLED", 0)
    (tmp_path / "pictures").mkdir()
    paths = [tmp_path / "pictures" / f"{colour}.png" for colour in COLOURS]
    for path in paths:
        draw(path, path.stem, "square")
    time.sleep(0.02)
    for key in ("tiny", "other"):
        tower = TinyTower()
        tower.key = key
        FeatureCache(tower).open([Picture(path.stem, path, path.stem) for path in paths])
    return tmp_path / "cache" / "features"


def said(capsys, *arguments):
    assert main(["cache", *arguments]) == 0
    return capsys.readouterr().out


def shard(folder, name):
    (path,) = (folder / name).glob("*.safetensors")
    return path


def test_info(folder, capsys):
    os.utime(folder / NAMES[0] / "used", (1, 86_400 * 365))
    other, tiny = ((folder / name, shard(folder, name).stat().st_size) for name in NAMES)
    assert said(capsys, "info").splitlines() == [
        f"{folder}: 0.0 MB of patch features",
        f"  {other[0].name}",
        "    8 pictures, 0.0 MB, 4 x 24 F16, last used 1971-01-01",
        f"  {tiny[0].name}",
        f"    8 pictures, 0.0 MB, 4 x 24 F16, last used {time.strftime('%Y-%m-%d', time.gmtime())}",
    ]


def test_nothing_there_yet(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CIR_CACHE", str(tmp_path))
    assert said(capsys, "info") == f"{tmp_path / 'features'}: 0.0 MB of patch features\n"
    assert said(capsys, "prune") == "freed 0.0 MB\n"


def test_prune_removes_what_is_of_no_use(folder, capsys):
    damaged, half = shard(folder, NAMES[0]), folder / NAMES[1] / ".00001-abc.safetensors.77"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    half.write_bytes(b"half")
    size = damaged.stat().st_size
    lines = [
        f"{NAMES[0]}/{damaged.name}: it has {size:,} bytes, not {size + 1:,}",
        f"{NAMES[1]}/{half.name}: half written by a process that was killed",
    ]
    assert said(capsys, "prune", "--dry_run").splitlines() == [*lines, "would free 0.0 MB"]
    assert damaged.exists()
    assert half.exists()
    assert said(capsys, "prune").splitlines() == [*lines, "freed 0.0 MB"]
    assert not damaged.exists()
    assert not half.exists()
    assert shard(folder, NAMES[1])


def test_prune_what_was_not_used_for_days(folder, capsys):
    os.utime(folder / NAMES[0] / "used", (1, time.time() - 86_400 * 10))
    assert said(capsys, "prune", "--unused_for", "11") == "freed 0.0 MB\n"
    assert said(capsys, "prune", "--unused_for", "9").startswith(f"{NAMES[0]}: all of 8 pictures\n")
    assert [path.name for path in folder.iterdir() if path.is_dir() and path.name != "hashes"] == [NAMES[1]]


def test_prune_some_or_everything(folder, capsys):
    assert said(capsys, "prune", "--only", "oth*", "--all").startswith(f"{NAMES[0]}: all of 8 pictures\n")
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["hashes", NAMES[1]]
    said(capsys, "prune", "--all")
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["hashes"]


def test_hashes_of_folders_that_are_gone(folder, capsys, tmp_path):
    (memory,) = (folder / "hashes").iterdir()
    said(capsys, "prune")
    assert memory.exists()
    (tmp_path / "pictures").rename(tmp_path / "elsewhere")
    assert f"hashes/{memory.name}: of a folder of pictures that is not there any more" in said(capsys, "prune")
    assert not memory.exists()
    memory.write_text(json.dumps({"folder": str(tmp_path), "files": {}, "check": 7}))
    assert f"hashes/{memory.name}: damaged" in said(capsys, "prune")
    assert not memory.exists()


def test_a_folder_that_is_being_filled_is_left_alone(folder, capsys):
    mine = claim(folder / NAMES[0], 1, ["abc"])
    assert f"{NAMES[0]}: left alone, as a process is filling it" in said(capsys, "prune", "--all")
    assert shard(folder, NAMES[0])
    mine.give_back()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fill"], "unknown command 'cache fill'; commands are cache build, cache info, cache prune"),
        (["prune", "--only", "x*"], "--only 'x*' fits no folder of "),
        (["prune", "--unused_for", "-1"], "--unused_for=-1.0 is not possible; give a number of days, 0 or more"),
        (["prune", "--everything"], "unrecognized arguments: --everything; cir cache prune --help shows what there is"),
        (["build", "--config", "emoji.yaml", "--device", "cuda:99"], "--device cuda:99 is not there ("),
    ],
)
def test_bad_options(folder, capsys, arguments, sentence):
    assert main(["cache", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_build_makes_what_fit_needs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CIR_CACHE", str(tmp_path / "cache"))
    recipe = write_recipe(tmp_path)
    out = said(capsys, "build", "--config", str(recipe))
    assert "40 pictures of tiny are in" in out
    seen = []
    monkeypatch.setattr(TinyTower, "forward", lambda _, pixels: seen.append(len(pixels)) or torch.zeros(len(pixels), 4, 24).half())
    assert "40 pictures of tiny are in" in said(capsys, "build", "--config", str(recipe))
    assert not seen
