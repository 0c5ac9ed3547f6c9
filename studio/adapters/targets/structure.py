"""Structure: what the layers of a model are for, read off its modules.

No list of models stands behind this. An attention is a module whose projections have the roles q, k and v; a role is
read off the words of a projection's own name (``to_q``, ``query``, ``kv_proj``, ``Wqkv``) and, where a name says
nothing (``in_proj``, ``c_attn``), off its shape. A feed-forward is a widening projection followed by one that leads
back. What is found is a proposal: a family's own presets go before it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from torch import Tensor, nn

from studio.adapters.sites.kinds import kind_of
from studio.adapters.targets.words import POSITIONS, Roles, is_attention_name, roles_of, words_of
from studio.families import named_parts

__all__ = ["Attention", "Ends", "FeedForward", "Structure", "ends_of", "read_structure"]


@dataclass(frozen=True)
class Attention:
    """One attention: the paths of its projections by role; a fused projection stands under each of its roles.

    Attributes:
        path: the module that holds them.
        query, key, value: projections of the inputs, in the order of the model. out: of the result.
    """

    path: str
    query: tuple[str, ...]
    key: tuple[str, ...]
    value: tuple[str, ...]
    out: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """All projections of the inputs, each once."""
        return tuple(dict.fromkeys((*self.query, *self.key, *self.value)))


@dataclass(frozen=True)
class FeedForward:
    """One feed-forward: ``inner`` widens (with its gate), ``out`` leads back.

    Attributes:
        path: the module that holds them. whole: whether that module holds nothing else.
        inner, out: paths of the projections.
    """

    path: str
    whole: bool
    inner: tuple[str, ...]
    out: tuple[str, ...]


@dataclass(frozen=True)
class Structure:
    """What a model is made of.

    Attributes:
        attentions: its attentions. feed_forwards: its feed-forwards.
        heads: paths of the projections that make the model's result (language-model heads, classifiers).
        embeddings: paths of the token embeddings.
    """

    attentions: tuple[Attention, ...]
    feed_forwards: tuple[FeedForward, ...]
    heads: tuple[str, ...]
    embeddings: tuple[str, ...]


MOST_PARTS: Final = 4
"""A module around an attention that has more parts with projections than these is a whole layer, or a model."""

Ends = tuple[int, int]

_OUT: Final = frozenset(("o", "out", "output", "wo"))
_PERHAPS_OUT: Final = frozenset(("proj", "projection", "dense", "post", "final", "merge"))
_NO_OUT: Final = POSITIONS | {"gate"}
_NO_TOKENS: Final = POSITIONS | {
    "positions", "wpe", "type", "segment", "distance", "time", "timestep", "temporal", "query", "queries", "quantize",
    "codebook", "point", "points", "prompt", "label", "mask", "class", "reference", "iou", "row", "column", "level",
}  # fmt: skip
_NO_FEED_FORWARD: Final = frozenset(("router", "score", "time", "temb", "emb", "shortcut", "adaln", "modulation"))
_HEADS: Final = frozenset(("lm_head", "embed_out", "score", "classifier", "qa_outputs", "output_projection", "head"))


def ends_of(layer: nn.Module) -> Ends | None:
    """Returns (inputs, outputs) of a projection: a Linear, GPT-2's Conv1D, a convolution of one pixel; None else.

    Example:
        >>> ends_of(nn.Linear(2, 3)), ends_of(nn.Conv2d(2, 3, 1)), ends_of(nn.Conv2d(2, 3, 3)), ends_of(nn.ReLU())
        ((2, 3), (2, 3), None, None)
    """
    kind = kind_of(layer)
    if kind == "linear":
        return cast(int, layer.in_features), cast(int, layer.out_features)
    if kind == "conv1d-gpt2":
        inputs, outputs = cast(Tensor, layer.weight).shape
        return inputs, outputs
    if kind == "conv" and set(cast("tuple[int, ...]", layer.kernel_size)) == {1}:
        inputs, outputs = cast(int, layer.in_channels), cast(int, layer.out_channels)
        return (inputs, outputs) if cast(int, layer.groups) < max(2, inputs) else None  # not channel by channel
    return None


@dataclass(frozen=True)
class _Projection:
    """A projection under the name that the module holding it gives it: ``q_proj``, or ``to_out`` for ``to_out.0``."""

    name: str
    path: str
    inputs: int
    outputs: int

    def is_called(self, words: Iterable[str]) -> bool:
        """Whether any of ``words`` is in its name."""
        return bool(set(words) & set(words_of(self.name)))


class _Reader:
    def __init__(self, model: nn.Module) -> None:
        self.modules = {path: m for path, m in named_parts(model) if ".adapters." not in f".{path}."}
        self.below: dict[str, list[_Projection]] = {}
        for path, module in self.modules.items():
            ends = ends_of(module)
            if ends is not None:
                self._file(path, ends)
        self.held = {path: list(self._held(path)) for path in self.modules}

    def _file(self, path: str, ends: Ends) -> None:
        """Notes a projection at every module above it, under that module's own name for it."""
        parts = path.split(".") if path else []
        for depth in range(len(parts)):
            above = ".".join(parts[:depth])
            self.below.setdefault(above, []).append(_Projection(".".join(parts[depth:]), path, *ends))

    def _held(self, path: str) -> Iterator[_Projection]:
        """The projections that a module holds itself, or in a part that holds no other."""
        counts: dict[str, int] = {}
        every = self.below.get(path, [])
        for projection in every:
            first = projection.name.partition(".")[0]
            counts[first] = counts.get(first, 0) + 1
        for projection in every:
            first, _, rest = projection.name.partition(".")
            if not rest or counts[first] == 1:
                yield _Projection(first, projection.path, projection.inputs, projection.outputs)

    # -- attentions ----------------------------------------------------------------------------------------------------

    def attentions(self) -> list[Attention]:
        found: dict[str, Attention] = {}
        for path, module in self.modules.items():
            if isinstance(module, nn.MultiheadAttention):
                both = (path,) if module.in_proj_weight is not None else ()
                found[path] = Attention(path, both, both, both, (_under(path, "out_proj"),))
            elif ends_of(module) is None and not _inside(path, _whole(found)):  # an indexer is no second one
                made = self._attention(path, module)
                if made is not None:
                    found[path] = made
        whole = _whole(found)
        return [a for path, a in found.items() if path in whole or not any(_inside(other, [path]) for other in whole)]

    def _attention(self, path: str, module: nn.Module) -> Attention | None:
        held = self.held[path]
        roles = {p.path: roles_of(p.name) for p in held}
        called = is_attention_name(type(module).__name__) or is_attention_name(path.rpartition(".")[2])
        if called and not any(roles.values()):
            roles = {p.path: fused for p in held if (fused := _fused_by_shape(p, held))}
        elif called:
            roles |= {p.path: frozenset("kv") for p in held if p.name == "c_attn" and p.outputs == 2 * p.inputs}
        every = frozenset().union(*roles.values()) if roles else frozenset()
        if not (every >= frozenset("qkv") or (called and every)):
            return None
        query, key, value = (tuple(p.path for p in held if role in roles.get(p.path, ())) for role in "qkv")
        inputs = {*query, *key, *value}
        return Attention(path, query, key, value, self._outputs(path, [p for p in held if p.path in inputs]))

    def _outputs(self, path: str, inputs: Sequence[_Projection]) -> tuple[str, ...]:
        """The output projections: among what the attention holds, else among what the module around it holds."""
        found = self._outputs_in(path, {p.path for p in inputs})
        above = path.rpartition(".")[0]
        if found or not path or len(self._parts(above)) > MOST_PARTS:
            return found
        return self._outputs_in(above, {p.path for p in self.below[path]})

    def _outputs_in(self, path: str, taken: Collection[str]) -> tuple[str, ...]:
        free = [p for p in self.held[path] if p.path not in taken and not roles_of(p.name)]
        known = {p.path for p in free} | {*taken}
        for p in self.below.get(path, ()):  # one that a part holds beside others: output_projection.o_proj
            part, _, name = p.name.partition(".")
            if p.path not in known and name and "." not in name and part != "indexer" and _OUT & {*words_of(name)}:
                free.append(_Projection(name, p.path, p.inputs, p.outputs))
        sure = [p.path for p in free if p.is_called(_OUT) and not p.is_called(_NO_OUT)]
        perhaps = [p.path for p in free if p.is_called(_PERHAPS_OUT) and not p.is_called(_NO_OUT)]
        return tuple(sure or perhaps[-1:])

    def _parts(self, path: str) -> list[str]:
        return [name for name in self.modules[path]._modules if self.below.get(_under(path, name))]

    # -- feed-forwards -----------------------------------------------------------------------------------------------

    def feed_forwards(self, attentions: Sequence[Attention]) -> list[FeedForward]:
        taken = {p for a in attentions for p in (*a.inputs, *a.out)}
        widths = {p.inputs for held in self.held.values() for p in held if p.path in taken}
        found = [block for attention in attentions for block in self._beside(attention)]
        taken |= {path for block in found for path in block.inner}
        for path, module in self.modules.items():
            mixer = bool(module._parameters) and not any(_inside(a.path, [path]) for a in attentions)
            if mixer or not any(part.isdigit() for part in path.split(".")):  # a state-space mixer has in and out too
                continue
            free = [p for p in self.held[path] if p.path not in taken and not p.is_called(_NO_FEED_FORWARD)]
            made = _feed_forward(free, widths)
            if made is not None:
                inner, out = made
                holder = self._called(path)
                whole = {p.path for p in self.below[holder]} == {*inner, *out}
                found.append(FeedForward(holder, whole, inner, out))
                taken |= {*inner, *out}
        return found

    def _called(self, path: str) -> str:
        """The module around ``path`` that is called: diffusers keeps the layers of a feed-forward in a list."""
        while path and kind_of(self.modules[path]) is None:
            path = path.rpartition(".")[0]
        return path

    def _beside(self, attention: Attention) -> Iterator[FeedForward]:
        """A feed-forward that runs beside an attention and ends in the same projection (Flux's single blocks)."""
        holder = attention.path.rpartition(".")[0]
        for out in self.held.get(holder, ()):
            more = out.inputs - out.outputs
            if out.path in attention.out and more > 0:
                inner = [p.path for p in self.held[holder] if (p.inputs, p.outputs) == (out.outputs, more)]
                if inner:
                    yield FeedForward(holder, False, tuple(inner), (out.path,))

    # -- the rest ----------------------------------------------------------------------------------------------------

    def heads(self) -> list[str]:
        tables = {(m.num_embeddings, m.embedding_dim) for m in self.modules.values() if isinstance(m, nn.Embedding)}
        found = []
        for path, module in self.modules.items():
            ends, name = ends_of(module), path.rpartition(".")[2]
            inside = any(part.isdigit() for part in path.split("."))
            if ends is not None and not inside and (name in _HEADS or (ends[1], ends[0]) in tables):
                found.append(path)
        return found

    def embeddings(self) -> list[str]:
        found: dict[str, nn.Embedding] = {}
        for path, module in self.modules.items():
            words = {word for part in path.split(".")[-2:] for word in words_of(part)}
            if isinstance(module, nn.Embedding) and not words & _NO_TOKENS and not is_attention_name(path):
                found[path] = module
        return [path for path in found if not self._only_shared(path, found)]

    def _only_shared(self, path: str, found: Mapping[str, nn.Embedding]) -> bool:
        """Whether a table stands in for those of an encoder and a decoder that are tied to it, and is not called."""
        tied = [other for other, module in found.items() if module.weight is found[path].weight]
        return any(other.count(".") > path.count(".") for other in tied)


