"""What adapters are tried on: each model with how it is called and the layers that are tried one by one."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks.golden import models
from benchmarks.golden.inputs import PROMPT
from studio.pipelines import ImagePipeline


@dataclass(frozen=True)
class Subject:
    """A model, how it is called, and the layers that are tried one by one (none: a config's own targets)."""

    make: Callable[[], Any]
    call: Callable[[Any], Tensor]
    layers: tuple[str, ...] = ()
    companion: str | tuple[str, ...] = "attention"
    """What a second adapter of another method sits on."""

    @torch.no_grad()
    def output(self, model: Any) -> Tensor:
        """What the model gives when it is used."""
        for part in (model,) if isinstance(model, nn.Module) else (model.unet, model.text_encoder):
            part.eval()
        return self.call(model)


def made_once(build: Callable[[], nn.Module], scale: float = 1.0) -> Callable[[], nn.Module]:
    """Returns a maker of copies of one seeded model; matrices may be scaled up, so that every input matters."""

    @functools.cache
    def base() -> nn.Module:
        torch.manual_seed(0)
        model = build().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale if parameter.dim() > 1 else 1.0)
        return model

    return lambda: copy.deepcopy(base())


def randoms(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


IDS: Final = torch.randint(3, 60, (3, 6), generator=torch.Generator().manual_seed(2))
MASK: Final = torch.tensor([[1] * 6, [1] * 6, [1] * 4 + [0] * 2])


def rows(model: Any) -> Tensor:
    """What the layers of every kind make of three samples."""
    words = torch.arange(12).view(3, 4) % 10
    return model(words, randoms((3, 4, 7, 7), 3).to(model.conv.weight.dtype))


def products(model: Any) -> Tensor:
    """What bare parameters make of three samples."""
    return model(randoms((3, 16), 3).to(model.gain.dtype))


def sequences(model: Any) -> Tensor:
    """What quantised layers make of three sequences."""
    return model(randoms((3, 5, 32), 3))


def logits(model: Any, **more: Any) -> Tensor:
    """What a language model makes of three texts, the last one shorter."""
    return model(input_ids=IDS, attention_mask=MASK, **more).logits


def task_logits(model: Any) -> Tensor:
    """The same, each text with its task."""
    return logits(model, task_ids=torch.tensor([2, 0, 1]))


def decoder_logits(model: Any) -> Tensor:
    """What an encoder and its decoder make of them."""
    return logits(model, decoder_input_ids=IDS[:, :3])


def last_logits(model: Any) -> Tensor:
    """The logits of the next word alone."""
    return logits(model)[:, -1]


def hidden(model: Any) -> Tensor:
    """What a text encoder gives."""
    return model(IDS).last_hidden_state


def denoised(pipe: Any) -> Tensor:
    """What text encoder and UNet of a diffusers pipeline make of one prompt."""
    tokens = pipe.tokenizer(PROMPT, padding="max_length", return_tensors="pt").input_ids
    latents = randoms((1, pipe.unet.config.in_channels, 8, 8), 5)
    return pipe.unet(latents, torch.tensor([500]), pipe.text_encoder(tokens)[0]).sample


def emoji() -> Any:
    """The pipeline of the embedded base."""
    return ImagePipeline.open("emoji").pipe


LAYERS: Final = tuple(name for name, _ in models.Layers().named_children())
SUBJECTS: Final[Mapping[str, Subject]] = {
    "layers": Subject(made_once(models.Layers), rows, LAYERS, ("linear", "conv")),
    "parameters": Subject(made_once(models.Parameters), products, ("projection", "gain"), ("projection",)),
    "quantized": Subject(models.quantized, sequences, ("0", "2"), ("0",)),
    "llama": Subject(made_once(models.llama, 8), logits),
    "tasks": Subject(made_once(models.llama, 8), task_logits),
    "mixtral": Subject(made_once(models.mixtral, 8), logits),
    "gpt2": Subject(made_once(models.gpt2, 8), logits),
    "t5": Subject(made_once(models.t5), decoder_logits),
    "bert": Subject(made_once(models.bert, 8), logits),
    "clip": Subject(made_once(models.clip, 8), hidden),
    "facts": Subject(made_once(models.facts), last_logits),
    "emoji": Subject(emoji, denoised),
}
