"""The paper's forward pass: picture (and caption) in, one unit vector out.

Shapes: B batch, N patches, Dv patch feature width, Q Connector queries, V native visual tokens, T soft prompt tokens, L sequence, D LLM
width, E embedding.

Source: CIR-LVLM, arXiv 2412.11087, section 3; ``paper.md`` choices are marked in the constructor's arguments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from cir_lightning.backbones.kept import PatchDtype, kept
from cir_lightning.packing import can_pack
from cir_lightning.pooling import pool
from cir_lightning.template import Positions, TaskPrompt, Template, tokens
from data_modules.errors import UserError
from data_modules.stages import CONNECTOR, LLM, POOLING, TEMPLATE, TOWER, stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cir_lightning.backbones.base import Backbone, VisionTower
    from cir_lightning.backbones.checkpoints import Checkpoint
    from cir_lightning.connector import Connector
    from cir_lightning.prompt_pool import SoftPrompt


class Sight(NamedTuple):
    """What a picture became, once per batch, to be used as reference and as target.

    Attributes:
        image: (B, Q, D) float, the sentence-level prompt.
        soft: (B, T, D) float, the instance-specific soft prompt.
        mean: (B, Dv) float32, mean standardised patch feature.
        chosen: (B, K) long, the pool's prompts that were chosen; None without a pool.
        pull: (B,) float, the loss term that trains the pool's keys; zero without a pool.
        vision: (B, V, D) and perhaps more columns, the LVLM's own visual tokens; None if no template wants them.
    """

    image: Tensor
    soft: Tensor
    mean: Tensor
    chosen: Tensor | None
    pull: Tensor
    vision: Tensor | None = None

    def at(self, index: Tensor) -> Sight:
        """The sights of some of the pictures, index (B',) long."""
        vision = None if self.vision is None else self.vision[index]
        return Sight(self.image[index], self.soft[index], self.mean[index], None, self.pull[index], vision)

    @staticmethod
    def join(sights: Sequence[Sight]) -> Sight:
        """Several in one, in their order."""
        with torch.autocast(sights[0].image.device.type, enabled=False):  # it does not know float16 beside bfloat16
            return Sight(*(None if parts[0] is None else torch.cat(parts) for parts in zip(*sights, strict=True)))  # type: ignore[arg-type]


class Standardiser(nn.Module):
    """Brings every channel of the patch features to mean 0 and standard deviation 1 on the training pictures."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def fit(self, features: Tensor) -> None:
        """Take the statistics from features (P, N, Dv) of any float dtype."""
        flat = features.flatten(0, 1)
        self.mean.copy_(flat.mean(0, dtype=torch.float32))
        self.scale.copy_(1 / (flat.float().std(0) + 1e-5))

    def forward(self, features: Tensor) -> Tensor:
        """(B, N, Dv) of any float dtype -> float32."""
        return (features.float() - self.mean) * self.scale


class Encoder(nn.Module, ABC):
    """A model that puts queries and targets into one space. Cheap to construct; :meth:`build` reads weights.

    Attributes:
        label: the method's name in results tables.
        width: embedding size E.
        tower: the frozen vision tower, after :meth:`build`; its features are the input of everything else.
        vision: gives the LVLM's own visual tokens, after :meth:`build`; None if they are not wanted.
        quantised: whether weights are of 4 or 8 bits, which no strategy can shard.
        standardise: after :meth:`build`.
        restored: whether trained weights are going to be loaded; then :meth:`build` does not read what training starts from.
    """

    label: str
    width: int
    tower: VisionTower
    vision: VisionTower | None
    standardise: Standardiser
    quantised: bool = False
    restored: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.vision = None

    @abstractmethod
    def build(self) -> None:
        """Read weights and create parameters."""

    def base_models(self) -> dict[str, Checkpoint]:
        """The checkpoints that it is built on; see :meth:`cir_lightning.backbones.base.Backbone.base_models`."""
        return {}

    @abstractmethod
    def see(self, features: Tensor, vision: Tensor | None = None) -> Sight:
        """Turn patch features (B, N, Dv), and what :attr:`vision` gave, into tokens."""

    def look(self, pixels: Tensor) -> Sight:
        """Turn pictures (B, 3, S, S) uint8 into tokens."""
        with stage(TOWER):
            features, vision = self.tower.look(pixels), None if self.vision is None else self.vision.look(pixels)
        return self.see(features, vision)

    @abstractmethod
    def encode_query(self, sight: Sight, captions: Sequence[str]) -> Tensor:
        """Unit vectors (B, E) float32 of reference images with relative captions."""

    @abstractmethod
    def encode_target(self, sight: Sight) -> Tensor:
        """Unit vectors (B, E) float32 of target (gallery) images."""

    def forget(self) -> None:
        """Forget what is kept of captions that were read; nothing is, unless an encoder says so."""

    @abstractmethod
    def caption_features(self, captions: Sequence[str]) -> Tensor:
        """What the frozen parts make of a caption alone, (B, any width) float32: the input of the yardsticks."""


class IntentEncoder(Encoder):
    """CIR-LVLM: Connector, hybrid intent instruction and LLM with LoRA.

    Args:
        backbone: the LVLM.
        connector: patch features -> sentence-level prompt; None where the templates have ``{vision}`` instead of ``{image}``.
        soft_prompt: the instance-specific soft prompt: a pool, one universal prompt, or none.
        query_template: task prompt of the query side, with ``{image}`` or ``{vision}``, ``{caption}`` and perhaps ``{soft}``. Wording: our
            choice.
        target_template: task prompt of the target side, without ``{caption}``. Wording: our choice.
        pooling: of the last hidden states; ``eos`` and ``cls`` only of text encoders that were trained with it.
        positions: which of them are pooled: all, those after the image, or where the assistant would answer (with ``chat``).
        chat: whether the task prompts are put into the LVLM's own chat template, as the user's turn.
        width: embedding size E; None for the pooled hidden state itself, without a trained projection. Our choice.
        residual: add a linear map of the mean patch features to the pooled hidden state, on both sides. Our choice, off in the paper.
        patch_pooling: average squares of so many x so many neighbouring patches, for a smaller feature cache; 1 for none.
        patch_dtype: of the patch features in the cache; bfloat16 holds larger numbers at the same size, with an eighth of the precision.
    """

    word_mean: Tensor
    word_scale: Tensor
    projection: nn.Linear | nn.Identity
    residual: nn.Linear | None

    def __init__(
        self,
        backbone: Backbone,
        connector: Connector | None,
        *,
        soft_prompt: SoftPrompt,
        query_template: str = "{image}{soft} Edit: {caption}:",
        target_template: str = "{image}{soft} Picture:",
        pooling: Literal["weighted_mean", "mean", "last", "eos", "cls"] = "weighted_mean",
        positions: Positions = "all",
        chat: bool = False,
        width: int | None = 256,
        residual: bool = False,
        patch_pooling: int = 1,
        patch_dtype: PatchDtype = "float16",
    ) -> None:
        super().__init__()
        self.backbone, self.connector, self.soft_prompt, self.quantised = backbone, connector, soft_prompt, backbone.quantised
        self.label = backbone.label
        self.query_template = Template(query_template, "model.encoder.query_template", positions)
        self.target_template = Template(target_template, "model.encoder.target_template", positions)
        if width is not None and width < 1:
            raise UserError(f"model.encoder.width={width} is not possible; set it to 1 or more, or to null for no projection")
        if positions == "answer" and not chat:
            raise UserError("model.encoder.positions='answer' needs the assistant's turn; set model.encoder.chat to true")
        if not self.query_template.has_caption:
            raise UserError(f"model.encoder.query_template={query_template!r} has no hole {{caption}}: the query would ignore its caption")
        if self.target_template.has_caption:
            raise UserError(f"model.encoder.target_template={target_template!r} has the hole {{caption}}, but a target has no caption")
        for template in (self.query_template, self.target_template):
            if template.has_image is (connector is None):
                raise UserError(
                    f"{template.key} has {'the' if template.has_image else 'no'} hole {{image}}, and connector is "
                    f"{'null' if connector is None else type(connector).__name__}: the hole needs a Connector and a Connector the hole"
                )
            if template.has_vision and not backbone.has_vision:
                name = type(backbone).__name__
                raise UserError(f"{template.key} has the hole {{vision}}, but {name} has no visual tokens of its own; write {{image}}")
            if soft_prompt.length and not template.has_soft:
                raise UserError(
                    f"{template.key} lacks the hole {{soft}}: the {type(soft_prompt).__name__} would be ignored; add it or use NoPrompt"
                )
        if patch_pooling < 1:
            raise UserError(f"model.encoder.patch_pooling={patch_pooling} is not possible; set it to 1 or more")
        self.pooling, self.chat, self.projected_width, self.with_residual = pooling, chat, width, residual
        self.patch_pooling, self.patch_dtype = patch_pooling, patch_dtype

    def base_models(self) -> dict[str, Checkpoint]:
        """See :class:`Encoder`."""
        return self.backbone.base_models()

    def build(self) -> None:
        """Read the backbone's weights and create what is trained."""
        self.backbone.build()
        self.backbone.packs = can_pack(self.backbone.llm)
        if self.pooling in {"eos", "cls"} and self.pooling != (own := self.backbone.own_pooling):
            raise UserError(
                f"model.encoder.pooling={self.pooling!r} is not how {type(self.backbone).__name__} was trained; set weighted_mean, mean, "
                f"last{f' or {own}' if own else ''}"
            )
        self.tower = kept(self.backbone.tower, self.patch_pooling, self.patch_dtype)
        self.vision = self.backbone.vision if self.query_template.has_vision or self.target_template.has_vision else None
        self.standardise = Standardiser(self.tower.width)
        if self.connector is not None:
            if self.restored and self.connector.starts_from:
                setattr(self.connector, self.connector.starts_from, None)
            self.connector.build(self.tower.width, self.tower.patches, self.backbone.width)
        self.soft_prompt.build(self.tower.width, self.backbone.width)
        self.width = self.projected_width or self.backbone.width
        self.projection = nn.Linear(self.backbone.width, self.width) if self.projected_width else nn.Identity()
        self.query_prompt, self.target_prompt = map(self._prompt, (self.query_template, self.target_template))
        self.residual = nn.Linear(self.tower.width, self.width) if self.with_residual else None
        mean, scale = _statistics(self.backbone.llm.get_input_embeddings())
        self.register_buffer("word_mean", mean, persistent=False)
        self.register_buffer("word_scale", scale, persistent=False)

    def _prompt(self, template: Template) -> TaskPrompt:
        tokenizer = self.backbone.tokenizer
        template = template.in_chat(tokenizer) if self.chat else template
        return TaskPrompt(template.around(*self.backbone.around), tokenizer, self.backbone.ends)

    def see(self, features: Tensor, vision: Tensor | None = None) -> Sight:
        """See :class:`Encoder`."""
        with stage(CONNECTOR):
            x = self.standardise(features)
            soft = self.soft_prompt(x)
            return Sight(self._image(features, x), self._as_words(soft.tokens), x.mean(1), soft.chosen, soft.pull, vision)

    def _image(self, features: Tensor, standardised: Tensor) -> Tensor:
        if self.connector is None:
            return standardised.new_zeros(len(standardised), 0, self.backbone.width)
        if self.connector.native:
            tokens: Tensor = self.connector(features)
            return tokens
        return self._as_words(self.connector(standardised))

    def encode_query(self, sight: Sight, captions: Sequence[str]) -> Tensor:
        """See :class:`Encoder`."""
        return self._encode(self.query_prompt, sight, captions)

    def encode_target(self, sight: Sight) -> Tensor:
        """See :class:`Encoder`."""
        return self._encode(self.target_prompt, sight, None)

    def _encode(self, task: TaskPrompt, sight: Sight, captions: Sequence[str] | None) -> Tensor:
        embed, vision = self.backbone.llm.get_input_embeddings(), sight.vision if task.template.has_vision else None
        with stage(TEMPLATE):
            prompt = task.fill(embed, sight.image, sight.soft, captions, 0 if vision is None else vision.shape[1])
        with stage(LLM):
            hidden = self.backbone.read(prompt.embeds, prompt.mask, prompt.seen, vision)
        with stage(POOLING):
            vector: Tensor = self.projection(pool(hidden, prompt.pooled, self.pooling))
            if self.residual is not None:
                vector = vector + self.residual(sight.mean)
            return F.normalize(vector.float(), dim=-1)

    def title_words(self, titles: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token embeddings of titles around zero (B, W, D) and their mask (B, W) bool: what the Connector is aligned with."""
        embed = self.backbone.llm.get_input_embeddings()
        rows = [torch.tensor(ids) for ids in tokens(self.backbone.tokenizer, [f" {title}" for title in titles], "\n")]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1).to(self.word_mean.device)
        return embed(ids.clamp_min(0)).float() - self.word_mean, ids >= 0

    def caption_features(self, captions: Sequence[str]) -> Tensor:
        """See :class:`Encoder`: the mean of the LLM's token embeddings."""
        words, mask = self.title_words(captions)
        return (words * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def _as_words(self, tokens: Tensor) -> Tensor:
        """Tokens of unit variance -> the place and scale of the LLM's own token embeddings; elsewhere the LLM cannot read them."""
        return tokens * self.word_scale + self.word_mean


def _statistics(embed: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean (D,) and standard deviation () of an LLM's token embeddings around it, float32, without a copy of the table."""
    weight: Tensor = embed.weight  # type: ignore[assignment]
    factor = getattr(embed, "embed_scale", 1.0)  # Gemma's embedding multiplies
    mean = weight.mean(0, dtype=torch.float32)
    squares = [(rows.float() - mean).square().sum() for rows in weight.split(8192)]  # type: ignore[no-untyped-call]
    return mean * factor, (torch.stack(squares).sum() / weight.numel()).sqrt() * factor
