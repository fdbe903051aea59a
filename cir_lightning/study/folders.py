"""The folder of a run of a study: ``<root>/<study>/<arm>/seed-<n>``, with a record of what it belongs to. Light: no torch."""

from __future__ import annotations

import fcntl
import json
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from cir_lightning.study.plan import differences, identity
from data_modules.errors import UserError
from data_modules.folders import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cir_lightning.study.plan import Study

RECORD, LOG, LOCK = "study.json", "log.txt", "running.lock"
TAIL = 4096  # bytes of a log in which the last progress is looked for
PROGRESS = re.compile(r"Training: +\d+%\|.*?\| +(\d+)/(\d+) \[")
DONE, RUNNING, STOPPED, FAILED, NOT_BEGUN = "done", "running", "stopped", "failed", "not begun"


class Run(NamedTuple):
    """One run.

    Attributes:
        study: it belongs to this one.
        arm: of the study.
        seed: of everything random.
        folder: the run folder.
    """

    study: Study
    arm: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.arm} seed {self.seed}"

    @property
    def mark(self) -> str:
        """Equal for the same run in any study."""
        return f"{identity(self.study, self.arm)}-{self.seed}"

    @property
    def results(self) -> Path | None:
        """What ``cir test`` wrote; of benchmarks whose test answers are secret, what it wrote of val."""
        found = (self.folder / split / "results.json" for split in ("test", "val"))
        return next((path for path in found if path.is_file()), None)

    def record(self) -> dict[str, Any]:
        """What was noted; empty if nothing was.

        Raises:
            UserError: the file is damaged, or the folder's run is another one.
        """
        path = self.folder / RECORD
        if not path.is_file():
            if (self.folder / "checkpoints").is_dir():
                raise UserError(f"{self.folder} holds a run that belongs to no study; move it, or name another --root")
            return {}
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            mark, config = found["mark"], found["config"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: is damaged ({error!r:.80}); remove the folder, its run is then done again") from error
        if mark != self.mark:
            here = self.study.content(self.arm) | {"seed": self.seed}
            what = next(differences(config, here), "nothing that can be shown")
            raise UserError(
                f"{self.folder} holds a run of another config: {what}; move or remove the folder, give the study another name, or name "
                "another --root"
            )
        return found

    def note(self, **facts: Any) -> None:
        """Add facts to the record."""
        own = {"study": self.study.name, "arm": self.arm, "seed": self.seed, "mark": self.mark}
        own["config"] = self.study.content(self.arm) | {"seed": self.seed}
        text = json.dumps(own | self.record() | facts, indent=1, default=str) + "\n"
        replace_file(self.folder / RECORD, lambda part: part.write_text(text, encoding="utf-8"))

    def add_seconds(self, command: str, seconds: float) -> None:
        """Note how long ``fit`` or ``test`` took, over all its starts."""
        before = self.record().get("seconds", {})
        self.note(seconds=before | {command: before.get(command, 0.0) + seconds})

    def state(self) -> str:
        """One of the states above.

        Raises:
            UserError: as :meth:`record`.
        """
        found = self.record()
        if found.get("done"):
            return DONE
        if found and self._held():
            return RUNNING
        if found.get("error"):
            return FAILED
        return STOPPED if found else NOT_BEGUN

    def _held(self) -> bool:
        with self.lock() as free:
            return free is None

    @contextmanager
    def lock(self) -> Iterator[int | None]:
        """Hold the run; gives a file descriptor, which a child process that inherits it holds on, or None if another process has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield file.fileno()

    def progress(self) -> tuple[int, int] | None:
        """Steps done, and steps of the run, as its progress bar said last; None if it has not said so yet."""
        try:
            with (self.folder / LOG).open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - TAIL))
                found = PROGRESS.findall(file.read().decode(errors="replace"))
        except OSError:
            return None
        return (int(found[-1][0]), int(found[-1][1])) if found else None

    def complaint(self) -> str:
        """The last line of its log that says something."""
        text = (self.folder / LOG).read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip() and not PROGRESS.search(line)]
        return lines[-1][:300] if lines else "it said nothing"


def runs_of(study: Study, root: Path) -> list[Run]:
    """All runs of a study, in the order in which they are done."""
    return [Run(study, arm, seed, root / study.name / arm / f"seed-{seed}") for arm, seed in study.tasks]


def same_elsewhere(run: Run, root: Path) -> Path | None:
    """The folder of a finished run that is the same, of this study or of another."""
    for path in sorted(root.glob(f"*/*/seed-{run.seed}/{RECORD}")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if found.get("mark") == run.mark and found.get("done") and path.parent != run.folder:
            return path.parent.resolve()
    return None
