"""A language model as one site: what virtual tokens can be put before.

Soft prompts and prefixes change no layer. They sit on the model as a whole, and act where its *stacks* begin (the
module that embeds token ids and runs the layers: one in a decoder-only or encoder-only model, an encoder and a decoder
in the others) and in the attentions of these stacks.
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from studio.adapters.sites.site import TransposedSite
from studio.errors import UnsupportedLayer

__all__ = ["CachedAttention", "ModelSite", "Stack", "is_language_model", "parameters_of"]

CACHE: Final = "past_key_values"
_CACHES: Final = (CACHE, "layer_past")
_CROSS: Final = re.compile(r"cross|enc_?dec|encoder_attn", re.IGNORECASE)
_KEYS: Final = ("k_proj", "key", "k", "k_lin", "wk")
_FUSED: Final = ("c_attn", "query_key_value", "qkv_proj", "Wqkv", "qkv", "W_pack")
_HEADS: Final = (
    "kv_heads",
    "num_key_value_heads",
    "num_kv_heads",
    "n_head_kv",
    "num_heads",
    "n_heads",
    "num_attention_heads",
)
_SIZES: Final = ("head_dim", "key_value_proj_dim", "attention_head_size", "head_size")


def is_language_model(module: Any) -> bool:
    """Says whether ``module`` is a transformers model that embeds token ids."""
    library = sys.modules.get("transformers.modeling_utils")  # a model of that library has imported it
    if library is None or not isinstance(module, library.PreTrainedModel):
        return False
    return _embedding(module) is not None


def _embedding(module: Any) -> nn.Embedding | None:
    try:
        found = module.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Embedding) else None


def parameters_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the arguments that a module's forward takes, the module itself left out."""
    cls = type(module)
    base = getattr(cls, "hosts", cls)  # a hosted class takes any
    return tuple(inspect.signature(base.forward).parameters)[1:]


@dataclass(frozen=True)
class CachedAttention:
    """One attention that can read a prefix.

    Attributes:
        path: its path in the model. module: itself. place: "encoder", "decoder" or "cross".
        heads: its key and value heads. size: width of one. names: what its forward takes.
    """

    path: str
    module: nn.Module
    place: str
    heads: int
    size: int
    names: tuple[str, ...]

    @property
    def width(self) -> int:
        """Numbers in one key."""
        return self.heads * self.size

    @property
    def cache(self) -> str:
        """What its forward calls the cache."""
        return next(name for name in _CACHES if name in self.names)

    def slopes(self, dtype: torch.dtype) -> Tensor:
        """How much less each head reads what is one token further away ``(heads,)``, where it is told so (ALiBi)."""
        return cast(Tensor, _alibi(self.module)(torch.ones(1, 2), self.heads, dtype)[:, 0, 1])


@dataclass(frozen=True)
class Stack:
    """A module that embeds tokens and runs layers over them.

    Attributes:
        path: its path in the model. module: itself. role: "encoder" or "decoder".
        names: what its forward takes. alone: whether the model has no other stack.
    """

    path: str
    module: nn.Module
    role: str
    names: tuple[str, ...]
    alone: bool

    @property
    def embedding(self) -> nn.Embedding:
        """What embeds its tokens."""
        return cast(nn.Embedding, _embedding(self.module))


class ModelSite(TransposedSite):
    """A language model, by its table of embeddings: ``rows`` is the width of a token, ``cols`` the vocabulary.

    Attributes:
        stacks: its encoder and decoder, or the one that it is.
        reserved: positions that RoBERTa and its kin keep for padding.
        context: the longest sequence that the model has positions for; None where positions are relative.

    Raises:
        UnsupportedLayer: a module that embeds no token ids (a diffusion UNet), or does so in a way that virtual tokens
            cannot join.
    """

    kind = "model"
    hosting = "hooks"
    bias_name = None
    __slots__ = ("context", "reserved", "stacks")

    def __init__(self, path: str, module: nn.Module) -> None:
        if not is_language_model(module):
            raise UnsupportedLayer(refusal(module))
        embedding = cast(nn.Embedding, _embedding(module))
        super().__init__(path, module, embedding.embedding_dim, (embedding.num_embeddings,))
        self.stacks = _stacks(module)
        table = next((m for path, m in module.named_modules() if path.endswith("position_embeddings")), None)
        padding = getattr(table, "padding_idx", None)
        self.reserved = 0 if padding is None else int(padding) + 1
        self.context = self._context()

    @property
    def holder(self) -> nn.Module:
        return cast(nn.Embedding, _embedding(self.module))

    @property
    def weight(self) -> Tensor:
        return cast(Tensor, self.holder._parameters["weight"])

    @property
    def places(self) -> tuple[str, ...]:
        return (self.path, *(attention.path for attention in self.found_attentions()))

    @property
    def config(self) -> Any:
        """The config of the text part of the model."""
        return cast(Any, self.module).config.get_text_config()

    @property
    def encodes_first(self) -> bool:
        """Whether the model has an encoder and a decoder."""
        return len(self.stacks) == 2

    def _context(self) -> int | None:
        config = self.config
        for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
            value = getattr(config, name, None)
            if isinstance(value, int) and value > 0 and not hasattr(config, "relative_attention_num_buckets"):
                return value - self.reserved
        return None

    def attentions(self) -> list[CachedAttention]:
        """Returns the attentions that can read a prefix, by stack and layer.

        Raises:
            UnsupportedLayer: the model has layers whose attention takes none.
        """
        found: list[CachedAttention] = []
        for stack in self.stacks:
            found += _attentions(self, stack)
        return sorted(found, key=lambda attention: ("decoder", "cross", "encoder").index(attention.place))

    def found_attentions(self) -> list[CachedAttention]:
        """Returns the same, or nothing where a prefix is impossible."""
        try:
            return self.attentions()
        except UnsupportedLayer:
            return []


