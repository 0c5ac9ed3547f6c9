"""The contract of a method, for every method on every kind of layer.

The expected numbers come from the formulas of the papers, written out below in plain torch on whole matrices in
float64 (``FORMULAS``), and from torch's own layers run with the weights that the formulas give.

A pair of a method and a layer whose kind is not among the method's ``kinds`` has to be refused by name; nothing else
about it is tried. What a method is exempt from stands in ``EXEMPT`` with the reason.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.pytorch_utils import Conv1D

from studio.adapters import METHODS, bake, blend, blended, detach, install, sample_rows, state, unbake
from studio.adapters import attach as attach_plain
from studio.adapters.hosting.assembly import site_at
from studio.adapters.sites.kinds import kind_of
from studio.errors import DoesNotFit, NoTargets, UnsupportedLayer
from studio.files import FORMATS, common_formats, load, save

B = 3


def gpt2(inner: int, outer: int) -> nn.Module:
    layer = Conv1D(outer, inner)
    nn.init.normal_(layer.bias)
    return layer


def tokens() -> Tensor:
    return torch.randint(0, 10, (B, 5), generator=torch.Generator().manual_seed(3))


def floats(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(B, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class FeedForward(nn.Module):
    """A module that is no layer by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


# kind of layer: how it is made, an input for it
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(8, 12), floats(8)),
    "linear-tokens": (lambda: nn.Linear(8, 12, bias=False), floats(5, 8)),
    "gpt2": (lambda: gpt2(8, 12), floats(5, 8)),
    "embedding": (lambda: nn.Embedding(10, 12), tokens),
    "conv1d": (lambda: nn.Conv1d(8, 12, 3, stride=2, padding=1), floats(8, 9)),
    "conv2d": (lambda: nn.Conv2d(8, 12, 3, padding=1), floats(8, 5, 5)),
    "conv2d-1x1": (lambda: nn.Conv2d(8, 12, 1), floats(8, 3, 3)),
    "conv2d-dilated": (lambda: nn.Conv2d(8, 12, (3, 2), stride=(2, 1), padding=(2, 1), dilation=2), floats(8, 7, 6)),
    "conv2d-circular": (lambda: nn.Conv2d(8, 12, 3, padding=1, padding_mode="circular"), floats(8, 5, 5)),
    "conv2d-reflect": (lambda: nn.Conv2d(8, 12, 3, padding=1, padding_mode="reflect", bias=False), floats(8, 5, 5)),
    "conv2d-groups": (lambda: nn.Conv2d(8, 12, 3, padding=1, groups=4), floats(8, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(8, 12, (1, 2, 3), padding=(0, 1, 1)), floats(8, 3, 4, 4)),
    "attention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), floats(5, 8)),
    "layernorm": (lambda: nn.LayerNorm(8), floats(5, 8)),
    "rmsnorm": (lambda: nn.RMSNorm(8), floats(5, 8)),
    "rmsnorm-gemma": (lambda: GemmaRMSNorm(8), floats(5, 8)),  # multiplies by 1 + weight
    "groupnorm": (lambda: nn.GroupNorm(4, 8), floats(8, 5, 5)),
    "batchnorm": (lambda: nn.BatchNorm2d(8), floats(8, 5, 5)),
    "module": (FeedForward, floats(5, 8)),
}
SINGLE = {"rmsnorm-gemma"}  # computes in fp32 whatever it is given
KINDS = {layer: kind_of(make()) for layer, (make, _) in LAYERS.items()}

