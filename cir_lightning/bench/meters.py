"""What is measured at stages: time, multiplications, tokens, memory; each stage's own, without the stages within it.

Everything is read at the moments when a stage begins or ends, and what has come together since the last such moment belongs to the
innermost stage. So the stages and what none of them claims (``other``) are together exactly the whole.
"""

from __future__ import annotations

import operator
import time
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import record_function
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from cir_lightning.chunks import give_memory_back
from data_modules.stages import BACKWARD, observed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cir_lightning.encoder import Encoder

    Reading = tuple[float, ...]

OTHER = "other"
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_ATEN = torch.ops.aten
_ON_CPU = {  # which torch's counter leaves out
    _ATEN._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),  # type: ignore[no-untyped-call]
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g, q, k, v),  # type: ignore[no-untyped-call]
}


class Ledger:
    """Keeps an account for every stage.

    A backward pass replays the chunks of a gradient cache, in other threads on a GPU: their stages belong to it and are not told apart.

    Args:
        lap: what has come together since it was called last.
        combine: adds a reading to an account.

    Attributes:
        accounts: stage -> what it took.
    """

    def __init__(self, lap: Callable[[], Reading], combine: Callable[[float, float], float] = operator.add) -> None:
        self._lap, self._combine = lap, combine
        self.accounts: dict[str, Reading] = {}
        self._stack: list[str] = []

    def enter(self, name: str) -> None:
        """See :class:`data_modules.stages.Observer`."""
        if BACKWARD not in self._stack:
            self._book()
        self._stack.append(name)

    def leave(self) -> None:
        """See :class:`data_modules.stages.Observer`."""
        if BACKWARD not in self._stack[:-1]:
            self._book()
        self._stack.pop()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Keep accounts of what runs within."""
        self.accounts, self._stack = {}, []
        self._lap()
        with observed(self):
            yield
            self._book()

    def _book(self) -> None:
        name, reading = self._stack[-1] if self._stack else OTHER, self._lap()
        before = self.accounts.get(name)
        self.accounts[name] = reading if before is None else tuple(map(self._combine, before, reading))


class Ranges:
    """Shows the stages under their names in a trace of torch's profiler."""

    def __init__(self) -> None:
        self._open: list[record_function] = []

    def enter(self, name: str) -> None:
        """See :class:`data_modules.stages.Observer`."""
        self._open.append(record_function(name))
        self._open[-1].__enter__()  # type: ignore[no-untyped-call]

    def leave(self) -> None:
        """See :class:`data_modules.stages.Observer`."""
        self._open.pop().__exit__(None, None, None)


class Clock:
    """Seconds, after everything that a GPU was told to do is done."""

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self._waits = device.type != "cpu"
        self._now, self._last = now, 0.0

    def lap(self) -> tuple[float]:
        """Seconds since the last lap."""
        if self._waits:
            torch.accelerator.synchronize()
        before, self._last = self._last, self._now()
        return (self._last - before,)


class _Whole(nullcontext[None]):
    """In the place of torch's tracker of modules, whose hooks fail without gradients where parameters want them (torch 2.13)."""

    parents = frozenset({"Global"})


class Counter:
    """FLOPs, and tokens through the language model: real ones, and all that are computed, padding included.

    A multiplication with its addition counts 2. Only products and convolutions count; kernels of bitsandbytes are not known to torch's
    counter. What is compiled runs uncompiled while it is counted.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder: Any = encoder
        self._last: Reading = (0.0, 0.0, 0.0)
        self._real = self._computed = 0

    @contextmanager
    def open(self) -> Iterator[None]:
        """Count what runs within."""
        fast = torch.backends.mha.get_fastpath_enabled()  # a kernel of its own that torch's counter does not know
        with ExitStack() as stack:
            stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
            torch.backends.mha.set_fastpath_enabled(False)
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            if torch.is_inference_mode_enabled():  # the counter would take products apart where autocast does not see them (torch 2.13)
                stack.enter_context(torch.inference_mode(mode=False))
                stack.enter_context(torch.no_grad())
            self._watch_tokens(stack)
            self._flops = FlopCounterMode(display=False, custom_mapping=_ON_CPU)
            self._flops.mod_tracker = _Whole()  # type: ignore[assignment]
            stack.enter_context(self._flops)
            yield

    def lap(self) -> Reading:
        """FLOPs, real tokens and computed tokens since the last lap."""
        now = float(self._flops.get_total_flops()), float(self._real), float(self._computed)
        before, self._last = self._last, now
        return tuple(map(operator.sub, now, before))

    def _watch_tokens(self, stack: ExitStack) -> None:
        backbone = self._encoder.backbone
        if (llm := getattr(backbone, "llm", None)) is None:
            stack.callback(backbone["text"].register_forward_pre_hook(self._see_text, with_kwargs=True).remove)
            return
        stack.callback(llm.register_forward_pre_hook(self._see_llm, with_kwargs=True).remove)
        read = backbone.read

        def counted(embeds: torch.Tensor, mask: torch.Tensor, *others: Any) -> torch.Tensor:
            self._real += int(mask.sum())
            hidden: torch.Tensor = read(embeds, mask, *others)
            return hidden

        stack.callback(delattr, backbone, "read")
        backbone.read = counted

    def _see_llm(self, _: Any, __: tuple[Any, ...], named: dict[str, Any]) -> None:
        embeds = named.get("inputs_embeds")
        rows, length = (named["input_ids"] if embeds is None else embeds).shape[:2]
        self._computed += rows * length

    def _see_text(self, _: Any, __: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._real += int(named["attention_mask"].sum())
        self._computed += named["input_ids"].numel()


class Peak:
    """Largest memory since the last lap: what torch has allocated on a GPU, else what of the process is resident (Linux only).

    Attributes:
        held: bytes before.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        give_memory_back()
        self.held = float(torch.cuda.memory_allocated()) if self._cuda else _resident("VmRSS")

    @staticmethod
    def readable(device: torch.device) -> bool:
        """Whether this machine tells."""
        if device.type == "cuda":
            return True
        try:
            _CLEAR.write_text("5")
        except OSError:
            return False
        return device.type == "cpu"

    def lap(self) -> tuple[float]:
        """Bytes above what was held before."""
        if self._cuda:
            peak = float(torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()
        else:
            peak = _resident("VmHWM")
            give_memory_back()  # else what was freed would count in every later stage
            _CLEAR.write_text("5")  # the peak is now what is resident
        return (max(0.0, peak - self.held),)


def _resident(key: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024.0 * int(line.split()[1])
