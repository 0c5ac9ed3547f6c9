"""A family: what the studio knows about one model architecture, as one frozen row of data and functions.

Nothing outside this folder asks which family it has before it; it calls the row's functions instead. A new family is
a new file in ``studio/families/image/`` with one ``FAMILIES.add(...)``, and one import line in
``studio/families/__init__.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from studio.errors import DoesNotFit
from studio.families.conditioning import Conditioning, Shot
from studio.families.native import Clues, Native
from studio.families.parts.native import by_vae
from studio.families.process import Process
from studio.families.recipe import ImageRecipe
from studio.families.streams import Streams
from studio.families.words import Prompts, Words
from studio.families.wrapper import unwrapped
from studio.registry import Registry

__all__ = [
    "FAMILIES",
    "Defaults",
    "Encoder",
    "Family",
    "Identity",
    "Model",
    "Outline",
    "Silent",
    "SingleFile",
    "components",
    "family_in",
    "family_of",
    "is_pipeline",
]

Pipe = Any  # a diffusers pipeline; diffusers is imported only by those who open one
Parts = Mapping[str, nn.Module]
Shapes = Mapping[str, tuple[int, ...]]
Presets = Mapping[str, Mapping[str, tuple[str, ...]]]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A text encoder of a pipeline.

    Args:
        component: the pipeline's attribute, ``"text_encoder_2"``.
        kohya: the flat prefix of its keys in kohya files, ``"lora_te2"``; None: no tool writes it.
        level: path levels that *files* carry and the module may lack, ``"text_model."``. Since transformers 5 a
            ``CLIPTextModel`` has no ``text_model`` level (``encoder.layers.0.self_attn.q_proj``) while every kohya and
            diffusers LoRA file says ``lora_te_text_model_encoder_…`` and ``text_encoder.text_model.encoder.…``.
            Writers insert it between the component and the path unless the path begins with it; readers strip it if
            the module does not have it.
        root: the path below which layers read text; ``""``: all of them do.
        trained: whether it is meant where text encoders are to be trained and none is named.
        label: what files of learned words (textual inversion) call it, ``"clip_l"``; ``""``: there are none for it.
        width: of its vectors in the public bases, by which those files are told; 0 beside no label.
    """

    component: str
    kohya: str | None = None
    level: str = ""
    root: str = ""
    trained: bool = True
    label: str = ""
    width: int = 0

    @property
    def tokenizer(self) -> str:
        """The pipeline's attribute of what makes its tokens, ``"tokenizer_2"``."""
        return self.component.replace("text_encoder", "tokenizer")


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """How a base draws unless told otherwise.

    Args:
        steps: denoising steps.
        guidance: g of ``u + g (c − u)``; 1 is the prompt alone.
        embedded: the guidance that the denoiser embeds, as a number; None: it embeds none.
        trained: the same while an adapter is trained.
        negative: whether it can be led away from something (``guidance`` other than 1).
        length: the most tokens of a prompt; None: what the tokenizer says.
    """

    steps: int
    guidance: float = 1.0
    embedded: float | None = None
    trained: float | None = None
    negative: bool = True
    length: int | None = None


@dataclass(frozen=True, kw_only=True)
class Model:
    """A public base of a family, as lists of families name it.

    Args:
        title: what tells it from others of the family, ``"dev"``.
        id: where the hub has it.
        side: of the square pictures that it was trained for, in pixels.
        defaults: how it draws unless told otherwise.
    """

    title: str
    id: str
    side: int
    defaults: Defaults


@dataclass(frozen=True)
class Identity:
    """What other tools call a base.

    Args:
        modelspec: ``modelspec.architecture`` of an adapter is this and ``/lora``.
        version: ``ss_base_model_version``.
    """

    modelspec: str
    version: str