# method: configs that together reach all its branches
CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "lora": {
        "plain": {"rank": 2},
        "stabilized": {"rank": 2, "alpha": 3.0, "rank_stabilized": True, "init": "gaussian"},
        "bias": {"rank": 2, "alpha": 1.0, "use_bias": True},
        "orthogonal": {"rank": 2, "init": "orthogonal"},
        "pissa": {"rank": 2, "alpha": 1.0, "init": "pissa"},
        "olora": {"rank": 2, "init": "olora"},
        "pattern": {"rank": 3, "rank_pattern": {"re:.*": 1}, "alpha_pattern": {"0*": 5.0}},
        "pissa-fast": {"rank": 2, "init": "pissa-fast"},
        "eva": {"rank": 2, "init": "eva", "exclude": ("out_proj",)},
        "corda": {"rank": 2, "alpha": 1.0, "init": "corda", "exclude": ("out_proj",)},
    },
    "qalora": {
        "plain": {"rank": 2, "group": 2},
        "mean": {"rank": 2, "group": 2, "alpha": 3.0, "pooling": "mean"},
        "groups": {"rank": 1, "group": 2, "pooling": "groups", "rank_stabilized": True},
    },
    "dora": {
        "plain": {"rank": 2},
        "alpha": {"rank": 2, "alpha": 5.0, "rank_stabilized": True},
        "inputs": {"rank": 2, "alpha": 3.0, "axis": "inputs"},
    },
    "ia3": {"outputs": {}, "weights": {"with_bias": False}, "inputs": {"feedforward": ("0", "0.out_proj")}},
    "lokr": {
        "plain": {"rank": 1},
        "whole": {"rank": 6, "alpha": 3.0},
        "both": {"rank": 1, "alpha": 2.0, "factor": 4, "decompose_both": True},
        "tucker": {"rank": 1, "tucker": True},
        "decomposed": {"rank": 1, "decompose": "outputs"},
        "by-inputs": {"rank": 1, "decompose": "inputs"},
    },
    "adalora": {"plain": {"rank": 3}, "alpha": {"rank": 3, "alpha": 2.0, "rank_stabilized": True, "target_rank": 1}},
    "deltalora": {"plain": {"rank": 2}, "alpha": {"rank": 2, "alpha": 3.0}},
    "loha": {
        "plain": {"rank": 2},
        "large": {"rank": 5, "alpha": 2.0},
        "tucker": {"rank": 2, "tucker": True},
        "decomposed": {"rank": 2, "decompose": "outputs"},
        "by-inputs": {"rank": 2, "decompose": "inputs"},
    },
    "vera": {"plain": {"rank": 3}, "key": {"rank": 5, "key": 7, "d_initial": 1.0}},
    "hra": {"plain": {"rank": 4}, "orthogonal": {"rank": 3, "orthogonal": True}},
    "oft": {
        "plain": {"block_size": 2},
        "series": {"block_size": 2, "terms": 5},
        "shared": {"block_size": 2, "terms": 2, "share": True},
        "outputs": {"block_size": 4, "outputs": True, "use_gain": True},
    },
    "boft": {
        "plain": {"block_size": 2},
        "butterfly": {"block_size": 2, "factors": 2, "outputs": True},
    },
    "road": {"plain": {"group": 4}, "two": {"group": 2, "variant": 2}, "four": {"group": 4, "variant": 4}},
    "mora": {"rotation": {"rank": 2}, "sharing": {"rank": 2, "type": 1}, "small": {"rank": 1}},
    "fourierft": {
        "plain": {"frequencies": 12},
        "normal": {"frequencies": 7, "scaling": 20.0, "key": 3, "init": "normal"},
    },
    "miss": {"shared": {"rank": 3}, "bat": {"rank": 2, "form": "bat"}, "mini": {"rank": 2, "form": "mini", "mini": 2}},
    "randlora": {"plain": {"rank": 3}, "sparse": {"rank": 5, "alpha": 3.0, "key": 7, "distribution": "sparse"}},
    "shira": {"plain": {"rank": 1}, "key": {"rank": 2, "key": 5}},
    "lntuning": {"plain": {}},
    "bitfit": {"plain": {}},
    "full": {"plain": {}, "weights": {"use_bias": False}},
    "glora": {"plain": {"rank": 2}, "alpha": {"rank": 3, "alpha": 2.0}},
    "bottleneck": {
        "pfeiffer": {"size": 3},
        "parallel": {"placement": "parallel", "activation": "gelu", "norm": True, "scale": 4.0, "train_scale": True},
    },
    "tokenembedding": {"rows": {"tokens": (7, 2)}, "mean": {"tokens": (0,), "init": "mean"}},
    # these sit on language models as wholes, which are no layer: tests/adapters/tokens/test_tokens.py
    **{method: {"plain": {}} for method in ("prompttuning", "ptuning", "prefixtuning", "multitaskprompt")},
}

# what a method cannot do on a layer of its kinds, and refuses
REFUSED = {
    ("ia3", "inputs", "embedding"),
    ("lora", "bias", "embedding"),
    ("lora", "eva", "embedding"),
    ("lora", "corda", "embedding"),
    ("bitfit", "plain", "rmsnorm"),
    ("bitfit", "plain", "rmsnorm-gemma"),
    *(("bottleneck", "parallel", layer) for layer in ("embedding", "conv1d", "conv2d-dilated", "conv3d")),
}
# layers of other kinds than the method covers: one config each is tried, and refused
UNCOVERED = {
    (method, next(iter(configs)), layer)
    for method, configs in CONFIGS.items()
    for layer, kind in KINDS.items()
    if kind not in METHODS[method].adapter.kinds
}

# (method, or method-config; property) -> why it does not have it; properties: identity, formula, baked
EXEMPT: dict[tuple[str, str], str] = {
    ("fourierft-normal", "identity"): "its start is random on purpose, as in the paper",
    ("hra-orthogonal", "identity"): "a product of reflections in orthogonal directions is never the identity",
    ("bottleneck", "baked"): "it computes with activations: there is no weight that could hold the change",
    (
        "bottleneck",
        "formula",
    ): "its formula is one of activations; test_bottleneck.py has it in float64",
    ("tokenembedding-mean", "identity"): "a new word starts at the mean of the others, not at a row of no meaning",
    **{
        (method, promise): "virtual tokens are read beside a text: they change no weight of any layer"
        for method in ("prompttuning", "ptuning", "prefixtuning", "multitaskprompt")
        for promise in ("identity", "formula", "baked")
    },
}