def read_structure(model: nn.Module) -> Structure:
    """Reads what the layers of ``model`` are for.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16)
        >>> found = read_structure(nn.ModuleList([layer]))
        >>> found.attentions[0].query, found.attentions[0].out
        (('0.self_attn',), ('0.self_attn.out_proj',))
        >>> found.feed_forwards[0].inner, found.feed_forwards[0].out
        (('0.linear1',), ('0.linear2',))
    """
    reader = _Reader(model)
    attentions = reader.attentions()
    return Structure(
        tuple(attentions), tuple(reader.feed_forwards(attentions)), tuple(reader.heads()), tuple(reader.embeddings())
    )


def _whole(found: Mapping[str, Attention]) -> list[str]:
    return [path for path, attention in found.items() if attention.query and attention.value]


def _under(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _inside(path: str, attentions: Iterable[str]) -> bool:
    return any(path.startswith(f"{attention}.") for attention in attentions)


def _fused_by_shape(projection: _Projection, held: Sequence[_Projection]) -> Roles:
    """The roles of a projection whose name tells nothing: queries as wide as what the output takes, and twice more."""
    if projection.is_called(_OUT) or not projection.is_called(("in", "attn", "att", "attention")):
        return frozenset()
    for other in held:
        more = projection.outputs - other.inputs
        if other is not projection and other.outputs == projection.inputs and more > 0 and more % 2 == 0:
            return frozenset("qkv")
    alone = len(held) == 1 and projection.outputs == 3 * projection.inputs
    return frozenset("qkv") if alone else frozenset()


def _feed_forward(
    held: Sequence[_Projection], widths: Collection[int]
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Projections that widen, with a gate perhaps, and those that lead back; a narrower middle needs the gate."""
    for out in held:
        inner = [p for p in held if p.inputs == out.outputs and p.outputs in (out.inputs, 2 * out.inputs)]
        outs = [p for p in held if (p.inputs, p.outputs) == (out.inputs, out.outputs)]
        gated = len(inner) > len(outs) or any(p.outputs == 2 * out.inputs for p in inner)
        shaped = len(inner) >= len(outs) and out.inputs != out.outputs and (out.inputs > out.outputs or gated)
        if inner and shaped and (out.outputs in widths or not widths):
            return tuple(p.path for p in inner), tuple(p.path for p in outs)
    return None
