"""Token embedding: a few rows of an embedding are trained, for new words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.adapters.contract.adapter import METHODS, Adapter, AdapterConfig, Delta, Given
from studio.adapters.contract.foreign import Peft, Settings
from studio.adapters.sites.site import Site
from studio.errors import BadConfig, DoesNotFit
from studio.families import named_parts

__all__ = ["TokenEmbedding", "TokenEmbeddingAdapter"]


@METHODS.register("tokenembedding")
@dataclass(frozen=True, kw_only=True)
class TokenEmbedding(AdapterConfig):
    r"""Token embedding trains the rows of some tokens: ``W'[tokens] = rows``, and all other rows stay.

    On an Embedding the rows are what the tokens are read as, on a Linear (a language-model head) what they are
    recognised by. Where a head is tied to the embedding (both hold one weight), it is adapted with the same rows.

    Attributes:
        tokens: numbers of the tokens in the vocabulary, each once. The padding token can be among them.
        init: the start. ``"rows"`` (the rows of W), or ``"mean"`` (for words that W knows nothing about: the mean of
            the other rows, with a hundredth of their deviation as noise, so that no two are equal).

    Raises:
        BadConfig: a field with an impossible value.

    References:
        | An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion (Gal et al., 2022),
          https://arxiv.org/abs/2208.01618
        | Initializing New Word Embeddings for Pretrained Language Models (Hewitt, 2021),
          https://nlp.stanford.edu/~johnhew/vocab-expansion.html

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 4))
        >>> studio.attach(model, studio.TokenEmbedding(tokens=(7, 8), targets=("0",))).parameters
        8
    """

    method = "tokenembedding"
    small: ClassVar[Mapping[str, Any]] = {"tokens": (0, 1)}
    targets: str | tuple[str, ...] = "embeddings"
    tokens: tuple[int, ...]
    init: str = "rows"

    def check(self) -> None:
        sound = all(token >= 0 for token in self.tokens)
        self.require(sound and len(self.tokens) > 0, "tokens", "one or more whole numbers, none negative")
        twice = [token for token, count in Counter(self.tokens).items() if count > 1]
        if twice:
            raise BadConfig(f"TokenEmbedding(tokens=...) names the token {twice[0]} twice; name each once")
        self.require(self.init in ("rows", "mean"), "init", "'rows' or 'mean'")


def _without_bias(site: Site) -> str:
    """Where PEFT's trainable tokens leave something out."""
    return "PEFT's leaves out the bias of a Linear" if site.kind == "linear" and site.bias is not None else ""