# (method, config, format) -> layers on which the format's program has nothing of the kind; it is refused
BIASED = tuple(
    layer for layer, (make, _) in LAYERS.items() if layer == "attention" or getattr(make(), "bias", None) is not None
)
UNSAYABLE: dict[tuple[str, str, str], tuple[str, ...]] = {
    **{("oft", config, "kohya"): tuple(LAYERS) for config in ("plain", "series", "shared")},  # LyCORIS turns outputs
    ("boft", "plain", "kohya"): tuple(LAYERS),
    ("oft", "outputs", "peft"): tuple(LAYERS),  # PEFT turns inputs
    ("boft", "butterfly", "peft"): tuple(LAYERS),
    ("dora", "inputs", "peft"): tuple(LAYERS),
    **{(one, how, "peft"): tuple(LAYERS) for one in ("loha", "lokr") for how in ("decomposed", "by-inputs")},
    ("lokr", "whole", "peft"): ("conv1d",),  # PEFT multiplies along other axes
    ("ia3", "outputs", "kohya"): BIASED,  # LyCORIS multiplies the weight alone
    ("ia3", "weights", "peft"): BIASED,
}

CASES = [
    pytest.param(method, config, layer, id=f"{method}-{config}-{layer}")
    for method, configs in CONFIGS.items()
    for config in configs
    for layer in LAYERS
    if (method, config, layer) not in REFUSED and KINDS[layer] in METHODS[method].adapter.kinds
]


def cases(promise: str) -> list[Any]:
    """The cases of the methods that make this promise."""
    return [
        case
        for case in CASES
        if (case.values[0], promise) not in EXEMPT and (f"{case.values[0]}-{case.values[1]}", promise) not in EXEMPT
    ]