@dataclass(frozen=True)
class Silent:
    """Layers that no picture depends on.

    Args:
        targets: patterns of their paths (:func:`studio.adapters.contract.pattern.matches` has their syntax).
        reason: why, as the end of a sentence.
    """

    targets: tuple[str, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class SingleFile:
    """How a checkpoint of one file, in the names of those who trained it, is told and opened.

    Args:
        tells: ``sizes of the denoiser's tensors by name -> whether`` they are of this family.
        configs: the same ``->`` the hub id of the diffusers folder whose small files describe it.
        parts: component -> what the names of its tensors begin with, where such files hold it beside the denoiser.
        unread: ends of names in the denoiser that diffusers leaves out, without an effect.
        level: what diffusers' conversion wants in front of the denoiser's names.
    """

    tells: Callable[[Shapes], bool]
    configs: Callable[[Shapes], str]
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    level: str = ""


def _as_it_is(pipe: Pipe, conditioning: Conditioning, shots: Sequence[Shot]) -> Conditioning:
    return conditioning


def _plain(without: Tensor, within: Tensor, guidance: float) -> Tensor:
    return without + guidance * (within - without)


def _steps_only(pipe: Pipe, scheduler: Any, steps: int, cells: tuple[int, int], device: Any) -> None:
    scheduler.set_timesteps(steps, device=device)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model architecture.

    Args:
        name: the registry's name, ``"sd1"``.
        title: its name in sentences, ``"Stable Diffusion 1.x"``.
        pipelines: the diffusers classes that draw from text alone; a folder of one is opened with it.
        denoiser: the pipeline's attribute that predicts noise.
        encoders: the text encoders, in the pipeline's order.
        downscale: ``pipe -> image pixels`` per latent cell that :attr:`predict` gets, along one side.
        multiple: image sides are divisible by it, in pixels.
        largest: ``pipe -> the longest side`` in pixels that it has positions for; None: any.
        process: how its pictures become noise.
        native: ``pipe -> width and height`` in pixels that a base was trained for.
        channels: ``pipe -> C`` of the latents that :attr:`predict` gets.
        draws: ``pipe -> whether`` it draws from text alone; an inpainting denoiser does not.
        defaults: ``pipe -> how it draws`` unless told otherwise.
        models: its public bases.
        recipes: task -> how its adapters are trained unless told otherwise.
        small_recipes: the same for denoisers of less than :data:`~studio.families.recipe.SMALL_BASE` weights.
        dtypes: component -> the type that it needs where the others are fp16.
        presets: preset -> component -> target patterns (:func:`studio.adapters.contract.pattern.matches` has their
            syntax). A component that a preset does not name is not adapted by it.
        kohya: the flat prefix of the denoiser's keys in kohya files.
        names: ``names of the denoiser's layers -> what they are called`` by those who trained the base; None: as in
            diffusers.
        names_in: the formats in whose files tools write those; in the others diffusers'.
        marks: ``layers of an adapter file -> whether`` it is one of this family's.
        single: how its checkpoints of one file are opened; None: diffusers cannot.
        hashes_files: whether a base is known by the bytes of its files, not by its weights as fp32
            (:mod:`studio.families.opening.hashing`).
        identity: ``components by name -> what other tools call it``.
        alike: families whose adapters can have the same layers, of the same sizes.
        called: what the names begin with that any tool calls it by, as :func:`family_called` compares them.
        silent: ``(component, module) -> layers`` that no picture depends on.
        recognise: whether a set of components (name -> module) is one of this family; a bare module comes as
            ``{"": module}``.
        check_text: ``(pipe, prompts)``; raises ``DoesNotFit`` for one that the encoders do not read whole, in one piece
            if it is a caption.
        row_length: ``(pipe, prompt, negative) -> tokens`` of its row; pictures share a batch where they are equal.
        emphasis: whether words of a prompt may count more or less than others.
        chunks: whether a prompt that is longer than its encoders read at once is read in chunks.
        roles: whether a negative prompt is encoded otherwise than a prompt.
        encode_text: ``(pipe, prompts, negative) -> Conditioning``; differentiable, the caller decides about
            ``no_grad``. ``negative`` says whether guidance leads away from these prompts.
        condition: ``(pipe, conditioning, shots) -> Conditioning`` with what depends on the picture, not on the prompt.
        encode_image: ``(pipe, pixels (B, 3, H, W) in [-1, 1], generator) -> latents (B, C, h, w)``, scaled; without a
            generator the mode of the posterior.
        decode: ``(pipe, latents (B, C, h, w)) -> pixels (B, 3, H, W) in [-1, 1]``.
        predict: ``(pipe, noisy (B, C, h, w), timesteps (B,), conditioning) -> (B, C, h, w)``: ε, v, or noise - picture
            of a flow; times count from 0 to 1000 and rise with the noise.
        streams: which of the denoiser's layers compute on the picture, on the words, or on both.
        guide: ``(without, within, g) -> prediction``; u + g (c − u), or the family's own rule.
        schedule: ``(pipe, scheduler, steps, (h, w), device)``; sets the scheduler's times.
        checkpointed: makes what runs a block of the denoiser so that the backward pass runs it again, called as
            ``(block, *arguments)``; None: as diffusers does.
        shift: ``(pipe, (h, w)) -> k`` of a flow's ``s = k u / (1 + (k−1) u)`` at this size.
    """

    name: str
    title: str
    pipelines: tuple[str, ...]
    denoiser: str
    encoders: tuple[Encoder, ...]
    downscale: Callable[[Pipe], int] = by_vae()
    multiple: int
    largest: Callable[[Pipe], int] | None = None
    process: type[Process]
    native: Callable[[Pipe], tuple[int, int]]
    channels: Callable[[Pipe], int]
    draws: Callable[[Pipe], bool]
    defaults: Callable[[Pipe], Defaults]
    models: tuple[Model, ...]
    recipes: Mapping[str, ImageRecipe]
    small_recipes: Mapping[str, ImageRecipe] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    presets: Presets
    kohya: str
    names: Callable[[Collection[str]], Sequence[Native]] | None = None
    names_in: tuple[str, ...] = ("kohya", "native")
    marks: Callable[[Clues], bool] = lambda clues: False
    single: SingleFile | None = None
    hashes_files: bool = True
    identity: Callable[[Parts], Identity]
    called: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()
    silent: Callable[[str, nn.Module], tuple[Silent, ...]] = lambda component, module: ()
    recognise: Callable[[Parts], bool]
    check_text: Callable[[Pipe, Prompts], None]
    row_length: Callable[[Pipe, str | Words, bool], int] = lambda pipe, prompt, negative: 0
    emphasis: bool = False
    chunks: bool = False
    roles: bool = False
    encode_text: Callable[[Pipe, Prompts, bool], Conditioning]
    condition: Callable[[Pipe, Conditioning, Sequence[Shot]], Conditioning] = _as_it_is
    encode_image: Callable[[Pipe, Tensor, torch.Generator | None], Tensor]
    decode: Callable[[Pipe, Tensor], Tensor]
    predict: Callable[[Pipe, Tensor, Tensor, Conditioning], Tensor]
    streams: Streams
    guide: Callable[[Tensor, Tensor, float], Tensor] = _plain
    schedule: Callable[[Pipe, Any, int, tuple[int, int], Any], None] = _steps_only
    checkpointed: Callable[[], Callable[..., Any]] | None = None
    shift: Callable[[Pipe, tuple[int, int]], float] = lambda pipe, cells: 1.0

    @property
    def readers(self) -> tuple[str, ...]:
        """The components that read text, in the pipeline's order."""
        return tuple(encoder.component for encoder in self.encoders)

    @property
    def flat(self) -> Mapping[str, str]:
        """Component -> the flat prefix of its keys in kohya files, of those that have one."""
        return {self.denoiser: self.kohya} | {one.component: one.kohya for one in self.encoders if one.kohya}

    @property
    def levels(self) -> Mapping[str, str]:
        """Component -> path levels that files carry and the module may lack, of those that have some."""
        return {one.component: one.level for one in self.encoders if one.level}


FAMILIES: Registry[Family] = Registry("model family")


def family_called(name: str) -> Family | None:
    """Returns the family that a tool means by a name of it (``ss_base_model_version``, ``modelspec.architecture``).

    Example:
        >>> from studio.families import family_called
        >>> [family_called(name).name for name in ("sd_1.5", "flux-1-dev/lora", "sd3_m", "sdxl_base_v1-0")]
        ['sd1', 'flux1', 'sd3', 'sdxl']
    """
    plain = name.strip().lower().replace("_", "-").replace(".", "-")
    found = ((len(one), row) for row in FAMILIES.values() for one in row.called if plain.startswith(one))
    return max(found, key=lambda pair: pair[0], default=(0, None))[1]


@dataclass(frozen=True)
class Outline:
    """A pipeline's components without the rest of it, where only names and sizes of layers count.

    Args:
        components: name -> module.
    """

    components: Mapping[str, nn.Module]


def is_pipeline(model: object) -> bool:
    """Whether ``model`` is a diffusers pipeline; asks by class name, so that diffusers stays unimported."""
    return isinstance(model, Outline) or any(cls.__name__ == "DiffusionPipeline" for cls in type(model).__mro__)


def family_of(model: Any) -> Family | None:
    """Returns the family of a diffusers pipeline or of one of its components, ``None`` if the studio knows none.

    It looks at classes and configs, not at names or folders, so img2img, inpainting and ControlNet pipelines of a
    family are recognised as well. An encoder by itself may be of several families and is of the oldest.

    Args:
        model: a diffusers pipeline, a denoiser or a text encoder.
    """
    model = _carrier(model)
    return family_in(_modules(model) if is_pipeline(model) else {"": unwrapped(model)})


def family_in(parts: Parts) -> Family | None:
    """As :func:`family_of`, of components by name, as :func:`components` gives them."""
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
    family = family_in(parts)
    wanted = (family.denoiser, *family.readers) if family else tuple(parts)
    return {name: parts[name] for name in wanted if name in parts and name not in ("vae", "safety_checker")}


def _carrier(model: Any) -> Any:
    """What a pipeline of the studio has its adapters on; anything else is that itself. Asked by name, as above."""
    return model.carrier if any(cls.__module__ == "studio.pipelines.pipeline" for cls in type(model).__mro__) else model


def _modules(pipe: Pipe) -> dict[str, nn.Module]:
    return {name: unwrapped(part) for name, part in pipe.components.items() if isinstance(part, nn.Module)}
