"""Training of LLMs that do not fit one GPU: each process keeps a share of every frozen layer, and all of what is trained.

Layers are sharded by FSDP2 (``fully_shard``): a layer is whole only while it computes. What is trained (adapters, Connector, soft prompt)
is small, stays whole everywhere and has its gradients averaged, as under DDP: optimizer, clipping and checkpoints are those of one process.
"""

from __future__ import annotations

from datetime import timedelta  # noqa: TC003 - jsonargparse reads it
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch.distributed.constants import default_pg_timeout
from torch.distributed.fsdp import fully_shard

from cir_lightning.backbones.base import layers_of
from cir_lightning.checkpoint import trained_state
from data_modules.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from cir_lightning.encoder import Encoder


class ShardedBase(ModelParallelStrategy):
    """FSDP2 of the frozen layers over all processes; ``--trainer.strategy sharded``.

    Every process reads the whole base into its own main memory before it gives up what others keep.

    Args:
        timeout: how long a process waits for another before it ends.
    """

    def __init__(self, timeout: timedelta = default_pg_timeout) -> None:
        super().__init__(save_distributed_checkpoint=False, timeout=timeout)

    def setup_environment(self) -> None:
        """All processes share the layers."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def shard(self, encoder: Encoder) -> None:
        """Give up what others keep of the LLM's layers.

        Raises:
            UserError: the encoder has no LLM.
        """
        llm = getattr(getattr(encoder, "backbone", None), "llm", None)
        if llm is None:
            raise UserError(f"trainer.strategy=sharded: {type(encoder).__name__} has no LLM to shard; use ddp")
        encoder.backbone.lockstep = True  # type: ignore[union-attr]
        for layer in layers_of(llm):
            fully_shard(layer, mesh=self.device_mesh["data_parallel"], ignored_params={p for p in layer.parameters() if p.requires_grad})

    def post_backward(self, closure_loss: Tensor) -> None:
        """Average the gradients of what is trained; what was averaged before, for accumulation, stays as it is."""
        super().post_backward(closure_loss)
        assert self.lightning_module is not None
        gradients = [p.grad for p in self.lightning_module.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients]) / dist.get_world_size()
        dist.all_reduce(flat)
        for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):  # type: ignore[no-untyped-call]
            gradient.copy_(mean.view_as(gradient))

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What is trained, which is whole here."""
        assert self.lightning_module is not None
        return trained_state(self.lightning_module, self.lightning_module.state_dict())

    optimizer_state = Strategy.optimizer_state
    load_checkpoint = Strategy.load_checkpoint
    load_model_state_dict = Strategy.load_model_state_dict
    load_optimizer_state_dict = Strategy.load_optimizer_state_dict
    lightning_restore_optimizer = Strategy.lightning_restore_optimizer


StrategyRegistry.register("sharded", ShardedBase, description="FSDP2 of the frozen layers of the LLM")