class Tower(nn.Module):
    """One layer under test, called as its kind is called."""

    def __init__(self, layer: nn.Module, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.add_module("0", layer)

    def forward(self, x: Tensor) -> Tensor:
        layer = self._modules["0"]
        assert layer is not None
        return layer(x, x, x, need_weights=False)[0] if isinstance(layer, nn.MultiheadAttention) else layer(x)


def tower(layer: str, dtype: torch.dtype = torch.float32) -> Tower:
    torch.manual_seed(0)
    model = Tower(LAYERS[layer][0](), layer).to(dtype).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # torch starts the biases of attention at zero
            nn.init.normal_(parameter)
    return model


def sample(layer: str, dtype: torch.dtype = torch.float32) -> Tensor:
    x = LAYERS[layer][1]()
    return x.to(dtype) if x.is_floating_point() else x


def config_for(method: str, config: str, layer: str) -> Any:
    fields = {} if "model" in METHODS[method].adapter.kinds else {"targets": ("0",)}
    fields |= CONFIGS[method][config]
    if layer != "attention":  # the others have no output projection, and a pattern that names nothing is refused
        fields.pop("exclude", None)
        fields |= {"feedforward": ("0",)} if "feedforward" in fields else {}
    return METHODS[method](**fields)


def attach(model: Tower, config: Any, **options: Any) -> None:
    """Attaches, with data where the start is made from data."""
    x = sample(model.kind)
    if config.data_driven and x.is_floating_point():
        x = torch.randn(8 * B, *x.shape[1:], generator=torch.Generator().manual_seed(4))
    data = [x.to(next(model.parameters()).dtype) if x.is_floating_point() else x]
    attach_plain(model, config, **options, calibrate=data if config.data_driven else None)


def shake(model: nn.Module, name: str = "default", seed: int = 1) -> None:
    """Moves the trained tensors of an adapter away from its start, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in state(model, name).values():
            if tensor.requires_grad:
                tensor += 0.3 * torch.randn(tensor.shape, generator=generator).to(tensor)


# -- the formulas, on matrices (rows, cols) ------------------------------------------------------------------------


def matrix_view(layer: nn.Module, weight: Tensor) -> Tensor:
    if weight.dim() == 1:
        return weight[:, None]
    return weight.t() if isinstance(layer, (nn.Embedding, Conv1D)) else weight.flatten(1)


def lora_formula(t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    change = t["up"] @ t["down"].flatten(1)
    if "up0" in t:
        change = change - t["up0"] @ t["down0"].flatten(1)
    if "bias" in t:
        b = scale * t["bias"] if b is None else b + scale * t["bias"]
    return w + scale * change, b


def dora_formula(t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    moved = w + scale * (t["up"] @ t["down"].flatten(1))
    if "magnitude_in" in t:
        by = moved.reshape(w.shape[0], len(t["magnitude_in"]), -1)
        norm = by.detach().square().sum((0, 2)).sqrt()
        return (by * (t["magnitude_in"] / norm)[None, :, None]).reshape(w.shape), b
    return t["magnitude"][:, None] * moved / moved.norm(dim=1, keepdim=True).detach(), b


def ia3_formula(
    t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None, config: Any, layer: nn.Module
) -> tuple[Tensor, Tensor | None]:
    if "gain" in t:
        return t["gain"][:, None] * w, t["gain"] * b if b is not None and config.with_bias else b
    rows, gain = w.shape[0], t["gain_in"]
    groups = 4 if gain.shape[0] * (w.shape[1] // max(1, gain.shape[0])) != w.shape[1] else 1
    per_group = gain.reshape(groups, -1)  # (groups, channels of a group)
    spread = per_group.repeat_interleave(w.shape[1] // per_group.shape[1], dim=1)
    return w * spread.repeat_interleave(rows // groups, dim=0), b


def decomposed(t: dict[str, Tensor], w: Tensor, moved: Tensor) -> Tensor:
    """``m (W + ΔW) / ‖W + ΔW‖``, over an output's numbers or over a channel's that is read; the norm is held."""
    if "magnitude" not in t:
        return moved
    m = t["magnitude"]
    by = moved.reshape(w.shape[0], -1 if len(m) > 1 else m.shape[1], *([] if len(m) > 1 else [-1]))
    axes = [1] if len(m) > 1 else [0, 2]
    norm = by.detach().square().sum(axes, keepdim=True).sqrt()
    return (by * m.reshape(norm.shape) / norm).reshape(w.shape)


def lokr_formula(t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    w1 = t["w1"] if "w1" in t else t["w1_a"] @ t["w1_b"]
    if "w2_t" in t:
        w2 = torch.einsum("ij...,ip,jq->pq...", t["w2_t"], t["w2_a"], t["w2_b"]).flatten(1)
    else:
        w2 = t["w2"].flatten(1) if "w2" in t else t["w2_a"] @ t["w2_b"]
    blocks = [[w1[i, j] * w2 for j in range(w1.shape[1])] for i in range(w1.shape[0])]
    return decomposed(t, w, w + scale * torch.cat([torch.cat(row, dim=1) for row in blocks])), b


def adalora_formula(t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return w + scale * t["up"] @ torch.diag(t["values"][:, 0]) @ t["down"].flatten(1), b


def deltalora_formula(t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    moved = t["accumulated"].flatten(1)
    return w + (moved if moved.shape == w.shape else moved.t()) + scale * t["up"] @ t["down"].flatten(1), b


def lntuning_formula(t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    tuned = t["weight"][:, None] if t["weight"].dim() == 1 else t["weight"].flatten(1)
    return tuned if tuned.shape == w.shape else tuned.t(), t.get("bias")


def bitfit_formula(t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return w, t["bias"] if b is None else b + t["bias"]


def full_formula(t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    change = t["weight"][:, None] if t["weight"].dim() == 1 else t["weight"].flatten(1)
    return w + (change if change.shape == w.shape else change.t()), b + t["bias"] if "bias" in t else b


def glora_formula(
    t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None, config: Any, layer: nn.Module
) -> tuple[Tensor, Tensor | None]:
    inner = len(t["a1"])
    mixing = torch.kron(t["a1"] @ t["a2"], torch.eye(w.shape[1] // inner, dtype=w.dtype))  # the same at each place
    return w + scale * (w @ mixing + t["b1"] @ t["b2"].flatten(1)), b


def tokenembedding_formula(
    t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    rows = t["rows"]
    tokens = [7, 2] if len(rows) == 2 else [0]
    read = rows.shape[1] == w.shape[0]  # an embedding: its matrix has a column per token
    moved = list((w.t() if read else w).unbind())
    for token, row in zip(tokens, rows, strict=True):
        moved[token] = row
    return torch.stack(moved, dim=1 if read else 0), b


def loha_formula(t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    def product(n: str) -> Tensor:
        if f"t{n}" not in t:
            return t[f"w{n}_a"] @ t[f"w{n}_b"]
        return torch.einsum("ij...,ip,jq->pq...", t[f"t{n}"], t[f"w{n}_a"], t[f"w{n}_b"]).flatten(1)

    return decomposed(t, w, w + scale * product("1") * product("2")), b


def vera_formula(t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    rows, cols = w.shape
    return w + torch.diag(t["lambda_b"]) @ t["B"][:rows] @ torch.diag(t["lambda_d"]) @ t["A"][:, :cols], b


def hra_formula(
    t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None, config: Any, layer: nn.Module
) -> tuple[Tensor, Tensor | None]:
    directions = list((t["u"] / t["u"].norm(dim=0)).unbind(1))
    if config.orthogonal:  # Gram and Schmidt
        for index, u in enumerate(directions):
            for before in directions[:index]:
                u = u - (before @ u) * before
            directions[index] = u / u.norm()
    h = torch.eye(len(t["u"]), dtype=w.dtype)
    for u in directions:
        h = h @ (torch.eye(len(u), dtype=w.dtype) - 2 * torch.outer(u, u))
    return h @ w if isinstance(layer, nn.Embedding) else w @ h, b


def rotations(packed: Tensor, terms: int | None = None) -> Tensor:
    """Block-diagonal rotation from entries above the diagonals, ``(blocks, n)``."""
    size = next(size for size in range(2, 100) if size * (size - 1) // 2 == packed.shape[1])
    eye, blocks = torch.eye(size, dtype=packed.dtype), []
    for entries in packed:
        q = torch.zeros(size, size, dtype=packed.dtype)
        places = ((row, column) for row in range(size) for column in range(row + 1, size))
        for (row, column), entry in zip(places, entries, strict=True):
            q[row, column], q[column, row] = entry, -entry
        if terms is None:
            blocks.append((eye + q) @ torch.linalg.inv(eye - q))
        else:  # (I + Q) (I + Q + ... + Q^(terms - 2))
            blocks.append((eye + q) @ sum(torch.linalg.matrix_power(q, power) for power in range(terms - 1)))
    return torch.block_diag(*blocks)


def oft_formula(
    t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None, config: Any, layer: nn.Module
) -> tuple[Tensor, Tensor | None]:
    outputs = config.outputs or isinstance(layer, nn.Embedding)
    packed = t["skew"].expand(w.shape[0 if outputs else 1] // config.block_size, -1)
    r = rotations(packed, config.terms)
    moved = r.t() @ w if outputs else w @ r.t()
    return t["gain"][:, None] * moved if "gain" in t else moved, b


def butterfly(packed: Tensor, block: int) -> Tensor:
    """``B_m ... B_1``; factor i turns, in runs of ``block · 2^(i-1)``, the j-th half blocks of both halves together."""
    size = packed.shape[1] * block
    total = torch.eye(size, dtype=packed.dtype)
    for index, entries in enumerate(packed):
        run, half = block * 2**index, block // 2
        order = [
            start + side * run // 2 + place * half + k
            for start in range(0, size, run)
            for place in range(run // block)
            for side in (0, 1)
            for k in range(half)
        ]
        chosen = torch.eye(size, dtype=packed.dtype)[:, order]
        total = chosen @ rotations(entries) @ chosen.t() @ total
    return total


def boft_formula(
    t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None, config: Any, layer: nn.Module
) -> tuple[Tensor, Tensor | None]:
    r = butterfly(t["skew"], config.block_size)
    turned = r @ w if config.outputs or isinstance(layer, nn.Embedding) else w @ r.t()
    return t["gain"][:, None] * turned, b


def mora_formula(
    t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None, config: Any, layer: nn.Module
) -> tuple[Tensor, Tensor | None]:
    (rows, cols), n = w.shape, len(t["core"])
    x = torch.eye(cols, dtype=w.dtype)  # as the authors' code computes it, for every unit vector
    x = torch.cat([x] * n, dim=1)[:, : -(-cols // n) * n].view(cols, -1, n)
    if config.type == 1:
        y = x.sum(1) @ t["core"].t()
    else:
        frequencies = 1.0 / (10000 ** (torch.arange(0, n, 2, dtype=w.dtype) / n))
        angles = torch.outer(torch.arange(x.shape[1], dtype=w.dtype), frequencies).repeat(1, 2)
        turned = torch.cat([-x[..., n // 2 :], x[..., : n // 2]], dim=-1)
        y = ((x * angles.cos() + turned * angles.sin()) @ t["core"].t()).flatten(1)
    return w + torch.cat([y] * (-(-rows // y.shape[1])), dim=1)[:, :rows].t(), b


def road_formula(
    t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None, config: Any, layer: nn.Module
) -> tuple[Tensor, Tensor | None]:
    half, variant, r = config.group // 2, config.variant, torch.zeros(len(w), len(w), dtype=w.dtype)
    for block in range(len(w) // config.group):
        for place in range(half):
            i = block * config.group + place
            j = i + half
            # numbers of the four entries of the pair's 2 x 2 matrix: the row's own output, and its partner's
            at = {1: [block * half + place] * 4, 2: [i, i, j, j]}.get(variant) or [
                block * config.group + k for k in (i, i + config.group, j, j + config.group)
            ]
            entries = [(t["alpha"][n], t["theta"][n]) for n in at]
            r[i, i] = entries[0][0] * torch.cos(entries[0][1])
            r[i, j] = -entries[1][0] * torch.sin(entries[1][1])
            r[j, j] = entries[2][0] * torch.cos(entries[2][1])
            r[j, i] = entries[3][0] * torch.sin(entries[3][1])
    return r @ w, None if b is None else r @ b


def qalora_formula(
    t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None, config: Any, layer: nn.Module
) -> tuple[Tensor, Tensor | None]:
    # the input is pooled over the columns of each group: x P with P (cols, groups)
    size, groups = config.group, t["down"].shape[1]
    pool = torch.zeros(w.shape[1], groups, dtype=w.dtype)
    for column in range(w.shape[1]):
        pool[column, column // size] = {"sum": 1, "mean": 1 / size, "groups": groups / size}[config.pooling]
    return w + scale * t["up"] @ t["down"] @ pool.t(), b


def fourierft_formula(
    t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None, config: Any, layer: nn.Module
) -> tuple[Tensor, Tensor | None]:
    rows, cols = w.shape
    places = torch.randperm(rows * cols, generator=torch.Generator().manual_seed(config.key))[: len(t["spectrum"])]
    i, j = torch.arange(rows, dtype=w.dtype)[:, None] / rows, torch.arange(cols, dtype=w.dtype) / cols
    waves = [torch.cos(2 * math.pi * (place // cols * i + place % cols * j)) for place in places.tolist()]
    change = sum(number * wave for number, wave in zip(t["spectrum"], waves, strict=True)) / (rows * cols)
    return w + config.scaling * change, b


def miss_formula(
    t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None, config: Any, layer: nn.Module
) -> tuple[Tensor, Tensor | None]:
    moved, d, r = w.clone(), t["block"], config.rank
    for row in range(w.shape[0]):
        for column in range(w.shape[1]):
            if config.form == "bat":
                own = w[row, column - column % r : column - column % r + r]  # the row of its block
                moved[row, column] += own @ d[row // r, :, column % r] + d[row // r, row % r, column % r]
            else:
                moved[row, column] += d[column % r, row % d.shape[1]]
    return moved, b


def randlora_formula(
    t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None, config: Any, layer: nn.Module
) -> tuple[Tensor, Tensor | None]:
    rank, bases = t["lambdas"].shape
    long, short = max(w.shape), min(w.shape)
    change = torch.zeros(long, short, dtype=w.dtype)
    for p in range(rank * bases):  # PEFT counts the ranks first in A, and the bases first in B
        k, n = p // bases, p % bases
        small = t["lambdas"][k, n] * t["A"][k, 0, :short] * t["gammas"][n]
        change += torch.outer(t["B"][:long, p // rank, p % rank], small)
    size = 20.0 if config.alpha is None else config.alpha / config.rank
    return w + size * (change if w.shape[0] >= w.shape[1] else change.t()), b


def shira_formula(t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    moved = w.clone()
    for number, row, column in zip(t["values"], *t["places"].tolist(), strict=True):
        moved[row, column] += number
    return moved, b


FORMULAS = {
    "qalora": qalora_formula,
    "lora": lora_formula,
    "dora": dora_formula,
    "ia3": ia3_formula,
    "lokr": lokr_formula,
    "adalora": adalora_formula,
    "deltalora": deltalora_formula,
    "loha": loha_formula,
    "vera": vera_formula,
    "hra": hra_formula,
    "oft": oft_formula,
    "boft": boft_formula,
    "mora": mora_formula,
    "road": road_formula,
    "lntuning": lntuning_formula,
    "bitfit": bitfit_formula,
    "full": full_formula,
    "glora": glora_formula,
    "tokenembedding": tokenembedding_formula,
    "shira": shira_formula,
    "randlora": randlora_formula,
    "miss": miss_formula,
    "fourierft": fourierft_formula,
}


# formulas that also ask for the config and the layer
BY_CONFIG = {"glora", "qalora", "ia3", "hra", "oft", "boft", "mora", "road", "fourierft", "miss", "randlora"}
SHARED = ("A", "B")  # tensors that all layers share


def scale_of(config: Any, path: str, tensors: dict[str, Tensor]) -> float:
    if not hasattr(config, "rank_pattern"):
        return 1.0
    rank = config.rank
    for pattern, value in config.rank_pattern.items():
        rank = value if pattern == "re:.*" else rank
    alpha = rank if config.alpha is None else config.alpha
    for pattern, value in config.alpha_pattern.items():
        alpha = value if pattern == "0*" else alpha
    return alpha / (math.sqrt(rank) if getattr(config, "rank_stabilized", False) else rank)


def by_site(model: nn.Module, name: str = "default") -> dict[str, dict[str, Tensor]]:
    sites: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state(model, name).items():
        path, _, part = key.rpartition(".")
        sites.setdefault(path, {})[part] = tensor
    return sites


def by_formula(method: str, config: Any, base: Tower, tensors: dict[str, dict[str, Tensor]], x: Tensor) -> Tensor:
    """The output of torch's own layer with the weights of the formula."""
    values: dict[str, Tensor] = {}
    shared = {key: tensor for parts in tensors.values() for key, tensor in parts.items() if key in SHARED}
    for path, own in tensors.items():
        parts = {**shared, **own}
        layer = base.get_submodule(path)
        joint = isinstance(layer, nn.MultiheadAttention)
        names = ("in_proj_weight", "in_proj_bias") if joint else ("weight", "bias")
        weight, bias = (layer._parameters.get(name) for name in names)
        assert weight is not None
        more = (config, layer) if method in BY_CONFIG else ()
        moved, shift = FORMULAS[method](parts, scale_of(config, path, parts), matrix_view(layer, weight), bias, *more)
        values[f"{path}.{names[0]}"] = matrix_shape(layer, moved, weight)
        if bias is None and shift is not None:
            layer.register_parameter("bias", nn.Parameter(torch.zeros_like(shift)))
        if shift is not None:
            values[f"{path}.{names[1]}"] = shift
    return torch.func.functional_call(base, values, (x,))


def matrix_shape(layer: nn.Module, matrix: Tensor, weight: Tensor) -> Tensor:
    return matrix.t() if isinstance(layer, (nn.Embedding, Conv1D)) else matrix.reshape(weight.shape)


def close(a: Tensor, b: Tensor, relative: float) -> None:
    error = (a - b).norm() / b.norm().clamp_min(1e-12)
    assert error <= relative, f"relative error {error:.2e} > {relative:.0e}"


# -- the promises --------------------------------------------------------------------------------------------------


def test_every_method_is_here() -> None:
    assert set(CONFIGS) == set(METHODS)
    assert set(METHODS) - set(FORMULAS) == {method for method, promise in EXEMPT if promise == "formula"}
    assert all(len(reason) > 20 for reason in EXEMPT.values())


@pytest.mark.parametrize(("method", "config", "layer"), cases("identity"))
def test_start_is_the_identity(method: str, config: str, layer: str) -> None:
    model, x = tower(layer), sample(layer)
    base = model(x)
    attach(model, config_for(method, config, layer))
    close(model(x), base, 1e-6)


@pytest.mark.parametrize(("method", "config", "layer"), cases("formula"))
def test_forward_and_gradients_are_those_of_the_formula(method: str, config: str, layer: str) -> None:
    model, settings = tower(layer), config_for(method, config, layer)
    base = copy.deepcopy(model).double()
    attach(model, settings)
    shake(model)
    model.double()
    x = sample(layer, torch.float64)
    x_ours, x_theirs = x.clone(), x.clone()
    if x.is_floating_point():
        x_ours.requires_grad_()
        x_theirs.requires_grad_()
    leaves = {
        path: {key: tensor.detach().clone().requires_grad_(tensor.is_floating_point()) for key, tensor in parts.items()}
        for path, parts in by_site(model).items()
    }
    expected = by_formula(method, settings, base, leaves, x_theirs)
    actual, exact = model(x_ours), 1e-5 if layer in SINGLE else 1e-12
    close(actual, expected, exact)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (expected * weights).sum().backward()
    (actual * weights).sum().backward()
    for path, parts in by_site(model).items():
        for key, tensor in parts.items():
            if tensor.requires_grad:
                assert tensor.grad is not None, f"{path}.{key} got no gradient"
                close(tensor.grad, leaves[path][key].grad, 100 * exact)  # type: ignore[arg-type]
    if x.is_floating_point():
        close(x_ours.grad, x_theirs.grad, 100 * exact)  # type: ignore[arg-type]
    assert all(p.grad is None for name, p in model.named_parameters() if ".adapters." not in name)


@pytest.mark.parametrize(("method", "config", "layer"), CASES)
def test_live_is_baked_and_installed(method: str, config: str, layer: str) -> None:
    model, x, settings = tower(layer), sample(layer), config_for(method, config, layer)
    attach(model, settings)
    shake(model)
    blend(model, {"default": 0.7})
    live = model(x)
    if (method, "baked") in EXEMPT:
        with pytest.raises(DoesNotFit, match="cannot be baked"):
            bake(model)
    else:
        bake(model)
        close(model(x), live, 1e-5)
        unbake(model)
    assert torch.equal(model(x), live)
    other = tower(layer).requires_grad_(False)  # as attaching does: torch sums in another order where it is not
    install(other, settings, by_site(model), name="again", strength=0.7)
    assert torch.equal(other(x), live)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("method", "config", "layer"), CASES)