class TokenEmbeddingAdapter(Adapter[TokenEmbedding]):
    """Token embedding on one site: ``rows`` ``(tokens, dim)``, as they replace the layer's own; tied layers share."""

    trained = ("rows",)
    tied = True
    kinds = ("embedding", "linear")
    needs = ("rows",)
    peft = Peft(
        type="TRAINABLE_TOKENS",
        settings=Settings(
            name="TrainableTokensConfig",
            defaults={"token_indices": [], "init_weights": True},
            chooses=("exclude_modules",),
            fields={"tokens": "token_indices"},
            embedding=True,
        ),
        tensors={"rows": "trainable_tokens_delta"},  # absolute values, whatever its name says
        differs=_without_bias,
        without=("modules_to_save",),
    )

    @classmethod
    def start(cls, site: Site, config: TokenEmbedding, given: Given) -> dict[str, Tensor]:
        _check_vocabulary(site, config.tokens)
        weight = site.shaped(given.weight())
        tokens = torch.tensor(config.tokens, device=weight.device)
        if config.init == "rows":
            return {"rows": weight[tokens].clone()}
        others = torch.ones(len(weight), dtype=torch.bool, device=weight.device).index_fill(0, tokens, False)
        if not others.any():
            raise BadConfig(f"TokenEmbedding(init='mean') names all {len(weight)} tokens of {site.path}: none is left")
        spread, mean = torch.std_mean(weight[others], dim=0, correction=0)
        noise = torch.randn(len(tokens), len(mean), generator=given.generator).to(weight.device)
        return {"rows": mean + 0.01 * spread * noise}

    @classmethod
    def joined(cls, root: nn.Module, paths: Sequence[str]) -> list[str]:
        weights = {path: module._parameters.get("weight") for path, module in named_parts(root)}
        tied: dict[str, None] = {}
        for path in paths:
            if path not in tied:
                same = (other for other, weight in weights.items() if weight is weights[path] and other != path)
                tied.update(dict.fromkeys(same))
        return list(tied)

    @classmethod
    def link(cls, adapters: Mapping[str, Any]) -> None:
        owners: dict[int, Any] = {}
        # an embedding before its head, so that files of one model have one name for the rows
        for path, adapter in sorted(adapters.items(), key=lambda item: item[1].site.kind != "embedding"):
            rows, owner = adapter.tensor("rows"), owners.get(id(adapter.site.weight))
            if rows is None:
                continue
            if owner is None:
                owners[id(adapter.site.weight)] = adapter
            elif torch.equal(rows, owner.tensor("rows")):
                del adapter._parameters["rows"]
            else:
                raise DoesNotFit(
                    f"{path} is tied to {owner.site.path} in this model, and the adapter has other rows for it; untie "
                    "them, or take the rows of one out"
                )
        for adapter in adapters.values():
            if adapter.tensor("rows") is None:
                adapter.__dict__["owner"] = owners.get(id(adapter.site.weight), adapter)
                adapter.owner.require("rows", (len(adapter.config.tokens), adapter.site.weight_shape[1]))

    def fit(self) -> None:
        config = self.config
        _check_vocabulary(self.site, config.tokens)
        self.__dict__["owner"] = self
        if self.tensor("rows") is not None:
            self.require("rows", (len(config.tokens), self.site.weight_shape[1]))
        device = self.site.weight.device  # of a weight that is not at hand, the places are
        places, order = torch.tensor(config.tokens, device=None if device.type == "meta" else device).sort()
        self.keep("places", places)
        self.keep("order", order)

    owner: TokenEmbeddingAdapter
    places: Tensor
    order: Tensor

    def _rows(self) -> Tensor:
        return cast(Tensor, self._parameters["rows"])

    def _moved(self, weight: Tensor) -> Tensor:
        """How far each row has moved, ``(tokens, dim)``, in the order of the vocabulary."""
        rows = self._rows() if self.owner is self else self.owner(TokenEmbeddingAdapter._rows)
        return rows.to(weight.device)[self.order] - weight[self.places]

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        moved = self._moved(weight)
        return Delta(torch.zeros_like(weight, dtype=moved.dtype).index_copy(0, self.places, moved))

    def change(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.site.kind == "linear":
            return torch.zeros_like(y).index_copy(-1, self.places, self._scores(x, y, weight))
        place = torch.searchsorted(self.places, x).clamp(max=len(self.places) - 1)
        found = (self.places[place] == x).unsqueeze(-1)
        return F.embedding(place, self._moved(weight).to(y.dtype)).where(found, 0.0)

    def act(self, total: Tensor, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, strength: float) -> Tensor:
        if self.site.kind != "linear":
            return super().act(total, x, y, weight, bias, strength)
        return total.index_add(-1, self.places, self._scores(x, y, weight), alpha=strength)

    def _scores(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        """The change of the outputs of the tokens, ``(..., tokens)``."""
        moved = self._moved(weight).to(x.dtype)
        # on matrices: with more axes, torch's order of sums depends on whether gradients are wanted
        return F.linear(x.reshape(-1, x.shape[-1]), moved).view(*y.shape[:-1], len(moved))


def _check_vocabulary(site: Site, tokens: Sequence[int]) -> None:
    size = site.weight_shape[0]
    if max(tokens) >= size:
        raise DoesNotFit(
            f"TokenEmbedding(tokens=...) names the token {max(tokens)}, and {site.path or 'the model'} has {size} of "
            f"them, 0 to {size - 1}; make room for new tokens first (resize_token_embeddings)"
        )


TokenEmbedding.adapter = TokenEmbeddingAdapter
