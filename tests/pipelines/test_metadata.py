"""What a picture says about itself, and the picture made again from it."""

from __future__ import annotations

import json
import os
import pickle
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image, PngImagePlugin

import studio
from studio.errors import BadFile, DoesNotFit, UnknownName
from studio.pipelines import ImagePipeline, read_metadata, regenerate, save_png
from studio.pipelines.metadata import AdapterUse, strength_from_json, strength_to_json
from studio.pipelines.parameters import parameters_text

FAST = {"steps": 3}
# A1111's own expression for the last line of the text (modules/infotext_utils.py)
A1111_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def equal(first, second):
    return first.size == second.size and first.tobytes() == second.tobytes()


@pytest.fixture(scope="module")
def plain():
    return ImagePipeline.open("emoji")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two adapter files, made by hand on the base."""
    folder = tmp_path_factory.mktemp("adapters")
    pipe = ImagePipeline.open("emoji").pipe
    for number, name in enumerate(("dog", "ink")):
        studio.attach(pipe, studio.LoRA(rank=2 + number), name=name, components=["unet", "text_encoder"], seed=number)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for tensor in studio.state(pipe, name).values():
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.05)
        studio.save(pipe, folder / f"{name}-v1.safetensors", name=name)
    return folder


@pytest.fixture
def loaded(files):
    pipe = ImagePipeline.open("emoji")
    pipe.load(files / "dog-v1.safetensors", name="dog")
    pipe.load(files / "ink-v1.safetensors", name="ink")
    return pipe


def test_a_picture_is_made_again_from_its_file(plain, tmp_path):
    (image,) = plain.generate(
        "rocket on a blue background",
        seeds=7,
        guidance=3.5,
        negative="red, ünïcödé 火",
        scheduler="euler a",
        width=72,
        **FAST,
    )
    file = save_png(image, tmp_path / "out" / "0001.png")
    with Image.open(file) as read:
        assert read.info["parameters"] == image.info["parameters"]
        assert read.info["studio"] == image.info["studio"]
    again = regenerate(file)
    assert equal(again, image)
    assert again.info == image.info
    assert equal(regenerate(image, pipe=plain), image)


def test_equal_pictures_are_equal_files_without_clock_or_folder(plain, tmp_path):
    for name in ("a.png", "b.png"):
        save_png(plain.generate("rocket", **FAST)[0], tmp_path / name)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second
    assert str(tmp_path).encode() not in first
    assert b"tIME" not in first


def test_the_json_says_everything(plain):
    (image,) = plain.generate("rocket", seeds=7, batch_size=2, **FAST)
    content = json.loads(image.info["studio"])
    assert content["base"] == {"id": "emoji", "family": "sd1", "hash": plain.base.hash, "dtype": "float32"}
    asked = {"prompt": "rocket", "negative": "", "seed": 7, "steps": 3, "guidance": 3.0, "width": 64, "height": 64}
    assert {key: content[key] for key in asked} == asked
    assert content["rows"] == 2
    assert content["scheduler"]["class"] == "DPMSolverMultistepScheduler"
    assert content["scheduler"]["settings"]["prediction_type"] == "v_prediction"
    assert content["version"] == studio.__version__
    assert content["adapters"] == []


def test_other_programs_can_read_the_parameters(plain):
    (image,) = plain.generate("rocket, small", seeds=7, negative="red: dark", scheduler="dpm++ 2m karras", **FAST)
    prompt, negative, last = image.info["parameters"].split("\n")
    assert prompt == "rocket, small"
    assert negative == "Negative prompt: red: dark"
    pairs = dict(A1111_PAIR.findall(last))
    assert pairs["Sampler"] == "DPM++ 2M"
    assert pairs["Schedule type"] == "Karras"
    assert (pairs["Steps"], pairs["CFG scale"], pairs["Seed"], pairs["Size"]) == ("3", "3", "7", "64x64")
    assert pairs["Model hash"] == plain.base.hash[:10]
    assert pairs["Model"] == "emoji"
    assert len(pairs) >= 3  # below that A1111 takes the line for a part of the prompt


def test_adapters_are_named_by_hash_and_found_again(loaded, files, tmp_path):
    (image,) = loaded.generate("rocket <dog:0.8> <lora:ink:0.25:0.5>", seeds=1, **FAST)
    content = read_metadata(image)
    assert [use["name"] for use in content["adapters"]] == ["dog", "ink"]
    assert content["adapters"][0]["file"] == "dog-v1.safetensors"
    assert content["adapters"][1]["strength"] == {"value": 1.0, "components": {"text_encoder": 0.25, "unet": 0.5}}
    first, last = image.info["parameters"].split("\n")
    assert first == "rocket <lora:dog-v1:0.8> <lora:ink-v1:0.25:0.5>"
    hashes = json.loads(dict(A1111_PAIR.findall(last))["Lora hashes"])
    assert hashes.startswith(f"dog-v1: {content['adapters'][0]['lora_hash'][:12]}, ink-v1: ")

    file = save_png(image, tmp_path / "a.png")
    assert equal(regenerate(file, adapters=[files]), image)
    moved = tmp_path / "renamed.safetensors"
    moved.write_bytes((files / "dog-v1.safetensors").read_bytes())
    assert equal(regenerate(file, adapters=[files / "ink-v1.safetensors", moved]), image)
    with pytest.raises(
        UnknownName, match=r"'dog' of the picture \(dog-v1\.safetensors, sha256 .* not among those given"
    ):
        regenerate(file, adapters=[files / "ink-v1.safetensors"])
    with pytest.raises(UnknownName, match="no file was given"):
        regenerate(file)
    with pytest.raises(BadFile, match="no adapter file or folder"):
        regenerate(file, adapters=[tmp_path / "nothing"])


def test_the_current_blend_and_a_baked_one_are_made_again(loaded, files):
    loaded.blend({"ink": 0.5})
    (current,) = loaded.generate("rocket", **FAST)
    assert [use["name"] for use in read_metadata(current)["adapters"]] == ["ink"]
    assert equal(regenerate(current, adapters=[files]), current)
    loaded.bake({"dog": 0.5, "ink": 0.5})
    (baked,) = loaded.generate("rocket", **FAST)
    assert [use["baked"] for use in read_metadata(baked)["adapters"]] == [True, True]
    assert read_metadata(baked)["base"]["hash"] == read_metadata(current)["base"]["hash"]
    assert equal(regenerate(baked, adapters=[files]), baked)
    assert equal(regenerate(baked, pipe=loaded), baked)
    with pytest.raises(DoesNotFit, match="unbake"):
        regenerate(current, pipe=loaded)
    loaded.unbake()
    assert equal(regenerate(baked, pipe=loaded), baked)
    assert not any(info.baked for info in loaded.adapters.values())


def test_an_adapter_without_a_file_is_known_by_its_tensors():
    pipe = ImagePipeline.open("emoji")
    studio.attach(pipe.pipe, studio.LoRA(rank=2), name="dog")
    (image,) = pipe.generate("rocket", **FAST)
    assert "sha256" not in read_metadata(image)["adapters"][0]
    assert equal(regenerate(image, pipe=pipe), image)
    with pytest.raises(UnknownName, match="attached, not loaded from a file"):
        regenerate(image)
    with torch.no_grad():
        next(iter(studio.state(pipe.pipe, "dog").values())).add_(1)
    with pytest.raises(DoesNotFit, match="hashes differ"):
        regenerate(image, pipe=pipe)


def test_another_base_is_refused(plain):
    (image,) = plain.generate("rocket", **FAST)
    other = ImagePipeline.open("emoji")
    with torch.no_grad():
        other.pipe.unet.conv_in.bias.add_(1)
    with pytest.raises(DoesNotFit, match="give the one that made it"):
        regenerate(image, pipe=other)
    content = read_metadata(image)
    content["base"]["id"] = "my-model"
    image.info["studio"] = json.dumps(content)
    with pytest.raises(UnknownName, match="'my-model', which is not an embedded one"):
        regenerate(image)


def test_a_base_that_is_quantised_otherwise_is_refused(plain):
    """Its pixels would be others: the hash is that of the weights before they were quantised."""
    pipe = ImagePipeline.open("emoji", quantize="grid4")
    (image,) = pipe.generate("a dog", steps=1)
    assert regenerate(image, pipe=pipe).tobytes() == regenerate(image).tobytes() == image.tobytes()
    with pytest.raises(DoesNotFit, match=r"quantised as unet=grid4, and 'emoji' is quantised as nothing"):
        regenerate(image, pipe=plain)
    with pytest.raises(DoesNotFit, match=r"is quantised as unet=fp8; .* quantize='unet=grid4'"):
        regenerate(image, base=ImagePipeline.open("emoji", quantize="fp8").base)
    with pytest.raises(DoesNotFit, match=r"quantised as nothing.* quantize=None"):
        regenerate(plain.generate("a dog", steps=1)[0], pipe=pipe)


def test_pictures_that_cannot_be_read_are_refused(tmp_path):
    def png(name, **texts):
        info = PngImagePlugin.PngInfo()
        for key, text in texts.items():
            info.add_text(key, text)
        Image.new("RGB", (4, 4)).save(tmp_path / name, pnginfo=info)
        return tmp_path / name

    (tmp_path / "text.png").write_text("no picture")
    whole = png("whole.png", studio="{}").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for file, reason in {
        tmp_path / "none.png": "there is no picture",
        tmp_path / "text.png": "cannot be read as a picture",
        tmp_path / "cut.png": "cannot be read as a picture|no 'studio' text",
        png("other.png", parameters="a dog"): r"no 'studio' text \(texts found: parameters\)",
        png("damaged.png", studio="{"): "damaged",
        png("list.png", studio="[1]"): "damaged",
        png("new.png", studio='{"format": 99}'): "format 99 and this version reads 1; update",
    }.items():
        with pytest.raises(BadFile, match=reason):
            read_metadata(file)


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadFile, match="cannot write"):
        save_png(Image.new("RGB", (4, 4)), tmp_path / "file" / "a.png")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("strength", [0.5, studio.Strength(0.5, unet=0.2, blocks={"up_blocks.*": 0.1})])
def test_strengths_survive_json(strength):
    assert strength_from_json(json.loads(json.dumps(strength_to_json(strength)))) == strength


def test_a_picture_keeps_its_texts_by_its_own_save(plain, tmp_path):
    (image,) = plain.generate("rocket", seeds=7, **FAST)
    image.save(tmp_path / "own.png")
    save_png(image, tmp_path / "ours.png")
    assert (tmp_path / "own.png").read_bytes() == (tmp_path / "ours.png").read_bytes()
    image.save(tmp_path / "plain.jpg")
    assert read_metadata(tmp_path / "own.png")["seed"] == 7
    again = pickle.loads(pickle.dumps(image))
    assert type(again) is type(image) and again.info == image.info and again.tobytes() == image.tobytes()
    assert type(image.resize((32, 32))) is Image.Image and image.copy().info["studio"] == image.info["studio"]


def damaged(good: dict, change: str) -> str:
    """The ``studio`` text with one thing wrong."""
    content = json.loads(json.dumps(good))
    where, _, value = change.partition("=")
    *path, last = where.split(".")
    place = content
    for name in path:
        place = place[int(name) if name.isdigit() else name]
    if value == "gone":
        del place[last]
    else:
        place[last] = json.loads(value)
    return json.dumps(content)


CHANGES = """
base=gone base=7 base.hash=5 base.id=null base.dtype=["float32"] prompt=gone prompt=3 seed=-1 seed=1.5 seed=true
seed=99999999999999999999 steps=0 steps="4" steps=1e9 rows=0 rows=1000000 rows=null width=100000 width=-8 height="64"
guidance="x" guidance=1e999 guidance=null negative=[1] scheduler=gone scheduler=[] scheduler.class=7
scheduler.settings=null scheduler.settings.num_train_timesteps=1000000000 adapters=gone adapters={} adapters=[7]
adapters=[{"name":"a"}] adapters=[{"name":"a","strength":"much"}] adapters=[{"name":1,"strength":1}]
adapters=[{"name":"a","strength":{"value":1,"components":[]}}] adapters=[{"name":"a","strength":1,"sha256":4}]
adapters=[{"name":"a","strength":1},{"name":"a","strength":1}]
""".split()


@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_text_is_a_sentence(plain, change):
    (image,) = plain.generate("rocket", seeds=7, steps=1)
    image.info["studio"] = damaged(json.loads(image.info["studio"]), change)
    with pytest.raises(BadFile, match="the 'studio' text of the picture is damaged"):
        regenerate(image, pipe=plain)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '"x"', "null", "[" * 100_000, '{"format": 1}', '{"format": [1]}', '{"x": "\\ud800"}']
)
def test_a_text_that_is_none_is_a_sentence(plain, text):
    image = Image.new("RGB", (8, 8))
    image.info["studio"] = text
    with pytest.raises(BadFile, match="'studio' text of the picture"):
        regenerate(image, pipe=plain)


def test_a_scheduler_that_cannot_be_made_is_a_sentence(plain):
    (image,) = plain.generate("rocket", seeds=7, steps=1)
    for change in ('scheduler.class="os"', 'scheduler.settings.beta_schedule="x"', 'scheduler.settings.beta_end="x"'):
        broken = image.copy()
        broken.info["studio"] = damaged(json.loads(image.info["studio"]), change)
        with pytest.raises(DoesNotFit, match="scheduler"):
            regenerate(broken, pipe=plain)


def test_pictures_that_are_bombs_or_none_are_sentences(tmp_path):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("studio", "x" * 70_000_000, zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "text.png", pnginfo=texts)
    Image.new("1", (12_000, 12_000)).save(tmp_path / "pixels.png")
    (tmp_path / "drawn.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n")
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for file in sorted(tmp_path.iterdir()):
        with pytest.raises(BadFile, match=rf"{file.name} (cannot be read as a picture|is a|has)"):
            read_metadata(file)
    with pytest.raises(BadFile, match="there is no picture"):
        read_metadata(tmp_path / "none.png")


def test_other_tools_find_an_adapter_by_its_file_or_its_name():
    use = AdapterUse(name="robot", strength=0.8, file="adapter.safetensors", lora_hash="ab" * 32)
    words = {"text": "x", "negative": "", "fields": {}, "encoders": [], "denoiser": "unet"}
    assert parameters_text(adapters=[use], **words) == 'x <lora:robot:0.8>\nLora hashes: "robot: abababababab"'
    named = replace(use, file="dog_v2.safetensors")
    assert parameters_text(adapters=[named], **words).startswith("x <lora:dog_v2:0.8>\n")
