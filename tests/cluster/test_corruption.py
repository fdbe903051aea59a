"""More than a thousand damaged files: each is refused by name, does no harm, or is read as it is. Nothing is lost without a word."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
import yaml
from fakes import counts
from fakes.circo import write_circo
from fakes.cirr import write_cirr
from fakes.corruption import DAMAGES, LOST, Tally, damage, same
from fakes.fashioniq import write_fashioniq
from fakes.genecis import write_genecis
from fakes.runs import write_recipe
from fakes.shoes import write_shoes
from fakes.tiny import COLOURS, SHAPES, TinyTower, draw
from fakes.triplets import write_jsonl, write_triplets
from PIL import Image
from torch import Tensor

from cir_lightning import cache, cache_hashes, load
from cir_lightning.cache import FeatureCache
from cir_lightning.cache_claims import claim, live_claims
from cir_lightning.checkpoint import read_checkpoint, usable_checkpoint
from cir_lightning.cli import main
from cir_lightning.exported import ADAPTER, CONFIG, MODULES, read_exported
from cir_lightning.lightning_cli import run
from cir_lightning.retrieval.report import Report, Row, read, write
from data_modules.circo import CIRCO
from data_modules.cirr import CIRR
from data_modules.errors import UserError
from data_modules.fashioniq import FashionIQ
from data_modules.genecis import GeneCIS
from data_modules.links import DeadLinks, read_links
from data_modules.pixels import PixelReader
from data_modules.records import Picture
from data_modules.shoes import Shoes
from data_modules.triplets import Triplets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from data_modules.base import CIRDataModule


@pytest.fixture(scope="module")
def tally() -> Tally:
    """What all tests of this file together have found."""
    return Tally()


def unequal(whole: Any) -> Callable[[Any, str], str]:
    """What is wrong with everything but this."""
    return lambda found, _: "" if same(found, whole) else "wrong: other content"


def fed(tally: Tally, *arguments: Any) -> None:
    """Feed damaged files; nothing must have gone wrong."""
    before = len(tally.failures)
    tally.feed(*arguments)
    assert len(tally.failures) == before, "\n".join(tally.failures[before:])


# ---- pictures ------------------------------------------------------------------------------------------------------------------

SIDE = 48
FORMATS: dict[str, dict[str, Any]] = {
    "plain.png": {},
    "palette.png": {"transparency": 0},
    "turned.jpg": {"exif": "Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".encode("latin-1")},
    "progressive.jpg": {"progressive": True},
    "lossy.webp": {},
    "lossless.webp": {"lossless": True},
    "one.gif": {},
    "plain.bmp": {},
    "packed.tiff": {"compression": "tiff_adobe_deflate"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_pictures(tally: Tally, tmp_path: Path, name: str):
    """Other pixels may come out of a format without checksums, as JPEG, but not of a PNG, nor of a file that was cut off."""
    grey = Image.effect_mandelbrot((SIDE, SIDE), (-2, -1, 1, 1), 20)
    image = Image.merge("RGB", [grey, grey.rotate(90), grey.rotate(180)])
    path = tmp_path / name
    (image.quantize(16) if name.startswith("palette") else image).save(path, **FORMATS[name])
    reader = PixelReader([Picture(name, path, name)], SIDE, "squash")
    whole = reader(torch.tensor([0]))

    def judge(found: Tensor, kind: str) -> str:
        exact = path.suffix == ".png" or kind in LOST
        return "wrong: other pixels" if exact and not torch.equal(found, whole) else ""

    fed(tally, "pictures", path, 45, lambda: reader(torch.tensor([0])), judge)


# ---- annotations ---------------------------------------------------------------------------------------------------------------


def count(data: CIRDataModule) -> dict[str, int]:
    """What a data module has made of its files."""
    read = data.benchmark
    sets = {f"{split} {one.name}": one for split, group in (("val", read.val), ("hidden", read.hidden)) for one in group}
    return {
        "triplets": len(read.triplets),
        **{f"{name} queries": len(one.queries) for name, one in sets.items()},
        **{f"{name} gallery": len(one.gallery) for name, one in sets.items()},
        **{f"{name} answers": sum(len(query.targets) for query in one.queries) for name, one in sets.items()},
        **{f"{name} members": sum(len(query.members) for query in one.queries) for name, one in sets.items()},
    }


class Bench(NamedTuple):
    """A benchmark: what writes it, what reads it, what its files say, the files, and how many damages each of them gets."""

    write: Callable[[Path], object]
    make: Callable[[str], CIRDataModule]
    says: Callable[[Path], dict[str, int]]
    files: str
    damages: int


BENCHES = {
    "fashioniq": Bench(write_fashioniq, FashionIQ, counts.fashioniq, "*/*.json", 5),
    "cirr": Bench(write_cirr, CIRR, counts.cirr, "*/*.rc2.*.json", 14),
    "circo": Bench(write_circo, CIRCO, counts.circo, "**/annotations/*.json", 27),
    "genecis": Bench(write_genecis, GeneCIS, counts.genecis, "genecis/*.json", 21),
    "shoes": Bench(write_shoes, Shoes, counts.shoes, "*s*.[jt]*", 27),
}


@pytest.mark.parametrize("name", BENCHES)
def test_annotations(tally: Tally, tmp_path: Path, name: str):
    """There is no checksum: a changed letter is read as it is. But there are as many records and names as the file has."""
    bench = BENCHES[name]
    bench.write(tmp_path)
    files = sorted(tmp_path.glob(bench.files))

    def read() -> dict[str, int]:
        data = bench.make(str(tmp_path))
        data.setup()
        return count(data)

    def judge(found: dict[str, int], _: str) -> str:
        less = {what: (number, found.get(what, 0)) for what, number in bench.says(tmp_path).items() if found.get(what, 0) != number}
        return f"silent drop: {less}" if less else ""

    assert judge(read(), "") == ""
    for path in files:
        fed(tally, "annotations", path, bench.damages, read, judge, *(file.name for file in files))


@pytest.mark.parametrize(("write", "file"), [(write_triplets, "triplets.csv"), (write_jsonl, "triplets.jsonl")])
def test_triplets(tally: Tally, tmp_path: Path, write: Callable[[Path], None], file: str):
    """Every row is a training triplet or a query."""
    root = tmp_path / "mine"
    write(root)

    def read() -> int:
        data = Triplets(str(root))
        data.setup()
        return len(data.triplets) + sum(len(one.queries) for split in ("val", "test") for one in data.evaluation_sets(split))

    def judge(found: int, _: str) -> str:
        return "" if found == counts.rows_of(root / file) else f"silent drop: {counts.rows_of(root / file)} rows, {found} read"

    assert read() == 280
    fed(tally, "annotations", root / file, 60, read, judge)


def test_lists_of_links(tally: Tally, tmp_path: Path):
    """Those that pictures are fetched from, and those that are dead."""
    names = [f"B00{at:05}" for at in range(40)]
    lists, dead = tmp_path / "asin2url.dress.txt", tmp_path / "dead.tsv"
    lists.write_text("".join(f"{name} \t http://example.org/{name}.jpg\n" for name in names))
    DeadLinks(dead).add(dict.fromkeys(read_links([lists])[:30], "404"))

    def lines(path: Path) -> list[str]:
        return [line for line in path.read_text("utf-8-sig").split("\n") if line.strip()]

    def judge(found: int, _: str) -> str:
        return "" if found == len({line.split()[0] for line in lines(lists)}) else f"silent drop: {found} links read"

    def judge_dead(found: int, _: str) -> str:
        return "" if found == len({tuple(line.split("\t")[:2]) for line in lines(dead)[1:]}) else f"silent drop: {found} links read"

    assert len(read_links([lists])) == 40
    fed(tally, "annotations", lists, 30, lambda: len(read_links([lists])), judge)
    fed(tally, "annotations", dead, 30, lambda: len(DeadLinks(dead)._rows), judge_dead)


def test_results(tally: Tally, tmp_path: Path):
    """The JSON that ``cir test`` writes, and that tables of other runs are made of."""
    rows = [Row(f"method {at}", "tiny/colour", {f"R@{k}": 100 / (k + at) for k in (1, 5, 10, 50)}, 20, 40, 0, "f") for at in range(5)]
    path = write(Report("TinyCIR", "test", "best.ckpt", "0.1.0", "", 0, tuple(rows), ()), tmp_path)["results.json"]

    def judge(found: Report, _: str) -> str:
        objects: list[list[tuple[str, Any]]] = []
        json.loads(path.read_text(), object_pairs_hook=lambda pairs: objects.append(pairs) or dict(pairs))
        figures = [pairs for pairs in objects if pairs and all(isinstance(value, int | float) for _, value in pairs)]
        lost = sum(map(len, figures)) - sum(len(row.figures) for row in found.rows) or len(figures) - len(found.rows)
        return f"silent drop: {lost} figures or rows" if lost else ""

    assert judge(read(path), "") == ""
    fed(tally, "annotations", path, 40, lambda: read(path), judge)


# ---- caches --------------------------------------------------------------------------------------------------------------------


def test_caches(tally: Tally, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Whatever is damaged, the features are those of the pictures; and after it was found, it is mended for good."""
    monkeypatch.setattr(cache, "SHARD", 3)
    monkeypatch.setattr(cache_hashes, "SETTLED", 0)
    pictures = [Picture(colour, tmp_path / f"{colour}.png", colour) for colour in COLOURS]
    for picture, shape in zip(pictures, SHAPES * 2, strict=False):
        draw(picture.path, picture.name, shape)
    time.sleep(0.02)
    folder, work = tmp_path / "cache", tmp_path / "work"
    whole = FeatureCache(TinyTower(), folder=folder).open(pictures)[:]
    damaged = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    assert [path.suffix for path in damaged] == [".json", *[".safetensors"] * 3]

    def read_twice() -> list[tuple[bool, int, str]]:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(folder, work)
        found = []
        for tower in (TinyTower(), TinyTower()):
            features = FeatureCache(tower, folder=work).open(pictures)[:]
            found.append((torch.equal(features, whole), tower.seen, capsys.readouterr().out))
        return found

    def judge(found: list[tuple[bool, int, str]], _: str) -> str:
        (right, *_), (still, again, said) = found
        return "" if right and still and not again and not said else f"wrong: right {right}, then {still}, {again} encoded again, {said}"

    for path in damaged:
        fed(tally, "caches", path, 50, read_twice, judge)
    mine = claim(folder, 7, [picture.name for picture in pictures])
    fed(tally, "caches", mine.path, 20, lambda: live_claims(folder), lambda _found, _kind: "")
    mine.give_back()


