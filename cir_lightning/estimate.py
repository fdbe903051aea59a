"""What a training step costs, by arithmetic on modules that need not have memory: the formulas of ``cir estimate``.

Everything is of one process, that is one GPU. Units: bytes, tokens, FLOPs (a multiplication with its addition counts 2).

Shapes: B triplets, L tokens of a sequence, D width of the LLM, A width of its attention (heads x width of a head), I inner width of its
MLP.

How far the formulas are held against measurement on the CPU: FLOPs and saved bytes of tiny models of ten families and of the mini LVLM, see
the tests. Peak memory of a GPU is unrun.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from cir_lightning.backbones.base import layers_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cir_lightning.encoder import Encoder

ABSMAX_BYTES, BLOCK = 4, 64  # bitsandbytes keeps a float32 scale for each 64 weights of 4 bits, and for each row of 8 bits
ATTENTION_BACKWARD = 2.5  # of the forward pass: 5 products instead of 2, as the scores are computed again


class Parameters(NamedTuple):
    """Numbers of a part of the model.

    Attributes:
        total: parameters.
        trainable: those of them that are trained.
        bytes: what they take in memory; buffers are negligible and left out.
    """

    total: int
    trainable: int
    bytes: float


class Pass(NamedTuple):
    """One pass of the LLM in a training step.

    Attributes:
        sequences: B, how many are read at once.
        length: L, tokens of each.
    """

    sequences: int
    length: int

    @property
    def tokens(self) -> int:
        """In all sequences."""
        return self.sequences * self.length


@dataclass(frozen=True)
class Precision:
    """How numbers are kept.

    Attributes:
        weights: bytes of a frozen floating-point weight.
        autocast: whether the trainer casts to 16 bits (``bf16-mixed``).
    """

    weights: int = 4
    autocast: bool = False

    @property
    def activations(self) -> int:
        """Bytes of a number between the LLM's layers' multiplications."""
        return 2 if self.autocast else self.weights


# ---- parameters ----------------------------------------------------------------------------------------------------------------


def parts_of(encoder: Encoder) -> dict[str, list[nn.Parameter]]:
    """The parameters of a built encoder by part; each is counted once, where it first appears.

    The parts of a backbone are its LLM, the adapters and the vision tower (with all else that the checkpoint has); those of the encoder are
    its children: Connector, soft prompt, projection and so on.
    """
    parts: dict[str, list[nn.Parameter]] = {}
    llm = getattr(getattr(encoder, "backbone", None), "llm", None)
    own = {id(parameter) for parameter in llm.parameters()} if llm is not None else set()
    for name, parameter in encoder.named_parameters():
        part = name.split(".")[0]
        if part in {"backbone", "tower", "vision"}:
            part = "LLM" if id(parameter) in own else "vision tower and projector"
            part = "text encoder" if llm is None and name.startswith("backbone") else part
        parts.setdefault("adapters" if "lora_" in name else part, []).append(parameter)
    return parts


def count(parameters: Iterable[nn.Parameter], quantised: set[int], quantisation: str) -> Parameters:
    """Numbers of some parameters.

    Args:
        parameters: of one part.
        quantised: ``id`` of those that bitsandbytes packs.
        quantisation: how: ``nf4`` takes half a byte and a 64th of a float32 scale, ``int8`` a byte and a scale for each row.
    """
    total = trainable = 0
    size = 0.0
    for parameter in parameters:
        number = parameter.numel()
        total += number
        trainable += number * parameter.requires_grad
        size += packed_bytes(parameter, quantisation) if id(parameter) in quantised else number * parameter.element_size()
    return Parameters(total, trainable, size)


def packed_bytes(weight: Tensor, quantisation: str) -> float:
    """Bytes of a (rows, columns) weight that bitsandbytes has packed."""
    if quantisation == "int8":
        return weight.numel() + ABSMAX_BYTES * weight.shape[0]
    return weight.numel() / 2 + ABSMAX_BYTES * -(-weight.numel() // BLOCK)


def quantised_weights(llm: nn.Module | None, quantisation: str) -> set[int]:
    """``id`` of the weights that bitsandbytes packs: those of the LLM's linear layers, not of adapters, embeddings and norms."""
    if llm is None or quantisation == "none":
        return set()
    return {id(part.weight) for name, part in llm.named_modules() if isinstance(part, nn.Linear) and "lora_" not in name}


