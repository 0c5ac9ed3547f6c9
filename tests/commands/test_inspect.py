"""``studio inspect``: its rows, its JSON, hashes, norms and the picture."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

import studio
from studio.cli import main
from studio.pipelines import ImagePipeline


def run(*words, code=0):
    result = CliRunner(env={"COLUMNS": "300"}).invoke(main, ["inspect", *map(str, words)], prog_name="studio")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def adapter(tiny_base, tmp_path_factory):
    """On a tiny base, which is none of the public models."""
    pipe = ImagePipeline.open(tiny_base).pipe
    studio.attach(pipe, studio.LoRA(rank=2, alpha=1, targets=("unet.*.to_q", "text_encoder.*.q_proj")), name="dog")
    for number, tensor in enumerate(studio.state(pipe, "dog").values()):
        tensor.data = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number))
    facts = {"trigger": "sks dog", "licence": "CC0", "steps": "40", "ss_clip_skip": "2", "note": "of mine"}
    return studio.save(pipe, tmp_path_factory.mktemp("files") / "dog.safetensors", name="dog", metadata=facts)


@pytest.fixture
def kohya(tmp_path):
    module, tensors = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", {}
    tensors[f"{module}.lora_down.weight"], tensors[f"{module}.lora_up.weight"] = (
        torch.zeros(4, 768),
        torch.zeros(1280, 4),
    )
    tensors[f"{module}.alpha"] = torch.tensor(0.0)
    tags = json.dumps({"10_sks dog": {"sks dog": 20, "grass": 3}})
    said = {"ss_tag_frequency": tags, "ss_unet_lr": "1e-4", "sshs_model_hash": "0" * 64, "ss_steps": "None"}
    save_file(tensors, tmp_path / "kohya.safetensors", metadata=said)
    return tmp_path / "kohya.safetensors"


def rows(result):
    """The rows of the first table: name -> text; what has no name belongs to the row above."""
    found: dict[str, str] = {}
    name = ""
    for line in result.stdout.splitlines():
        first, _, rest = line.partition("  ")
        name = first.strip() or name
        found[name] = f"{found[name]}; {rest.strip()}" if name in found else rest.strip()
    return found


def test_rows_of_a_file_of_the_studio(adapter):
    said = rows(run(adapter))
    assert (said["method"], said["rank"], said["alpha"], said["scale"]) == ("lora", "2", "1", "0.5")
    assert (said["name"], said["trigger"], said["licence"]) == ("dog", "sks dog", "CC0")
    assert said["training"].startswith("tool: adapter-studio") and "steps: 40" in said["training"]
    assert "note=of mine" in said["also"] and "entries of other programs" in said["also"]
    assert "look at" not in said


def test_rows_of_a_file_of_kohyas(kohya):
    said = rows(run(kohya, "--hashes"))
    assert said["captions"] == "most often sks dog (20), grass (3): a hint at trigger words, no statement"
    assert said["training"] == "denoiser's rate: 0.0001" and "trigger" not in said
    assert "alpha is 0 at 1 layer" in said["look at"] and "the header says sshs_model_hash=0000" in said["look at"]
    assert said["legacy hash"] == "e3b0c442"
    assert said["payload hash"].partition(" ")[0] in said["look at"]


def test_json_has_everything(kohya):
    told = json.loads(run(kohya, "--json", "--hashes").stdout)
    assert told["provenance"]["tags"] == {"sks dog": 20, "grass": 3} and told["alphas"] == {"0": 1}
    made = told["hashes"]["made"]
    assert made["auto_v2"] == made["file"][:10] and made["auto_v3"] == made["payload"][:12]
    assert made["wrong"] == {"sshs_model_hash": made["payload"]} and len(told["suspicions"]) == 2
    assert json.loads(run(kohya, "--json").stdout)["hashes"]["made"] is None


def test_norms_are_a_table_json_and_a_picture(adapter, tiny_base, tmp_path):
    place = tmp_path / "dog.png"
    result = run(adapter, "--norms", "--base", tiny_base, "--picture", place)
    assert "M00" in result.stdout and "text_encoder 0" in result.stdout and "█" in result.stdout
    with Image.open(place) as picture:
        assert picture.format == "PNG" and picture.width > 300
    told = json.loads(run(adapter, "--norms", "--base", tiny_base, "--json").stdout)["norms"]
    tensors = load_file(adapter)
    for layer in told["layers"]:
        name = layer["layer"].replace("text_encoder.encoder", "text_encoder.text_model.encoder")  # as files have it
        down, up = (tensors[f"{name}.{part}.weight"].double() for part in ("lora_A", "lora_B"))
        assert layer["norm"] == pytest.approx(0.5 * float((up @ down).norm()), rel=1e-6)
        assert layer["measure"] == "change"
    squares = sum(layer["norm"] ** 2 for layer in told["layers"])
    assert told["whole"] == pytest.approx(squares**0.5) and set(told["measures"]) == {"change"}


def test_norms_of_a_public_models_adapter_need_no_base(kohya):
    told = json.loads(run(kohya, "--norms", "--json").stdout)["norms"]
    assert told["base"] == "sd1" and list(told["blocks"]) == ["M00"] and told["kinds"] == {"cross-attention, k": 0.0}


def test_refusals(adapter, kohya, tmp_path):
    assert "give --norms too" in run(adapter, "--base", "emoji", code=2).stderr
    assert "did you mean 'flux1'" in run(adapter, "--norms", "--family", "flux9", code=2).stderr
    save_file({"model.diffusion_model.x.weight": torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    assert "norms" not in json.loads(run(tmp_path / "x.safetensors", "--norms", "--json", code=2).stdout)


def test_a_peft_folder_has_hashes_and_norms(adapter, tiny_base, tmp_path):
    pipe = ImagePipeline.open(tiny_base).pipe
    studio.attach(pipe.unet, studio.LoRA(rank=2, targets=("to_q",)))
    folder = studio.save(pipe.unet, tmp_path / "peft", format="peft")
    told = json.loads(run(folder, "--hashes", "--norms", "--base", tiny_base, "--json").stdout)
    assert told["format"] == "peft" and told["hashes"]["made"]["wrong"] == {} and told["norms"]["whole"] == 0