# ---- checkpoints ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a recipe, what it has trained in ``run``, and the export of that in ``exported``."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIR_CACHE", str(folder / "cache"))
        assert main(["fit", "--config", str(write_recipe(folder)), "--trainer.enable_progress_bar", "false"]) == 0
        assert main(["export", str(folder / "run"), str(folder / "exported")]) == 0
        yield folder


def test_checkpoints(tally: Tally, trained: Path, tmp_path: Path):
    """A checksum is of every tensor and of the rest: what is read is what was written."""
    for name in ("best.ckpt", "last.ckpt"):
        path = trained / "run" / "checkpoints" / name
        whole = read_checkpoint(Path(shutil.copy(path, tmp_path)))  # tensors are mapped into memory
        fed(tally, "checkpoints", path, 60, lambda path=path: read_checkpoint(path), unequal(whole))


def test_the_checkpoint_before(tally: Tally, trained: Path, capsys: pytest.CaptureFixture[str]):
    """In the place of a damaged last one, and not without a word."""
    last = trained / "run" / "checkpoints" / "last.ckpt"
    before = last.with_name("previous.ckpt")
    whole = read_checkpoint(shutil.copy(last, before))

    def read_usable() -> tuple[str, str, Any]:
        path = usable_checkpoint(last)
        return path.name, capsys.readouterr().out, read_checkpoint(path)

    def judge(found: tuple[str, str, Any], _: str) -> str:
        name, said, content = found
        fell_back = name == before.name and str(last) in said and str(before) in said
        return "" if same(content, whole) and (fell_back or (name == last.name and not said)) else f"wrong: {name}, {said}"

    fed(tally, "checkpoints", last, 40, read_usable, judge)
    before.unlink()


