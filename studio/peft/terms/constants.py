"""PEFT's constants."""

from __future__ import annotations

from typing import Final

import torch

__all__ = [
    "ALLOWED_COMPUTE_DTYPES",
    "DUMMY_MODEL_CONFIG",
    "DUMMY_TARGET_MODULES",
    "EMBEDDING_LAYER_NAMES",
    "INCLUDE_LINEAR_LAYERS_SHORTHAND",
    "MIN_TARGET_MODULES_FOR_OPTIMIZATION",
    "SEQ_CLS_HEAD_NAMES",
    "TOKENIZER_CONFIG_NAME",
    "UPCAST_DTYPES",
    "WEIGHTS_NAME",
]

WEIGHTS_NAME: Final = "adapter_model.bin"
TOKENIZER_CONFIG_NAME: Final = "tokenizer_config.json"
INCLUDE_LINEAR_LAYERS_SHORTHAND: Final = "all-linear"
EMBEDDING_LAYER_NAMES: Final = ["embed_tokens", "lm_head"]
SEQ_CLS_HEAD_NAMES: Final = ["score", "classifier"]
DUMMY_TARGET_MODULES: Final = "dummy-target-modules"
DUMMY_MODEL_CONFIG: Final = {"model_type": "custom"}
MIN_TARGET_MODULES_FOR_OPTIMIZATION: Final = 20
ALLOWED_COMPUTE_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32)
UPCAST_DTYPES: Final = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
