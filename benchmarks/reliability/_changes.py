"""What is done to the tensors, keys, metadata and bytes of a good adapter file, drawn from a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import torch
from torch import Tensor

from benchmarks.reliability._subject import packed, raw

__all__ = ["Content", "changed", "doubled"]

Content: TypeAlias = tuple[dict[str, Tensor], dict[str, str]]
"""Tensors and metadata of a file."""
DTYPES: Final = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64,
    torch.float8_e4m3fn, torch.int32,
)  # fmt: skip
NUMBERS: Final = (float("nan"), float("inf"), -float("inf"), 0.0, 1e30, 3e38, 1e-40, -1.0, 65504.0, 1e10)
NAMES: Final = (
    "", "\0", "..", "../../x.lora_down.weight", "/etc/passwd", "a" * 10_000, "x\ny", "\x1b[2J", "é", "__metadata",
    "unet", ".", "lora_unet_", "base_model.model.", "wide.lora_A.weight.weight", "\ud7ff", "lora_te_x.alpha",
)  # fmt: skip
BOMBS: Final = (
    "[" * 50_000, '{"a":' * 3000, '{"method": "lora", "config": {"rank": 9999999999}}', "x" * 500_000, "\0", "",
    '{"method": "full+lora", "config": {"parts": [{}, {}]}}', "9" * 5000, '{"r": 2, "lora_alpha": 1e999}', "NaN",
    '{"facts": {"trigger": ' + "[" * 90 + "]" * 90 + "}}", "null", '{"parts": "x", "method": "lora+lora"}',
)  # fmt: skip
KEYS: Final = (
    "studio",
    "lora_adapter_metadata",
    "ss_network_args",
    "sshs_model_hash",
    "modelspec.title",
    "ss_tag_frequency",
)


def changed(content: Content, known: Sequence[str], draw: random.Random) -> tuple[Content, str]:
    """Returns the content with one to three changes, and which.

    Args:
        content: of a file. known: keys that mean something on its base. draw: where choices come from.
    """
    tensors, metadata = dict(content[0]), dict(content[1])
    done = []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if not tensors:
            break
        change = draw.choice(CHANGES)
        change(tensors, metadata, known, draw)
        done.append(change.__name__.strip("_"))
    return (tensors, metadata), " ".join(done)


def doubled(tensors: dict[str, Tensor], metadata: dict[str, str], draw: random.Random) -> bytes:
    """The bytes of a file whose header has an entry, or two, that it should not have."""
    data = packed(tensors, metadata)
    length = int.from_bytes(data[:8], "little")
    head, body = data[8 : 8 + length].decode(), data[8 + length :]
    key = draw.choice(sorted(tensors))
    entry = json.dumps({key: json.loads(head)[key]})[1:-1]
    shifted = entry.replace('"data_offsets": [', '"data_offsets": [1')
    return raw(head[:-1].encode() + f", {draw.choice((entry, shifted))}}}".encode(), body)


Tensors: TypeAlias = dict[str, Tensor]
Change: TypeAlias = Callable[[Tensors, dict[str, str], Sequence[str], random.Random], None]


def _renamed(tensors: Tensors, metadata: dict[str, str], known: Sequence[str], draw: random.Random) -> None:
    key = draw.choice(sorted(tensors))
    at = draw.randrange(len(key)) if key else 0
    other = draw.choice(
        (
            draw.choice(NAMES),
            draw.choice(known),
            key[:at] + draw.choice("_.0aZ:") + key[at + 1 :],
            key[:at] + key[at + 1 :],
            key + draw.choice((".weight", ".default", " ", ".0")),
            draw.choice(("unet.", "transformer.", "lora_unet_", "base_model.model.", "../")) + key,
        )
    )
    tensors[other] = tensors.pop(key)


def _copied(tensors: Tensors, metadata: dict[str, str], known: Sequence[str], draw: random.Random) -> None:
    tensors[draw.choice(known)] = tensors[draw.choice(sorted(tensors))].clone()


def _dropped(tensors: Tensors, metadata: dict[str, str], known: Sequence[str], draw: random.Random) -> None:
    del tensors[draw.choice(sorted(tensors))]


def _swapped(tensors: Tensors, metadata: dict[str, str], known: Sequence[str], draw: random.Random) -> None:
    one, two = draw.choice(sorted(tensors)), draw.choice(sorted(tensors))
    tensors[one], tensors[two] = tensors[two], tensors[one]


def _cast(tensors: Tensors, metadata: dict[str, str], known: Sequence[str], draw: random.Random) -> None:
    dtype = draw.choice(DTYPES)
    for key in sorted(tensors) if draw.random() < 0.3 else [draw.choice(sorted(tensors))]:
        tensors[key] = (tensors[key].real if tensors[key].is_complex() else tensors[key]).to(dtype)


def _filled(tensors: Tensors, metadata: dict[str, str], known: Sequence[str], draw: random.Random) -> None:
    key = draw.choice(sorted(tensors))
    tensor, number = tensors[key].clone().contiguous(), draw.choice(NUMBERS)
    if tensor.numel() and tensor.is_floating_point():
        if draw.random() < 0.5:
            tensor.view(-1)[draw.randrange(tensor.numel())] = torch.tensor(number).to(tensor.dtype)
        else:
            tensor = torch.full(tensor.shape, number).to(tensor.dtype)
    tensors[key] = tensor


def _scaled(tensors: Tensors, metadata: dict[str, str], known: Sequence[str], draw: random.Random) -> None:
    key = draw.choice(sorted(tensors))
    if tensors[key].dtype in (torch.float32, torch.float64):
        tensors[key] = tensors[key] * draw.choice((-1.0, 2.0, 1e4, 1e-4))


def _reshaped(tensors: Tensors, metadata: dict[str, str], known: Sequence[str], draw: random.Random) -> None:
    key = draw.choice(sorted(tensors))
    tensor = tensors[key]
    choices: list[Callable[[], Tensor]] = [
        lambda: tensor.reshape(-1),
        lambda: tensor.unsqueeze(0),
        lambda: tensor[..., None, None],
        lambda: tensor.new_zeros(0),
        lambda: tensor.new_zeros(0, *tensor.shape[1:]),
        lambda: tensor.new_ones(1),
        lambda: tensor.new_ones(()),
        lambda: tensor.new_ones([1] * 12),
    ]
    if tensor.dim() > 1:
        choices += [lambda: tensor.transpose(0, 1), lambda: tensor[0], lambda: tensor[:, :1]]
    if tensor.dim():
        choices += [lambda: tensor[:-1], lambda: torch.cat((tensor, tensor)), lambda: tensor.flatten(0)]
    if tensor.numel() and tensor.dtype != torch.float8_e4m3fn:
        tensors[key] = draw.choice(choices)().contiguous()


def _narrowed(tensors: Tensors, metadata: dict[str, str], known: Sequence[str], draw: random.Random) -> None:
    """Both of a pair lose their last rank, so that they still fit."""
    key = draw.choice(sorted(tensors))
    for down, up in (("down", "up"), ("lora_A", "lora_B"), ("hada_w1_b", "hada_w1_a")):
        other = key.replace(down, up)
        if other != key and other in tensors and tensors[key].dim() > 1 and tensors[other].dim() > 1:
            tensors[key] = tensors[key][:-1].contiguous()
            tensors[other] = tensors[other][:, :-1].contiguous()


def _added(tensors: Tensors, metadata: dict[str, str], known: Sequence[str], draw: random.Random) -> None:
    tensors[draw.choice(NAMES)] = torch.ones(draw.choice(((), (2,), (3, 3), (0,))))


def _told(tensors: Tensors, metadata: dict[str, str], known: Sequence[str], draw: random.Random) -> None:
    metadata[draw.choice((*KEYS, *NAMES))] = draw.choice(BOMBS)


CHANGES: Final[tuple[Change, ...]] = (
    _renamed, _renamed, _copied, _dropped, _dropped, _swapped, _cast, _filled, _filled, _scaled, _reshaped, _reshaped,
    _narrowed, _added, _told,
)  # fmt: skip
