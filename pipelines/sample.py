"""The one sampling path: requests in, pictures out, over all families.

What makes a picture depend on its request alone:

- its noise comes from its own CPU generator, at the start and in every step of a stochastic scheduler;
- text encoder, denoiser and VAE always see the same number of ``rows``; an unfinished batch is filled up with
  repetitions of its last request;
- requests that differ in size, steps, guidance or scheduler never share a batch; those that differ in blend do, and
  what adapters change is computed row by row (:mod:`studio.pipelines.acting`);
- on a CPU a batch of more than one row is computed by one thread: kernels that share a batch among threads cut it in
  other places than between the rows, and the last bits then depend on an image's place in the batch. One row (the
  default) uses all threads.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from studio.adapters import When, move, moving
from studio.adapters.hosting.apart import SharedLayer
from studio.adapters.hosting.turns import turn
from studio.errors import BadConfig, DoesNotFit, StudioError
from studio.families import Base, Conditioning
from studio.families.attention import attending
from studio.families.offloading import resting
from studio.families.tiling import in_parts
from studio.limits import limit, too_many
from studio.pipelines.acting import acting, blend_of, by_blend
from studio.pipelines.baking import Oven
from studio.pipelines.batching import batches
from studio.pipelines.moment import moments
from studio.pipelines.reading import Reading
from studio.pipelines.regions import check_masks, within
from studio.pipelines.request import Request, check_request, is_count
from studio.pipelines.schedulers import Course, Sampler, make_sampler
from studio.pipelines.start import Start, first_step, started
from studio.pipelines.watching import Told, Watch

__all__ = ["Picture", "draw", "sample"]


@dataclass(frozen=True)
class Picture:
    """One picture that was made: the index of its request, the picture, and the sampler that made it."""

    index: int
    image: Image.Image
    sampler: Sampler


def sample(base: Base, requests: Sequence[Request], *, rows: int = 1, watch: Watch | None = None) -> Iterator[Picture]:
    """Makes one picture per request, batch by batch, in an order of its own; all is checked before the first.

    Args:
        base: what denoises; adapters may be attached to its modules.
        requests: the pictures.
        rows: images per batch, at least 1. Equal rows give equal bits; other rows agree within 1/255 per pixel.
        watch: who is told how far it is.

    Yields:
        The pictures of a batch as soon as it is done.

    Raises:
        BadConfig: an impossible size, seed, guidance, number of rows or of steps.
        UnknownName: no scheduler or adapter has that name.
        DoesNotFit: a prompt that is too long, a base that does not draw from text alone, a scheduler that mixes images,
            or a way to save memory that this base or device does not know.
        StudioError: the model gave no finite numbers, or a picture of other sides than asked for.
    """
    if not is_count(rows):
        raise BadConfig(f"batch_size={rows!r}: the number of images per batch must be a whole number from 1 on")
    if rows > limit("rows"):
        raise BadConfig(f"batch_size={rows}: {too_many('rows')}")
    _check_base(base)
    for request in requests:
        check_request(base, request)
        check_masks(blend_of(base, request) or {}, request.width, request.height)
    return _drawn(base, requests, rows, list(batches(base, requests, rows)), watch or Watch())


def _drawn(
    base: Base, requests: Sequence[Request], rows: int, groups: Sequence[Sequence[int]], watch: Watch
) -> Iterator[Picture]:
    total, done, oven = sum(requests[batch[0]].steps for batch in groups), 0, Oven(base)
    for batch in groups:
        chosen = [requests[index] for index in batch]
        try:
            with oven.baked(chosen) as drawn:
                pixels, sampler = draw(base, drawn, rows=rows, told=watch.over(base, chosen, batch, done, total))
        except SharedLayer:
            alone = by_blend(base, chosen)
            if len(alone) == 1:
                raise
            yield from _drawn(base, requests, rows, [[batch[place] for place in places] for places in alone], watch)
        else:
            for index, image in zip(batch, _to_images(pixels), strict=False):
                yield Picture(index, image, sampler)
        done += chosen[0].steps


def draw(
    base: Base,
    requests: Sequence[Request],
    *,
    rows: int,
    told: Told = lambda moment, noisy, output: None,
) -> tuple[Tensor, Sampler]:
    """Draws one batch.

    Args:
        base: what denoises.
        requests: at most ``rows``, which share everything but prompt, negative, seed and blend.
        rows: images per batch; what is missing is the last one again.
        told: called after each of the scheduler's times.

    Returns:
        Pixels ``(rows, 3, H, W)`` in [-1, 1], fp32, and the sampler.

    Raises:
        StudioError: the model gave no finite numbers, or a picture of other sides than asked for.
    """
    common, pipe, family = requests[0], base.pipe, base.family
    padded = [*requests, *[requests[-1]] * (rows - len(requests))]
    device = pipe._execution_device  # where diffusers' own pipelines compute, offloaded parts included
    cells = (common.height // base.downscale, common.width // base.downscale)
    sampler = make_sampler(pipe.scheduler, common.scheduler, common.steps, device, course=Course.of(base, cells))
    generators = [torch.Generator("cpu").manual_seed(request.seed) for request in padded]
    alone = _one_thread_per_batch(device, rows)
    with torch.no_grad(), turn(pipe), _evaluating(pipe), alone, _sparing(base), acting(base, padded):
        scheduler = sampler.scheduler
        times = _times(scheduler, first_step(base, common.given, common.steps))
        start = started(base, [one.given for one in padded], scheduler, times[0], generators, cells, device)
        reading = Reading(base, padded)
        with attending(base.saving.attention, device), moving(pipe), within(base, reading.regions):
            latents = _denoised(base, start, reading, scheduler, times, generators, common.guidance, told)
        pixels = _decoded(base, latents)
    if not torch.isfinite(latents).all() or not torch.isfinite(pixels).all():
        dtype = str(pipe.components[family.denoiser].dtype).removeprefix("torch.")
        raise StudioError(
            f"the model gave numbers that are not finite in {dtype}; open the base with another dtype (bfloat16, "
            "float32), or lower the adapters' strengths"
        )
    if pixels.shape[-2:] != (common.height, common.width):
        height, width = pixels.shape[-2:]
        raise StudioError(
            f"asked for {common.width} x {common.height} pixels and {base.id} drew {width} x {height}: its autoencoder "
            f"does not make {base.downscale} pixels of a latent cell; open the pipeline that the autoencoder belongs to"
        )
    return pixels, sampler


def _denoised(
    base: Base,
    start: Start,
    reading: Reading,
    scheduler: Any,
    times: Tensor,
    generators: Sequence[torch.Generator],
    guidance: float,
    told: Told,
) -> Tensor:
    """The latents of pictures, ``(B, C, h, w)``."""
    dtype, latents = base.pipe.components[base.family.denoiser].dtype, start.latents
    scaled = getattr(scheduler, "scale_model_input", None)  # flows have none
    noise = {"generator": list(generators)} if "generator" in _arguments(scheduler.step) else {}
    for moment, timestep in moments(base, times):
        move(base.pipe, When(moment.progress, moment.noise))
        noisy = (latents if scaled is None else scaled(latents, timestep)).to(dtype)
        output = _guided(base, noisy, timestep.to(latents.device), reading.at(moment), guidance)
        latents = scheduler.step(output, timestep, latents, **noise, return_dict=False)[0]
        done = moment.number + 1
        latents = start.kept(scheduler, latents, times[done] if done < moment.of else None)
        told(moment, noisy, output)
    return latents


def _times(scheduler: Any, first: int) -> Tensor:
    """The times that are left without the first steps, as diffusers' pipelines take them; the scheduler keeps all."""
    order = getattr(scheduler, "order", 1)
    if first and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first * order)
    return scheduler.timesteps[first * order :]


