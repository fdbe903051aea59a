"""A recipe of the tiny model and benchmark; where it writes is left to the test."""

from __future__ import annotations

from typing import Any

from fakes.tiny import TinyCIR, TinyLVLM

CONFIG: dict[str, Any] = {
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 2,
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "callbacks": [{"class_path": "cir_lightning.alignment.TitleAlignment", "init_args": {"steps": 2, "batch_size": 8}}],
    },
    "model": {
        "monitor": "val/tiny/avg/R@1",
        "encoder": {
            "class_path": "cir_lightning.encoder.IntentEncoder",
            "init_args": {
                "backbone": {"class_path": f"fakes.tiny.{TinyLVLM.__name__}", "init_args": {"lora": {"rank": 2}}},
                "connector": {
                    "class_path": "cir_lightning.connector.Resampler",
                    "init_args": {"queries": 2, "width": 32, "depth": 1, "heads": 4},
                },
                "soft_prompt": {
                    "class_path": "cir_lightning.prompt_pool.PromptPool",
                    "init_args": {"size": 4, "tokens": 1, "chosen": 2},
                },
                "width": 16,
            },
        },
        "loss": {"temperature": 0.1},
    },
    "data": {"class_path": f"fakes.tiny.{TinyCIR.__name__}", "init_args": {}},
}
