"""The original Qwen-VL-Chat: ViT-bigG, a resampler of 256 queries and Qwen-7B, from a folder that ``cir convert qwen-vl-chat`` made.

The published checkpoint brings its own modelling code, which current transformers no longer runs. Here its tensors are read into native
modules and no code of a checkpoint is ever executed. Equality with the original code was proven in float32 at tiny size. **The real
weights, 9.66 B parameters, are unrun**: only names, shapes and the number of parameters were held against the published index.

What differs from the original: its dynamic NTK scaling of rotary positions and its log-n scaling of attention, which act beyond 2,048
tokens only and then also only outside of training, are left out; so up to 2,048 tokens nothing differs. Original pictures are squashed to
448 x 448 pixels by bicubic interpolation: ``data.transform: squash``. Between ``<img>`` and ``</img>`` stand the 256 picture tokens.

Shapes: B pictures, S picture side in pixels, N patches, Q queries of the resampler, Dv width of the ViT, D width of the LLM.

Source: Qwen-VL, arXiv 2308.12966; facts from ``modeling_qwen.py`` and ``visual.py`` of Qwen/Qwen-VL-Chat.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import OrderedDict
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from cir_lightning.backbones.base import Backbone, VisionTower
from cir_lightning.backbones.checkpoints import Checkpoint, Quantisation
from cir_lightning.backbones.lora import adapt, check_over
from cir_lightning.backbones.mini import quiet_transformers
from cir_lightning.backbones.skeleton import on_meta
from cir_lightning.connector import Connector
from data_modules.errors import UserError

if TYPE_CHECKING:
    from cir_lightning.backbones.lora import LoRA

FORMAT = 1  # of a converted folder; change it when the conversion changes
CONFIG, VISION, CONNECTOR, LLM = "config.json", "vision.safetensors", "connector.safetensors", "llm"
CHAT = (  # of its method ``chat``
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EPS = 1e-6  # of every LayerNorm
POSITIONS = 256  # the ViT's, whatever the picture's side; they are interpolated
HEAD = 128  # width of a head of the resampler
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's


@dataclass(frozen=True)
class VisionSizes:
    """Sizes of the ViT; the defaults are ViT-bigG's in Qwen-VL.

    Attributes:
        width: Dv.
        layers: number of blocks.
        heads: of attention; divides ``width``.
        patch_size: side of a patch, pixels.
        mlp_width: inner width of the MLP.
    """

    width: int = 1664
    layers: int = 48
    heads: int = 16
    patch_size: int = 14
    mlp_width: int = 8192


@dataclass(frozen=True)
class Converted:
    """What a converted folder says of itself.

    Attributes:
        folder: where it is.
        vision: sizes of the ViT.
        queries: Q.
        files: SHA-256 of every weights file by its name.
    """

    folder: Path
    vision: VisionSizes
    queries: int
    files: dict[str, str]


def read_converted(folder: str | Path) -> Converted:
    """Read the description of a finished conversion.

    Raises:
        UserError: there is none, it is unfinished, or another version made it.
    """
    path = Path(folder).expanduser()
    try:
        config = json.loads((path / CONFIG).read_text())
        made = config.get("format")
        if made == FORMAT:
            sizes = {field.name: config["vision"][field.name] for field in fields(VisionSizes)}
            files = {name: str(config["files"][name]) for name in (*config["files"], VISION, CONNECTOR)}
            if all(isinstance(size, int) and size > 0 for size in (*sizes.values(), config["queries"])):
                return Converted(path, VisionSizes(**sizes), config["queries"], files)
            made = None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        made = None
    if made is None:
        raise UserError(
            f"{path} holds no finished conversion of Qwen-VL-Chat; make it, or finish it, with cir convert qwen-vl-chat SRC {path}"
        )
    raise UserError(f"{path / CONFIG}: format {made}, and this version reads {FORMAT}; convert the checkpoint again into another folder")


def resize_positions(positions: Tensor, count: int) -> Tensor:
    """Bicubic interpolation of the positions (G * G, width) of a square grid to ``count`` patches; any float dtype, which stays."""
    old, new = math.isqrt(len(positions)), math.isqrt(count)
    if old == new:
        return positions
    grid = positions.float().view(old, old, -1).permute(2, 0, 1)[None]
    resized = F.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T.to(positions.dtype)


def sincos_positions(side: int, width: int) -> Tensor:
    """Sines and cosines of column and row, (side * side, width) float32, row by row.

    A quarter of the width each: sine and cosine of the column, sine and cosine of the row, at wavelengths from 2 pi to 20,000 pi.

    Source: Masked Autoencoders (arXiv 2111.06377), as Qwen-VL's resampler uses them.
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1).float()
    columns, rows = waves.repeat(side, 1), waves.repeat_interleave(side, 0)
    return torch.cat([columns, rows], dim=1)