def _guided(base: Base, noisy: Tensor, timestep: Tensor, conditioning: Conditioning, guidance: float) -> Tensor:
    """The denoiser's output, guided by the family's rule, fp32 ``(B, C, h, w)``; one pass over both halves."""
    both = noisy if guidance == 1 else torch.cat([noisy, noisy])
    output = base.family.predict(base.pipe, both, timestep.expand(len(both)), conditioning).float()
    if guidance == 1:
        return output
    without, within = output.chunk(2)
    return base.family.guide(without, within, guidance)


def _decoded(base: Base, latents: Tensor) -> Tensor:
    """Pixels in fp32; a VAE whose fp16 does not reach far enough decodes in fp32, and is as it was afterwards."""
    pipe, vae = base.pipe, base.pipe.vae
    pixels = base.family.decode(pipe, latents).float()
    if vae.dtype != torch.float16 or torch.isfinite(pixels).all() or not torch.isfinite(latents).all():
        return pixels
    try:
        vae.to(torch.float32)
        return base.family.decode(pipe, latents).float()
    finally:
        vae.to(torch.float16)  # fp32 holds every fp16 exactly


def _to_images(pixels: Tensor) -> list[Image.Image]:
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    arrays: np.ndarray = levels.permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(array)) for array in arrays]


@contextlib.contextmanager
def _evaluating(pipe: Any) -> Iterator[None]:
    """Evaluation mode (no dropout) for every module of the pipeline, each given back as it was."""
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    training = [module for part in parts for module in part.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _sparing(base: Base) -> Iterator[None]:
    """Memory is spared as the base says: by its autoencoder, and by offloaded components that rest at the end."""
    saving = base.saving
    with resting(base.pipe), in_parts(base.pipe.vae, tiling=saving.vae_tiling, slicing=saving.vae_slicing):
        yield


@contextlib.contextmanager
def _one_thread_per_batch(device: torch.device, rows: int) -> Iterator[None]:
    """One thread while a batch of several rows is computed on a CPU; the module's docstring says why."""
    threads = torch.get_num_threads()
    if rows == 1 or device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _arguments(function: Callable[..., object]) -> set[str]:
    return set(inspect.signature(function).parameters)


def _check_base(base: Base) -> None:
    pipe = base.pipe
    if not base.family.draws(pipe):
        raise DoesNotFit(
            f"a {type(pipe).__name__} does not draw from text alone; call it yourself: adapters act on it all the same "
            "(studio.load(pipe, file), studio.blended(pipe, {...}))"
        )
