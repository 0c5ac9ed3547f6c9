"""The second contract: methods that put virtual tokens before a language model's input, or before its keys.

They change no layer, so they have no targets and no delta: they sit on the model as a whole and say what the virtual
tokens are. :class:`PromptAdapter` gives embeddings that are read like those of a text; :class:`PrefixTuning
<studio.adapters.methods.prefixtuning>` gives keys and values to every attention. How they join a batch, a cache and
generation is :mod:`studio.adapters.tokens.wiring`, once for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar

import torch
from torch import Tensor, nn

from studio.adapters.contract.adapter import Adapter, AdapterConfig
from studio.adapters.contract.foreign import Layers, Sites, Tables
from studio.adapters.contract.strength import Strength
from studio.adapters.sites.language import ModelSite, is_language_model, refusal
from studio.adapters.sites.site import Site
from studio.errors import BadConfig, DoesNotFit, NoTargets, UnsupportedLayer

__all__ = [
    "STARTS",
    "PrefixAdapter",
    "PromptAdapter",
    "PromptConfig",
    "TokenAdapter",
    "TokenConfig",
    "none_before_decoder",
    "started_rows",
    "text_tokens",
]

STARTS: Final = ("random", "vocabulary", "text")

T = TypeVar("T", bound="TokenConfig")
P = TypeVar("P", bound="PromptConfig")


@dataclass(frozen=True, kw_only=True)
class TokenConfig(AdapterConfig):
    """Fields that all methods of virtual tokens have.

    Attributes:
        tokens: how many virtual tokens.
        targets: always "model": these methods act on a language model as a whole.
    """

    small: ClassVar[Mapping[str, Any]] = {"tokens": 3}

    targets: str | tuple[str, ...] = "model"
    tokens: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets != "model" or self.exclude:
            raise BadConfig(
                f"{type(self).__name__} acts on a language model as a whole and has no target layers: leave targets "
                "and exclude out"
            )

    def check(self) -> None:
        self.require(self.tokens >= 1, "tokens", "at least 1")


@dataclass(frozen=True, kw_only=True)
class PromptConfig(TokenConfig):
    """Fields of the methods whose virtual tokens are read like a text.

    Attributes:
        decoder: in a model with an encoder and a decoder, also put tokens (as many again) before the decoder's input.
    """

    decoder: bool = False


class TokenAdapter(Adapter[T]):
    """Virtual tokens on one language model."""

    kinds = ("model",)
    bakes = False
    site: ModelSite

    @classmethod
    def whole(cls, modules: Mapping[str, nn.Module], chosen: Sequence[str] | None) -> dict[str, list[str]]:
        """Returns the model itself as the one place.

        Raises:
            UnsupportedLayer: it is no language model that the studio knows.
            NoTargets: a component is asked for, and a language model has none.
        """
        method = cls.__name__.removesuffix("Adapter")
        if "" not in modules:  # a pipeline; a text encoder in it can be given by itself
            raise UnsupportedLayer(refusal(next(iter(modules.values())), method))
        if chosen:
            raise NoTargets(f"there is no component {chosen[0]!r}; the model has none")
        if not is_language_model(modules[""]):
            raise UnsupportedLayer(refusal(modules[""], method))
        return {"": [""]}

    @classmethod
    def check_strength(cls, name: str, strength: Strength) -> None:
        number, samples = strength.at("", ""), strength.samples or (1.0,)
        for sample in samples:
            if number * sample not in (0.0, 1.0):
                raise BadConfig(
                    f"the strength of {name!r} is {number * sample:g}: a soft prompt is read or it is not, so only 1 "
                    "and 0 mean something (one number per sample may be given)"
                )

    def folded(self) -> dict[str, Tensor]:
        """Returns the tensors by name as programs have them that keep what a network makes, and not the network."""
        return self.tensors()

    def still(self, weight: Tensor, bias: Tensor | None) -> bool:
        return False

    def fit(self) -> None:
        context, tokens = self.site.context, self.config.tokens
        if context is not None and tokens >= context:
            raise DoesNotFit(
                f"{tokens} virtual tokens leave no room for text: {type(self.site.module).__name__} has a context of "
                f"{context} tokens; give fewer"
            )


class PromptAdapter(TokenAdapter[P]):
    """Virtual tokens that are read like a text: their embeddings stand before those of the input."""

    @property
    def count(self) -> int:
        """Virtual tokens before one stack."""
        return self.config.tokens

    @property
    def total(self) -> int:
        """Virtual tokens before all stacks: the encoder's, then the decoder's."""
        return self.count * (2 if self.twice else 1)

    @property
    def twice(self) -> bool:
        """Whether the decoder of a model with an encoder has virtual tokens too."""
        return self.config.decoder

    def embedded(self, rows: int, tasks: Tensor | None) -> Tensor:
        """Returns the embeddings of all virtual tokens ``(total, width)``, or ``(rows, total, width)``.

        Args:
            rows: rows of the batch. tasks: the task of each row ``(rows,)``, for methods that have several.

        Raises:
            DoesNotFit: the tasks of the rows are not known, or are no tasks of the adapter.
        """
        raise NotImplementedError

    def before(self, role: str, rows: int, tasks: Tensor | None) -> Tensor | None:
        """Returns the virtual tokens of one stack, ``(rows, count, width)``, or None where it has none.

        Args:
            role: "encoder" or "decoder".
            rows: rows of the batch.
            tasks: the task of each row ``(rows,)``, for methods that have several.
        """
        if not self.stands_before(role):
            return None
        whole = self.embedded(rows, tasks)
        whole = whole if whole.dim() == 3 else whole.expand(rows, *whole.shape)
        second = role == "decoder" and self.site.encodes_first
        return whole[:, self.count :] if second else whole[:, : self.count]

    def stands_before(self, role: str) -> bool:
        """Says whether virtual tokens stand before the stack of that role."""
        return self.twice if self.site.encodes_first and role == "decoder" else True

    def fit(self) -> None:
        super().fit()
        if self.twice and not self.site.encodes_first:
            raise DoesNotFit(
                f"{type(self.config).__name__}(decoder=True) needs a model with an encoder and a decoder; "
                f"{type(self.site.module).__name__} has one stack"
            )


class PrefixAdapter(TokenAdapter[T]):
    """Virtual tokens that are keys and values of every attention: nothing is computed for them."""

    @property
    def count(self) -> int:
        """Virtual tokens before the keys of one attention."""
        return self.config.tokens

    @property
    def places(self) -> tuple[str, ...]:
        """Which attentions read it: "encoder", "decoder", "cross"."""
        raise NotImplementedError

    def at(self, path: str) -> tuple[Tensor, Tensor]:
        """Returns the keys and values of one attention, each ``(1, heads, m, size)``."""
        raise NotImplementedError

    @classmethod
    def check_strength(cls, name: str, strength: Strength) -> None:
        number, samples = strength.at("", ""), strength.samples or (1.0,)
        if number < 0 or min(number * sample for sample in samples) < 0:
            raise BadConfig(
                f"the strength of {name!r} is negative: it multiplies the attention that a prefix gets, and there is "
                "no less than none; give 0 or more"
            )


def none_before_decoder(config: PromptConfig, sites: Sites, layers: Layers) -> Tables:
    """Gives PEFT the tensors as they are.

    Raises:
        DoesNotFit: some of them stand before a decoder's input, where PEFT has no such method.
    """
    if config.decoder:
        raise DoesNotFit(f"PEFT puts no {type(config).__name__} before a decoder's input; save it as .safetensors")
    return {path: dict(tensors) for path, tensors in layers.items()}


def started_rows(site: Site, config: Any, total: int, generator: torch.Generator) -> Tensor:
    """Makes the first embeddings ``(total, width)``: random numbers, or what the model has for tokens.

    Raises:
        BadConfig: a token that the vocabulary does not have.
    """
    assert isinstance(site, ModelSite), "the only kind that they cover"
    if config.init == "random":
        return torch.randn(total, site.rows, generator=generator)
    if config.init == "vocabulary":
        ids = torch.randint(0, site.cols, (total,), generator=generator)
    else:
        wrong = [token for token in config.start_tokens if not 0 <= token < site.cols]
        if wrong:
            raise BadConfig(
                f"start_tokens has {wrong[0]}, and the vocabulary of {type(site.module).__name__} ends at "
                f"{site.cols - 1}; the text was tokenised for another model"
            )
        repeats = -(-total // len(config.start_tokens))
        ids = torch.tensor((config.start_tokens * repeats)[:total])
    embedding: Any = site.stacks[0].embedding
    return embedding(ids.to(site.weight.device)).detach().float().clone()


def text_tokens(text: str, tokenizer: Any) -> tuple[int, ...]:
    """Returns the token ids of a text, as the tokenizer makes them of an input.

    Raises:
        BadConfig: the text has no token.
    """
    ids = tuple(int(token) for token in tokenizer(text)["input_ids"])
    if not ids:
        raise BadConfig(f"the text {text!r} has no token, so no prompt can start from it")
    return ids