def optimizer_bytes(trainable: int, *, processes: int, autocast: bool) -> dict[str, float]:
    """Bytes that training adds for each float32 parameter that is trained.

    Gradients 4; AdamW's two moments 8; DDP's buckets, where there are several processes, 4; autocast's copies in 16 bits 2.
    """
    return {
        "gradients": 4.0 * trainable,
        "optimizer (AdamW)": 8.0 * trainable,
        "DDP buckets": 4.0 * trainable * (processes > 1),
        "autocast copies": 2.0 * trainable * autocast,
    }


# ---- the layers of the LLM -----------------------------------------------------------------------------------------------------


class Linear(NamedTuple):
    """A linear layer within a transformer layer.

    Attributes:
        inputs: its width.
        outputs: its width.
        rank: of its adapter; 0 without.
        dropout: whether the adapter's input is dropped out.
    """

    inputs: int
    outputs: int
    rank: int
    dropout: bool

    @property
    def weights(self) -> int:
        """Frozen weights."""
        return self.inputs * self.outputs

    @property
    def adapter_weights(self) -> int:
        """Trained weights."""
        return self.rank * (self.inputs + self.outputs)


def blocks_of(layer: nn.Module) -> Iterator[list[Linear]]:
    """The linear layers of a transformer layer with what LoRA put on them, block by block: those of attention, those of the MLP.

    All of a block read the same input but its last one, which ends the block.
    """
    children = list(layer.children())
    if found := [_linear(child) for child in children if _is_linear(child)]:
        yield found
    for child in children:
        if not _is_linear(child):
            yield from blocks_of(child)


def _is_linear(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear) or hasattr(part, "base_layer")


def _linear(part: Any) -> Linear:
    base, rank = getattr(part, "base_layer", part), sum(one.out_features for one in getattr(part, "lora_A", {}).values())
    dropped = any(not isinstance(one, nn.Identity) for one in getattr(part, "lora_dropout", {}).values())
    return Linear(base.in_features, base.out_features, rank, dropped)


def adapter_bytes(block: list[Linear], attention: int, precision: Precision) -> float:
    """Bytes for each token that the adapters of a block keep for their own gradients: their inputs, and their first matrices' outputs.

    In float32 throughout, the linear layers of a block share their input, and the last of attention has attention's output, which is
    kept anyway. Under autocast, and over a 16-bit base, each makes a copy in its own format. Dropout keeps a mask and its output, each.
    """
    own = 2 if precision.autocast else 4
    shared = not precision.autocast and precision.weights == own
    *first, last = block
    total = sum(own * one.rank + one.dropout * one.inputs * (1 + own) for one in block if one.rank)
    copies = [one.inputs for one in first if one.rank and not one.dropout]
    total += own * (max(copies, default=0) if shared else sum(copies))
    ends = last.rank and not last.dropout and not (shared and last.inputs == attention)
    return total + (own * last.inputs if ends else 0)


def layer_bytes(layer: nn.Module, config: Any, length: int, precision: Precision) -> float:
    """Bytes for each token that a layer keeps for the backward pass, its weights being frozen: the *activations*.

    With b bytes a number, in the sum:

    * norms: their input in float32, 4 D each; those of queries and keys 4 A and as much as the keys are wide;
    * attention without a matrix of scores: queries, keys, values, output 4 A b; a float32 for each head; a row of the mask L b;
    * MLP: 3 I b with a gate (the gate, its activation, what it is multiplied with), I b without;
    * adapters: :func:`adapter_bytes`.
    """
    attention, b = attention_width(config), precision.activations
    heads = {"q_norm": config.num_attention_heads, "k_norm": getattr(config, "num_key_value_heads", None) or config.num_attention_heads}
    norms = sum(4 * part.weight.numel() * heads.get(name.split(".")[-1], 1) for name, part in norms_of(layer))  # type: ignore[operator]
    blocks = list(blocks_of(layer))
    up = sum(one.outputs == inner_width(config) for block in blocks for one in block[:-1])
    mlp = inner_width(config) * b * (3 if up > 1 else 1)
    kept = 4 * attention * b + 4 * config.num_attention_heads + length * b
    return float(norms + kept + mlp) + sum(adapter_bytes(block, attention, precision) for block in blocks)