def test_unbake_and_detach_give_the_base_back_bit_for_bit(
    method: str, config: str, layer: str, dtype: torch.dtype
) -> None:
    model = tower(layer, dtype)
    before = {key: (id(p), p.clone()) for key, p in model.named_parameters()}
    shape = {name: (type(m), id(m), set(vars(m)), dict(vars(m)["_parameters"])) for name, m in model.named_modules()}
    keys, required = list(model.state_dict()), [p.requires_grad for p in model.parameters()]
    attach(model, config_for(method, config, layer))
    shake(model)
    if (method, "baked") not in EXEMPT:
        bake(model, {"default": 1.3})
        base = {key: p for key, p in model.named_parameters() if ".adapters." not in key}
        assert base.keys() > before.keys() or any(not torch.equal(before[key][1], p) for key, p in base.items())
        unbake(model)
    assert all(id(p) == before[key][0] for key, p in model.named_parameters() if key in before)
    detach(model)
    assert all(id(p) == before[key][0] and torch.equal(p, before[key][1]) for key, p in model.named_parameters())
    assert list(model.state_dict()) == keys and [p.requires_grad for p in model.parameters()] == required
    after = {name: (type(m), id(m), set(vars(m)), dict(vars(m)["_parameters"])) for name, m in model.named_modules()}
    assert after == shape
    assert not model._forward_hooks and not model._forward_pre_hooks


