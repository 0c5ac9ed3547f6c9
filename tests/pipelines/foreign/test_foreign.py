"""Pictures of other programs, built as their documentation has them, and what is read from them."""

from __future__ import annotations

import json
import time

import pytest
from PIL import Image, PngImagePlugin

from studio.errors import BadFile
from studio.pipelines.drawing import texts_of
from studio.pipelines.foreign.reading import said_by
from studio.pipelines.foreign.said import SaidAdapter
from studio.pipelines.metadata import open_picture


@pytest.fixture
def said(tmp_path):
    """Writes a PNG with texts, as the program would, and reads it."""

    def read(**texts):
        chunks = PngImagePlugin.PngInfo()
        for key, text in texts.items():
            chunks.add_text(key.replace("_metadata_", "-"), text if isinstance(text, str) else json.dumps(text))
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=chunks)
        return said_by(texts_of(open_picture(tmp_path / "a.png")))

    return read


A1111 = """a photo of (sks:1.2) dog, <lora:dog-v1:0.8>
on grass
Negative prompt: blurry, [red]
Steps: 28, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 4294967295, Size: 512x768, \
Model hash: 6ce0161689, Model: v1-5-pruned, VAE: "a, b.vae.pt", Denoising strength: 0.45, Clip skip: 2, \
Hires upscale: 1.5, Hires steps: 12, Hires upscaler: Latent, Lora hashes: "dog-v1: 0123456789ab", Version: v1.10.1"""


def test_a1111(said):
    found = said(parameters=A1111)
    assert found.tool == "A1111"
    assert found.prompt == "a photo of (sks:1.2) dog, <lora:dog-v1:0.8>\non grass"
    assert (found.negative, found.base) == ("blurry, [red]", "v1-5-pruned")
    assert found.numbers == {
        "steps": 28, "scheduler": "dpm++-2m-karras", "guidance": 6.5, "seed": 4294967295, "width": 512, "height": 768,
        "upscale": 1.5, "upscale_steps": 12, "upscale_strength": 0.45,
    }  # fmt: skip
    assert found.unused == ("VAE: a, b.vae.pt", "Clip skip: 2", "Hires upscaler: Latent")


@pytest.mark.parametrize(
    ("line", "numbers", "unused"),
    [
        ("Sampler: DPM++ 2M SDE Karras", {"scheduler": "dpm++-2m-sde-karras"}, ()),
        ("Sampler: Euler, Schedule type: Automatic", {"scheduler": "euler"}, ()),
        ("Sampler: Euler, Schedule type: SGM Uniform", {"scheduler": "euler"}, ("noise levels: SGM Uniform",)),
        ("Sampler: LMS", {}, ("sampler: LMS",)),
        (
            "Denoising strength: 0.7",
            {},
            ("Denoising strength: 0.7 (of another picture that it started from: --image)",),
        ),
        ("Size: big", {}, ("Size: big",)),
        ("CFG scale: much", {}, ("CFG scale: much",)),
        ("CFG scale: nan", {}, ("CFG scale: nan",)),
        ("CFG scale: 1e999", {}, ("CFG scale: 1e999",)),
        ("Distilled CFG Scale: 3.5", {"embedded_guidance": 3.5}, ()),
        ("ControlNet 0: " + "x" * 200, {}, (f"ControlNet 0: {'x' * 80}…",)),
    ],
)
def test_fields_of_a1111(said, line, numbers, unused):
    found = said(parameters=f"x\nSteps: 3, Seed: 0, Model: m, {line}")
    assert found.numbers == {"steps": 3, "seed": 0, **numbers}
    assert found.unused == unused


def test_numbers_that_cannot_be_are_not_used(said):
    found = said(parameters="x\nSteps: 0, Seed: -1, Size: 99999x8, CFG scale: -3, Hires steps: 1.5")
    assert found.numbers == {"height": 8}
    assert found.unused == ("Steps: 0", "Seed: -1", "CFG scale: -3", "Hires steps: 1.5", "width: 99999")
    huge = said(parameters=f"x\nSteps: 5, Seed: {2**63}, Size: 8x8")
    assert "seed" not in huge.numbers
    assert said(parameters=f"x\nSteps: 5, Seed: {2**63 - 1}, Size: 8x8").numbers["seed"] == 2**63 - 1


