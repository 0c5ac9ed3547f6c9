"""The methods, each with several configs, and the models that they are tried on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import studio
from benchmarks.golden.adapters import DATA_STARTS

VARIANTS: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    "lora": {
        "plain": {"rank": 2, "alpha": 3.0},
        "stabilized": {"rank": 2, "alpha": 3.0, "rank_stabilized": True, "init": "gaussian", "dropout": 0.3},
        "bias": {"rank": 2, "use_bias": True},
        "patterns": {"rank": 3, "rank_pattern": {"re:.*in.*": 1}, "alpha_pattern": {"re:.*o.*": 5.0}},
        **{init: {"rank": 2, "init": init} for init in "orthogonal pissa pissa-fast olora".split()},
        **{init: {"rank": 2, "init": init, "exclude": ("out_proj",)} for init in DATA_STARTS},
    },
    "qalora": {
        "plain": {"rank": 2, "group": 2},
        "mean": {"rank": 2, "group": 4, "alpha": 3.0, "pooling": "mean", "dropout": 0.3},
        "groups": {"rank": 1, "group": 2, "pooling": "groups", "rank_stabilized": True},
    },
    "dora": {"plain": {"rank": 2}, "stabilized": {"rank": 2, "alpha": 5.0, "rank_stabilized": True, "dropout": 0.3}},
    "ia3": {"outputs": {}, "inputs": {"feedforward": ("re:.*",)}},
    "lokr": {
        "plain": {"rank": 1, "alpha": 2.5},
        "whole": {"rank": 6, "alpha": 3.0},
        "both": {"rank": 1, "factor": 4, "decompose_both": True, "rank_dropout": 0.3},
        "tucker": {"rank": 1, "tucker": True},
    },
    "adalora": {"plain": {"rank": 3, "alpha": 2.0}, "pruned": {"rank": 3, "rank_stabilized": True, "target_rank": 1}},
    "deltalora": {"plain": {"rank": 2}, "alpha": {"rank": 2, "alpha": 3.0}},
    "loha": {
        "plain": {"rank": 2},
        "dropped": {"rank": 3, "alpha": 2.0, "rank_dropout": 0.3, "module_dropout": 0.2},
        "tucker": {"rank": 2, "tucker": True},
    },
    "vera": {
        "plain": {"rank": 3},
        "drawn": {"rank": 5, "key": 7, "d_initial": 1.0, "save_projection": False, "dropout": 0.3},
    },
    "hra": {"plain": {"rank": 4}, "orthogonal": {"rank": 3, "orthogonal": True}},
    "oft": {
        "plain": {"block_size": 2},
        "series": {"block_size": 4, "terms": 5, "dropout": 0.3},
        "shared": {"block_size": 2, "terms": 2, "share": True, "eps": 0.5},
        "outputs": {"block_size": 4, "outputs": True, "use_gain": True},
    },
    "boft": {
        "plain": {"block_size": 2},
        "butterfly": {"block_size": 2, "factors": 2, "dropout": 0.3},
        "outputs": {"block_size": 2, "factors": 2, "outputs": True},
    },
    "road": {"plain": {"group": 4}, "two": {"group": 2, "variant": 2}, "four": {"group": 4, "variant": 4}},
    "mora": {"plain": {"rank": 2}, "sharing": {"rank": 2, "type": 1, "dropout": 0.3}, "small": {"rank": 1}},
    "lntuning": {"plain": {}},
    "bitfit": {"plain": {}},
    "bottleneck": {
        "plain": {"size": 3},
        "parallel": {"placement": "parallel", "activation": "gelu", "norm": True, "scale": 4.0, "train_scale": True},
    },
    "tokenembedding": {"plain": {"tokens": (7, 2)}, "mean": {"tokens": (0,), "init": "mean"}},
    "prompttuning": {
        "plain": {"tokens": 4},
        "words": {"tokens": 4, "init": "text", "start_tokens": (5, 9, 11)},
        "decoder": {"tokens": 3, "decoder": True},
    },
    "ptuning": {"plain": {"tokens": 4, "hidden": 6}, "lstm": {"tokens": 4, "hidden": 6, "encoder": "lstm"}},
    "prefixtuning": {
        "plain": {"tokens": 4},
        "network": {"tokens": 4, "hidden": 6},
        "places": {"tokens": 3, "places": ("cross",)},
    },
    "multitaskprompt": {"plain": {"tokens": 4, "rank": 2}, "tasks": {"tokens": 4, "tasks": 3, "rank": 2}},
}
"""Method -> variant -> fields; the first variant is tried on more models."""

SOFT: Final = ("prompttuning", "ptuning", "prefixtuning", "multitaskprompt")
"""The methods that sit on a language model as a whole."""


def config_of(method: str, variant: str = "", targets: Iterable[str] = ()) -> Any:
    """Makes a config, of the first variant without one, and on the method's own targets without any."""
    fields = VARIANTS[method][variant or first_variant(method)]
    return studio.METHODS[method](**fields, **({"targets": tuple(targets)} if targets else {}))


def first_variant(method: str) -> str:
    """Returns the name of the variant that is tried on more models."""
    return next(iter(VARIANTS[method]))


def cases() -> Iterator[tuple[str, str, str]]:
    """Yields model, method and variant of every case."""
    if new := sorted(set(studio.METHODS) - VARIANTS.keys()):
        print(f"not in the set, for they have no variants here: {', '.join(new)}")
    for method, variants in VARIANTS.items():
        for variant in variants:
            if method in SOFT:  # a prompt of several tasks is told which with every call
                models = ("tasks",) if variant == "tasks" else ("llama", "gpt2", "t5", "bert")
                yield from ((model, method, variant) for model in models)
            else:
                yield "layers", method, variant
        if method not in SOFT:
            more = ("parameters", "quantized", "llama", "gpt2")
            yield from ((model, method, first_variant(method)) for model in more)
    yield from ((model, method, "plain") for model in ("t5", "clip", "mixtral") for method in ("lora", "dora"))
