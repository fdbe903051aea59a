"""Checkpoints rewritten tensor by tensor: bounded memory, resumable, verified, and no code of a checkpoint executed.

A source file is mapped into memory, not read, one at a time; a written file gets one tensor after the other. So the memory that a
conversion needs is at most that of one source file, most of it pages that the system may take back at any time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from pickle import UnpicklingError
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from cir_lightning.storage import replace_file
from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

PROGRESS = "progress.json"  # of an unfinished conversion: the source and the SHA-256 of every finished file
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin")
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}  # in safetensors files
BLOCK = 1 << 24  # bytes, or numbers, that are read at a time


class Piece(NamedTuple):
    """Where a tensor comes from.

    Attributes:
        shape: of the tensor.
        source: name of the source tensor.
        part: which one of ``parts`` equal blocks of the source's rows.
        parts: 1 for the whole.
    """

    shape: tuple[int, ...]
    source: str
    part: int = 0
    parts: int = 1

    @property
    def source_shape(self) -> tuple[int, ...]:
        """Shape of the source tensor."""
        return (self.shape[0] * self.parts, *self.shape[1:])


class Source:
    """The tensors of a checkpoint folder in Hugging Face's layout, of safetensors files or else of pickles opened with ``weights_only``.

    Args:
        folder: holds an index and shards, or a single file.

    Attributes:
        files: the weights files.
        about: dtype and shape of every tensor.

    Raises:
        UserError: a file is missing, unreadable or holds anything but tensors, or a tensor is there twice or is not of floats.
    """

    def __init__(self, folder: Path) -> None:
        self.index, self.files = _weights_files(folder)
        self.about: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        self._where: dict[str, Path] = {}
        self._open: tuple[Path, dict[str, Tensor]] | None = None
        for file in self.files:
            for name, tensor in self._tensors(file).items():
                if name in self._where:
                    raise UserError(f"{file}: tensor {name} is in {self._where[name].name}, too; download the checkpoint again")
                if tensor.dtype not in NAMES:
                    raise UserError(f"{file}: tensor {name} is {tensor.dtype}; convert the checkpoint that is not quantised")
                self._where[name], self.about[name] = file, (tensor.dtype, tuple(tensor.shape))

    def read(self, piece: Piece) -> Tensor:
        """A tensor, mapped.

        Raises:
            UserError: a number in it is none.
        """
        file = self._where[piece.source]
        tensor = self._tensors(file)[piece.source].chunk(piece.parts)[piece.part]
        if not all(bool(part.isfinite().all()) for part in tensor.flatten().split(BLOCK)):  # type: ignore[no-untyped-call]
            raise UserError(f"{file}: tensor {piece.source} holds NaN or infinite numbers; download the checkpoint again")
        return tensor

    def _tensors(self, file: Path) -> dict[str, Tensor]:
        if self._open is None or self._open[0] != file:
            self._open = None  # unmaps the one before
            self._open = (file, _map(file))
        return self._open[1]

    def digest(self, *more: Path) -> str:
        """What tells this source from another: contents of the index and of further small files; names, sizes and times of the rest."""
        parts = [file.read_bytes() for file in (*self.index, *more)]
        stats = [(file.name, file.stat()) for file in self.files]
        parts.append(json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]).encode())
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _weights_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The index, if there is one, and the weights files."""
    for index, single in zip(INDICES, SINGLES, strict=True):
        if (folder / index).is_file():
            return [folder / index], _listed(folder / index)
        if (folder / single).is_file():
            return [], [folder / single]
    raise UserError(f"{folder} holds no {', '.join((*INDICES, *SINGLES))}; give the folder into which the checkpoint was downloaded")