def graph(**changes):
    """The graph that ComfyUI starts with, and two LoRA loaders."""
    nodes = {
        "3": {"class_type": "KSampler", "inputs": {
            "seed": 156680208700286, "steps": 20, "cfg": 8.0, "sampler_name": "dpmpp_2m", "scheduler": "karras",
            "denoise": 1.0, "model": ["11", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "SD1.5/v1-5-pruned.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a (dog:1.2)", "clip": ["11", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "watermark", "clip": ["11", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
        "10": {"class_type": "LoraLoader", "inputs": {
            "lora_name": "styles\\ink v2.safetensors", "strength_model": 0.8, "strength_clip": 0.5, "model": ["4", 0],
            "clip": ["4", 1]}},
        "11": {"class_type": "LoraLoaderModelOnly", "inputs": {
            "lora_name": "dog.safetensors", "strength_model": 1.0, "model": ["10", 0]}},
    }  # fmt: skip
    return {name: node for name, node in {**nodes, **changes}.items() if node}


def test_comfyui(said):
    found = said(prompt=graph(), workflow={"nodes": []})
    assert (found.tool, found.prompt, found.negative) == ("ComfyUI", "a (dog:1.2)", "watermark")
    assert found.base == "v1-5-pruned"
    assert found.adapters == (SaidAdapter("ink v2", 0.8, 0.5), SaidAdapter("dog", 1.0, 1.0))
    assert found.numbers == {
        "steps": 20, "seed": 156680208700286, "guidance": 8.0, "scheduler": "dpm++-2m-karras", "width": 512,
        "height": 640,
    }  # fmt: skip
    assert found.unused == ()


def test_comfyuis_flux_graph(said):
    nodes = {
        "13": {"class_type": "SamplerCustomAdvanced", "inputs": {
            "noise": ["25", 0], "guider": ["22", 0], "sampler": ["16", 0], "sigmas": ["17", 0],
            "latent_image": ["27", 0]}},
        "16": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "17": {"class_type": "BasicScheduler", "inputs": {
            "scheduler": "simple", "steps": 24, "denoise": 1.0, "model": ["30", 0]}},
        "22": {"class_type": "BasicGuider", "inputs": {"model": ["30", 0], "conditioning": ["26", 0]}},
        "25": {"class_type": "RandomNoise", "inputs": {"noise_seed": 219670278747233}},
        "26": {"class_type": "FluxGuidance", "inputs": {"guidance": 3.5, "conditioning": ["6", 0]}},
        "27": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 1024, "height": 1024, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["40", 0], "clip": ["11", 0]}},
        "40": {"class_type": "StringConstant", "inputs": {"string": "a fox"}},
        "30": {"class_type": "ModelSamplingFlux", "inputs": {"max_shift": 1.15, "model": ["12", 0]}},
        "12": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux1-dev.safetensors"}},
    }  # fmt: skip
    found = said(prompt=nodes)
    assert (found.prompt, found.negative, found.base) == ("a fox", "", "flux1-dev")
    assert found.numbers == {
        "steps": 24, "seed": 219670278747233, "scheduler": "euler", "width": 1024, "height": 1024,
        "embedded_guidance": 3.5,
    }  # fmt: skip
    assert found.unused == ("ModelSamplingFlux: what it does to the model",)


def test_the_first_pass_of_comfyui_is_read(said):
    second = {"class_type": "KSampler", "inputs": {
        "seed": 1, "steps": 9, "cfg": 5, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.5,
        "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["21", 0]}}  # fmt: skip
    bigger = {"class_type": "LatentUpscaleBy", "inputs": {"samples": ["3", 0], "scale_by": 1.5}}
    found = said(prompt={"2": second, "21": bigger, **graph()})
    assert found.numbers["steps"] == 20
    assert found.unused == ("pass 2: KSampler (the first pass alone is read)",)
    both = {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["6", 0], "conditioning_2": ["7", 0]}}
    sampler = graph()["3"]["inputs"] | {"positive": ["30", 0], "denoise": 0.6}
    found = said(prompt=graph(**{"3": {"class_type": "KSampler", "inputs": sampler}, "30": both}))
    assert found.prompt == "a (dog:1.2)"
    assert found.unused == (
        "denoise: 0.6 (of another picture that it started from: --image)",
        "ConditioningCombine: what it does to the text",
    )


def test_comfyuis_screen(said):
    screen = {
        "nodes": [
            {"id": 3, "type": "KSampler", "mode": 0, "widgets_values": [7, "randomize", 20, 8, "euler", "normal", 1],
             "inputs": [{"name": "model", "link": 1}, {"name": "positive", "link": 4}, {"name": "negative", "link": 6},
                        {"name": "latent_image", "link": 2}]},
            {"id": 6, "type": "CLIPTextEncode", "widgets_values": ["a dog"], "inputs": [{"name": "clip", "link": 3}]},
            {"id": 7, "type": "CLIPTextEncode", "widgets_values": ["text"], "inputs": [{"name": "clip", "link": 5}]},
            {"id": 5, "type": "EmptyLatentImage", "widgets_values": [512, 768, 1]},
            {"id": 4, "type": "CheckpointLoaderSimple", "widgets_values": ["x.ckpt"], "outputs": []},
        ],
        "links": [[1, 4, 0, 3, 0, "MODEL"], [2, 5, 0, 3, 3, "LATENT"], [3, 4, 1, 6, 0, "CLIP"],
                  [4, 6, 0, 3, 1, "CONDITIONING"], [5, 4, 1, 7, 0, "CLIP"], [6, 7, 0, 3, 2, "CONDITIONING"]],
    }  # fmt: skip
    found = said(workflow=screen)
    assert (found.prompt, found.negative, found.base) == ("a dog", "text", "x")
    expected = {"steps": 20, "seed": 7, "guidance": 8.0, "scheduler": "euler", "width": 512, "height": 768}
    assert found.numbers == expected


def test_invokeai(said):
    content = {
        "app_version": "5.4.0", "generation_mode": "txt2img", "positive_prompt": "a fox", "negative_prompt": "fog",
        "width": 1024, "height": 768, "seed": 12, "rand_device": "cpu", "cfg_scale": 7.5, "cfg_rescale_multiplier": 0.2,
        "steps": 30, "scheduler": "dpmpp_2m_sde_k", "clip_skip": 0,
        "model": {"key": "0f", "hash": "blake3:1", "name": "Juggernaut XL", "base": "sdxl", "type": "main"},
        "loras": [{"model": {"key": "1", "name": "ink.v2", "base": "sdxl", "type": "lora"}, "weight": 0.75}],
        "vae": {"key": "2", "name": "sdxl-vae-fix"}, "controlnets": [], "seamless_x": False,
    }  # fmt: skip
    found = said(invokeai_metadata=content)
    assert (found.tool, found.prompt, found.negative) == ("InvokeAI", "a fox", "fog")
    assert found.base == "Juggernaut XL"
    assert found.adapters == (SaidAdapter("ink.v2", 0.75, 0.75),)
    assert found.numbers == {
        "steps": 30, "seed": 12, "guidance": 7.5, "width": 1024, "height": 768, "scheduler": "dpm++-2m-sde-karras",
    }  # fmt: skip
    assert found.unused == ("cfg_rescale_multiplier: 0.2", "vae: sdxl-vae-fix")


def test_older_invokeai(said):
    third = {
        "app_version": "3.3.0post3", "positive_prompt": "landscape", "negative_prompt": "low", "width": 768,
        "height": 432, "seed": 356120443, "cfg_scale": 7.5, "steps": 50, "scheduler": "unipc", "clip_skip": 2,
        "model": {"model_name": "amixx", "base_model": "sd-1", "model_type": "main"},
        "loras": [{"lora": {"model_name": "ink", "base_model": "sd-1"}, "weight": 0.5}],
    }  # fmt: skip
    found = said(invokeai_metadata=third)
    assert (found.base, found.adapters) == ("amixx", (SaidAdapter("ink", 0.5, 0.5),))
    assert (found.numbers["scheduler"], found.unused) == ("unipc", ("clip_skip: 2",))
    second = {
        "model": "stable diffusion", "model_weights": "stable-diffusion-1.5", "app_version": "2.3.0",
        "image": {"prompt": [{"prompt": "a fox [fog] in [rain] snow", "weight": 1}], "steps": 50, "cfg_scale": 7.5,
                  "threshold": 0, "perlin": 0, "height": 512, "width": 640, "seed": 1234, "type": "txt2img",
                  "postprocessing": [{"type": "esrgan"}], "sampler": "k_euler_a", "variations": []},
    }  # fmt: skip
    expected = {
        "steps": 50, "seed": 1234, "guidance": 7.5, "width": 640, "height": 512, "scheduler": "euler-a",
    }  # fmt: skip
    found = said(sd_metadata_metadata=second)
    assert (found.prompt, found.negative, found.base) == ("a fox in snow", "fog, rain", "stable-diffusion-1.5")
    assert found.numbers == expected
    assert found.unused == ("postprocessing: [{'type': 'esrgan'}]",)
    found = said(Dream='"a fox [fog] in \\"x\\"" -s 50 -S 1234 -W 640 -H 512 -C 7.5 -A k_euler_a')
    assert (found.negative, found.numbers) == ("fog", expected)


def test_a_picture_of_none_of_them(said):
    assert said(Title="a dog", prompt="a dog") is None
    assert said(prompt={"1": {"class_type": "SaveImage", "inputs": {}}}) is None
    assert said(parameters=" \n ") is None


@pytest.mark.parametrize("key", ["prompt", "workflow", "invokeai_metadata"])
@pytest.mark.parametrize("text", ["{", '{"a": ' * 5_000, '{"a": 1, "a": 2}', '{"a": "\\ud800"}'])
def test_a_damaged_text_is_a_sentence(said, key, text):
    with pytest.raises(BadFile, match=rf"the '{key}' text of the picture is damaged"):
        said(**{key: text})


def test_texts_beyond_the_limit_are_refused_before_they_are_read(said, monkeypatch):
    monkeypatch.setenv("STUDIO_LIMITS", "metadata-bytes=100")
    for key in ("parameters", "prompt", "invokeai_metadata"):
        with pytest.raises(BadFile, match=rf"'{key}' text of the picture has 20[0-9] bytes.* at most 100 are taken"):
            said(**{key: '{"a": 1}'.ljust(200) + "x"})


def test_hostile_graphs_take_no_long_time(said):
    """Loops, links to nowhere, and values of any type where another is expected."""
    start = time.process_time()
    for value in (["3", 0], ["nowhere", 0], [], [[]], {}, None, 7, "x", True, [None], float("nan"), -1, 1e308):
        for name in graph()["3"]["inputs"]:
            node = {"class_type": "KSampler", "inputs": graph()["3"]["inputs"] | {name: value}}
            said(prompt=graph(**{"3": node}))
        for kind, inputs in (("LoraLoader", "lora_name model"), ("CLIPTextEncode", "text clip"), ("Reroute", "model")):
            node = {"class_type": kind, "inputs": dict.fromkeys(inputs.split(), value)}
            said(prompt=graph(**{"11": node, "6": node}))
        said(prompt=graph(**{"3": value}))
        said(workflow={"nodes": value, "links": [value]})
        said(workflow={"nodes": [value, {"id": value, "type": value, "widgets_values": value, "inputs": [value]}]})
        said(invokeai_metadata={"loras": value, "model": value, "seed": value, "scheduler": value, "steps": value})
        said(sd_metadata_metadata={"image": value})
        said(sd_metadata_metadata={"image": {"prompt": value, "seed": value, "sampler": value}})
    loop = {str(n): {"class_type": "LoraLoader", "inputs": {"lora_name": "x", "model": [str(n % 500 + 1), 0]}}
            for n in range(1, 501)}  # fmt: skip
    sampler = {"class_type": "KSampler", "inputs": {"model": ["1", 0], "positive": ["1", 0], "steps": ["1", 0]}}
    assert len(said(prompt={"s": sampler, **loop}).adapters) <= 100
    assert time.process_time() - start < 20
    with pytest.raises(BadFile, match="at most 10,000"):
        said(prompt={str(n): {} for n in range(10_001)})
