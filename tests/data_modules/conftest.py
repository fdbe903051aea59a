"""The embedded benchmark, drawn small, once per test session; the real annotation files of the others, where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_modules.emoji import EmojiCIR

SIZE = 40  # pixels: small pictures are drawn quickly


@pytest.fixture(scope="session")
def emoji_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all pictures of EmojiCIR at ``SIZE``."""
    root = tmp_path_factory.mktemp("emoji")
    EmojiCIR(str(root), SIZE).prepare_data()
    return root


@pytest.fixture(scope="session")
def emoji(emoji_root: Path) -> EmojiCIR:
    """The benchmark with its default rules, set up."""
    data = EmojiCIR(str(emoji_root), SIZE)
    data.setup()
    return data


@pytest.fixture(scope="session")
def annotations() -> Path:
    """The folder of the benchmarks' real annotation files, which are not in this repository."""
    folder = Path(os.environ.get("CIR_ANNOTATIONS") or Path(__file__).parents[3] / "shared" / "annotations")
    if not folder.is_dir():
        pytest.skip(f"no real annotation files in {folder}; put them there, or name their folder in the variable CIR_ANNOTATIONS")
    return folder
