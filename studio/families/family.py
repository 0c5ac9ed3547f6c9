"""A family: what the studio knows about one model architecture, as one frozen row of data and functions.

Nothing outside this folder asks which family it has before it; it calls the row's functions instead. A new family is
a new file with one ``FAMILIES.add(...)`` and one import line in ``studio/families/__init__.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from studio.errors import DoesNotFit
from studio.families.wrapper import unwrapped
from studio.registry import Registry

__all__ = ["FAMILIES", "Conditioning", "Family", "components", "family_of", "is_pipeline"]

Pipe = Any  # a diffusers pipeline; diffusers is imported only by those who open one
Presets = Mapping[str, Mapping[str, tuple[str, ...]]]


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts, one row per prompt.

    Args:
        tokens: hidden states of the text encoder, ``(B, L, D)``.
        pooled: one vector per prompt, ``(B, P)``, for the families that have one.
        extra: further tensors with B rows by name (masks, size embeddings).

    Example:
        >>> both = Conditioning(torch.zeros(1, 4, 8)).cat(Conditioning(torch.ones(2, 4, 8)))
        >>> both.tokens.shape, both.rows([2, 0]).tokens[:, 0, 0].tolist()
        (torch.Size([3, 4, 8]), [1.0, 0.0])
    """

    tokens: Tensor
    pooled: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def rows(self, index: Sequence[int] | Tensor | slice) -> Conditioning:
        """Returns the rows of ``index`` (with repetition where it repeats), in its order."""
        key = index if isinstance(index, slice) else torch.as_tensor(index, device=self.tokens.device)
        return self._map(lambda tensor: tensor[key])

    def cat(self, other: Conditioning) -> Conditioning:
        """Returns the rows of both, first mine, then the other's."""
        pooled = None if self.pooled is None or other.pooled is None else torch.cat([self.pooled, other.pooled])
        extra = {name: torch.cat([tensor, other.extra[name]]) for name, tensor in self.extra.items()}
        return Conditioning(torch.cat([self.tokens, other.tokens]), pooled, extra)

    def to(self, *args: Any, **kwargs: Any) -> Conditioning:
        """Returns the same on another device or in another dtype (``Tensor.to``'s arguments)."""
        return self._map(lambda tensor: tensor.to(*args, **kwargs))

    def detach(self) -> Conditioning:
        """Returns the same cut off from autograd, for caches."""
        return self._map(Tensor.detach)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        pooled = None if self.pooled is None else change(self.pooled)
        return Conditioning(change(self.tokens), pooled, {name: change(tensor) for name, tensor in self.extra.items()})


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model architecture.

    Args:
        name: the registry's name, ``"sd1"``.
        title: its name in sentences, ``"Stable Diffusion 1.x"``.
        pipeline: the diffusers class that a folder of this family is opened with.
        denoiser: the pipeline's attribute that predicts noise.
        encoders: the pipeline's attributes that read text, in order.
        downscale: image pixels per latent cell, along one side.
        multiple: image sides are divisible by it, in pixels.
        native: the usual side in pixels (the one of a given base is ``Base.native``).
        presets: preset -> component -> target patterns (:func:`studio.adapters.contract.pattern.matches` has their
            syntax). A component that a preset does not name is not adapted by it.
        kohya: component -> the flat prefix of its keys in kohya files, ``"lora_unet"``.
        file_prefix: component -> path levels that *files* carry and the module may lack, ``"text_model."``. Since
            transformers 5 a ``CLIPTextModel`` has no ``text_model`` level (``encoder.layers.0.self_attn.q_proj``) while
            every kohya and diffusers LoRA file says ``lora_te_text_model_encoder_…`` and
            ``text_encoder.text_model.encoder.…``. Writers insert the prefix between the component and the path unless
            the path begins with it; readers strip it if the module does not have it.
        modelspec: the value of ``modelspec.architecture`` in files of this family.
        recognise: whether a set of components (name -> module) is one of this family; a bare module comes as
            ``{"": module}``.
        check_text: ``(pipe, prompts)``; raises ``DoesNotFit`` for one that the encoders do not read whole.
        encode_text: ``(pipe, prompts) -> Conditioning``; differentiable, the caller decides about ``no_grad``.
        encode_image: ``(pipe, pixels (B, 3, H, W) in [-1, 1], generator) -> latents (B, C, h, w)``, scaled; without a
            generator the mode of the posterior.
        decode: ``(pipe, latents (B, C, h, w)) -> pixels (B, 3, H, W) in [-1, 1]``.
        predict: ``(pipe, noisy (B, C, h, w), timesteps (B,), conditioning) -> (B, C, h, w)``, the denoiser's output.
    """

    name: str
    title: str
    pipeline: str
    denoiser: str
    encoders: tuple[str, ...]
    downscale: int
    multiple: int
    native: int
    presets: Presets
    kohya: Mapping[str, str]
    file_prefix: Mapping[str, str]
    modelspec: str
    recognise: Callable[[Mapping[str, nn.Module]], bool]
    check_text: Callable[[Pipe, Sequence[str]], None]
    encode_text: Callable[[Pipe, Sequence[str]], Conditioning]
    encode_image: Callable[[Pipe, Tensor, torch.Generator | None], Tensor]
    decode: Callable[[Pipe, Tensor], Tensor]
    predict: Callable[[Pipe, Tensor, Tensor, Conditioning], Tensor]


FAMILIES: Registry[Family] = Registry("model family")


def is_pipeline(model: object) -> bool:
    """Whether ``model`` is a diffusers pipeline; asks by class name, so that diffusers stays unimported."""
    return any(cls.__name__ == "DiffusionPipeline" for cls in type(model).__mro__)


def family_of(model: Any) -> Family | None:
    """Returns the family of a diffusers pipeline or of one of its components, ``None`` if the studio knows none.

    It looks at classes and configs, not at names or folders, so img2img, inpainting and ControlNet pipelines of a
    family are recognised as well.

    Args:
        model: a diffusers pipeline, a denoiser or a text encoder.
    """
    model = _carrier(model)
    parts = _modules(model) if is_pipeline(model) else {"": unwrapped(model)}
    return next((family for family in FAMILIES.values() if family.recognise(parts)), None)


def components(model: Any) -> dict[str, nn.Module]:
    """Returns what an adapter may change: the module itself under ``""``, or a pipeline's denoiser and encoders.

    Args:
        model: any module, a diffusers pipeline, or one of :mod:`studio.pipelines`. Of a pipeline of unknown family
            every module is returned but the VAE, which no adapter format covers, and the safety checker.

    Returns:
        Component name -> module, without what torch.compile, DataParallel, DDP or FSDP have put around it; a pipeline's
        own attribute names.

    Raises:
        DoesNotFit: it is neither.

    Example:
        >>> components(nn.Linear(2, 2))
        {'': Linear(in_features=2, out_features=2, bias=True)}
    """
    model = _carrier(model)
    if not is_pipeline(model):
        if not isinstance(model, nn.Module):
            raise DoesNotFit(
                f"adapters sit on a torch module or a diffusers pipeline, not on {type(model).__name__} ({model!r:.60})"
            )
        return {"": unwrapped(model)}
    parts = _modules(model)
    family = family_of(model)
    wanted = (family.denoiser, *family.encoders) if family else tuple(parts)
    return {name: parts[name] for name in wanted if name in parts and name not in ("vae", "safety_checker")}


def _carrier(model: Any) -> Any:
    """What a pipeline of the studio has its adapters on; anything else is that itself. Asked by name, as above."""
    return model.carrier if any(cls.__module__ == "studio.pipelines.pipeline" for cls in type(model).__mro__) else model


def _modules(pipe: Pipe) -> dict[str, nn.Module]:
    return {name: unwrapped(part) for name, part in pipe.components.items() if isinstance(part, nn.Module)}
