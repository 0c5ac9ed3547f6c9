"""Presets: words for kinds of layers, read off the structure of a model whose family has none of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from torch import nn

from studio.adapters.sites.kinds import kind_of
from studio.adapters.sites.parameter import experts_in
from studio.adapters.targets.structure import Structure, read_structure
from studio.errors import NoTargets
from studio.families import named_parts

__all__ = ["PRESETS", "resolve"]

PRESETS: Final[Mapping[str, str]] = {
    "attention": "the projections of every attention: queries, keys, values, output",
    "attention+mlp": "the same, and the projections of the feed-forwards",
    "attention-output": "the output projection of every attention",
    "query-value": "the projections that make queries and values; the fused one where there is one",
    "mlp": "the feed-forwards themselves, as whole modules (for methods that sit after a module)",
    "mlp-output": "the last projection of every feed-forward",
    "attention-output+mlp-output": "both of these (where Houlsby's adapters sit)",
    "all-linear": "every linear layer but the model's head",
    "conv": "every convolution",
    "norms": "every norm",
    "embeddings": "the token embeddings",
    "attention+experts": "the projections of every attention, and those weights of experts",
    "experts": "the weights of all experts that a block stores as one parameter",
    "subject": "what the subject trainers take: attention+mlp",
    "style": "what the style trainers take: all-linear",
}
"""Preset -> what it names."""

_ALIASES: Final = {"subject": "attention+mlp", "style": "all-linear"}


def resolve(preset: str, model: nn.Module) -> list[str]:
    """Returns the paths that a preset names in ``model``, in the order of the model.

    Raises:
        NoTargets: the model has nothing of that kind; the message says what it has instead.

    Example:
        >>> layers = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16)])
        >>> resolve("attention+mlp", layers)
        ['0.self_attn', '0.self_attn.out_proj', '0.linear1', '0.linear2']
        >>> resolve("mlp-output", layers)
        ['0.linear2']
    """
    modules = {path: m for path, m in named_parts(model) if ".adapters." not in f".{path}."}
    wanted = _named(_ALIASES.get(preset, preset), model, modules)
    if not wanted:
        raise NoTargets(
            f"the preset {preset!r} finds nothing in this {type(model).__name__}{_instead(preset, modules)}"
        )
    return [path for path in (*modules, *sorted(wanted - modules.keys())) if path in wanted]


def _named(preset: str, model: nn.Module, modules: Mapping[str, nn.Module]) -> set[str]:
    kinds = {path: kind_of(module) for path, module in modules.items()}
    if preset == "conv":
        return {path for path, kind in kinds.items() if kind == "conv"}
    if preset == "norms":
        return {path for path, kind in kinds.items() if kind == "norm"}
    if preset == "experts":
        return set(experts_in(model))
    structure = read_structure(model)
    if preset == "attention+experts":
        experts = experts_in(model)
        return {*_of_blocks("attention", structure), *experts} if experts else set()
    if preset == "attention+mlp" and structure.attentions and not structure.feed_forwards:
        raise NoTargets(_no_feed_forward(model))
    if preset == "embeddings":
        return set(structure.embeddings)
    if preset == "all-linear":
        linear = {path for path, kind in kinds.items() if kind in ("linear", "conv1d-gpt2", "attention")}
        return linear - set(structure.heads)
    return set(_of_blocks(preset, structure))


def _no_feed_forward(model: nn.Module) -> str:
    what = f"this {type(model).__name__}"
    if experts_in(model):
        return (
            f"the feed-forwards of {what} are experts stored as parameters, which 'attention+mlp' leaves out, since "
            "changing them takes memory as large as they are; take targets='attention', or 'attention+experts'"
        )
    return f"no feed-forward was recognised in {what}; take targets='attention', or name patterns"


def _of_blocks(preset: str, structure: Structure) -> Iterable[str]:
    """Paths of projections in the attentions and feed-forwards."""
    for attention in structure.attentions:
        if preset in ("attention", "attention+mlp"):
            yield from attention.inputs
        if preset in ("attention", "attention+mlp", "attention-output", "attention-output+mlp-output"):
            yield from attention.out
        if preset == "query-value":
            yield from (*attention.query, *attention.value)
    for block in structure.feed_forwards:
        if preset == "attention+mlp":
            yield from (*block.inner, *block.out)
        elif preset in ("mlp-output", "attention-output+mlp-output"):
            yield from block.out
        elif preset == "mlp":
            yield from (block.path,) if block.whole else block.out


def _instead(preset: str, modules: Mapping[str, nn.Module]) -> str:
    """What the model has in place of what a preset names."""
    blocks = Counter(type(module).__name__ for path, module in modules.items() if path.rpartition(".")[2].isdigit())
    if preset.startswith("mlp") and any(experts_in(module) for path, module in modules.items() if not path):
        return "; its feed-forwards are experts stored as parameters: take targets='experts'"
    linear = dict.fromkeys(path.rpartition(".")[2] for path, m in modules.items() if kind_of(m) == "linear")
    names = [name for name in linear if not name.isdigit()][:8]
    made = ", which is made of " + ", ".join(name for name, _ in blocks.most_common(2)) if blocks else ""
    have = f"; its linear layers are called {', '.join(names)}" if names and preset != "experts" else ""
    return f"{made}{have}; name patterns instead"
