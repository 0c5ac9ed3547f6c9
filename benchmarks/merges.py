"""How far the merges of other tools are from the live blend, and ours: ``python -m benchmarks.merges``.

Two random LoRAs of one rank are blended at 0.7 and 0.4 on layers as a U-Net has them. What each tool makes of them is
written out from its source: kohya's ``merge_lora.py`` multiplies both factors by the ratio and adds the factors up;
with ``--concat`` it puts them behind each other and keeps alpha; ``svd_merge_lora.py`` cuts the factors of the exact
sum off at their 0.99 quantile; PEFT's ``linear`` adds factors up that are scaled by the roots of the weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import studio
from studio.adapters import blended

__all__ = ["TOOLS", "errors", "main"]

Pair = tuple[Tensor, Tensor]
WEIGHTS = (0.7, 0.4)
LAYERS = ((320, 320), (1280, 640))


def _kohya(pairs: Sequence[Pair], weights: Sequence[float], scale: float) -> Tensor:
    down = sum(weight * down for weight, (down, _) in zip(weights, pairs, strict=True))
    up = sum(weight * up for weight, (_, up) in zip(weights, pairs, strict=True))
    return scale * up @ down  # type: ignore[operator]


def _kohya_concat(pairs: Sequence[Pair], weights: Sequence[float], scale: float) -> Tensor:
    down = torch.cat([weight * down for weight, (down, _) in zip(weights, pairs, strict=True)])
    up = torch.cat([weight * up for weight, (_, up) in zip(weights, pairs, strict=True)], dim=1)
    return scale / len(pairs) * up @ down  # the rank is twice as high, alpha is what it was


def _kohya_svd(pairs: Sequence[Pair], weights: Sequence[float], scale: float) -> Tensor:
    whole = sum(weight * scale * up @ down for weight, (down, up) in zip(weights, pairs, strict=True))
    u, s, vh = torch.linalg.svd(whole, full_matrices=False)
    rank = sum(len(down) for down, _ in pairs)
    up, down = u[:, :rank] * s[:rank], vh[:rank]
    most = torch.quantile(torch.cat([up.flatten(), down.flatten()]), 0.99)
    return up.clamp(-most, most) @ down.clamp(-most, most)


def _peft_linear(pairs: Sequence[Pair], weights: Sequence[float], scale: float) -> Tensor:
    roots = [(weight * scale) ** 0.5 for weight in weights]
    down = sum(root * down for root, (down, _) in zip(roots, pairs, strict=True))
    up = sum(root * up for root, (_, up) in zip(roots, pairs, strict=True))
    return up @ down  # type: ignore[operator]


TOOLS: dict[str, Callable[[Sequence[Pair], Sequence[float], float], Tensor]] = {
    "kohya merge_lora.py": _kohya,
    "kohya merge_lora.py --concat": _kohya_concat,
    "kohya svd_merge_lora.py": _kohya_svd,
    "PEFT add_weighted_adapter, linear": _peft_linear,
}


def errors(rank: int = 8, alpha: float = 8.0) -> dict[str, float]:
    """Returns tool -> ``‖ΔW' − ΔW‖ / ‖ΔW‖`` against the live blend, of all layers together; ``studio`` is ours."""
    generator = torch.Generator().manual_seed(0)
    lacking, whole = dict.fromkeys((*TOOLS, "studio"), 0.0), 0.0
    for rows, cols in LAYERS:
        pairs = [
            (torch.randn(rank, cols, generator=generator).double() / cols**0.5,
             torch.randn(rows, rank, generator=generator).double())
            for _ in WEIGHTS
        ]  # fmt: skip
        scale = alpha / rank
        live = sum(weight * scale * up @ down for weight, (down, up) in zip(WEIGHTS, pairs, strict=True))
        made = {name: tool(pairs, WEIGHTS, scale) for name, tool in TOOLS.items()} | {"studio": _ours(pairs, alpha)}
        for name, one in made.items():
            lacking[name] += float((one - live).square().sum())
        whole += float(live.square().sum())  # type: ignore[union-attr]
    return {name: (value / whole) ** 0.5 for name, value in lacking.items()}


def _ours(pairs: Sequence[Pair], alpha: float) -> Tensor:
    """What the saved combination changes, as the model computes it in fp32."""
    (rank, cols), rows = pairs[0][0].shape, len(pairs[0][1])
    model = nn.Sequential(nn.Linear(cols, rows, bias=False))
    for number, (down, up) in enumerate(pairs):
        studio.attach(model, studio.LoRA(rank=rank, alpha=alpha, targets=("0",)), name=f"a{number}")
        tensors = studio.state(model, f"a{number}")
        tensors["0.down"].data.copy_(down)
        tensors["0.up"].data.copy_(up)
    studio.combine(model, {f"a{number}": weight for number, weight in enumerate(WEIGHTS)}, name="both")
    identity = torch.eye(cols)
    with torch.no_grad(), blended(model, "both"):
        both = model(identity)
        with blended(model, {}):
            return (both - model(identity)).mT.double()


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    found = errors()
    if parser.parse_args(arguments).json:
        print(json.dumps(found))
        return
    print("| tool | error against the live blend |\n|---|---|")
    for name, error in found.items():
        print(f"| {name} | {error:.1%} |" if error > 1e-3 else f"| {name} | {error:.1e} |")


if __name__ == "__main__":
    main()
