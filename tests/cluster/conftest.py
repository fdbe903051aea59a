"""A real Slurm for all tests of this folder, and the figures that they print at the end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from fakes.cluster import Cluster, impossible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes; a machine that can't have them fails."""
    if why := impossible():
        pytest.fail(why, pytrace=False)
    folder = tmp_path_factory.mktemp("cluster")
    os.environ["CIR_CACHE"] = str(folder / "cache")
    with Cluster(folder) as slurm:
        yield slurm


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Takes a line that is printed at the end."""
    return request.config.stash.setdefault(FIGURES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the figures."""
    for line in config.stash.get(FIGURES, []):
        terminalreporter.write_line(line)