def refusal(module: Any, method: str = "a soft prompt") -> str:
    """Says why ``module`` is no language model, in one sentence."""
    name = type(module).__name__
    what = f"soft prompts on a diffusion {name}" if "UNet" in name or "Transformer2D" in name else f"{name}"
    return (
        f"{what}: the virtual tokens of {method} need a transformers language model, which embeds token ids; adapt the "
        "layers of this module instead (LoRA, ...)"
    )


def _stacks(root: Any) -> tuple[Stack, ...]:
    if getattr(root.config, "is_encoder_decoder", False) and root.get_encoder() is not root:
        return _stack(root, root.get_encoder(), "encoder", False), _stack(root, root.get_decoder(), "decoder", False)
    for body in (root.get_decoder(), root.base_model):
        if isinstance(body, nn.Module) and "inputs_embeds" in parameters_of(body):
            return (_stack(root, body, "decoder" if any(map(_causal, body.modules())) else "encoder", True),)
    raise UnsupportedLayer(
        f"{type(root).__name__} takes token ids only, no inputs_embeds, so that virtual tokens cannot join them"
    )


def _causal(module: nn.Module) -> bool:
    """Whether an attention reads only what stands before: it says so, or takes a decoder's cache (BLOOM, MPT)."""
    return getattr(module, "is_causal", False) is True or "layer_past" in parameters_of(module)


def _stack(root: nn.Module, module: nn.Module, role: str, alone: bool) -> Stack:
    names, cls = parameters_of(module), type(module).__name__
    if "inputs_embeds" not in names or "attention_mask" not in names or _embedding(module) is None:
        raise UnsupportedLayer(
            f"the {role} {cls} takes no inputs_embeds and attention_mask of tokens, so virtual ones cannot join them"
        )
    if getattr(cast(Any, module).config, "hidden_size_per_layer_input", 0):
        raise UnsupportedLayer(
            f"{cls} reads token ids in every layer (hidden_size_per_layer_input), and virtual tokens have none"
        )
    path = next(path for path, other in root.named_modules() if other is module)
    return Stack(path, module, role, names, alone)


def _attentions(site: ModelSite, stack: Stack) -> list[CachedAttention]:
    able = {path: module for path, module in stack.module.named_modules() if _takes_cache(module)}
    found = []
    for path, module in able.items():
        if any(other.startswith(f"{path}.") for other in able):
            continue  # a layer that hands the cache to its attention
        cross = stack.role == "decoder" and _CROSS.search(path) is not None
        place = "cross" if cross else stack.role
        whole = ".".join(part for part in (stack.path, path) if part)
        found.append(CachedAttention(whole, module, place, *_heads(module, whole), parameters_of(module)))
    layers = getattr(site.config, "num_hidden_layers", None)
    own = sum(attention.place != "cross" for attention in found)
    if stack.alone and layers is not None and own != layers:
        raise UnsupportedLayer(
            f"{type(stack.module).__name__} has {layers} layers, and {own} of them have an attention that takes keys "
            "and values from a cache; a prefix has to reach all of them"
        )
    if getattr(site.config, "num_kv_shared_layers", 0):
        raise UnsupportedLayer(
            f"layers of {type(stack.module).__name__} share their keys and values (num_kv_shared_layers); a prefix of "
            "their own cannot be given to them"
        )
    return found


def _takes_cache(module: nn.Module) -> bool:
    names = parameters_of(module)
    return hasattr(module, "layer_idx") and "hidden_states" in names and any(name in names for name in _CACHES)


def _alibi(module: nn.Module) -> Any:
    """What makes the biases by distance of an attention's model, or None."""
    return getattr(sys.modules.get(type(module).__module__), "build_alibi_tensor", None)


def _plainly_fused(module: nn.Module, heads: int | None, size: int | None) -> bool:
    """Whether each head has a query, a key and a value of its own in one projection."""
    layers = [module._modules[name] for name in _FUSED if name in module._modules]
    width = 3 * (heads or 0) * (size or 0)
    return width > 0 and any(getattr(one, "out_features", 0) == width for one in layers)


def _heads(module: nn.Module, path: str) -> tuple[int, int]:
    """Number and width of the key heads: from the layer that makes the keys, or from what the attention says."""
    values: dict[str, Any] = vars(module)
    config = values.get("config")
    size = next((values[name] for name in _SIZES if isinstance(values.get(name), int)), None)
    keys = next((module._modules[name] for name in _KEYS if module._modules.get(name) is not None), None)
    width = getattr(keys, "out_features", None)
    if size and width and width % size == 0:
        return width // size, size
    fused = any(name in module._modules for name in _FUSED)
    heads = next((v for name in _HEADS if isinstance(v := values.get(name, getattr(config, name, None)), int)), None)
    mixed = getattr(config, "alibi", False)  # Falcon adds its biases to the mask, outside of the attention
    told = _alibi(module) is not None and _plainly_fused(module, heads, size) and not mixed
    unknown = "alibi" in parameters_of(module) and not told
    if unknown or not (size and fused and heads):
        raise UnsupportedLayer(
            f"{path} is a {type(module).__name__}, whose keys are made in a way that a prefix cannot join"
        )
    return heads, size
