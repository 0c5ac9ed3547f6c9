"""What ``studio convert`` writes for a program opens there, and does there what it does here.

diffusers is asked by its ``load_lora_weights`` and PEFT by ``PeftModel.from_pretrained``, on tiny pipelines of every
family; where diffusers' conversion has the public models' sizes in its code, by its conversion alone, on those.
Where a peer reads another change out of a file of kohya's or of native names, the test says which layers, so that a
later version which reads them is noticed: such a file is not what ``program="diffusers"`` writes.
"""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file

import studio
from studio.adapters import adapters
from studio.errors import BadConfig, DoesNotFit, UnknownName
from studio.families import FAMILIES, family_of
from studio.families.shapes import outline
from studio.files.convert import convert
from studio.files.loose import Loose, write_loose
from studio.files.names import Names
from studio.files.programs import PROGRAMS
from tests.support.tiny_pipelines import BUILDERS, FAMILY, build, run

peft = pytest.importorskip("peft")
diffusers = pytest.importorskip("diffusers")
diffusers.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore:.*alpha_pattern keys did not match:RuntimeWarning")

READERS = [kind for kind in BUILDERS if kind != "pixart-sigma"]  # that pipeline reads no LoRA
QUICK = ("sd1", "sdxl", "flux1", "z-image")


def some(kinds, quick=QUICK):
    return [kind if kind in quick else pytest.param(kind, marks=pytest.mark.slow) for kind in kinds]


def random(model, config, components=None) -> Loose:
    """An adapter of random numbers, off the model."""
    studio.attach(model, config, components=components)
    draws = torch.Generator().manual_seed(0)
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in studio.state(model).items():
        path, _, name = key.rpartition(".")
        value = torch.zeros(tensor.shape) if tensor.device.type == "meta" else tensor.detach().clone()
        moved = 0.1 * torch.randn(value.shape, generator=draws) if value.is_floating_point() else 0
        layers.setdefault(path, {})[name] = value + moved
    chosen = adapters(model)["default"].config
    studio.detach(model)
    return Loose(file="made", model=model, base="made", name="dog", format="diffusers", config=chosen, layers=layers,
                 facts={})  # fmt: skip


def source(loose, folder):
    """A file of it, in another program's names where those have the method."""
    for format in ("kohya", "native", "diffusers"):
        try:
            return write_loose(loose, folder / "source.safetensors", format=format)
        except DoesNotFit:
            continue
    raise AssertionError("diffusers' names hold every method")


def apart(found, wanted) -> float:
    found, wanted = (torch.as_tensor(one).detach().double() for one in (found, wanted))
    return float((found - wanted).norm() / wanted.norm())


def changes(loose) -> dict[str, torch.Tensor]:
    """Path -> ΔW of a LoRA, float64."""
    names = Names(loose.model)
    return {
        path: loose.config.scale_at(names.paths[path][1]) * own["up"].double() @ own["down"].double().flatten(1)
        for path, own in loose.layers.items()
    }


def loads(pipe):
    """The components that the family's pipeline of diffusers loads LoRAs into; it cannot infer what T5's are."""
    encoders = {"text_encoder", "text_encoder_2"} if family_of(pipe).name != "chroma" else set()
    return tuple(
        one for one in type(pipe)._lora_loadable_modules if one not in {"text_encoder", "text_encoder_2"} - encoders
    )


# -- diffusers, by the file that is for it -----------------------------------------------------------------------------


def by_layer(*components):
    """A LoRA on all linear layers, of other ranks and alphas in some of them."""
    encoder, denoiser = "text_encoder" in components[-1], "text_encoder" not in components[0]
    ranks, alphas = {"*to_q": 2} if denoiser else {}, {"*to_k": 6.0} if denoiser else {}
    ranks, alphas = ranks | ({"*fc1": 3} if encoder else {}), alphas | ({"*q_proj": 1.0} if encoder else {})
    return studio.LoRA(rank=4, alpha=3, rank_pattern=ranks, alpha_pattern=alphas, targets="all-linear")


