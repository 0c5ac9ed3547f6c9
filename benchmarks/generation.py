"""What many adapters cost while pictures are made, beside diffusers with ``peft``.

Run it with ``python -m benchmarks.generation [PART…] [--rounds N] [--json FILE]``: UNets with the layers
of SD1.5 and SDXL and an MMDiT, of middle width with random weights, LoRA of rank 8 on the layers of ``attention``, and
the embedded base.

* ``passes``: one pass of the denoiser with 1, 2, 4, 8 adapters and with a schedule, over the bare base;
* ``regions``: one pass with two adapters, each in its half and with its own words, over the bare base and one adapter;
* ``samples``: sixteen samples over fifteen adapters in one pass, over the same pass under one adapter;
* ``switching``: another adapter, and another strength, with 3 and with 60 adapters loaded: milliseconds, in which all
  layers plan anew;
* ``pictures``: the embedded base: pictures with one adapter, of sixteen blends, with a schedule, with two masks;
* ``cycles``: load, run, unload, 200 times: bytes of live tensors, and whether the base has its bits.

Ratios are taken within a round, of things done in turn, and the median over the rounds is printed. Without ``peft`` its
columns are left out.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

import studio
from benchmarks.denoisers import DENOISERS, Denoiser
from benchmarks.families import forward, ours, theirs
from benchmarks.layers import PEFT, Run, interleaved, table
from studio.families import Conditioning
from studio.pipelines import ImagePipeline
from studio.pipelines.regions import Regions, masks_of, within

GOALS = {
    "1 / base": 1.05, "4 / base": 1.10, "15 of 16 / one": 1.5, "switch ms": 5.0, "weigh ms": 5.0, "60 / 3": 1.2,
    "two masks / base": 1.3,
}  # fmt: skip

MODELS: Mapping[str, Denoiser] = {
    "UNet as SD1.5's": Denoiser(
        family="sd1", cls="UNet2DConditionModel", channels=4, side=32, text=256, tokens=77,
        config={
            "sample_size": 32, "block_out_channels": (128, 256, 384, 384), "cross_attention_dim": 256,
            "attention_head_dim": 8,
        },
    ),
    "MMDiT as SD3's": Denoiser(
        family="sd3", cls="SD3Transformer2DModel", channels=16, side=32, text=384, pooled=256,
        config={**DENOISERS["sd3"].config, "num_layers": 8},
    ),
}  # fmt: skip


def sixteen(denoiser: Denoiser, module: nn.Module) -> tuple[Tensor, Tensor, Conditioning]:
    """The inputs of sixteen samples, at a quarter of the area."""
    noisy, timesteps, text = denoiser.inputs(module)
    noisy = noisy[..., : denoiser.side // 2, : denoiser.side // 2]
    pooled = None if text.pooled is None else text.pooled.repeat(16, 1)
    return noisy.repeat(16, 1, 1, 1), timesteps.repeat(16), Conditioning(text.tokens.repeat(16, 1, 1), pooled)


def passes(rounds: int) -> list[dict[str, Any]]:
    """One pass with 1, 2, 4, 8 adapters, and with one whose strength changes from pass to pass."""
    rows = []
    for title, denoiser in {**MODELS, "UNet as SDXL's": DENOISERS["sdxl"]}.items():
        base = denoiser.make()
        many = {count: ours(denoiser, copy.deepcopy(base), count).requires_grad_(False) for count in (1, 2, 4, 8)}
        runs: dict[str, Run] = {"base": forward(denoiser, base)}
        runs |= {f"{count}": forward(denoiser, module) for count, module in many.items()}
        runs["schedule"] = scheduled(denoiser, ours(denoiser, copy.deepcopy(base), 1).requires_grad_(False))
        if PEFT:
            sites = studio.adapters(many[1])["a0"].sites
            for count in many:
                runs[f"peft {count}"] = forward(denoiser, theirs(denoiser, copy.deepcopy(base), count, sites))
        times = interleaved(runs, rounds, 1)
        row: dict[str, Any] = {"case": title, "base ms": times.seconds("base") * 1e3}
        rows.append(row | {f"{name} / base": times.ratio(name, "base") for name in runs if name != "base"})
    return rows


def scheduled(denoiser: Denoiser, module: nn.Module) -> Run:
    """A pass that stands elsewhere in the denoising each time, under a strength that changes on the way."""
    studio.blend(module, {"a0": studio.Strength(schedule=[(0, 0.2), (1, 1)])})
    run, done = forward(denoiser, module), [0]

    def step() -> None:
        done[0] = (done[0] + 1) % 20
        with studio.at_progress(module, done[0] / 20):
            run()

    return step


class Bare(DiffusionPipeline):
    """A pipeline of a denoiser alone."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        self.register_modules(**modules)
        self.modules = modules

    @property
    def components(self) -> dict[str, Any]:
        return self.modules


