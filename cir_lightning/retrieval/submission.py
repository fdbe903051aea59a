"""Files for the test servers: written from a ranking, and checked against every rule of the servers as they lie on disk.

Shapes: Nq queries, n pictures of a ranked list.

Source:
    CIRR: the servers' page (https://github.com/Cuberick-Orion/CIRR/blob/main/Test-split_server.md): version, metric, 50 or 3 names for each
    pair id, 5 MB at most; that the reference is not among the names and that the 3 are members: its example files.
    CIRCO: https://github.com/miccunifi/CIRCO, README, "Submission Format" and ``src/evaluation.py``: all queries, 50 image ids, none twice.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from cir_lightning.storage import replace_file
from data_modules.errors import UserError
from data_modules.json_text import parse

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from cir_lightning.retrieval.ranking import Ranking
    from data_modules.records import EvaluationSet, Query, Submission


def require_possible(evaluation: EvaluationSet, length: int) -> None:
    """Refuse what no ranking can mend, so that it can be refused before anything is encoded.

    Args:
        evaluation: a set with a test server.
        length: n, of the ranked lists.

    Raises:
        UserError: the lists are too short, or queries were skipped.
    """
    wanted = _wanted(evaluation)
    if length < wanted.names:
        raise UserError(
            f"{wanted.file}: the test server wants {wanted.names} names for each query of {evaluation.name}, the ranked lists have "
            f"{length}; set --model.top to {wanted.names} or more, and see that the gallery has more pictures than that"
        )
    if evaluation.skipped_queries:
        raise UserError(
            f"{wanted.file}: {evaluation.skipped_queries} queries of {evaluation.name} were skipped because pictures are missing, but the "
            "test server wants every query; get the pictures"
        )


def write(ranking: Ranking, evaluation: EvaluationSet, folder: Path) -> Path:
    """Write the file that the test server of an evaluation set wants.

    Args:
        ranking: its ``top`` (Nq, n) are gallery indices, best first.
        evaluation: a set with a test server.
        folder: where the file goes, under its own name.

    Returns:
        The file.

    Raises:
        UserError: see :func:`require_possible`.
    """
    require_possible(evaluation, ranking.top.shape[1])
    wanted = _wanted(evaluation)
    names = _as_written(evaluation.gallery, wanted)
    lists = {
        query.id: [names[i] for i in top] for query, top in zip(evaluation.queries, ranking.top[:, : wanted.names].tolist(), strict=True)
    }
    path = folder / wanted.file
    text = json.dumps({**dict(wanted.header), **lists})
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))
    return path


def check(path: Path, evaluation: EvaluationSet) -> None:
    """Read a file back and hold it against every rule of the test server.

    Args:
        path: the file, wherever it was made.
        evaluation: the set that it answers.

    Raises:
        UserError: the first rule that is broken, with the file, the query id and the value.
    """
    wanted = _wanted(evaluation)
    content = _read(path, wanted)
    for key, value in wanted.header:
        if (found := content.pop(key, None)) != value:
            raise UserError(f"{path}: the key {key!r} is {'missing' if found is None else repr(found)}; the test server wants {value!r}")
    ids = {query.id: query for query in evaluation.queries}
    if missing := [name for name in ids if name not in content]:
        raise UserError(f"{path}: query {missing[0]!r} is missing ({len(missing)} of {len(ids)} are); the test server wants every query")
    if unknown := [key for key in content if key not in ids]:
        raise UserError(f"{path}: {unknown[0]!r} is no query of {evaluation.name} ({len(unknown)} such keys); take it out")
    gallery = set(_as_written(evaluation.gallery, wanted))
    for key, names in content.items():
        _check_list(names, wanted, f"{path}, query {key!r}")
        _check_candidates(names, ids[key], evaluation, gallery, f"{path}, query {key!r}")


def _check_list(names: Any, wanted: Submission, where: str) -> None:
    if not isinstance(names, list) or len(names) != wanted.names:
        found = f"{len(names)} names" if isinstance(names, list) else f"{names!r} instead of a list"
        raise UserError(f"{where}: {found}; the test server wants {wanted.names} names, best first")
    kind = int if wanted.integers else str
    if wrong := [name for name in names if type(name) is not kind]:
        kinds = "integers" if wanted.integers else "strings"
        raise UserError(f"{where}: {wrong[0]!r} is of the wrong type; the test server wants {kinds}")
    if len(set(names)) < len(names):
        twice = next(name for at, name in enumerate(names) if name in names[:at])
        raise UserError(f"{where}: {twice!r} comes twice; the test server refuses duplicates")


def _check_candidates(names: list[Any], query: Query, evaluation: EvaluationSet, gallery: set[Any], where: str) -> None:
    wanted = _wanted(evaluation)
    if outside := [name for name in names if name not in gallery]:
        raise UserError(f"{where}: {outside[0]!r} is not in the gallery of {evaluation.name}; name its pictures only")
    if evaluation.remove_reference and (reference := _as_written([query.reference], wanted)[0]) in names:
        raise UserError(f"{where}: {reference!r} is its own reference image; the protocol takes that out of the ranking")
    members = _as_written(query.members, wanted)
    if evaluation.members_only and (outside := [name for name in names if name not in members]):
        raise UserError(f"{where}: {outside[0]!r} is not among its members; the test server wants these ranked alone")


def _wanted(evaluation: EvaluationSet) -> Submission:
    if evaluation.submission is None:
        raise ValueError(f"evaluation set {evaluation.name!r} has no test server")
    return evaluation.submission


def _as_written(names: Iterable[str], wanted: Submission) -> list[Any]:
    return [int(name) for name in names] if wanted.integers else list(names)


def _read(path: Path, wanted: Submission) -> dict[str, Any]:
    try:
        if (size := path.stat().st_size) > wanted.max_bytes:
            raise UserError(f"{path}: {size:,} bytes; the test server takes {wanted.max_bytes:,} at most")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); write it again") from error
    content = parse(text, path, "write it again")
    if not isinstance(content, dict):
        raise UserError(f"{path}: a JSON {type(content).__name__} instead of an object of query id -> names; write it again")
    return content