@pytest.mark.parametrize(("method", "config", "layer"), CASES)
def test_strengths_per_sample_are_those_of_each_sample_alone(method: str, config: str, layer: str) -> None:
    model, x = tower(layer), sample(layer)
    attach(model, config_for(method, config, layer), name="one")
    attach(model, config_for(method, config, layer), name="two", seed=1)
    shake(model, "one", 1)
    shake(model, "two", 2)
    ones, twos = [0.0, 0.5, -1.0], [1.0, 0.25, 0.0]
    with blended(model, {"one": ones, "two": twos}):
        together = model(x)
        with sample_rows(model, [2, 2, 0]):
            rearranged = model(x)
    for row, (one, two) in enumerate(zip(ones, twos, strict=True)):
        with blended(model, {"one": one, "two": two}):
            close(together[row : row + 1], model(x[row : row + 1]), 1e-5)
    with blended(model, {"one": ones[2], "two": twos[2]}):
        close(rearranged[:2], model(x[:2]), 1e-5)
    with blended(model, {"one": ones[0], "two": twos[0]}):
        close(rearranged[2:], model(x[2:]), 1e-5)


def sayable(method: str, config: str, layer: str, format: str) -> bool:
    """Whether a format can hold a method on a kind of layer, as the method's own file says."""
    adapter = METHODS[method].adapter
    format = "kohya" if format == "native" else format  # the native names have kohya's tensors
    if layer in UNSAYABLE.get((method, config, format), ()):
        return False
    if format == "kohya":
        return bool(adapter.lycoris.tensors or adapter.lycoris.form)
    site = site_at(tower(layer), "0", adapter.kinds)
    peft = adapter.peft
    return format != "peft" or bool(peft.type and not peft.refusal(site) and not peft.differs(site))