def attention_width(config: Any) -> int:
    """A: heads x width of a head."""
    heads = int(config.num_attention_heads)
    return heads * int(getattr(config, "head_dim", None) or config.hidden_size // heads)


def inner_width(config: Any) -> int:
    """I: inner width of the MLP."""
    return int(getattr(config, "intermediate_size", None) or config.ffn_dim)  # OPT's name for it


def norms_of(part: nn.Module) -> list[tuple[str, nn.Module]]:
    """The normalisations within a module, by name."""
    return [(name, one) for name, one in part.named_modules() if type(one).__name__.endswith("Norm")]


def activation_bytes(llm: nn.Module, passes: Iterable[Pass], precision: Precision, *, checkpointing: bool) -> float:
    """Bytes that the LLM keeps for the backward pass of a training step, which goes through all passes at once.

    Without checkpointing: the sum of :func:`layer_bytes` over layers, times tokens, and the last norm. With it: the input of every layer,
    D numbers for each token in the format of the base, and everything of one layer of the larger pass, which is computed again.
    """
    config: Any = llm.config
    layers, passes = layers_of(llm), list(passes)
    if not layers:
        return 0.0
    kept = [[one.tokens * layer_bytes(layer, config, one.length, precision) for layer in layers] for one in passes]
    last = sum(one.tokens for one in passes) * 4 * int(config.hidden_size)
    if not checkpointing:
        return sum(map(sum, kept)) + last
    inputs = len(layers) * sum(one.tokens for one in passes) * int(config.hidden_size) * precision.weights
    return inputs + last + max(map(max, kept))


# ---- FLOPs ---------------------------------------------------------------------------------------------------------------------


class Flops(NamedTuple):
    """Of the LLM.

    Attributes:
        forward: of the forward pass.
        backward: of the backward pass.
        again: of the forward pass that checkpointing repeats.
    """

    forward: float
    backward: float
    again: float

    @property
    def step(self) -> float:
        """Of a training step."""
        return self.forward + self.backward + self.again


def llm_flops(llm: nn.Module, passes: Iterable[Pass], *, checkpointing: bool) -> Flops:
    """FLOPs of the LLM in a training step.

    Forward, for each token: 2 for each weight of a linear layer, frozen or of an adapter, and 4 L A in each layer for attention, whose
    masked half is counted, too. Backward: as much again for the gradients of the inputs; adapters twice, for their own gradients; attention
    2.5 times, because the scores are computed again. Embeddings, norms and activation functions are left out.
    """
    layers = layers_of(llm)
    linears = [one for layer in layers for block in blocks_of(layer) for one in block]
    frozen, adapters = sum(one.weights for one in linears), sum(one.adapter_weights for one in linears)
    forward = backward = 0.0
    for one in passes:
        attention = 4.0 * one.length * attention_width(llm.config) * len(layers)
        forward += one.tokens * (2 * frozen + 2 * adapters + attention)
        backward += one.tokens * (2 * frozen + 4 * adapters + ATTENTION_BACKWARD * attention)
    return Flops(forward, backward, forward * checkpointing)


# ---- what is measured ----------------------------------------------------------------------------------------------------------


def saved_bytes(run: Callable[[], Any], parameters: Iterable[Tensor]) -> int:
    """Bytes of all tensors that a computation saves for its backward pass, parameters left out and views of one memory counted once.

    It also works on the meta device, where nothing is computed.
    """
    known = {tensor.untyped_storage()._cdata for tensor in parameters}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage._cdata, storage)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(storage.nbytes() for name, storage in kept.items() if name not in known)


class Sight(NamedTuple):
    """What the Connector and the soft prompt cost for each picture; measured on the meta device, in float32.

    Attributes:
        bytes: that they keep for the backward pass.
        flops: of forward and backward pass, the latter counted as twice the former.
    """

    bytes: float
    flops: float


def sight_cost(encoder: Encoder, pictures: int = 2) -> Sight:
    """Run :meth:`Encoder.see` on features without content.

    Args:
        encoder: built on the meta device, in training mode.
        pictures: how many it is run on; the cost is that of one.
    """
    features = torch.empty(pictures, encoder.tower.patches, encoder.tower.width, dtype=torch.float16, device="meta")
    with torch.device("meta"):
        size = saved_bytes(lambda: encoder.see(features), encoder.parameters())
        with FlopCounterMode(display=False) as counter:
            encoder.see(features)
    return Sight(size / pictures, 3 * counter.get_total_flops() / pictures)