CONFIGS = {
    "rslora": studio.LoRA(rank=4, alpha=3, rank_stabilized=True, targets="attention"),
    "dora": studio.DoRA(rank=2, alpha=3, targets="attention"),
    "adalora": studio.AdaLoRA(rank=3, alpha=3, target_rank=2, targets="attention"),
    "qalora": studio.QALoRA(rank=2, alpha=3, group=2, targets="attention"),
}  # fmt: skip
ONE = [(kind, "by layer") for kind in READERS] + [(kind, one) for kind in ("sd1", "flux1") for one in CONFIGS]


@pytest.mark.parametrize(
    ("kind", "config"), [one if one[0] in QUICK else pytest.param(*one, marks=pytest.mark.slow) for one in ONE]
)
def test_for_diffusers_it_draws_what_it_draws_here(kind, config, tmp_path):
    pipe = build(kind)
    loose = random(pipe, CONFIGS.get(config, by_layer(*loads(pipe))), loads(pipe))
    file = source(loose, tmp_path)
    studio.load(pipe, file)
    wanted, base = run(pipe, kind), run(build(kind), kind)
    report = convert(file, tmp_path / "there" / "a.safetensors", program="diffusers", base=build(kind))
    assert report.error <= 1e-6 and report.sites == len(loose.layers)
    other = build(kind)
    other.load_lora_weights(tmp_path / "there", weight_name="a.safetensors")
    found = run(other, kind)
    assert apart(found, wanted) <= 1e-5 and apart(base, wanted) > 1e-4


# -- diffusers, by kohya's and native names ----------------------------------------------------------------------------

EVERYTHING = r".*"
FLUX2_TOP = r"transformer\.(time_guidance_embed\.guidance_embedder|\w+_stream_modulation\w*|norm_out)\."
# what diffusers 0.42 does with the other names: layers that it leaves out without a word, or the error it ends with
KOHYA = {
    "sd3": EVERYTHING, "sana": EVERYTHING, "lumina2": EVERYTHING, "flux2": FLUX2_TOP, "flux2-klein": FLUX2_TOP,
    "flux1": AssertionError, "flux1-schnell": AssertionError, "chroma": AssertionError,  # of the public sizes alone
}  # fmt: skip
NATIVE = {
    "sd1": EVERYTHING, "sd2": EVERYTHING, "sdxl": EVERYTHING, "sd3": EVERYTHING, "sana": EVERYTHING,
    "flux1": EVERYTHING, "flux1-schnell": EVERYTHING, "chroma": EVERYTHING,
    "lumina2": RuntimeError,  # of the public sizes alone
}  # fmt: skip
# layers of which it makes another change: the last norm's halves are exchanged in native files, and it leaves them
WRONG = {
    ("flux2", "native"): r"transformer\.norm_out\.linear",
    ("flux2-klein", "native"): r"transformer\.norm_out\.linear",
}
PAIRS = [(kind, "kohya", KOHYA.get(kind)) for kind in READERS] + [
    (kind, "native", NATIVE.get(kind)) for kind in READERS
]
QUICK_PAIRS = (("sd1", "kohya"), ("sd3", "kohya"), ("flux2", "kohya"), ("flux2", "native"), ("qwen-image", "native"))


@pytest.mark.parametrize(
    ("kind", "format", "lacks"),
    [one if one[:2] in QUICK_PAIRS else pytest.param(*one, marks=pytest.mark.slow) for one in PAIRS],
)
def test_what_diffusers_makes_of_other_names(kind, format, lacks, tmp_path):
    """alpha is the rank here, which every reader knows."""
    pipe = build(kind)
    denoiser = (family_of(pipe).denoiser,)
    components = tuple(one for one in loads(pipe) if one in family_of(pipe).flat) if format == "kohya" else denoiser
    loose = random(pipe, studio.LoRA(rank=2, targets="all-linear"), components)
    write_loose(loose, tmp_path / "a.safetensors", format=format)
    if isinstance(lacks, type):
        with pytest.raises(lacks):
            pipe.load_lora_weights(tmp_path, weight_name="a.safetensors")
        return
    pipe.load_lora_weights(tmp_path, weight_name="a.safetensors")
    for path, wanted in changes(loose).items():
        component, _, rest = path.partition(".")
        layer = pipe.components[component].get_submodule(rest)
        assert isinstance(layer, peft.tuners.lora.LoraLayer) == (lacks is None or not re.match(lacks, path)), path
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            found = layer.get_delta_weight("default_0").double().flatten(1)
            wrong = re.match(WRONG.get((kind, format), "(?!)"), path) is not None
            assert (apart(found, wanted) > 1e-6) == wrong, path


