"""Attack: adapter files made by hand, which lie about themselves in every way that was thought of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from benchmarks.reliability import _places
from benchmarks.reliability._lists import (
    DTYPES,
    ENTRY,
    FIELDS,
    NUMBERS,
    RESHAPED,
    SLOW,
    TEXTS,
    VALUES,
    WRONG,
    methods,
)
from benchmarks.reliability._subject import Net, load_and_look, output, packed, raw, write_raw
from benchmarks.reliability.trial import Trial, attempt

__all__ = ["TITLE", "trials"]

TITLE: Final = "adapter files made by hand"
Action = Callable[[], str]
PAIR: Final = {
    "lin.lora_A.weight": torch.arange(16.0).reshape(2, 8) / 16,
    "lin.lora_B.weight": torch.arange(24.0).reshape(12, 2) / 24,
}
FLAT: Final = {
    "lycoris_lin.lora_down.weight": PAIR["lin.lora_A.weight"],
    "lycoris_lin.lora_up.weight": PAIR["lin.lora_B.weight"],
}
FOLDER: Final = {f"base_model.model.{key}": tensor for key, tensor in PAIR.items()}
CONFIG: Final = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["lin"]}


def adapted(scale: float) -> Tensor:
    """What the model computes with the pair at a scale."""
    model = Net()
    with torch.no_grad():
        model.lin.weight += scale * PAIR["lin.lora_B.weight"] @ PAIR["lin.lora_A.weight"]
    return output(model)


def trials(folder: Path, long: bool) -> Iterator[Trial]:
    """Makes the files one by one and tries them.

    Args:
        folder: where they are made. long: those of tens of megabytes too.
    """
    number = 0
    for group in (headers, alphas, stated, tables, configs, patterns, not_finite, shapes):
        for name, content in group():
            number += 1
            place = folder / f"{number:04}"
            yield attempt(f"{group.__name__}: {name}", partial(content, place))
    for name, action in _places.places(folder / "places", long):
        yield attempt(f"places: {name}", action)


def single(content: bytes, wanted: Tensor | None, place: Path) -> str:
    return load_and_look(write_raw(place / "a.safetensors", content), wanted)


def peft(config: bytes, place: Path, wanted: Tensor | None = None, tensors: dict[str, Tensor] | None = None) -> str:
    write_raw(place / "adapter_config.json", config)
    write_raw(place / "adapter_model.safetensors", packed(FOLDER if tensors is None else tensors))
    return load_and_look(place, wanted)


Made = Iterator[tuple[str, Callable[[Path], str]]]


def headers() -> Made:
    """Headers that safetensors refuses, or that say what cannot be."""
    for field in ("dtype", "shape", "data_offsets"):
        for value in [*WRONG, "F32 ", "f32", "Q4", "F64", [0], [8, 0], [0, 8, 16], [0, 1 << 62]]:
            if value not in (ENTRY[field],):
                head = json.dumps({"lin.lora_A.weight": {**ENTRY, field: value}}).encode()
                yield f"{field}={str(value)[:40]}", partial(single, raw(head, b"\0" * 8), None)
    for text in TEXTS:
        yield f"text {text[:30]!r}", partial(single, raw(text, b"\0" * 8), None)
        yield f"text {text[:30]!r} alone", partial(single, raw(text), None)
    for length in (0, 1, 7, 2**31, 2**40, 2**63, 2**64 - 1):
        yield f"length {length}", partial(single, raw(b"{}", b"", length), None)
    for cut in range(0, 120, 8):
        yield f"cut at {cut}", partial(single, packed(PAIR)[:cut], None)
    for name in (
        "",
        "\0",
        "\x1b]0;x\x07",
        "a" * 5000,
        "." * 900,
        "é" * 400,
        "..",
        "lin.",
        ".lora_A.weight",
        "lin\nx.lora_A.weight",
    ):
        yield f"key {name[:20]!r}", partial(single, packed({**PAIR, name: torch.ones(1)}), None)


def alphas() -> Made:
    """Alpha beside the tensors, in every shape and dtype; 4 at rank 2 is the scale 2."""
    sound = {(), (1,), (1, 1), (1, 1, 1, 1)}
    for shape in (*sorted(sound), (0,), (2,), (2, 2), (1, 0), (1000,)):
        for dtype in DTYPES:
            alpha = torch.full(shape, 4).to(dtype)
            for style, tensors, key in (("flat", FLAT, "lycoris_lin.alpha"), ("dotted", PAIR, "lin.alpha")):
                wanted = adapted(2.0) if shape in sound and dtype not in (torch.bool, torch.complex64) else None
                action = partial(single, packed({**tensors, key: alpha}), wanted)
                yield f"{style} alpha {dtype} {shape}", partial(refused, action) if wanted is None else action
    for value in (1e308, -1e308, float("inf"), float("nan"), 1e39):
        action = partial(single, packed({**FLAT, "lycoris_lin.alpha": torch.tensor(value, dtype=torch.float64)}), None)
        yield f"alpha {value}", partial(refused, action)


def refused(action: Callable[[Path], str], place: Path) -> str:
    """Wants a refusal."""
    return action(place) or "it loads"


def stated() -> Made:
    """Alpha in the header alone."""
    for name in ("lora_alpha", "network_alpha", "ss_network_alpha"):
        for value in NUMBERS:
            wanted = {"4": 2.0, " 4": 2.0, "4.0": 2.0, "4e0": 2.0, "-4": -2.0}.get(value)
            for style, tensors in (("flat", FLAT), ("dotted", PAIR)):
                action = partial(single, packed(tensors, {name: value}), adapted(wanted or 0.0))
                yield f"{style} {name}={value[:9]!r}", action if wanted else partial(refused, action)
    for dim in ("4", "Dynamic", "x", "-2"):
        content = packed(FLAT, {"ss_network_alpha": "4", "ss_network_dim": dim})
        yield f"dim {dim}", partial(refused, partial(single, content, None))


def tables() -> Made:
    """What stands under lora_adapter_metadata."""
    sound = {"r": 2, "lora_alpha": 4}
    for fields, scale in (
        (sound, 2.0), ({f"unet.{k}": v for k, v in sound.items()}, 2.0), ({**sound, "unet.r": 2, "unet.lora_alpha": 8}, None),  # noqa: E501
        ({**sound, "use_rslora": True}, 4 / 2**0.5), ({**sound, "use_rslora": "no"}, None), ({**sound, "r": 3}, None),
        ({**sound, "use_dora": True}, None), ({**sound, "wholly": "new"}, None), ({**sound, "rank_pattern": {"lin": 3}}, None),  # noqa: E501
        ({**sound, "alpha_pattern": {"lin": 8}}, 4.0), ({**sound, "alpha_pattern": {"^lin": 8}}, 4.0),
        ({**sound, "alpha_pattern": {"li[n]": 8}}, 4.0), ({**sound, "alpha_pattern": [1]}, None), ({}, 1.0),
    ):  # fmt: skip
        action = partial(single, packed(PAIR, {"lora_adapter_metadata": json.dumps(fields)}), adapted(scale or 0.0))
        yield f"{fields}", action if scale else partial(refused, action)
    for text in (
        "",
        "[]",
        "3",
        "null",
        "{",
        "{}x",
        '"x"',
        "[" * 100_000,
        '{"a":' * 200 + "1" + "}" * 200,
        '{"r": NaN}',
        "\\ud800",
    ):
        action = partial(single, packed(PAIR, {"lora_adapter_metadata": text}), None)
        yield f"text {text[:20]!r}", partial(refused, action)


def with_field(field: str, value: str) -> bytes:
    """The text of a PEFT config with one field as it is given, which may be no JSON."""
    rest = {key: one for key, one in CONFIG.items() if key != field}
    return (json.dumps(rest)[:-1] + f', "{field}": {value}}}').encode()


def configs() -> Made:
    """Fields of adapter_config.json with values of every type."""
    for field in FIELDS:
        for value in VALUES:
            yield f"{field}={value[:20]}", partial(peft, with_field(field, value))
    for field, value in (("r", "4.5"), ("lora_alpha", '"4"'), ("use_rslora", '"no"'), ("r", "true")):
        yield f"{field}={value} is refused", partial(refused, partial(peft, with_field(field, value)))
    for kind in (
        "PREFIX_TUNING",
        "PROMPT_TUNING",
        "P_TUNING",
        "IA3",
        "LOHA",
        "OFT",
        "VERA",
        "ADALORA",
        "X",
        None,
        3,
        [],
    ):
        yield f"peft_type={kind}", partial(peft, json.dumps({**CONFIG, "peft_type": kind}).encode())
    sound = json.dumps(CONFIG).encode()
    yield "sound", partial(peft, sound, wanted=adapted(2.0))
    on_linear = {
        "base_model.model.lin.lora_embedding_A": torch.ones(2, 8),
        "base_model.model.lin.lora_embedding_B": torch.ones(12, 2),
    }
    yield "an embedding's tensors on a Linear", partial(refused, partial(peft, sound, tensors=on_linear))


def patterns() -> Made:
    """Expressions that take for ever with a matcher that goes back."""
    for slow in SLOW:
        for table in ("rank_pattern", "alpha_pattern"):
            yield f"{table} {slow[:20]}", partial(peft, json.dumps({**CONFIG, table: {slow: 4}}).encode())
            text = json.dumps({"r": 2, "lora_alpha": 4, table: {slow: 4}})
            yield f"metadata {table} {slow[:20]}", partial(single, packed(PAIR, {"lora_adapter_metadata": text}), None)
            for pattern in (f"re:{slow}", "*" * 900 + slow[:50]):
                config = {"rank": 2, "alpha": 4.0, "targets": ["lin", pattern], table: {pattern: 4}}
                entry = json.dumps({"method": "lora", "name": "x", "config": config})
                yield f"own {table} {pattern[:20]}", partial(single, packed(PAIR, {"studio": entry}), None)
        third = {"base_model.model.lin.ia3_l": torch.ones(12, 1)}
        text = json.dumps({"peft_type": "IA3", "target_modules": slow, "feedforward_modules": slow})
        yield f"feedforward {slow[:20]}", partial(peft, text.encode(), tensors=third)


def not_finite() -> Made:
    """NaN and infinities in the tensors: refused, the key named."""
    for value in (float("nan"), float("inf"), -float("inf")):
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            for tensors in (PAIR, FLAT):
                for key in tensors:
                    spoiled = {name: tensor.clone().to(dtype) for name, tensor in tensors.items()}
                    spoiled[key].view(-1)[3] = value
                    yield f"{value} in {key} {dtype}", partial(refused, partial(single, packed(spoiled), None))
    large = {key: tensor.double() * 1e300 for key, tensor in PAIR.items()}
    yield "beyond fp32", partial(refused, partial(single, packed(large), None))
    yield (
        "a product beyond fp32",
        partial(refused, partial(single, packed({key: tensor * 1e20 for key, tensor in PAIR.items()}), None)),
    )


def shapes() -> Made:
    """One tensor of each method in another shape."""
    for method, config in sorted(methods().items()):
        for key in config:
            for what, change in RESHAPED.items():
                yield f"{method} {key} {what}", partial(single, packed({**config, key: change(config[key])}), None)