def test_exports(tally: Tally, trained: Path):
    """Tensors are checked; of a config that is still one, the weights must fit what it describes, and come out the same."""
    folder = trained / "exported"
    state, tower, config = read_exported(folder)
    for name in (MODULES, ADAPTER):
        fed(tally, "checkpoints", folder / name, 50, lambda: read_exported(folder), unequal((state, tower, config)))
    weights = trained_weights(folder)
    fed(tally, "checkpoints", folder / CONFIG, 40, lambda: trained_weights(folder), unequal(weights), CONFIG, str(folder))


def trained_weights(folder: Path) -> dict[str, Tensor]:
    """Of an exported model."""
    return {name: weight for name, weight in load(folder).encoder.named_parameters() if weight.requires_grad}


# ---- configs -------------------------------------------------------------------------------------------------------------------


def test_configs(tally: Tally, trained: Path, capsys: pytest.CaptureFixture[str]):
    """Every key of the file is in what comes of it."""
    path = trained / "tiny.yaml"

    def read_config() -> str:
        run(["fit", "--config", str(path), "--print_config"])
        return capsys.readouterr().out

    def judge(found: str, _: str) -> str:
        asked, there = Counter(counts.keys_of(yaml.compose(path.read_text()))), Counter(counts.keys_of(yaml.compose(found)))
        return f"silent drop: {asked - there}" if asked - there else ""

    assert judge(read_config(), "") == ""
    fed(tally, "configs", path, 40, read_config, judge)