def test_diffusers_misreads_other_alphas_in_kohyas_names_and_not_in_its_own(tmp_path):
    """It takes the most common alpha of the attention layers for all of them; the converted file says each."""
    pipe = build("sd1")
    config = studio.LoRA(
        rank=4, alpha=4, alpha_pattern={"*to_k": 1.0}, targets=("unet.*to_q", "unet.*to_v", "unet.*to_k")
    )
    loose = random(pipe, config)
    kohya = write_loose(loose, tmp_path / "k.safetensors", format="kohya")
    convert(kohya, tmp_path / "d.safetensors", program="diffusers", base=pipe)
    ratios = {}
    for file in ("k", "d"):
        other = build("sd1")
        other.load_lora_weights(tmp_path, weight_name=f"{file}.safetensors")
        for path, wanted in changes(loose).items():
            layer = other.unet.get_submodule(path.removeprefix("unet."))
            found = layer.get_delta_weight("default_0").detach().norm() / wanted.norm()
            ratios.setdefault(file, {})[path.rpartition(".")[2]] = float(found)
    assert ratios["d"] == pytest.approx({"to_q": 1, "to_k": 1, "to_v": 1}, rel=1e-5)
    assert ratios["k"] == pytest.approx({"to_q": 1, "to_k": 4, "to_v": 1}, rel=1e-5)


# public model, format, diffusers' pipeline, layers, those that it leaves out
BLOCKS = r"re:transformer\.(single_)?transformer_blocks\.(0|18)\..*"
TOP = r"re:transformer\.(x_embedder|context_embedder|proj_out|norm_out\.linear|time_text_embed.*)"
REAL = {
    "flux-dev": ("kohya", "FluxPipeline", (BLOCKS, TOP), TOP[3:]),
    "chroma": ("kohya", "ChromaPipeline", (BLOCKS, TOP), TOP[3:]),
    "lumina2": ("native", "Lumina2Pipeline", (r"re:transformer\.(layers|\w+_refiner)\.0\..*",), "(?!)"),
}  # fmt: skip


@pytest.mark.parametrize("name", some(REAL, ("flux-dev",)))
def test_diffusers_conversion_of_public_models_gives_the_same_changes(name, tmp_path):
    """The fused layers of kohya's and native files, taken apart there and here."""
    format, pipeline, targets, lacks = REAL[name]
    alpha = 3.0 if format == "kohya" else None  # without an alpha beside them, native names are read
    loose = random(outline(name, ["transformer"]), studio.LoRA(rank=2, alpha=alpha, targets=targets))
    file = write_loose(loose, tmp_path / "a.safetensors", format=format)
    state = getattr(diffusers, pipeline).lora_state_dict(load_file(file))
    assert len(loose.layers) > 20
    for path, own in loose.layers.items():
        assert (f"{path}.lora_A.weight" in state) == (re.match(lacks, path) is None), path
        if f"{path}.lora_A.weight" in state:  # on a few inputs, the matrices being large
            x = torch.randn(own["down"].shape[1], 4, generator=torch.Generator().manual_seed(1)).double()
            there = state[f"{path}.lora_B.weight"].double() @ (state[f"{path}.lora_A.weight"].double() @ x)
            here = loose.config.scale_at(path) * own["up"].double() @ (own["down"].double() @ x)
            assert apart(there, here) <= 1e-6, path


# -- PEFT --------------------------------------------------------------------------------------------------------------

# one kernel and one kind of layer that are not here, and one that is for embeddings
APART = ("boft", "qalora", "tokenembedding")
OF_PEFT = {
    name: config.example(targets="attention")
    for name, config in studio.METHODS.items()
    if {"linear"} <= set(config.adapter.kinds) and config.adapter.peft.type and name not in APART
}


