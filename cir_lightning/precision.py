"""What ``trainer.precision`` may be, and where it costs more than it saves."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from data_modules.errors import UserError

BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86 and of ARM


def check_precision(precision: str, device: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Refuse what would spoil training, and warn of what would slow it down.

    Args:
        precision: as Lightning's trainer has it.
        device: the type of the device that is trained on.
        cpuinfo: where Linux says what its processors can do.

    Raises:
        UserError: all weights would be of 16 bits.
    """
    if precision.endswith("-true") and precision != "32-true":
        raise UserError(
            f"trainer.precision={precision!r} would round the trained float32 weights at every step, so that small updates are lost; "
            "use bf16-mixed"
        )
    if precision.startswith("bf16") and device == "cpu" and has_bf16(cpuinfo) is False:
        rank_zero_warn(
            f"trainer.precision={precision}: these processors have no bf16 units (avx512_bf16, amx_bf16) and are up to 100 times slower in "
            "it; set trainer.precision to 32-true"
        )


def has_bf16(cpuinfo: Path) -> bool | None:
    """Whether the processors multiply bfloat16 themselves; None where nobody says so."""
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return None
    flags = [line.partition(":")[2].split() for line in text.splitlines() if line.lower().startswith(("flags", "features"))]
    return any(BF16_FLAGS & set(words) for words in flags) if flags else None
