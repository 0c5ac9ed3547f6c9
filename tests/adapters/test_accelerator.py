"""On a machine with an accelerator: every method computes there what it computes on the CPU, and trains, saves, bakes.

The CPU is the reference, in float64 where both have it. Skipped where there is no accelerator.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import studio
from studio.adapters import METHODS
from studio.device import choose_device, has_dtype
from studio.errors import StudioError
from studio.survey import LAYERS
from tiny import Tower, language

DEVICE = choose_device()
pytestmark = pytest.mark.skipif(DEVICE.type == "cpu", reason="there is no accelerator here")
EXACT = torch.float64 if has_dtype(torch.float64, DEVICE) else torch.float32
PROMPTS = sorted(name for name in METHODS if "model" in METHODS[name].adapter.kinds)
INPUTS = {"Embedding": (4, 6), "Conv1d": (4, 256, 9), "Conv3d": (2, 256, 3, 3, 3)}


def tower(layer: str) -> Tower:
    torch.manual_seed(0)
    return Tower(LAYERS[layer]())


def sample(layer: str) -> Tensor:
    shape = INPUTS.get(layer, (2, 256, 7, 7) if "Conv2d" in layer else (4, 6, 256))
    draw = torch.Generator().manual_seed(1)
    return torch.randint(48, shape, generator=draw) if layer == "Embedding" else torch.randn(shape, generator=draw)


def attached(model: nn.Module, method: str, seed: int = 2) -> nn.Module:
    """The model with an adapter that is moved away from its start, by the same numbers on every device."""
    config = METHODS[method]
    targets = {} if method in PROMPTS else {"targets": ("layer",)}
    studio.attach(model, config.usual(**targets))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in studio.state(model).values():
            if tensor.requires_grad:
                tensor += 0.1 * torch.randn(tensor.shape, generator=draw).to(tensor)
    return model


@pytest.fixture(autouse=True)
def whole_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in fp32 as such: by default they are rounded to ten bits on some accelerators."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def close(found: Tensor, wanted: Tensor, relative: float) -> None:
    error = (found.detach().cpu() - wanted.detach().cpu()).norm() / wanted.detach().norm().cpu().clamp_min(1e-12)
    assert error <= relative, f"relative error {error:.2e} > {relative:.0e}"


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", [name for name in METHODS if name not in PROMPTS])
def test_a_method_computes_what_it_computes_on_the_cpu(method: str, layer: str, tmp_path: Path) -> None:
    base, x = tower(layer), sample(layer)
    there = copy.deepcopy(base).to(DEVICE)
    try:
        attached(base, method)
    except StudioError as refusal:  # the same refusal there
        with pytest.raises(type(refusal)):
            attached(there, method)
        return
    attached(there, method)
    with torch.no_grad():  # what is computed from the weight at the start has other last bits there
        for key, tensor in studio.state(base).items():
            close(studio.state(there)[key], tensor, 1e-5)
            studio.state(there)[key].copy_(tensor)
    before = {key: tensor.clone() for key, tensor in there.state_dict().items()}
    assert all(tensor.device.type == DEVICE.type for tensor in studio.state(there).values())
    back = copy.deepcopy(there).cpu()
    file, other = (studio.save(model, tmp_path / f"{n}.safetensors") for n, model in enumerate((there, back)))
    assert file.read_bytes() == other.read_bytes()

    exact = [copy.deepcopy(model).to(EXACT) for model in (base, there)]
    given = x if not x.is_floating_point() else x.to(EXACT)
    tolerance = 1e-9 if EXACT is torch.float64 else 1e-4
    outputs = [model(given.to(next(model.parameters()).device)) for model in exact]
    close(outputs[1], outputs[0], tolerance)
    weights = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(3)).to(EXACT)
    for output in outputs:
        (output * weights.to(output)).sum().backward()
    for key, tensor in studio.state(exact[0]).items():
        if tensor.grad is not None:
            close(studio.state(exact[1])[key].grad, tensor.grad, 100 * tolerance)

    live = there(x.to(DEVICE))
    if METHODS[method].adapter.bakes:
        studio.bake(there)
        close(there(x.to(DEVICE)), live, 1e-4)
        studio.unbake(there)
    assert all(torch.equal(tensor, before[key]) for key, tensor in there.state_dict().items())
    studio.detach(there)
    assert all(torch.equal(tensor, before[key]) for key, tensor in there.state_dict().items())
    studio.load(there, file)
    close(there(x.to(DEVICE)), live, 1e-5)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in PROMPTS])
def test_half_precision_bases_train(method: str) -> None:
    if not has_dtype(torch.bfloat16, DEVICE):
        pytest.skip("no bf16 here")
    layer = "Embedding" if method == "tokenembedding" else "Linear"
    model, x = attached(tower(layer).to(DEVICE, torch.bfloat16), method), sample(layer).to(DEVICE)
    x = x.to(torch.bfloat16) if x.is_floating_point() else x
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(10):
        loss = model(x).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses
    assert all(tensor.dtype is torch.float32 for tensor in studio.state(model).values() if tensor.requires_grad)


@pytest.mark.parametrize(
    "init", ["gaussian", "orthogonal", "pissa", "pissa-fast", "olora", "eva", "corda", "corda-kpm"]
)
@pytest.mark.parametrize("layer", ["Linear", "Conv2d 3×3 strided"])
def test_starts_and_growth(init: str, layer: str) -> None:
    """A start leaves the function as it is, and takes what it takes out of a weight that is there."""
    base, x = tower(layer), torch.cat([sample(layer)] * 4).to(DEVICE)
    there, wanted = copy.deepcopy(base).to(DEVICE), base(x.cpu())
    config = studio.LoRA(rank=4, init=init, targets=("layer",))
    studio.attach(there, config, calibrate=[x] if config.data_driven else None)
    close(there(x), wanted, 1e-4)
    if init in ("gaussian", "orthogonal"):
        studio.grow(there, "default", 6)
        close(there(x), wanted, 1e-4)


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("method", PROMPTS)
def test_virtual_tokens(method: str, kind: str) -> None:
    base = attached(language(kind), method)
    there = attached(language(kind).to(DEVICE), method)
    ids = torch.randint(3, 60, (3, 5), generator=torch.Generator().manual_seed(1))
    more = {"decoder_input_ids": ids[:, :3]} if kind == "t5" else {}
    with torch.no_grad():
        wanted = base(input_ids=ids, **more).logits
        found = there(input_ids=ids.to(DEVICE), **{name: value.to(DEVICE) for name, value in more.items()}).logits
    close(found, wanted, 1e-4)
    made = there.generate(input_ids=ids.to(DEVICE), max_new_tokens=4, do_sample=False, num_beams=2)
    assert torch.equal(made.cpu(), base.generate(input_ids=ids, max_new_tokens=4, do_sample=False, num_beams=2))


def test_an_offloaded_base_finds_its_factors_on_the_device() -> None:
    from accelerate import cpu_offload

    plain = language("llama")
    studio.attach(plain, studio.LoRA(rank=4, init="orthogonal", targets="attention+mlp"))
    file_state = {key: tensor.detach().clone() for key, tensor in studio.state(plain).items()}
    ids = torch.randint(3, 60, (2, 5), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = plain(ids).logits
        offloaded = language("llama")
        studio.attach(offloaded, studio.LoRA(rank=4, init="orthogonal", targets="attention+mlp"))
        for key, tensor in studio.state(offloaded).items():
            tensor.copy_(file_state[key])
        cpu_offload(offloaded, execution_device=DEVICE)
        close(offloaded(ids.to(DEVICE)).logits, wanted, 1e-4)


def test_a_strength_changes_without_a_new_compiled_graph() -> None:
    counts: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        counts.append(1)
        return graph

    model = tower("Linear").to(DEVICE)
    for number, method in enumerate(("lora", "ia3", "road")):
        studio.attach(model, METHODS[method](targets=("layer",)), name=f"a{number}")
    x, compiled = sample("Linear").to(DEVICE), torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        for strength in (1.0, 0.3, -2.0):
            studio.blend(model, {"a0": strength, "a1": 0.5, "a2": strength})
            close(compiled(x), model(x), 1e-4)
    assert len(counts) == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_language_run_learns_and_is_the_same_twice(tmp_path: Path, precision: str) -> None:
    from studio.families.language import sample_file
    from studio.trainers import CausalLM, train

    def adapter(folder: str) -> bytes:
        task = CausalLM(base="facts", data=sample_file("facts", "train.jsonl"), answers=0, preview_prompts=())
        run = train(
            task, output=tmp_path / folder, steps=30, quiet=True, device=str(DEVICE), precision=precision
        )  # fmt: skip
        assert sum(run.losses[-5:]) < 0.8 * sum(run.losses[:5])
        return run.adapter.read_bytes()

    assert adapter("one") == adapter("two")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_dreambooth_trains_and_draws(photos: Path, tmp_path: Path, precision: str) -> None:
    from studio.pipelines import ImagePipeline
    from studio.trainers import DreamBooth, train

    task = DreamBooth(base="emoji", instance_images=photos, instance_prompt="a photo of sks robot")
    run = train(
        task, output=tmp_path / "run", steps=4, quiet=True, device=str(DEVICE), precision=precision, preview_every=0
    )
    pipe = ImagePipeline.open("emoji", device=str(DEVICE))
    pipe.load(run.adapter, name="robot")
    pictures = pipe.generate("a photo of sks robot <robot:0.8>", seeds=[0, 1], steps=4)
    again = pipe.generate("a photo of sks robot <robot:0.8>", seeds=[1], steps=4)
    assert len(pictures) == 2 and pictures[1].tobytes() == again[0].tobytes()
