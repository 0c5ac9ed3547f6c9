"""What the files made by hand are made of: values, texts, expressions, shapes."""
# ruff: noqa: E501

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

__all__ = ["DTYPES", "ENTRY", "FIELDS", "NUMBERS", "RESHAPED", "SLOW", "TEXTS", "VALUES", "WRONG", "methods"]

ENTRY: Final = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

WRONG: Final[list[Any]] = [
        -1, 2**63, 2**64, 10**30, 1.5, "2", None, True, [], {}, [2, 2, "x"], [2**62, 2**62], [1] * 100, [-2], [[2]],
    ]  # fmt: skip
TEXTS: Final = [
        b"", b"{", b"[]", b"null", b"3", b'"x"', b"{}", b" {}", b"\xef\xbb\xbf{}", b"{}x", b"{\"a\":1}", b"{'a':1}", b"\xff",
        b"{" * 5000, b'{"a":' * 5000, b"[" * 99_999, '{"a":1}'.encode("utf-16"), b'{"\\ud800":' + json.dumps(ENTRY).encode() + b"}",
        b'{"__metadata__":{"a":"\\ud800"}}', b'{"__metadata__":{"a":1}}', b'{"__metadata__":[]}', b'{"__metadata__":null}',
        b'{"__metadata__":{"a":"b"},"__metadata__":{"a":"c"}}', b'{"a":NaN}', b'{"a":' + b"9" * 5000 + b"}",
        b'{"x":%b,"x":%b}' % ((json.dumps(ENTRY).encode(),) * 2), b'{"x":{"dtype":"F32","dtype":"F32"}}', b"{}" + b" " * 4096,
    ]  # fmt: skip
DTYPES: Final = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64,
    torch.float8_e4m3fn,
)  # fmt: skip


NUMBERS: Final = (
    "4",
    " 4",
    "4.0",
    "4e0",
    "Dynamic",
    "nan",
    "inf",
    "1e400",
    "-4",
    "",
    "0x4",
    "[4]",
    "true",
    "9" * 4000,
    "4 4",
)


VALUES: Final = (
    "4.5", "-1", "0", "1e400", "NaN", "Infinity", "9" * 4000, '"2"', '"x"', "[]", "[2]", "[[]]", "{}", '{"a":{}}', "true",
    "[" * 3000 + "]" * 3000, '"\\ud800"', '["lin", 7]', "[null]", '"' + "a" * 20_000 + '"',
)  # fmt: skip
FIELDS: Final = (
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules", "target_parameters", "peft_type",
    "bias", "lora_bias", "modules_to_save", "fan_in_fan_out", "init_lora_weights", "use_dora", "layers_pattern", "unknown",
)  # fmt: skip


SLOW: Final = (
    "([a-z_0-9.]+)+X", "(a|a)*X", "(.*)*X", "(.*.*.*.*)X", "(l+)+(i+)+X", "(.?){500}X", "((.{0,30}){0,30}){0,30}X", "(?=(.*)*X).*",
    "(\\w+\\.?)+$X", "(lin|l|i|n)*X", ".*" * 200 + "X", "(" * 200 + "x" + ")" * 200, "(x){1000000}", "(?<=lin).*", "(a)\\1",
    "(?i)LIN", "[", "(", "*", "x" * 100_000,
)  # fmt: skip


RESHAPED: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "no axis": lambda tensor: tensor.reshape(-1)[0],
    "one axis": lambda tensor: tensor.reshape(-1),
    "two more": lambda tensor: tensor[None, None],
    "none": lambda tensor: tensor.reshape(-1)[:0].reshape(0, *tensor.shape[1:]),
    "turned": lambda tensor: tensor.transpose(0, -1) if tensor.dim() else tensor,
    "nine times": lambda tensor: torch.cat([tensor.reshape(-1)] * 9),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "whole": lambda tensor: tensor.to(torch.int64),
}


def methods() -> dict[str, dict[str, Tensor]]:
    """The tensors of LyCORIS' methods, by method."""
    return lycoris() | pefts()


def lycoris() -> dict[str, dict[str, Tensor]]:
    """Those of LyCORIS' names."""
    one = torch.ones
    return {
        "lora": {
            "lycoris_lin.lora_down.weight": one(2, 8),
            "lycoris_lin.lora_up.weight": one(12, 2),
            "lycoris_lin.diff_b": one(12),
        },
        "locon": {
            "lycoris_conv.lora_down.weight": one(2, 12, 1),
            "lycoris_conv.lora_mid.weight": one(2, 2, 3),
            "lycoris_conv.lora_up.weight": one(8, 2, 1),
        },
        "loha": {
            f"lycoris_lin.hada_{name}": one(*shape)
            for name, shape in (("w1_a", (12, 2)), ("w1_b", (2, 8)), ("w2_a", (12, 2)), ("w2_b", (2, 8)))
        },
        "lokr": {
            "lycoris_lin.lokr_w1": one(3, 2),
            "lycoris_lin.lokr_w2_a": one(4, 2),
            "lycoris_lin.lokr_w2_b": one(2, 4),
        },
        "ia3": {"lycoris_lin.weight": one(12), "lycoris_lin.on_input": torch.tensor(0)},
        "oft": {"lycoris_lin.oft_blocks": one(3, 4, 4), "lycoris_lin.alpha": torch.tensor(0.0)},
        "dora": {
            "lycoris_lin.lora_down.weight": one(2, 8),
            "lycoris_lin.lora_up.weight": one(12, 2),
            "lycoris_lin.dora_scale": one(12, 1),
        },
    }


def pefts() -> dict[str, dict[str, Tensor]]:
    """Those of PEFT's names."""
    one = torch.ones
    return {
        "shira": {"lin.shira_weight": one(5), "lin.shira_indices": torch.zeros(2, 5)},
        "vera": {
            "lin.vera_lambda_b": one(12),
            "lin.vera_lambda_d": one(4),
            "base_model.vera_A": one(4, 8),
            "base_model.vera_B": one(12, 4),
        },
        "fourierft": {"lin.fourierft_spectrum": one(5)},
        "hra": {"lin.hra_u": one(8, 2)},
        "road": {"lin.road_theta": one(12), "lin.road_alpha": one(12)},
        "miss": {"lin.miss_block": one(2, 12)},
    }
