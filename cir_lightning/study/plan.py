"""What a study is: a YAML file with a base, arms that lay overlays over it, and seeds. Light: no torch.

Example::

    about: Does a pool of prompts help?
    configs: [emoji.yaml]          # the base: recipes, files, or keys written here
    seeds: [0, 1, 2]
    reference: pool                # the arm that others are compared with
    headline: [emoji/seen R@1]     # figures that are shown first; by default all that there are
    arms:
      pool: []                     # the base itself
      none:
        - model: {encoder: {init_args: {soft_prompt: {class_path: cir_lightning.prompt_pool.NoPrompt}}}}
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cir_lightning.cli import recipe_folder
from cir_lightning.yaml_text import parse
from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS = {"about", "configs", "seeds", "reference", "headline", "arms"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
OF_THE_MACHINE = {"trainer.default_root_dir"}  # keys that say where a run is and not what it is
LONGEST = 60  # characters of a value in a message

Config = str | dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        name: of the file, without its ending.
        about: the question.
        configs: the base.
        seeds: of the runs of every arm.
        reference: name of the arm that others are compared with.
        headline: figures that are shown first, such as ``emoji/seen R@1``.
        arms: name -> overlays.
    """

    name: str
    about: str
    configs: tuple[Config, ...]
    seeds: tuple[int, ...]
    reference: str
    headline: tuple[str, ...]
    arms: dict[str, tuple[Config, ...]]

    def of(self, arm: str) -> tuple[Config, ...]:
        """The configs of an arm, one over the other."""
        return self.configs + self.arms[arm]

    def content(self, arm: str) -> dict[str, Any]:
        """Everything that the configs of an arm say, by dotted key; what stands later wins."""
        merged: dict[str, Any] = {}
        for config in self.of(arm):
            merged |= flat(content_of(config))
        return {key: value for key, value in merged.items() if key not in OF_THE_MACHINE}

    @property
    def tasks(self) -> list[tuple[str, int]]:
        """Arm and seed of every run; all arms of one seed, then of the next, so that what is done first can be compared."""
        return [(arm, seed) for seed in self.seeds for arm in self.arms]


def names() -> list[str]:
    """The studies that come with the package."""
    return sorted(path.stem for path in (recipe_folder() / "studies").glob("*.yaml"))


def read(name: str) -> Study:
    """Read a study, and check all that can be checked without the model.

    Args:
        name: of one that comes with the package, or a file.

    Raises:
        UserError: there is none, or something in it is wrong; it says what and where.
    """
    path = next((one for one in (Path(name), recipe_folder() / "studies" / f"{name.removesuffix('.yaml')}.yaml") if one.is_file()), None)
    if path is None:
        raise UserError(f"study {name}: no such file, and no study of that name; there are {', '.join(names())}")
    given = _mapping(path)
    study = _study(path, given)
    for arm in study.arms:
        study.content(arm)
    _differ(path, study)
    return study


def _study(path: Path, given: dict[str, Any]) -> Study:
    if unknown := given.keys() - KEYS:
        raise UserError(f"study {path}: unknown key {min(unknown)!r}; keys are {', '.join(sorted(KEYS))}")
    arms = given.get("arms")
    if not isinstance(arms, dict) or not arms:
        raise UserError(f"study {path}: arms={_short(arms)}; name at least one, each with a list of overlays")
    for arm in arms:
        if not NAME.fullmatch(str(arm)):
            raise UserError(f"study {path}: the arm {arm!r} is no name for a folder; use letters, digits, dots, dashes and underscores")
    reference = str(given.get("reference", next(iter(arms))))
    if reference not in map(str, arms):
        raise UserError(f"study {path}: reference={reference!r} is none of its arms; they are {', '.join(map(str, arms))}")
    headline = given.get("headline") or []
    if not isinstance(headline, list) or not all(isinstance(figure, str) for figure in headline):
        raise UserError(f"study {path}: headline={_short(headline)} is no list of figures, such as [emoji/seen R@1]")
    return Study(
        name=path.stem,
        about=str(given.get("about", "")),
        configs=_configs(path, "configs", given.get("configs"), least=1),
        seeds=_seeds(path, given.get("seeds", [0])),
        reference=reference,
        headline=tuple(headline),
        arms={str(arm): _configs(path, f"arms.{arm}", overlays) for arm, overlays in arms.items()},
    )


def _seeds(path: Path, seeds: Any) -> tuple[int, ...]:
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds):
        raise UserError(f"study {path}: seeds={_short(seeds)} is no list of whole numbers from 0 to {2**32 - 1}, such as [0, 1, 2]")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"study {path}: seeds={seeds} has one twice; a run is repeated to the last digit with the same seed")
    return tuple(seeds)


def _configs(path: Path, key: str, listed: Any, least: int = 0) -> tuple[Config, ...]:
    """A list of config files and of keys written in place; the files are there."""
    if not isinstance(listed, list) or len(listed) < least or not all(isinstance(one, str | dict) for one in listed):
        raise UserError(f"study {path}: {key}={_short(listed)} is no list of configs; each is a file, a recipe or keys")
    for one in listed:
        if isinstance(one, str) and not find(one):
            raise UserError(f"study {path}: {key}: {one}: no such file, and no recipe of that name")
    return tuple(listed)


def find(config: str) -> Path | None:
    """A config as given, or the recipe of that name."""
    return next((path for path in (Path(config), recipe_folder() / config) if path.is_file()), None)


def content_of(config: Config) -> dict[str, Any]:
    """The keys of a config.

    Raises:
        UserError: the file holds none.
    """
    if isinstance(config, dict):
        return config
    return _mapping(find(config) or Path(config))


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]}); mend the file") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no keys")
    return content


def _differ(path: Path, study: Study) -> None:
    """Refuse arms that are the same run."""
    seen: dict[str, str] = {}
    for arm in study.arms:
        mark = identity(study, arm)
        if mark in seen:
            one, other = seen[mark], arm
            raise UserError(f"study {path}: the overlays of the arm {other!r} change nothing against {one!r}; mend them, or take one out")
        seen[mark] = arm


def flat(content: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones.

    >>> flat({"a": {"b": 1, "c": {}}, "d": [2]})
    {'a.b': 1, 'a.c': {}, 'd': [2]}
    """
    out: dict[str, Any] = {}
    for key, value in content.items():
        out |= flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {f"{above}{key}": value}
    return out


def identity(study: Study, arm: str) -> str:
    """Equal for arms, of any study, whose configs say the same; comments, files' names and the run's folder do not count."""
    text = json.dumps(study.content(arm), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(one: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    """What two contents do not share, in words."""
    for key in sorted(one.keys() | other.keys()):
        if one.get(key) != other.get(key):
            yield f"{key} is {_short(one.get(key))} there and {_short(other.get(key))} here"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
