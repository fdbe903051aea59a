"""The embedded benchmark, drawn small, once per test session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from data_modules.emoji import EmojiCIR

if TYPE_CHECKING:
    from pathlib import Path

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
