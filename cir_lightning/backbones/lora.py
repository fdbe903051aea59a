"""Low-rank adapters on a frozen language model (LoRA, arXiv 2106.09685), through peft."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class LoRA:
    """Where and how large the adapters are.

    Attributes:
        rank: inner width r.
        alpha: the update is scaled by alpha / r.
        dropout: on the adapters' input.
        rslora: scale the update by alpha / sqrt(r) instead (rsLoRA, arXiv 2312.03732).
        dora: train the magnitude of each weight's columns apart (DoRA, arXiv 2402.09353).
        targets: names of the linear layers that get an adapter; the default is attention and MLP of a Llama-like model.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def config(self) -> Any:
        """As peft has it, a ``LoraConfig``; jsonargparse would import what is named in this signature, which takes two seconds."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            use_dora=self.dora,
            target_modules=list(self.targets),
        )

    def add_to(self, llm: nn.Module) -> None:
        """Freeze ``llm`` and put trainable float32 adapters on it, in place.

        Raises:
            UserError: a number out of its range, no target, or a target name that no linear layer of the model has.
        """
        from peft import inject_adapter_in_model  # here, so that a config with LoRA can be read without peft

        if self.rank < 1 or self.alpha < 1:
            raise UserError(f"lora.rank={self.rank} and lora.alpha={self.alpha}: both must be at least 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout={self.dropout} is no share; set 0 up to, but not including, 1")
        if not self.targets:
            raise UserError("lora.targets is empty; name linear layers, such as q_proj, or set lora to null")
        llm.requires_grad_(requires_grad=False)
        names = {name.rsplit(".", 1)[-1] for name, part in llm.named_modules() if isinstance(part, nn.Linear)}
        if missing := [target for target in self.targets if target.rsplit(".", 1)[-1] not in names]:
            raise UserError(f"lora.targets={list(self.targets)}: {missing[0]!r} matches no linear layer; this model has {sorted(names)}")
        inject_adapter_in_model(self.config(), llm)
        for name, parameter in llm.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()


def check_over(lora: LoRA | None, quantisation: str) -> None:
    """Refuse adapters that cannot be trained over a packed base.

    Raises:
        UserError: DoRA over 8 bits.
    """
    if lora is not None and lora.dora and quantisation == "int8":
        raise UserError("lora.dora does not work over quantisation='int8'; use nf4, or set dora to false")


def adapt(llm: nn.Module, lora: LoRA | None, *, gradient_checkpointing: bool) -> None:
    """Freeze a language model, with adapters or without, and make it ready to be trained through.

    transformers loads models in evaluation mode, where they checkpoint nothing and drop nothing out, and Lightning leaves them in it.
    """
    llm.requires_grad_(requires_grad=False).train()
    if gradient_checkpointing:  # transformers renamed the method in 5.23 and drops the old name in 6
        enable: Any = getattr(llm, "activation_checkpointing_enable", None) or llm.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if lora is not None:
        lora.add_to(llm)


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Let a model compute what it would without its adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [part for part in model.modules() if isinstance(part, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)