def halves(side: int) -> dict[str, studio.Strength]:
    """Two adapters, each in its half of a picture of ``side`` pixels."""
    left = np.zeros((side, side), np.float32)
    left[:, : side // 2] = 1
    return {"a0": studio.Strength(0.8, mask=left), "a1": studio.Strength(0.8, mask=1 - left)}


def regions(rounds: int) -> list[dict[str, Any]]:
    """One pass with two masks, which is called with the words of both."""
    rows = []
    sizes = [(title, replace(one, side=one.side * times)) for title, one in MODELS.items() for times in (1, 2)]
    for title, denoiser in sizes:
        base = denoiser.make()
        one = ours(denoiser, copy.deepcopy(base), 1).requires_grad_(False)
        two = ours(denoiser, copy.deepcopy(base), 2)
        pixels = denoiser.side * denoiser.row.downscale(denoiser.holder(two))
        blend = halves(pixels)
        studio.blend(two, blend)
        noisy, timesteps, text = denoiser.inputs(two)
        asked: Any = SimpleNamespace(family=denoiser.row, pipe=Bare(**{denoiser.row.denoiser: two}))
        where = Regions(asked, masks_of(blend), (denoiser.side, denoiser.side))
        words = where.read(asked.pipe, partial(copy.copy, text))
        where.place(words)

        def masked(asked: Any = asked, where: Regions = where, inputs: Any = (noisy, timesteps, words)) -> None:
            with torch.no_grad(), within(asked, where):
                asked.family.predict(asked.pipe, *inputs)

        runs: dict[str, Run] = {"base": forward(denoiser, base), "one": forward(denoiser, one), "two masks": masked}
        times = interleaved(runs, rounds, 1)
        row: dict[str, Any] = {"case": f"{title}, {pixels} px", "base ms": times.seconds("base") * 1e3}
        row |= {f"two masks / {other}": times.ratio("two masks", other) for other in ("base", "one")}
        rows.append(row)
    return rows


def samples(rounds: int) -> list[dict[str, Any]]:
    """Sixteen samples over fifteen adapters, and over one."""
    rows = []
    for title, denoiser in MODELS.items():
        base = denoiser.make()
        one = ours(denoiser, copy.deepcopy(base), 1).requires_grad_(False)
        many = ours(denoiser, copy.deepcopy(base), 15)
        blends = [{f"a{index % 15}": 0.8} for index in range(16)]
        inputs = sixteen(denoiser, base)
        call = {
            module: torch.no_grad()(partial(denoiser.row.predict, denoiser.holder(module), *inputs))
            for module in (base, one, many)
        }

        def together(run: Run = call[many], many: nn.Module = many, blends: Any = blends) -> None:
            with studio.blended_samples(many, blends):
                run()

        times = interleaved({"base": call[base], "one": call[one], "15 of 16": together}, rounds, 1)
        row: dict[str, Any] = {"case": title, "base ms": times.seconds("base") * 1e3}
        row |= {"one / base": times.ratio("one", "base"), "15 of 16 / one": times.ratio("15 of 16", "one")}
        rows.append(row)
    return rows


def choosing(module: nn.Module) -> Callable[[str, float], None]:
    """Lets one adapter act, and all layers plan, as they do at their next call."""
    mounts = [layer.__dict__["_mount"] for layer in module.modules() if "_mount" in layer.__dict__]

    def choose(name: str, strength: float) -> None:
        studio.blend(module, {name: strength})
        with torch.no_grad():
            for mount in mounts:
                mount.stacked(mount.prepare(), torch.float32)

    return choose


def switching(rounds: int) -> list[dict[str, Any]]:
    """From one adapter to another, and from one strength to another."""
    title, denoiser = next(iter(MODELS.items()))
    base = denoiser.make()
    runs: dict[str, Run] = {}
    for count in (3, 60):
        module = ours(denoiser, copy.deepcopy(base), count)
        runs |= switches(f"{count}", [f"a{index}" for index in range(3)], choosing(module))
        if PEFT:
            sites = studio.adapters(module)["a0"].sites
            other = theirs(denoiser, copy.deepcopy(base), count, sites)
            runs |= switches(f"peft {count}", [f"a{index}" for index in range(3)], partial(set_theirs, other))
    times = interleaved(runs, rounds, 3)
    rows = []
    for who in ("", *(["peft "] if PEFT else [])):
        for what in ("switch", "weigh"):
            row: dict[str, Any] = {"case": f"{title}: {who}{what}"}
            row |= {f"{what} ms": times.seconds(f"{who}60 {what}") * 1e3}
            rows.append(row | {"60 / 3": times.ratio(f"{who}60 {what}", f"{who}3 {what}")})
    return rows


def switches(who: str, names: list[str], choose: Callable[[str, float], None]) -> dict[str, Run]:
    """Two runs: one that turns to the next of three adapters, one that changes the strength of one."""
    order, strengths = list(names), [0.3, 0.9]

    def switch() -> None:
        order.append(order.pop(0))
        choose(order[0], 0.8)

    def weigh() -> None:
        strengths.reverse()
        choose(order[0], strengths[0])

    return {f"{who} switch": switch, f"{who} weigh": weigh}


def set_theirs(module: Any, name: str, strength: float) -> None:
    """The same with ``peft``, as diffusers does it."""
    module.set_adapters([name], [strength])


def pictures(rounds: int) -> list[dict[str, Any]]:
    """The embedded base, from prompts to pictures."""
    pipe = ImagePipeline.open("emoji")
    for index in range(15):
        studio.attach(pipe.pipe, studio.LoRA(rank=8, init="gaussian"), name=f"a{index}", seed=index)
    pipe.blend({})
    late = studio.Strength(0.8, schedule=[(0, 0), (0.4, 1)])
    draw = partial(pipe.generate, "tiger", steps=4, guidance=3.0)
    many, few = {"seeds": range(16), "batch_size": 16}, {"seeds": 0}
    blends = [{f"a{index % 15}": 0.8} for index in range(16)]
    runs: dict[str, Run] = {
        "base": partial(draw, blend={}, **few), "one": partial(draw, blend={"a0": 0.8}, **few),
        "schedule": partial(draw, blend={"a0": late}, **few), "two masks": partial(draw, blend=halves(64), **few),
        "sixteen": partial(draw, blend={"a0": 0.8}, **many), "15 of 16": partial(draw, blend=blends, **many),
    }  # fmt: skip
    times = interleaved(runs, rounds, 1)
    row: dict[str, Any] = {"case": "emoji", "base ms": times.seconds("base") * 1e3}
    row |= {f"{name} / {other}": times.ratio(name, other) for name, other in (
        ("one", "base"), ("schedule", "one"), ("two masks", "one"), ("15 of 16", "sixteen"))}  # fmt: skip
    row["15 of 16 / one"] = row.pop("15 of 16 / sixteen")
    return [row]


def live_bytes() -> int:
    """Bytes of all tensors that anything refers to."""
    gc.collect()
    found = (one for one in gc.get_objects() if issubclass(type(one), Tensor))
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in found}
    return sum(storages.values())