# ---- the command line ----------------------------------------------------------------------------------------------------------


def test_the_command_line(tally: Tally, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Leaves with 2 and one sentence, or does what it was asked to."""
    write_triplets(tmp_path / "mine")
    recipe, last = str(trained / "tiny.yaml"), str(trained / "run" / "checkpoints" / "last.ckpt")
    (shard,) = trained.glob("cache/features/tiny-*/*.safetensors")
    commands = (
        (tmp_path / "mine" / "triplets.csv", 5, ["data", "check", "triplets", "--root", str(tmp_path / "mine"), "--fast"]),
        (trained / "tiny.yaml", 5, ["fit", "--config", recipe, "--print_config"]),
        (Path(last), 5, ["fit", "--ckpt_path", last, "--print_config"]),
        (trained / "exported" / MODULES, 5, ["export", str(trained / "exported"), str(tmp_path / "again")]),
        (shard, 5, ["cache", "info"]),
        (trained / "pictures" / "red-bar.png", 3, ["fit", "--config", recipe, "--trainer.default_root_dir", str(tmp_path / "again")]),
    )

    def judge(code: int, _: str) -> str:
        return "" if code in {0, 1} else f"wrong: exit code {code}"  # 1: cir data check has listed a picture that is not there

    for path, number, command in commands:

        def type_it(command: list[str] = command) -> int:
            shutil.rmtree(tmp_path / "again", ignore_errors=True)
            code = main(command)
            sentences = [line for line in capsys.readouterr().err.splitlines() if line]
            if code == 2 and len(sentences) == 1 and sentences[0].startswith("cir: "):
                raise UserError(sentences[0])
            return code

        fed(tally, "command line", path, number, type_it, judge)


# ---- the figures ---------------------------------------------------------------------------------------------------------------


def test_what_goes_wrong_is_counted(tmp_path: Path):
    """Readers that lose, hang, stumble, mistake and do not say which file."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"0123456789" * 20)

    def refuse() -> None:
        raise UserError("something is wrong")

    readers = {
        "silent drop": lambda: "silent drop: a line",
        "hang": lambda: time.sleep(5),
        "traceback": lambda: [][1],
        "wrong": lambda: "wrong: content",
        "unnamed": refuse,
    }
    for name, reader in readers.items():
        tally = Tally(limit=0.05)
        tally.feed("mine", path, 2, reader, lambda found, _: found)
        assert tally.outcomes == {("mine", name): 2}
        assert all(failure.startswith("mine, seed 'a.txt ") and name in failure for failure in tally.failures)
        assert path.read_bytes() == b"0123456789" * 20


def test_damage_follows_from_the_seed_and_does_something():
    content = Random(0).randbytes(2000)
    for kind in DAMAGES:
        once, again = (damage(content, kind, Random("seed")) for _ in range(2))
        assert once == again != content
        assert (len(once) < len(content)) is (kind in LOST)


def test_all_together(tally: Tally, report: Callable[[str], None]):
    """The line to keep; the tests above say what was wrong, where."""
    report(str(tally))
    assert set(tally.inputs) == {"pictures", "annotations", "caches", "checkpoints", "configs", "command line"}
    assert tally.inputs.total() >= 1000
    assert str(tally).endswith(": 0 silent drops, 0 hangs, 0 tracebacks, 0 wrong or unnamed")