def _listed(index: Path) -> list[Path]:
    try:
        files = [index.with_name(name) for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of weights files; download it again") from error
    if not files:
        raise UserError(f"{index} is no index of weights files, as it names none; download it again")
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{index.parent} lacks {len(missing)} of {len(files)} weights files, first {missing[0]}; download them")
    return files


def _map(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise UserError(
            f"{file} holds more than tensors and is not opened, since that could run its code; get a safetensors copy"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read: it is cut off, damaged or from before torch 1.6; download it again") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"{file} is no table of tensors; give the folder of a model's weights")
    return {name: tensor.detach() for name, tensor in state.items()}


def check_source(source: Source, pieces: Iterable[Piece]) -> None:
    """Hold the source against what is expected.

    Raises:
        UserError: a tensor is missing, has another shape or is one too many; the first of each kind is named.
    """
    expected = {piece.source: piece.source_shape for piece in pieces}
    found = {name: shape for name, (_, shape) in source.about.items()}
    wrong = [
        f"{name} is {found[name]} instead of {expected[name]}" for name in expected if found.get(name, expected[name]) != expected[name]
    ]
    differences = {"missing": sorted(set(expected) - set(found)), "unknown": sorted(set(found) - set(expected)), "of another shape": wrong}
    if any(differences.values()):
        parts = [f"{len(names)} {kind}, first {names[0]}" for kind, names in differences.items() if names]
        where = source.files[0].parent
        raise UserError(f"the tensors in {where} do not fit its config.json ({'; '.join(parts)}); download config and weights together")


def byte_size(source: Source, piece: Piece) -> int:
    """Bytes that a tensor takes."""
    return math.prod(piece.shape) * source.about[piece.source][0].itemsize


def write_tensors(path: Path, source: Source, pieces: Mapping[str, Piece], wrote: Callable[[int], object]) -> str:
    """Write a safetensors file tensor by tensor; the library's own writer would need all of them in memory.

    Args:
        path: of the file.
        source: of the tensors.
        pieces: name in the file -> where it comes from.
        wrote: called with numbers of bytes, for a progress bar.

    Returns:
        The file's SHA-256.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, piece in pieces.items():
        start, end = end, end + byte_size(source, piece)
        header[name] = {"dtype": NAMES[source.about[piece.source][0]], "shape": piece.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as out:
        for block in _blocks(text, (source.read(piece) for piece in pieces.values())):
            out.write(block)
            digest.update(block)
            wrote(len(block))
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _blocks(header: bytes, tensors: Iterable[Tensor]) -> Iterator[bytes | memoryview]:
    yield len(header).to_bytes(8, "little")
    yield header
    for tensor in tensors:
        yield tensor.contiguous().flatten().view(torch.uint8).numpy().data


def checksum(path: Path, read: Callable[[int], object] | None = None) -> str | None:
    """SHA-256 of a file, None if there is none; ``read`` is called with numbers of bytes, for a progress bar."""
    if not path.is_file():
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            if read is not None:
                read(len(block))
    return digest.hexdigest()


def check_written(folder: Path, source: Source, plan: Mapping[str, Mapping[str, Piece]]) -> None:
    """Hold the headers of the written files against the plan: every tensor once, nothing else, right shapes and dtypes.

    Raises:
        UserError: a file differs.
    """
    for name, pieces in plan.items():
        expected = {tensor: (NAMES[source.about[piece.source][0]], piece.shape) for tensor, piece in pieces.items()}
        with safe_open(folder / name, framework="pt") as file:
            slices = {tensor: file.get_slice(tensor) for tensor in file.keys()}  # noqa: SIM118 - no mapping
            found = {tensor: (part.get_dtype(), tuple(part.get_shape())) for tensor, part in slices.items()}
        if found != expected:
            raise UserError(f"{folder / name} is not as it was written; remove {folder} and convert again")


def read_record(folder: Path, final: str) -> dict[str, object]:
    """What an earlier run said of its source and finished files, in ``final`` or PROGRESS; empty if there is neither.

    Raises:
        UserError: the folder holds something else.
    """
    for file in (folder / PROGRESS, folder / final):
        if file.is_file():
            try:
                record = json.loads(file.read_text())
                return {"source": str(record["source"]), "files": dict(record["files"])}
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{file} was not written by cir convert; choose another folder") from error
    if strangers := sorted(p.name for p in folder.glob("*") if not p.name.startswith(".")):
        raise UserError(f"{folder} is not empty (it holds {strangers[0]}) and was not made by cir convert; choose another folder")
    return {}


def write_json(path: Path, content: object) -> None:
    """Write a JSON file whole or not at all."""
    replace_file(path, lambda part: part.write_text(json.dumps(content, indent=2) + "\n"))
