"""The Connector: patch features of an image -> image tokens in the LLM's input space (the *sentence-level prompt*).

A set of learnable queries reads the patch features by cross-attention. The paper gives no size or structure; two are offered, with the
same input and output stage, so that a comparison of them compares their blocks only. The third, without queries, is their control.

Shapes: B batch, N patches, Q connector queries, Dv patch feature width, D LLM width, h inner width of the Connector.

Source: CIR-LVLM (arXiv 2412.11087), section on the Connector; sizes and structure are our choice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import nn

from cir_lightning.backbones.checkpoints import Checkpoint
from cir_lightning.backbones.skeleton import on_meta
from data_modules.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


class Connector(nn.Module, ABC):
    """Turns patch features into ``queries`` tokens that the LLM can read.

    A Connector is made in two steps: a config gives its hyper-parameters to ``__init__``, and :meth:`build` makes its parameters once the
    backbone is loaded, since only the backbone knows Dv, N and D.

    Attributes:
        queries: Q, the number of image tokens.
        native: whether it is an LVLM's own, which reads the patch features as they are and speaks at the scale of the LLM's embeddings.
        starts_from: the argument that names weights to start training from, which a trained Connector does without; None if there is none.
    """

    queries: int
    native = False
    starts_from: str | None = None

    @abstractmethod
    def build(self, features: int, patches: int, width_out: int) -> None:
        """Make the parameters; call once, before the optimizer is made and before a checkpoint is loaded.

        Args:
            features: Dv, width of a patch feature.
            patches: N, patches per image.
            width_out: D, width of the LLM's input embeddings.
        """

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Read an image.

        Args:
            features: float (B, N, Dv), patch features standardised per channel by the caller.

        Returns:
            float (B, Q, D), each token with mean 0 and variance 1 over D. The caller scales them to the statistics of the LLM's input
            embeddings; without that scale a frozen LLM reads nothing in them.
        """


