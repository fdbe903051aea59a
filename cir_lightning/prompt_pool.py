"""The *instance-specific soft prompt*: learnable tokens beside the task prompt, chosen per image from a prompt pool.

``PromptPool`` is the paper's; ``UniversalPrompt`` (one prompt for all images, the fair control at the same length) and ``NoPrompt`` are
its ablations.

Shapes: B batch, N patches, M pool size, K prompts chosen, Lp tokens per prompt, Dv patch feature width, D LLM width.

Source: CIR-LVLM (arXiv 2412.11087), hybrid intent instruction; selection after L2P (arXiv 2112.08654), section 4.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import nn

from data_modules.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


class SoftPromptOutput(NamedTuple):
    """What a soft prompt gives for a batch.

    Attributes:
        tokens: float (B, length, D) on the Connector's scale (variance near 1); the caller scales them to the LLM's input embeddings.
        chosen: long (B, K), prompt numbers in 0..M-1, best first; None where nothing is chosen.
        pull: float (B,), a term of each image to add to the loss; 0 where there is none.
    """

    tokens: Tensor
    chosen: Tensor | None
    pull: Tensor


class SoftPrompt(nn.Module, ABC):
    """Learnable tokens for the LLM's input.

    Made in two steps, as the Connector: ``__init__`` keeps hyper-parameters, :meth:`build` makes the parameters once the backbone is
    loaded, since only the backbone knows Dv and D.

    Attributes:
        length: tokens that it adds to the sequence.
    """

    length: int

    @abstractmethod
    def build(self, features: int, width: int) -> None:
        """Make the parameters; call once, before the optimizer is made and before a checkpoint is loaded.

        Args:
            features: Dv, width of a patch feature.
            width: D, width of the LLM's input embeddings.
        """

    @abstractmethod
    def forward(self, features: Tensor) -> SoftPromptOutput:
        """Give each image its prompt.

        Args:
            features: float (B, N, Dv), patch features standardised per channel by the caller.
        """


class PromptPool(SoftPrompt):
    """M prompts of Lp tokens; each image gets the K whose keys are nearest to it.

    Prompt m has a learnable key k_m. The image asks with q = W mean_n(features), W learnable and without bias (standardised features have
    mean 0, so different images ask in different directions). The K prompts with the largest cos(q, k_m) are chosen for each image on its
    own and put in this order. Our choices where the paper is silent:

    * A hard top-K gives W and the keys no gradient, so the chosen prompts are weighted by ``K * softmax(chosen cosines)``: the weights
      average 1, and the main loss reaches W and the keys. With ``chosen=1`` the weight is always 1: W stays as drawn, a random projection.
    * ``pull * sum_k (1 - cos(q_i, k_k))`` over the chosen keys of image i moves them to the images that choose them. As in L2P, where q is
      frozen, it trains the keys only. If it trained W too, all images would soon ask the same: by the pull term alone, 1,000 steps took
      300 clusters of features from 300 different choices to 2 (and to 300 without W).

    Args:
        size: M, prompts in the pool. 45 is the paper's best on Fashion-IQ.
        tokens: Lp, tokens per prompt. The paper's best total Lp x K is 40; how it splits is not known.
        chosen: K, prompts per image; at most ``size``.
        pull: weight of the pull term; 0 switches it off.

    Raises:
        UserError: ``chosen`` is not within 1..``size``, or ``tokens`` is below 1.

    Source: L2P (arXiv 2112.08654), equations 3 and 5.
    """

    def __init__(self, size: int = 45, tokens: int = 4, *, chosen: int = 10, pull: float = 0.5) -> None:
        super().__init__()
        _check_tokens(tokens)
        if not 1 <= chosen <= size:
            raise UserError(
                f"soft prompt: cannot choose chosen={chosen} of size={size} prompts; set `soft_prompt.chosen` to 1..{max(size, 1)} "
                "or enlarge `soft_prompt.size`"
            )
        self.size, self.tokens, self.chosen, self.pull = size, tokens, chosen, pull
        self.length = chosen * tokens

    def build(self, features: int, width: int) -> None:
        """See :meth:`SoftPrompt.build`."""
        self.prompts = nn.Parameter(0.5 * torch.randn(self.size, self.tokens, width))
        self.keys = nn.Parameter(torch.randn(self.size, width))
        self.query = nn.Linear(features, width, bias=False)

    def ask(self, features: Tensor) -> Tensor:
        """What images (B, N, Dv) look for among the keys: unit vectors (B, D)."""
        return F.normalize(self.query(features.mean(1)), dim=-1)

    def forward(self, features: Tensor) -> SoftPromptOutput:
        """See :meth:`SoftPrompt.forward`."""
        query, keys = self.ask(features), F.normalize(self.keys, dim=-1)
        cosines, chosen = (query @ keys.T).topk(self.chosen)  # (B, K) each
        weights = self.chosen * cosines.softmax(-1)
        tokens = weights[..., None, None] * self.prompts[chosen]  # (B, K, Lp, D)
        pull = self.pull * (1 - torch.einsum("bd,bkd->bk", query.detach(), keys[chosen])).sum(1)
        return SoftPromptOutput(tokens.flatten(1, 2), chosen, pull)


class UniversalPrompt(SoftPrompt):
    """The same learnable tokens for every image: the control for the pool at the same length.

    Args:
        tokens: how many.

    Raises:
        UserError: ``tokens`` is below 1.
    """

    def __init__(self, tokens: int = 40) -> None:
        super().__init__()
        _check_tokens(tokens)
        self.length = tokens

    def build(self, features: int, width: int) -> None:  # noqa: ARG002 - the prompt does not look at the image
        """See :meth:`SoftPrompt.build`."""
        self.prompt = nn.Parameter(0.5 * torch.randn(1, self.length, width))

    def forward(self, features: Tensor) -> SoftPromptOutput:
        """See :meth:`SoftPrompt.forward`."""
        return SoftPromptOutput(self.prompt.expand(len(features), -1, -1), None, features.new_zeros(len(features)))


class NoPrompt(SoftPrompt):
    """No soft prompt: zero tokens, no parameters."""

    length = 0

    def build(self, features: int, width: int) -> None:  # noqa: ARG002 - the prompt does not look at the image
        """See :meth:`SoftPrompt.build`."""
        self.width = width

    def forward(self, features: Tensor) -> SoftPromptOutput:
        """See :meth:`SoftPrompt.forward`."""
        return SoftPromptOutput(features.new_zeros(len(features), 0, self.width), None, features.new_zeros(len(features)))


def _check_tokens(tokens: int) -> None:
    """Refuse a prompt without tokens."""
    if tokens < 1:
        raise UserError(f"soft prompt: tokens={tokens} is below 1; set `soft_prompt.tokens` to 1 or more, or choose `NoPrompt`")