def peft_draws_the_same(kind, component, config, tmp_path):
    pipe = build(kind)
    loose = random(pipe, config, (component,))
    write_loose(loose, tmp_path / "a.safetensors", format="diffusers")
    studio.load(pipe, tmp_path / "a.safetensors")
    wanted, base = run(pipe, kind), run(build(kind), kind)
    report = convert(tmp_path / "a.safetensors", tmp_path / "there", program="peft", base=build(kind))
    assert report.error == 0 and report.sites == len(loose.layers)
    other = build(kind)
    peft.PeftModel.from_pretrained(other.components[component], tmp_path / "there").eval()  # which works on it in place
    assert apart(run(other, kind), wanted) <= 1e-5 and apart(base, wanted) > 1e-4


@pytest.mark.parametrize("kind", some(BUILDERS))
def test_for_peft_it_draws_what_it_draws_here(kind, tmp_path):
    denoiser = family_of(build(kind)).denoiser
    peft_draws_the_same(kind, denoiser, by_layer(denoiser), tmp_path)


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2"])
def test_for_peft_of_a_text_encoder(component, tmp_path):
    """SDXL's: the one has transformers' level ``text_model``, the other has not."""
    peft_draws_the_same("sdxl", component, by_layer(component), tmp_path)


@pytest.mark.parametrize("method", some(OF_PEFT, ("dora", "loha", "ia3", "oft")))
def test_for_peft_every_method_that_it_has(method, tmp_path):
    peft_draws_the_same("flux1", "transformer", OF_PEFT[method], tmp_path)


# -- what a program would not read is refused --------------------------------------------------------------------------


def test_every_program_has_a_format(tmp_path):
    pipe = build("sd1")
    file = write_loose(random(pipe, by_layer("unet"), ("unet",)), tmp_path / "a.safetensors", format="native")
    for name, program in PROGRAMS.items():
        report = convert(file, tmp_path / name, program=name, base=pipe)
        assert (report.format, report.error) == (program.format, 0)
    with pytest.raises(UnknownName, match="did you mean 'comfyui'"):
        convert(file, tmp_path / "x", program="comfy-ui", base=pipe)
    for both in ({}, {"format": "kohya", "program": "a1111"}):
        with pytest.raises(BadConfig, match="convert to what"):
            convert(file, tmp_path / "x", base=pipe, **both)


LORA, LOHA = studio.LoRA(rank=2, targets="attention"), studio.LoHa(rank=2, targets="attention")
REFUSED = {
    "another method": ("sd1", LOHA, "unet", r"reads LoRA and DoRA.*is of loha.*--rank N"),
    "magnitudes per input": ("sd1", studio.DoRA(axis="inputs", targets="attention"), "unet", "per output, not per"),
    "an encoder": ("flux1", LORA, "text_encoder_2", "FluxPipeline reads LoRAs of transformer and text_encoder alone"),
    "T5, which it cannot infer": ("chroma", LORA, "text_encoder", "reads LoRAs of transformer alone"),
    "a pipeline": ("pixart-sigma", LORA, "transformer", "PixArtSigmaPipeline reads no LoRA"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_diffusers_would_leave_out_or_misread_is_refused(case, tmp_path):
    kind, config, component, message = REFUSED[case]
    pipe = build(kind)
    file = write_loose(random(pipe, config, (component,)), tmp_path / "a.safetensors", format="diffusers")
    with pytest.raises(DoesNotFit, match=message):
        convert(file, tmp_path / "b.safetensors", program="diffusers", base=pipe)
    assert [one.name for one in tmp_path.iterdir()] == ["a.safetensors"]


def test_what_is_loaded_by_diffusers_is_what_it_says_itself():
    from studio.files.programs import _read_by_diffusers

    wanted = {
        "sd1": ("unet", "text_encoder"), "sd2": ("unet", "text_encoder"),
        "sdxl": ("unet", "text_encoder", "text_encoder_2"), "sd3": ("transformer", "text_encoder", "text_encoder_2"),
        "flux1": ("transformer", "text_encoder"), "pixart-sigma": (),
    }  # fmt: skip
    for kind in FAMILY.values():
        assert _read_by_diffusers(FAMILIES[kind]) == wanted.get(kind, ("transformer",)), kind