class PatchInput(nn.Module):
    """What both Connectors read: patch features made h wide, with a learned position per patch, normalised."""

    def __init__(self, features: int, patches: int, *, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, width)
        self.position = nn.Parameter(0.2 * torch.randn(patches, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, N, Dv) to (B, N, h)."""
        return cast("Tensor", self.norm(self.linear(features) + self.position))


class ResamplerBlock(nn.Module):
    """Pre-norm cross-attention (queries read patches), self-attention (queries share), MLP."""

    def __init__(self, width: int, heads: int, *, dropout: float) -> None:
        super().__init__()
        self.cross_norm, self.self_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.cross_attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.self_attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width))

    def forward(self, queries: Tensor, patches: Tensor) -> Tensor:
        """Update the queries (B, Q, h) from the patches (B, N, h)."""
        queries = queries + self.cross_attention(self.cross_norm(queries), patches, patches, need_weights=False)[0]
        own = self.self_norm(queries)
        queries = queries + self.self_attention(own, own, own, need_weights=False)[0]
        return cast("Tensor", queries + self.mlp(self.mlp_norm(queries)))


class Resampler(Connector):
    """A small pre-norm resampler; trains well from scratch.

    Args:
        queries: Q, image tokens.
        width: h, inner width.
        depth: blocks.
        heads: attention heads; must divide ``width``.
        dropout: probability in attention and MLP.

    Raises:
        UserError: a size is below 1, or ``width`` is no multiple of ``heads``.

    Source: Perceiver Resampler of Flamingo (arXiv 2204.14198), section 3.1; Qwen-VL's adapter (arXiv 2308.12966), section 2.1.
    """

    def __init__(self, queries: int = 8, width: int = 256, *, depth: int = 2, heads: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        _check_sizes(queries=queries, width=width, depth=depth, heads=heads)
        self.queries, self.width, self.depth, self.heads, self.dropout = queries, width, depth, heads, dropout

    def build(self, features: int, patches: int, width_out: int) -> None:
        """See :meth:`Connector.build`."""
        self.patch_input = PatchInput(features, patches, width=self.width)
        self.query = nn.Parameter(0.5 * torch.randn(1, self.queries, self.width))
        self.blocks = nn.ModuleList(ResamplerBlock(self.width, self.heads, dropout=self.dropout) for _ in range(self.depth))
        self.norm = nn.LayerNorm(self.width)
        self.out = nn.Linear(self.width, width_out)

    def forward(self, features: Tensor) -> Tensor:
        """See :meth:`Connector.forward`."""
        patches = self.patch_input(features)
        tokens = self.query.expand(len(features), -1, -1)
        for block in self.blocks:
            tokens = block(tokens, patches)
        return _unit_variance(self.out(self.norm(tokens)))


class QFormer(Connector):
    """BLIP-2's Q-Former, trained from scratch or from BLIP-2's own.

    A BERT encoder whose tokens are the queries; its layers 1, 3, 5, ... read the patches. BLIP-2's own is trained further on: on top of it
    there are new layers for the patches, since another vision tower's, standardised, are not those that it knows, and for the LLM.

    Args:
        queries: Q, image tokens.
        width: h, inner width.
        depth: layers.
        heads: attention heads; must divide ``width``.
        patch_width: of what its cross-attention reads; None for ``width``.
        init_from: a BLIP-2 checkpoint whose Q-Former and queries training starts from, an id on the Hugging Face hub
            (``Salesforce/blip2-itm-vit-g``) or a local folder. The sizes must be its: 32 queries, width 768, patch width 1408, depth 12,
            12 heads. A trained run does not need it any more.
        revision: of ``init_from``, commit, tag or branch on the hub.

    Raises:
        UserError: a size is below 1, or ``width`` is no multiple of ``heads``.

    Source: BLIP-2 (arXiv 2301.12597), section 3.1; without its text branch.
    """

    starts_from = "init_from"

    def __init__(
        self,
        queries: int = 8,
        width: int = 256,
        *,
        depth: int = 2,
        heads: int = 8,
        patch_width: int | None = None,
        init_from: str | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        self.patch_width = width if patch_width is None else patch_width
        _check_sizes(queries=queries, width=width, depth=depth, heads=heads, patch_width=self.patch_width)
        self.queries, self.width, self.depth, self.heads = queries, width, depth, heads
        self.init_from, self.revision = init_from, revision

    def build(self, features: int, patches: int, width_out: int) -> None:
        """See :meth:`Connector.build`.

        Raises:
            UserError: ``init_from`` is no BLIP-2, cannot be read, or has other sizes.
        """
        from transformers import Blip2QFormerConfig, Blip2QFormerModel  # seconds to import: only where it is chosen

        origin = None if self.init_from is None else Checkpoint(self.init_from, self.revision)
        if origin is not None:
            self._check_origin(origin)
        config = Blip2QFormerConfig(
            hidden_size=self.width,
            encoder_hidden_size=self.patch_width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.width,
            cross_attention_frequency=2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.patch_input = PatchInput(features, patches, width=self.patch_width)
        self.query = nn.Parameter(0.5 * torch.randn(1, self.queries, self.width))
        self.encoder = Blip2QFormerModel(config)
        for name, module in self.encoder.named_modules():
            if name.endswith(".key"):
                module.bias = None  # adds the same to every score of a query, which softmax removes: it would never get a gradient
        self.out = nn.Linear(self.width, width_out)
        if origin is not None and not on_meta():
            self._start_from(origin)

    def _check_origin(self, origin: Checkpoint) -> None:
        config: Any = origin.config()
        if config.model_type != "blip-2":
            raise UserError(f"connector.init_from={origin.name!r} is a {config.model_type!r}, which has no Q-Former; name a BLIP-2")
        own = config.qformer_config
        theirs = {"queries": config.num_query_tokens, "width": own.hidden_size, "depth": own.num_hidden_layers}
        theirs |= {"heads": own.num_attention_heads, "patch_width": own.encoder_hidden_size}
        if (mine := {name: getattr(self, name) for name in theirs}) != theirs:
            raise UserError(f"connector sizes {mine} are not those of connector.init_from={origin.name!r}; set {theirs}")
        if own.intermediate_size != 4 * self.width or own.cross_attention_frequency != 2:
            raise UserError(
                f"connector.init_from={origin.name!r}: its Q-Former is built otherwise than BLIP-2's published ones; leave it out"
            )

    def _start_from(self, origin: Checkpoint) -> None:
        """Take the queries and the layers that they go through, not the text branch's."""
        weights = origin.tensors(["query_tokens", "qformer."])
        mine = {f"qformer.{name}": tensor for name, tensor in self.encoder.state_dict(keep_vars=True).items()}
        mine["query_tokens"] = self.query
        if missing := sorted(mine.keys() - weights.keys()):
            raise UserError(f"connector.init_from={origin.name!r} lacks the tensor {missing[0]}; get its files again")
        if wrong := [name for name, tensor in mine.items() if weights[name].shape != tensor.shape]:
            shapes = f"{tuple(weights[wrong[0]].shape)}, not {tuple(mine[wrong[0]].shape)}"
            raise UserError(
                f"connector.init_from={origin.name!r} has {wrong[0]} of shape {shapes} as its config.json says; get its files again"
            )
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(weights[name])

    def forward(self, features: Tensor) -> Tensor:
        """See :meth:`Connector.forward`."""
        tokens = self.query.expand(len(features), -1, -1)
        hidden = self.encoder(query_embeds=tokens, encoder_hidden_states=self.patch_input(features)).last_hidden_state
        return _unit_variance(self.out(hidden))


class Linear(Connector):
    """A linear map of every patch feature: as many image tokens as patches, and no queries. The control for the other Connectors.

    Source: LLaVA (arXiv 2304.08485), section 4.1.
    """

    def build(self, features: int, patches: int, width_out: int) -> None:
        """See :meth:`Connector.build`."""
        self.queries = patches
        self.out = nn.Linear(features, width_out)

    def forward(self, features: Tensor) -> Tensor:
        """See :meth:`Connector.forward`."""
        return _unit_variance(self.out(features))


def _unit_variance(tokens: Tensor) -> Tensor:
    """Give every token (..., D) mean 0 and variance 1 over D; no parameters."""
    return F.layer_norm(tokens, tokens.shape[-1:])


def _check_sizes(*, width: int, heads: int, **others: int) -> None:
    """Refuse sizes that no Connector can have."""
    for key, value in (*others.items(), ("width", width), ("heads", heads)):
        if value < 1:
            raise UserError(f"connector: {key}={value} is below 1; set `connector.{key}` to 1 or more")
    if width % heads:
        raise UserError(
            f"connector: width={width} is no multiple of heads={heads}; "
            f"set `connector.width` to {width // heads * heads or heads} or {(width // heads + 1) * heads}, or change `connector.heads`"
        )