class Block(nn.Module):
    """Pre-norm attention and MLP with exact GELU; the heads' queries, keys and values lie head by head in one projection."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.ln_1, self.ln_2 = nn.LayerNorm(sizes.width, eps=EPS), nn.LayerNorm(sizes.width, eps=EPS)
        self.attn = nn.ModuleDict({"in_proj": nn.Linear(sizes.width, 3 * sizes.width), "out_proj": nn.Linear(sizes.width, sizes.width)})
        wide, narrow = nn.Linear(sizes.width, sizes.mlp_width), nn.Linear(sizes.mlp_width, sizes.width)
        self.mlp = nn.Sequential(OrderedDict(c_fc=wide, gelu=nn.GELU(), c_proj=narrow))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, Dv) -> (B, N, Dv)."""
        q, k, v = self.attn["in_proj"](self.ln_1(x)).view(*x.shape[:2], self.heads, 3, -1).permute(3, 0, 2, 1, 4)
        x = x + self.attn["out_proj"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class QwenViT(nn.Module):
    """OpenCLIP's ViT-bigG without class token, head and final norm. Its tensors are named as in the checkpoint."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, sizes.width, sizes.patch_size, sizes.patch_size, bias=False)
        self.positional_embedding = nn.Parameter(torch.randn(POSITIONS, sizes.width) / math.sqrt(sizes.width))
        self.ln_pre = nn.LayerNorm(sizes.width, eps=EPS)
        self.transformer = nn.ModuleDict({"resblocks": nn.Sequential(*(Block(sizes) for _ in range(sizes.layers)))})

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S) of the weights' dtype -> patch features (B, N, Dv), row by row."""
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        out: Tensor = self.transformer["resblocks"](self.ln_pre(x + resize_positions(self.positional_embedding, x.shape[1])))
        return out


class QwenResampler(Connector):
    """Qwen-VL's own adapter as the Connector, to be trained further: one cross-attention layer with 2-D positions.

    It reads patch features as they come from the tower, and its tokens already have the place and scale of the LLM's own embeddings
    (``native``). Its positions are not trained.

    Args:
        folder: a converted folder, whose adapter it starts from; None for random weights.
        queries: Q; a square number.

    Raises:
        UserError: ``queries`` is no square number, or the folder has another number of them.

    Source: Qwen-VL (arXiv 2308.12966), section 2.1.
    """

    pos_embed: Tensor
    native = True
    starts_from = "folder"

    def __init__(self, folder: str | None = None, queries: int = 256) -> None:
        super().__init__()
        if queries < 1 or math.isqrt(queries) ** 2 != queries:
            raise UserError(f"connector.queries={queries} is no square number, which a grid of queries needs; 256 is Qwen-VL's")
        self.folder, self.queries = folder, queries

    def build(self, features: int, patches: int, width_out: int) -> None:
        """See :meth:`~cir_lightning.connector.Connector.build`.

        Raises:
            UserError: the widths do not fit the folder's weights or the heads, or the patches are no square.
        """
        if width_out % HEAD:
            raise UserError(f"QwenResampler needs an LLM whose width is a multiple of {HEAD}, and this one's is {width_out}; use Resampler")
        if math.isqrt(patches) ** 2 != patches:
            raise UserError(f"QwenResampler needs a square of patches, and this vision tower has {patches}; use Resampler")
        self.register_buffer("pos_embed", sincos_positions(math.isqrt(self.queries), width_out))  # in checkpoints: a start may round them
        self.query = nn.Parameter(0.02 * torch.randn(self.queries, width_out))
        self.kv_proj = nn.Linear(features, width_out, bias=False)
        self.attn = nn.MultiheadAttention(width_out, width_out // HEAD, batch_first=True)
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(width_out, eps=EPS) for _ in range(3))
        self.proj = nn.Parameter(torch.randn(width_out, width_out) / math.sqrt(width_out))
        if self.folder is not None and not on_meta():
            self._start_from(read_converted(self.folder))

    def _start_from(self, converted: Converted) -> None:
        file = converted.folder / CONNECTOR
        weights, mine = _read(file), self.state_dict()
        for name, tensor in weights.items():
            if name in mine and tensor.shape != mine[name].shape:
                here, there = tuple(mine[name].shape), tuple(tensor.shape)
                raise UserError(f"{file}: {name} is {there}, and this backbone and connector.queries={self.queries} need {here}")
        self.load_state_dict(weights)

    def forward(self, features: Tensor) -> Tensor:
        """Patch features (B, N, Dv) of any float dtype, raw -> tokens (B, Q, D) of the weights' dtype, at the LLM's scale."""
        x = self.ln_kv(self.kv_proj(features.to(self.query.dtype)))
        queries = (self.ln_q(self.query) + self.pos_embed).expand(len(x), -1, -1)
        read = self.attn(queries, x + resize_positions(self.pos_embed, x.shape[1]), x, need_weights=False)[0]
        out: Tensor = self.ln_post(read) @ self.proj
        return out


class QwenTower(VisionTower):
    """ViT-bigG as a frozen tower: the features that the resampler reads.

    Args:
        net: its weights.
        sizes: of ``net``.
        image_size: S.
        key: model, revision, size and dtype; see :class:`~cir_lightning.backbones.base.VisionTower`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: QwenViT, sizes: VisionSizes, image_size: int, key: str) -> None:
        super().__init__()
        self.net, self.image_size, self.key = net, image_size, f"{key}-patches"
        self.patches, self.width = (image_size // sizes.patch_size) ** 2, sizes.width
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, N, Dv) of the weights' dtype."""
        x = (pixels.float() / 255 - self.mean) / self.std
        out: Tensor = self.net(x.to(self.net.conv1.weight.dtype))
        return out

    def forward(self, pixels: Tensor) -> Tensor:
        """See :class:`~cir_lightning.backbones.base.VisionTower`."""
        return self.rounded(self.features(pixels))


class QwenVision(VisionTower):
    """The tower with the frozen resampler: what the LLM was trained to see, (B, Q, D) float16 as its patches."""

    def __init__(self, tower: QwenTower, resampler: QwenResampler, width: int, key: str) -> None:
        super().__init__()
        self.tower, self.resampler, self.key = tower, resampler, f"{key}-tokens"
        self.image_size, self.patches, self.width = tower.image_size, resampler.queries, width

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """See :class:`~cir_lightning.backbones.base.VisionTower`."""
        return self.rounded(self.resampler(self.tower.features(pixels)))


class QwenVLChat(Backbone):
    """Qwen-VL-Chat from a converted folder; unrun with its real weights.

    Args:
        folder: what ``cir convert qwen-vl-chat SRC FOLDER`` wrote.
        lora: the adapters on the LLM; None for a frozen LLM.
        image_size: S, a multiple of the patch side 14. The checkpoint was trained at 448; other sides interpolate positions.
        dtype: of the frozen weights. Adapters are float32 in any case.
        quantisation: of the frozen LLM by bitsandbytes: ``nf4`` (4 bits), ``int8``, or ``none``.
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.

    Attributes:
        tower: patch features (B, N, 1664) before the resampler, for a Connector.
        vision: native picture tokens (B, 256, 4096).
        llm: Qwen-7B as a Qwen2 without its head.
        tokenizer: with ``<img>``, ``</img>``, ``<|im_start|>``, ``<|im_end|>`` and others as tokens of their own; it pads with
            ``<|endoftext|>`` and has no beginning-of-sequence token.
    """

    vision: QwenVision
    has_vision = True
    around = ("<img>", "</img>")

    def __init__(
        self,
        folder: str,
        lora: LoRA | None = None,
        image_size: int = 448,
        *,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        quantisation: Quantisation = "none",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.folder, self.lora, self.image_size = folder, lora, image_size
        self.words = Checkpoint(str(Path(folder) / LLM), dtype=dtype, quantisation=quantisation)
        self.dtype: torch.dtype = getattr(torch, dtype)
        check_over(lora, quantisation)
        self.quantised = quantisation != "none"
        self.gradient_checkpointing = gradient_checkpointing

    def base_models(self) -> dict[str, Checkpoint]:
        """See :class:`~cir_lightning.backbones.base.Backbone`."""
        return {"folder": self.words}

    def save_merged(self, folder: Path) -> dict[str, str | None]:
        """See :class:`~cir_lightning.backbones.base.Backbone`; the ViT and the resampler are copied, so that nothing else is needed."""
        converted = read_converted(self.folder)
        self.llm.save_pretrained(folder / LLM)
        self.tokenizer.save_pretrained(folder / LLM)
        for name in (VISION, CONNECTOR):
            shutil.copyfile(converted.folder / name, folder / name)
        about = json.loads((converted.folder / CONFIG).read_text())
        about["files"] = {name: converted.files[name] for name in (VISION, CONNECTOR)}
        (folder / CONFIG).write_text(json.dumps(about))
        return {"folder": str(folder)}

    def build(self) -> None:
        """See :class:`~cir_lightning.backbones.base.Backbone`; every file is read once, onto torch's default device.

        Raises:
            UserError: the folder is no finished conversion or is damaged, or the picture's side is no multiple of a patch's.
        """
        converted = read_converted(self.folder)
        patch = converted.vision.patch_size
        if self.image_size < patch or self.image_size % patch:
            raise UserError(f"backbone.image_size={self.image_size} is no multiple of the patch side {patch}; set 448, as in training")
        quiet_transformers()
        try:
            self.tokenizer, self.llm = self.words.tokenizer(), self.words.load()
            self.tokenizer.chat_template = CHAT
        except UserError as error:
            raise UserError(f"{error}; run cir convert qwen-vl-chat again, which verifies it") from error
        self._build_vision(converted)
        adapt(self.llm, self.lora, gradient_checkpointing=self.gradient_checkpointing)

    def _build_vision(self, converted: Converted) -> None:
        sizes, of = converted.vision, converted.files
        with torch.device("meta"):
            net, resampler = QwenViT(sizes), QwenResampler(queries=converted.queries)
            resampler.build(sizes.width, (self.image_size // sizes.patch_size) ** 2, self.width)
        if not on_meta():
            _fill(net, converted.folder / VISION, self.dtype)
            _fill(resampler, converted.folder / CONNECTOR, self.dtype)
        how = f"{self.image_size}px-{str(self.dtype).removeprefix('torch.')}"
        self.tower = QwenTower(net, sizes, self.image_size, f"qwen-vl-{of[VISION][:16]}-{how}")
        self.vision = QwenVision(self.tower, resampler, self.width, f"qwen-vl-{of[VISION][:16]}-{of[CONNECTOR][:16]}-{how}")
        self.vision.eval()


def _fill(module: nn.Module, file: Path, dtype: torch.dtype) -> None:
    """Give a module without memory (``meta``) its frozen weights, so that they are in memory once."""
    state: dict[str, Any] = {name: tensor.to(dtype) for name, tensor in _read(file).items()}
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise UserError(f"{file} does not fit the {CONFIG} beside it; run cir convert qwen-vl-chat again, which verifies both") from error
    module.requires_grad_(requires_grad=False)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file, device=str(torch.get_default_device()))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({_first_line(error)}); run cir convert qwen-vl-chat again, which verifies it") from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