def cycles(rounds: int, count: int = 200) -> list[dict[str, Any]]:
    """Load, run, unload."""
    denoiser = DENOISERS["sd1"]
    module = denoiser.make()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        file = studio.save(ours(denoiser, copy.deepcopy(module), 1), Path(folder) / "a0.safetensors", name="a0")
        run, seen = forward(denoiser, module), []
        for number in range(count):
            studio.load(module, file, name="dog")
            if number % 10 == 0:
                run()
            studio.detach(module, "dog")
            if number in (9, count - 1):
                seen.append(live_bytes())
    same = all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())
    return [{"case": f"{count} cycles", "bytes more": seen[-1] - seen[0], "base": "same bits" if same else "CHANGED"}]


PARTS = {
    "passes": passes, "regions": regions, "samples": samples, "switching": switching, "pictures": pictures,
    "cycles": cycles,
}  # fmt: skip


def main() -> None:
    """Measures the parts and prints their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"which; else all: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each measurement; medians are printed")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {options.rounds} rounds")
    found = {}
    for part in options.parts or PARTS:
        found[part] = PARTS[part](options.rounds)
        table(part, found[part])
        for row in found[part]:  # told, not asserted: a busy machine moves them
            above = [
                f"{name} {row[name]:.2f} (goal {goal:g})" for name, goal in GOALS.items() if row.get(name, 0) > goal
            ]
            if above and "peft" not in row["case"]:
                print(f"above its goal: {row['case']}: {', '.join(above)}")
        gc.collect()
        if options.json:
            options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