@pytest.mark.parametrize("format", common_formats())
@pytest.mark.parametrize(("method", "config", "layer"), CASES)
@pytest.mark.filterwarnings("ignore:PEFT 0.21 adds the change of 0.out_proj twice")
def test_it_is_the_same_when_it_is_loaded_again(
    tmp_path: Path, method: str, config: str, layer: str, format: str
) -> None:
    model, x = tower(layer), sample(layer)
    attach(model, config_for(method, config, layer))
    shake(model)
    file = tmp_path / ("a" if FORMATS[format].folder else "a.safetensors")
    if not sayable(method, config, layer, format):
        with pytest.raises(DoesNotFit):
            save(model, file, format=format)
        assert list(tmp_path.iterdir()) == []
        return
    save(model, file, format=format)
    other = tower(layer).requires_grad_(False)
    report = load(other, file)
    assert report.ignored == {} and set(report.sites) == set(by_site(model))
    close(other(x), model(x), 1e-6)
    again = save(other, file.with_stem("b"), format=format)
    assert content(again) == content(file)


def content(file: Path) -> dict[str, bytes]:
    return {one.suffix: one.read_bytes() for one in (file.iterdir() if file.is_dir() else [file])}


# each method with itself, with one that joins the fused path, one that does not, and one other
PAIRS = {
    (first, second)
    for first, other in zip(sorted(CONFIGS), [*sorted(CONFIGS)[1:], sorted(CONFIGS)[0]], strict=True)
    for second in (first, "lora", "ia3", other)
}


