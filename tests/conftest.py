"""Settings of all tests: one thread, no network, ``fakes`` importable, nothing written outside temporary folders."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["CIR_TRUST"] = "fakes"  # whose classes the configs in the tests' checkpoints name
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))  # for subprocesses
sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fakes.site import Site


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder into which the mini LVLM's real weights were converted, which takes seconds: for tests that only read them.

    Converted in the way of ``cir estimate`` on a fresh machine: on the meta device, which must not touch the conversion.
    """
    import torch

    from cir_lightning.backbones.mini import language_model_folder

    folder = tmp_path_factory.mktemp("converted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIR_CACHE", str(folder))
        with torch.device("meta"):
            language_model_folder()
    return folder


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A web site on this machine."""
    from fakes.site import serve

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve() as at_work:
        yield at_work
