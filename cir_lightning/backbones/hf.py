"""Large vision-language models of transformers: a Hugging Face id or a local folder becomes a vision tower and an LLM.

All families run through their own classes. The vision tower is everything up to the projector's input (patch features, for the
Connector) and up to its output (native visual tokens, for the hole ``{vision}``); both are computed once per picture and cached. The LLM is
the family's own forward pass, to which the cached visual tokens are handed in place of pixels: positions (M-RoPE), attention between
visual tokens and deep-stacked features are the family's own.

Shapes: B batch, S picture side in pixels, N patches, Dv patch feature width, V native visual tokens, L sequence, D LLM width.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from cir_lightning.backbones.base import Backbone, VisionTower
from cir_lightning.backbones.checkpoints import Checkpoint, Quantisation
from cir_lightning.backbones.lora import adapt, check_over, without_adapters
from cir_lightning.backbones.mini import quiet_transformers
from cir_lightning.backbones.skeleton import on_meta, vision_shape
from cir_lightning.packing import WASTE, alike
from data_modules.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from cir_lightning.backbones.lora import LoRA


@dataclass(frozen=True)
class Family:
    """What tells a family of transformers' vision-language models from the others.

    Attributes:
        projector: the module whose first input, or ``encoder_hidden_states``, is the patch features.
        llm: the language model within the base model.
        eyes: the vision transformer within the base model.
        nested: whether the image processor takes one list of pictures per sample.
        list_of_tokens: whether the forward pass wants the visual tokens as one tensor per picture.
        image_type: value of ``token_type_ids`` at visual tokens, 0 elsewhere; None where the family has no such input.
        around: text before and after the visual tokens.
        causal: whether its LLM reads text without pictures like any other one.
        whole: whether its visual tokens come from the model with its LM head, and simply take their places in the LLM's input.
        blocks: whether its vision transformer has the patches block by block, as it merges them, and not row by row.
    """

    projector: str = "multi_modal_projector"
    llm: str = "language_model"
    eyes: str = "vision_tower"
    nested: bool = False
    list_of_tokens: bool = True
    image_type: int | None = None
    around: tuple[str, str] = ("", "")
    causal: bool = True
    whole: bool = False
    blocks: bool = False


_QWEN = Family("visual.merger", eyes="visual", around=("<|vision_start|>", "<|vision_end|>"), blocks=True)
_FAKE = "<fake_token_around_image>"
_IDEFICS = Family("connector", "text_model", "vision_model", nested=True, around=(f"{_FAKE}<global-img>", _FAKE))
FAMILIES: dict[str, Family] = {
    "blip-2": Family("qformer", "language_model.model", "vision_model", whole=True),
    "llava": Family(),
    "llava_next": Family(),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "smolvlm": _IDEFICS,
    "idefics3": _IDEFICS,
    "internvl": Family(list_of_tokens=False, around=("<img>", "</img>")),
    "paligemma": Family(list_of_tokens=False, image_type=0, causal=False),
    "gemma3": Family(list_of_tokens=False, image_type=1, around=("\n\n<start_of_image>", "<end_of_image>\n\n")),
}
_LLAVA_FIELDS = (
    "vision_config",
    "text_config",
    "image_token_index",
    "projector_hidden_act",
    "vision_feature_select_strategy",
    "vision_feature_layer",
    "multimodal_projector_bias",
)
_PIXELS = ("pixel_values", "image_grid_thw", "image_sizes", "pixel_attention_mask")


def row_order(config: Any, image_size: int) -> Tensor:
    """Where every patch is found, row by row, among those of a Qwen vision transformer, (N,) long.

    Patches that it merges lie together, and those of a window of attention do, where it has windows.

    Args:
        config: the vision transformer's.
        image_size: side of the picture, pixels.
    """
    side, merged = image_size // config.patch_size, config.spatial_merge_size
    window = getattr(config, "window_size", image_size) // merged // config.patch_size * merged
    at = torch.arange(side * side)
    for square in (merged, window):
        at = at[(at // side // square * side + at % side // square).argsort(stable=True)]
    return at.argsort()


class Vision(VisionTower):
    """The frozen vision part of a family's base model, up to the projector's input, row by row, or up to its output.

    Args:
        base: the family's model without its LM head; not registered as a part of this module, which only borrows it.
        family: how it is built.
        processor: its image processor.
        image_size: side S of the input pictures, pixels.
        key: of the checkpoint.
        native: whether to give the projector's output, (B, V, D) and D more columns for each deep-stacked level, not its input.
        trained: whether the vision transformer has adapters.
    """

    def __init__(
        self,
        base: nn.Module,
        family: Family,
        processor: Any,
        *,
        image_size: int,
        key: str,
        native: bool = False,
        trained: bool = False,
    ) -> None:
        super().__init__()
        self._borrowed = (base,)
        self.family, self.processor, self.image_size, self.native, self.trained = family, processor, image_size, native, trained
        self.key = f"{key}-{image_size}px-{'tokens' if native else 'rows' if family.blocks else 'patches'}"
        if on_meta():
            self.patches, self.width = vision_shape(base.config, image_size, native=native)  # type: ignore[arg-type]
        else:
            self._refuse_another_size(next(base.parameters()))
            self.patches, self.width = self(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)).shape[1:]

    def _refuse_another_size(self, like: Tensor) -> None:
        """Stop if the image processor would make another size of the pictures."""
        inputs = self._inputs(torch.zeros(1, 3, self.image_size, self.image_size, dtype=torch.uint8), like)
        side = inputs["pixel_values"].shape[-1]
        if "image_grid_thw" in inputs:
            config: Any = self._borrowed[0].config
            side = int(inputs["image_grid_thw"][0, -1]) * config.vision_config.patch_size
        if side != self.image_size and "image_sizes" not in inputs:  # LLaVA-1.6 cuts larger pictures into tiles
            raise UserError(f"backbone.image_size={self.image_size}: this model's image processor makes {side} pixels of it; set {side}")

    @property
    def device(self) -> torch.device:
        """Where the base model is."""
        return next(self._borrowed[0].parameters()).device

    @property
    def eyes(self) -> nn.Module:
        """The vision transformer."""
        return self._borrowed[0].get_submodule(self.family.eyes)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """See :class:`~cir_lightning.backbones.base.VisionTower`; without adapters, so that what is cached never changes."""
        with without_adapters(self.eyes):
            return self.rounded(self.run(pixels))

    def look(self, pixels: Tensor) -> Tensor:
        """See :class:`~cir_lightning.backbones.base.VisionTower`."""
        return self.run(pixels) if self.trained else self.forward(pixels)

    def run(self, pixels: Tensor) -> Tensor:
        """What the family computes, not rounded."""
        base, entered = self._borrowed[0], []
        inputs = self._inputs(pixels, next(base.parameters()))
        hook = base.get_submodule(self.family.projector).register_forward_pre_hook(
            lambda _, given, named: entered.append(given[0] if given else named["encoder_hidden_states"]), with_kwargs=True
        )
        try:
            out = base.get_image_features(**inputs)  # type: ignore[operator]
        finally:
            hook.remove()
        if not self.native:
            features: Tensor = entered[0].reshape(len(pixels), -1, entered[0].shape[-1])
            return features[:, row_order(base.config.vision_config, self.image_size)] if self.family.blocks else features  # type: ignore[union-attr]
        levels = [out.pooler_output, *(getattr(out, "deepstack_features", None) or [])]
        return torch.cat([torch.stack(list(level)) for level in levels], dim=-1)

    def _inputs(self, pixels: Tensor, like: Tensor) -> dict[str, Tensor]:
        images = [picture.permute(1, 2, 0).cpu().numpy() for picture in pixels]
        nested = [[image] for image in images] if self.family.nested else images
        one_view = {"do_image_splitting": False, "size": {"longest_edge": self.image_size}}
        options = one_view if self.family.nested else {}
        given = self.processor(images=nested, return_tensors="pt", **options)
        inputs = {name: given[name].to(like.device) for name in _PIXELS if name in given}
        if self.family is FAMILIES["llava"] and "image_sizes" in inputs:  # of LLaVA-1.6, whose first view is the overview
            inputs = {"pixel_values": inputs["pixel_values"][:, 0]}
        return inputs | {"pixel_values": inputs["pixel_values"].to(like.dtype)}


class HFLVLM(Backbone):
    """An LVLM of transformers.

    BLIP-2 on OPT, LLaVA-1.5, LLaVA-1.6 (LLaVA-NeXT), Qwen2-VL, Qwen2.5-VL, Qwen3-VL, SmolVLM, Idefics3, InternVL, PaliGemma, Gemma 3.

    Real sizes are unrun: everything is tested with random weights of the real architectures at tiny size.

    Args:
        model: id on the Hugging Face hub, or a local folder in its layout.
        revision: commit, tag or branch on the hub.
        image_size: side S of the square pictures that the vision tower sees, pixels; None for the size that the checkpoint names.
        tiles: of LLaVA-1.6, whether pictures larger than its tower are seen as an overview and tiles; otherwise as one view, the way of
            LLaVA-1.5.
        dtype: of the frozen weights; adapters and new modules are float32.
        quantisation: of the frozen LLM by bitsandbytes: ``nf4`` (4 bits), ``int8``, or ``none``.
        lora: the adapters; None for a frozen LLM.
        vision_lora: adapters on the vision transformer, too, whose layers have names of their own (CLIP and SigLIP: q_proj, k_proj,
            v_proj, out_proj, fc1, fc2; Qwen: qkv, proj). Pictures then go through it at every step, and no cache saves that.
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
    """

    has_vision = True

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        *,
        image_size: int | None = None,
        tiles: bool = False,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        quantisation: Quantisation = "none",
        lora: LoRA | None = None,
        vision_lora: LoRA | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.vision_lora = vision_lora
        if image_size is not None and image_size < 1:
            raise UserError(f"backbone.image_size={image_size} is not possible; set it to 1 or more, or to null for the checkpoint's own")
        self.checkpoint = Checkpoint(model, revision, dtype=dtype, quantisation=quantisation)
        self.quantised = quantisation != "none"
        check_over(lora, quantisation)
        self.image_size, self.tiles, self.lora, self.gradient_checkpointing = image_size, tiles, lora, gradient_checkpointing

    def base_models(self) -> dict[str, Checkpoint]:
        """See :class:`~cir_lightning.backbones.base.Backbone`."""
        return {"revision": self.checkpoint}

    def build(self) -> None:
        """See :class:`~cir_lightning.backbones.base.Backbone`."""
        quiet_transformers()
        config = self.checkpoint.config()
        if config.model_type not in FAMILIES:
            raise UserError(
                f"backbone.model={self.checkpoint.name!r} is a {config.model_type!r}, which is no LVLM known here; known are "
                f"{', '.join(FAMILIES)}"
            )
        if config.model_type == "llava_next" and not self.tiles:
            config = self.checkpoint.as_family("llava", _LLAVA_FIELDS)
        elif config.model_type != "llava_next" and self.tiles:
            raise UserError(f"backbone.tiles is of LLaVA-1.6, and {self.checkpoint.name!r} is a {config.model_type!r}; set it to false")
        self.family = FAMILIES[config.model_type]
        self.around = self.family.around
        reader, first = "AutoModelForImageTextToText" if self.family.whole else "AutoModel", self.family.llm.split(".")[0]
        if self.family.whole and not config.use_decoder_only_language_model:
            raise UserError(f"backbone.model={self.checkpoint.name!r} has an encoder-decoder LLM; use one on OPT, such as blip2-opt-2.7b")
        keep = [name for name, _ in self.checkpoint.skeleton(reader).named_children() if name != first]
        self.base = self.checkpoint.load(keep, reader)
        self.base.requires_grad_(requires_grad=False)
        self.llm = self.base.get_submodule(self.family.llm)  # type: ignore[assignment]
        self.tokenizer = self.checkpoint.tokenizer()
        self._image_token = int(config.image_token_id)
        size, key = self.image_size or _default_size(config), f"{self.checkpoint.unpacked_key()}-{config.model_type}"
        processor = None if on_meta() else self.checkpoint.image_processor()
        if self.vision_lora is not None:
            self.vision_lora.add_to(self.base.get_submodule(self.family.eyes))
        options: dict[str, Any] = {"image_size": size, "key": key, "trained": self.vision_lora is not None}
        self.tower = Vision(self.base, self.family, processor, **options)
        self.vision = Vision(self.base, self.family, processor, **options, native=True)
        if self.vision_lora is not None and not on_meta():
            self._freeze_unread_layers()
        adapt(self.llm, self.lora, gradient_checkpointing=self.gradient_checkpointing)

    def save_merged(self, folder: Path) -> dict[str, str | None]:
        """See :class:`~cir_lightning.backbones.base.Backbone`."""
        for part in (self.base, self.tokenizer, self.checkpoint.image_processor()):
            part.save_pretrained(folder)
        return {"model": str(folder), "revision": None}

    def _freeze_unread_layers(self) -> None:
        """Take the adapters of layers that no feature comes from, such as LLaVA's last one, out of training: DDP would stop at them."""
        self.tower.look(torch.zeros(1, 3, self.tower.image_size, self.tower.image_size, dtype=torch.uint8)).float().sum().backward()  # type: ignore[no-untyped-call]
        for parameter in self.base.get_submodule(self.family.eyes).parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None

    def read(self, embeds: Tensor, mask: Tensor, seen: Tensor, vision: Tensor | None) -> Tensor:
        """See :class:`~cir_lightning.backbones.base.Backbone`."""
        if self.family.whole or (vision is None and self.family.causal):
            return super().read(embeds, mask, seen, vision)
        groups = [torch.tensor(group, device=mask.device) for group in alike(mask.sum(1).tolist(), 1 if self.lockstep else WASTE)]
        parts = []
        for group in groups:
            length = int(mask[group].sum(1).max())
            given = None if vision is None else vision[group]
            hidden = self._read_padded(embeds[group, :length], mask[group, :length], seen[group, :length], given)
            parts.append(F.pad(hidden, (0, 0, 0, mask.shape[1] - length)))
        return torch.cat(parts)[torch.cat(groups).argsort()]

    def _read_padded(self, embeds: Tensor, mask: Tensor, seen: Tensor, vision: Tensor | None) -> Tensor:
        """By the family's own forward, which finds its own places and masks for visual tokens."""
        base: Any = self.base
        ids = torch.where(seen, self._image_token, 0)
        here = self.llm.get_input_embeddings()(torch.full((), self._image_token, device=embeds.device))
        options: dict[str, Any] = {}
        if hasattr(base, "get_rope_index"):
            options |= self._positions(ids, mask, seen)
        if self.family.image_type is not None:
            options["token_type_ids"] = seen.long() * self.family.image_type
        if vision is not None:
            embeds = torch.where(seen[..., None], here.to(embeds.dtype), embeds)
            options["pixel_values"] = embeds.new_zeros(1)
            base.get_image_features = lambda *_, **__: self._given(vision.to(base.dtype))
        try:
            hidden: Tensor = base(inputs_embeds=embeds.to(base.dtype), attention_mask=mask, use_cache=False, **options).last_hidden_state
        finally:
            base.__dict__.pop("get_image_features", None)
        return hidden

    def _positions(self, ids: Tensor, mask: Tensor, seen: Tensor) -> dict[str, Tensor]:
        """M-RoPE: visual tokens lie on a grid; without them, all axes count alike."""
        base: Any = self.base
        settings = base.config.vision_config
        patches = self.tower.image_size // settings.patch_size
        grid = torch.tensor([[1, patches, patches]] * len(ids), device=ids.device) if seen.any() else None
        index = base.get_rope_index(input_ids=ids, mm_token_type_ids=seen.int(), image_grid_thw=grid, attention_mask=mask)
        return {"position_ids": index[0]} | ({} if grid is None else {"image_grid_thw": grid})

    def _given(self, vision: Tensor) -> SimpleNamespace:
        """What the base model's own vision part would have returned."""
        tokens, *deep = vision.split(self.width, dim=-1)  # type: ignore[no-untyped-call]
        as_family_wants = list(tokens) if self.family.list_of_tokens else tokens
        return SimpleNamespace(pooler_output=as_family_wants, deepstack_features=[list(level) for level in deep])


def _default_size(config: Any) -> int:
    """The side that the vision tower was trained on; 448 where any will do."""
    size = getattr(config.vision_config, "image_size", 448)
    return int(size[0] if isinstance(size, list | tuple) else size)