@pytest.mark.parametrize(
    ("first", "second", "layer"),
    [
        (first, second, layer)
        for first, second in sorted(PAIRS)
        for layer in LAYERS
        if all(KINDS[layer] in METHODS[name].adapter.kinds for name in (first, second))
        and not any((name, next(iter(CONFIGS[name])), layer) in REFUSED for name in (first, second))
    ],
)
def test_order_of_two_adapters_does_not_matter(first: str, second: str, layer: str) -> None:
    settings = [METHODS[name](targets=("0",), **next(iter(CONFIGS[name].values()))) for name in (first, second)]
    x, base = sample(layer), tower(layer)
    changes, outputs = [], []
    for order in ((0, 1), (1, 0)):
        model = tower(layer)
        for index in order:
            attach(model, settings[index], name=f"adapter{index}", seed=index)
            shake(model, f"adapter{index}", index + 7)
        blend(model, {"adapter0": 0.6, "adapter1": -0.4})
        outputs.append(model(x))
    close(outputs[0], outputs[1], 1e-5)
    if layer != "attention":  # outside attention a layer is linear in its weight: changes add up
        for index, strength in ((0, 0.6), (1, -0.4)):
            with blended(model, {f"adapter{index}": strength}):
                changes.append(model(x) - base(x))
        close(outputs[0], base(x) + changes[0] + changes[1], 1e-5)
    if not any((name, "baked") in EXEMPT for name in (first, second)):
        bake(model)
        close(model(x), outputs[1], 1e-5)


@pytest.mark.parametrize(("method", "config", "layer"), sorted(REFUSED | UNCOVERED))
def test_what_cannot_be_covered_is_refused_and_leaves_no_trace(method: str, config: str, layer: str) -> None:
    model = tower(layer)
    keys, kind = list(model.state_dict()), type(model.get_submodule("0"))
    # a module is no layer: a pattern of a method that looks at layers alone does not match it
    looks = KINDS[layer] == "module" and "model" not in METHODS[method].adapter.kinds
    with pytest.raises(NoTargets if looks else UnsupportedLayer) as refusal:
        attach(model, config_for(method, config, layer))
    assert KINDS[layer] == "module" or METHODS[method].__name__ in str(refusal.value) or "0" in str(refusal.value)
    assert list(model.state_dict()) == keys and type(model.get_submodule("0")) is kind


def test_padding_row_of_an_embedding_is_not_trained() -> None:
    model = Tower(nn.Embedding(10, 12, padding_idx=1), "embedding")
    attach(model, METHODS["lora"](targets=("0",), rank=2, init="orthogonal"))
    model(tokens()).sum().backward()
    gradient = state(model)["0.down"].grad
    assert gradient is not None
    assert torch.equal(gradient[:, 1], torch.zeros(2)) and gradient.abs().sum() > 0
