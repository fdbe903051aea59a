from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fakes.circo import write_circo
from fakes.cirr import write_cirr

from data_modules.circo import CIRCO
from data_modules.cirr import CIRR
from data_modules.errors import UserError
from data_modules.missing import UNREADABLE
from data_modules.records import Benchmark, Picture, Triplet
from data_modules.zeroshot import with_triplets

if TYPE_CHECKING:
    from data_modules.base import CIRDataModule


def pictures(*names: str) -> tuple[Picture, ...]:
    return tuple(Picture(name, Path(name), name) for name in names)


OWN = Benchmark(pictures("a", "b"), (), (), ())
OTHER = Benchmark(pictures("b", "c", "d"), (Triplet("c", "darker", "d"),), (), (), skipped_triplets=3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with both data sets."""
    write_cirr(tmp_path / "cirr")
    write_circo(tmp_path / "circo")
    return tmp_path


def circo(root: Path, train: CIRDataModule | None = None, **options: Any) -> CIRCO:
    return CIRCO(str(root / "circo"), train, **{"batch_size": 6, **options})


def test_only_what_the_triplets_need_is_added():
    both = with_triplets(OWN, OTHER)
    assert both == replace(OWN, pictures=pictures("a", "b", "c", "d"), triplets=OTHER.triplets, skipped_triplets=3)


def test_clashing_names_are_refused():
    with pytest.raises(UserError, match=r"data\.train has a picture 'b', and so has the benchmark itself \(1 such names\)"):
        with_triplets(OWN, replace(OTHER, triplets=(Triplet("b", "darker", "d"),)))


def test_a_training_set_has_triplets(root: Path):
    with pytest.raises(UserError, match=r"data\.train has no training triplets itself"):
        circo(root, circo(root)).setup("test")


def test_training_is_that_of_the_other_and_evaluation_its_own(root: Path):
    data = circo(root, CIRR(str(root / "cirr")))
    data.prepare_data()
    data.setup("fit")
    assert data.triplets == CIRR(str(root / "cirr")).read().triplets
    assert {data.pictures[at].path.parts[-4] for at in data.train_pictures()} == {"img_raw"}
    assert {one.name for split in ("val", "test", "predict") for one in data.evaluation_sets(split)} == {"circo"}
    assert len(data.pictures) == 56 + 24
    assert len(next(iter(data.train_dataloader())).captions) == 6


def test_fit_needs_a_training_set_and_nothing_else_does(root: Path):
    data = circo(root)
    with pytest.raises(UserError, match=r"CIRCO is a zero-shot benchmark without training triplets; name the data set to train on"):
        data.setup("fit")
    for stage in ("validate", "test", "predict"):
        data.setup(stage)
    assert data.train_pictures() == []


def test_what_the_training_set_lacks_is_said_of_it(root: Path):
    shutil.rmtree(root / "cirr" / "img_raw" / "train" / "0")
    data = circo(root, CIRR(str(root / "cirr")))
    data.setup("fit")
    with pytest.raises(UserError, match=r"6 of 24 picture files .* cir data check cirr --root .*/cirr, "):
        data.require_pictures(range(len(data.pictures)))
    shutil.rmtree(root / "cirr" / "captions")
    with pytest.raises(UserError, match=r"data\.train: cirr: no file 'captions/cap\.rc2\.train\.json' .*set --data\.train\.root to"):
        circo(root, CIRR(str(root / "cirr"))).setup("fit")


def test_missing_pictures_of_both_are_left_out_and_counted(root: Path):
    (root / "cirr" / "img_raw" / "train" / "1" / "train-1-0-img0.png").unlink()
    broken = "img_raw/train/2/train-2-1-img0.png"
    (root / "cirr" / broken).write_bytes(b"")
    (root / "cirr" / UNREADABLE).write_text(f"{broken}\tempty\n")
    (root / "circo" / "COCO2017_unlabeled" / "unlabeled2017" / "000000271520.jpg").unlink()  # the reference of the first queries
    data = circo(root, CIRR(str(root / "cirr")), missing="skip")
    data.setup("fit")
    data.require_pictures(range(len(data.pictures)))
    assert data.benchmark.skipped_triplets == 36 - len(data.triplets) > 0
    (val,) = data.evaluation_sets("val")
    assert (val.skipped_queries, val.skipped_pictures) == (1, 1)
