"""Accelerators that ``cir estimate`` knows."""

from __future__ import annotations

from typing import NamedTuple


class GPU(NamedTuple):
    """An accelerator.

    Attributes:
        name: on the command line.
        memory: GiB that the driver shows.
        bf16: peak of dense bf16 multiplications that are summed in float32, TFLOP/s.
        float32: peak without tensor cores, TFLOP/s.
        source: of the peaks.
    """

    name: str
    memory: float
    bf16: float
    float32: float
    source: str


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("h100-80", 79.6, 989.4, 66.9, "NVIDIA H100 data sheet, SXM5; the 1,979 printed there is with sparsity"),
        GPU("h200-141", 140.4, 989.4, 66.9, "NVIDIA H200 data sheet, SXM; the 1,979 printed there is with sparsity"),
        GPU("a100-40", 40.0, 312.0, 19.5, "NVIDIA A100 data sheet"),
        GPU("a100-80", 80.0, 312.0, 19.5, "NVIDIA A100 data sheet"),
        GPU("a6000-48", 48.0, 154.8, 38.7, "NVIDIA RTX A6000 data sheet, 309.7 with sparsity; GA102 white paper"),
        GPU("rtx4090-24", 24.0, 165.2, 82.6, "NVIDIA Ada white paper, appendix A: 330.3 with sparsity"),
        GPU("cpu-2", 24.0, 0.002, 0.072, "measured, CONTRIBUTING.md: 2 cores, 36 GFLOP/s each in float32, 1 in bf16 without units for it"),
    )
}
