"""The lesson of every trainer of diffusion bases: noised pictures, predicted noise, and a prior half if asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from studio.adapters import blended
from studio.families import Base, Conditioning, Shot
from studio.trainers.image.idle import Idle
from studio.trainers.image.latents import Latents
from studio.trainers.image.objective import Objective
from studio.trainers.image.prior import Prior
from studio.trainers.image.prompts import Prompts
from studio.trainers.loop.draws import Draws
from studio.trainers.loop.mode import evaluating
from studio.trainers.loop.task import Lesson, Loss, Say

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Diffusion", "Previews"]


@dataclass(frozen=True)
class Previews:
    """What previews show: every prompt with every seed.

    Args:
        prompts: the prompts.
        seeds: the seeds.
        size: width and height in pixels.
        steps: sampling steps.
        guidance: guidance scale.
        attention: by what attention is computed; None: as the base was opened.
        vae_tiling: the autoencoder takes a picture in overlapping tiles.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    size: tuple[int, int]
    steps: int
    guidance: float
    attention: str | None = None
    vae_tiling: bool = False


@dataclass(kw_only=True)
class Diffusion(Lesson):
    r"""An opened diffusion task.

    The loss of a micro-batch of B samples is ``mean(instance rows) + λ mean(prior rows)``, where a row's loss is
    ``weight(t) · mean((prediction − target)²)``. Both halves are rows of one forward pass, each row with its own
    picture, prompt, timestep and noise, and each row has the weight of its own timestep.

    Args:
        base: the base.
        objective: noise schedule, target and weights.
        latents: the instance pictures.
        captions_of: the caption of each picture.
        prior: the prior half, or None.
        prompts: encodes.
        previews: what previews show.
        caption_dropout: probability with which a sample's caption is empty.

    Attributes:
        bare: gives a context in which the denoiser is the bare base's; a comparison with another library's adapters
            puts its own there.
    """

    base: Base
    objective: Objective
    latents: Latents
    captions_of: Sequence[str]
    prior: Prior | None
    prompts: Prompts
    previews: Previews
    caption_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.bare: Callable[[], AbstractContextManager[None]] = lambda: blended(self.denoiser, {})
        self.denoiser = getattr(self.model, self.base.family.denoiser)
        self._dtype = next(self.denoiser.parameters()).dtype  # diffusers' own .dtype walks all modules
        self.draws, self._shown = Draws(self.plan.seed), list[Any]()
        self.trains_text = any(encoder in self.rates for encoder in self.base.family.readers)
        idle = [] if self.trains_text else list(self.base.family.readers)
        idle += ["vae"] if self.latents.crop == "center" else []  # else each draw is encoded
        self._idle = Idle([self.model.components[name] for name in idle], self.denoiser.device)

    @property
    def model(self) -> Any:
        """The base's pipeline."""
        return self.base.pipe

    def prepare(self, say: Say) -> None:
        """Encodes pictures and prompts by the bare base, and switches gradient checkpointing on where asked for."""
        say(f"encoding {len(self.latents.items)} pictures at {self.latents.size[0]} x {self.latents.size[1]}")
        self.latents.prepare()
        texts = [*self.captions_of] + [""] * (self.caption_dropout > 0)
        if self.prior is not None:
            self.prior.latents.prepare()
            texts += self.prior.prompts
        self.prompts.prepare(texts)
        super().prepare(say)
        self._idle.put_away()

    def loss(self, numbers: Sequence[int]) -> Loss:
        """Returns the loss of the drawn samples ``numbers``, with its parts by name where there is a prior."""
        batch = self._rows(self.latents, self.draws, numbers, own=False, conditioning=self._captions(numbers))
        if self.prior is None:
            losses = self._losses(*batch)
            return Loss(losses.mean())
        also = self.prior.numbers(numbers)
        if not also:  # those of this share are with another one
            instance = self._losses(*batch).mean()
            return Loss(instance, {"instance": instance.detach(), "prior": torch.zeros(())})
        texts = self.prior.texts(also)
        conditioning = self.prompts.live(texts) if self.trains_text else self.prompts.frozen(texts)
        second = self._rows(
            self.prior.latents, self.prior.draws, also, own=self.prior.own, conditioning=conditioning,
            frozen=self.prompts.frozen(texts),
        )  # fmt: skip
        losses = self._losses(*(_joined(first, other) for first, other in zip(batch, second, strict=True)))
        instance, prior = losses[: len(numbers)].mean(), self.prior.share(losses[len(numbers) :], len(numbers))
        parts = {"instance": instance.detach(), "prior": prior.detach()}
        return Loss(instance + self.prior.weight * prior, parts)

    def preview(self) -> list[Image]:
        """Draws the preview pictures with the adapter as it is now, through the one sampling path."""
        from studio.pipelines import ImagePipeline

        if not self.previews.prompts:
            return []
        width, height = self.previews.size
        with self._idle.at_hand(), evaluating(self.base.pipe.components[name] for name in self.rates):
            shown = ImagePipeline.open(self.base, vae_tiling=self.previews.vae_tiling)
            self._shown = shown.generate(
                list(self.previews.prompts), seeds=list(self.previews.seeds), steps=self.previews.steps,
                guidance=self.previews.guidance, width=width, height=height, attention=self.previews.attention,
            )  # fmt: skip
        return self._shown

    def measure(self) -> dict[str, float]:
        """Measures how like the truth the last previews are, where it is known."""
        from studio.families.emoji_world import SIDE
        from studio.trainers.image.truth import known_subject, likeness

        if self.base.draws is None or not self._shown or self.previews.size != (SIDE, SIDE):
            return {}
        subject = known_subject(item.digest for item in self.latents.items)
        return {} if subject is None else {"likeness": likeness(self._shown, subject)}

    def close(self) -> None:
        """Gives the base back as it was."""
        self._idle.fetch()
        super().close()

    def captions(self) -> list[str]:
        """Returns the prompt of each picture of :meth:`preview`, with its seed where there are several."""
        many = len(self.previews.seeds) > 1
        return [
            f"{prompt} · seed {seed}" if many else prompt
            for prompt in self.previews.prompts
            for seed in self.previews.seeds
        ]

    def examples(self) -> list[tuple[str, Image]]:
        """Returns the training pictures as the model sees them, each with its file's name, for the report."""
        from studio.datasets.picture import fit_image, open_image

        return [(item.file.name, fit_image(open_image(item), *self.latents.size)) for item in self.latents.items]

    def _captions(self, numbers: Sequence[int]) -> Conditioning:
        texts = [self.captions_of[index] for index in self.latents.indices(self.draws, numbers)]
        if self.caption_dropout:
            kept = [self.draws.uniform(n, "caption") >= self.caption_dropout for n in numbers]
            texts = [text if keep else "" for text, keep in zip(texts, kept, strict=True)]
        return self.prompts.live(texts) if self.trains_text else self.prompts.frozen(texts)

    def _rows(
        self, source: Latents, draws: Draws, numbers: Sequence[int], *, own: bool, conditioning: Conditioning,
        frozen: Conditioning | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Conditioning]:  # fmt: skip
        """Returns noisy latents, timesteps, targets and conditioning of one half."""
        device = self.denoiser.device
        indices = source.indices(draws, numbers)
        latents, shots = source.draw(draws, numbers, indices), source.shots(draws, numbers, indices)
        noise = draws.noise(numbers, latents.shape[1:]).to(device)
        timesteps = self.objective.timesteps(draws.uniforms(numbers, "timestep")).to(device)
        latents = latents.to(device)
        noisy = self.objective.noisy(latents, noise, timesteps)
        conditioning = self._conditioned(conditioning, shots)
        if not own:
            return noisy, timesteps, self.objective.target(latents, noise, timesteps), conditioning
        assert frozen is not None, "the base's own prediction needs the bare base's conditioning"
        with torch.no_grad(), self.bare():
            frozen = self._conditioned(frozen, shots)
            target = self.base.family.predict(self.model, self._cast(noisy), timesteps, frozen)
        return noisy, timesteps, target.to(noisy.dtype), conditioning

    def _losses(self, noisy: Tensor, timesteps: Tensor, target: Tensor, conditioning: Conditioning) -> Tensor:
        prediction = self.base.family.predict(self.model, self._cast(noisy), timesteps, conditioning)
        return self.objective.losses(prediction, target, timesteps)

    def _conditioned(self, conditioning: Conditioning, shots: Sequence[Shot]) -> Conditioning:
        """Adds what depends on the pictures."""
        embedded = self.base.defaults.trained
        return self.base.family.condition(
            self.model, conditioning, [replace(shot, embedded=embedded) for shot in shots]
        )  # fmt: skip

    def _cast(self, latents: Tensor) -> Tensor:
        return latents.to(self._dtype)


def _joined(first: Any, second: Any) -> Any:
    return first.cat(second) if isinstance(first, Conditioning) else torch.cat([first, second])
