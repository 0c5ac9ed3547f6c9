"""What a file says about itself: alphas, where it comes from, hashes, and what looks wrong."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

import studio
from studio.files.hashes import file_hashes
from studio.files.provenance import provenance_of
from studio.files.training_words import TRAINING, plain_value

UNET = "lora_unet_down_blocks_{}_attentions_0_transformer_blocks_0_{}"


def lora(rank=8, alpha=8.0, layers=4, *, name="attn2_to_k", dtype=torch.float16, beside=True):
    """Random pairs in kohya's names, of SD1's sizes."""
    generator, made = torch.Generator().manual_seed(0), {}
    for number in range(layers):
        module = UNET.format(number, name)
        made[f"{module}.lora_down.weight"] = torch.randn(rank, 768, generator=generator).to(dtype)
        made[f"{module}.lora_up.weight"] = torch.randn(320, rank, generator=generator).to(dtype)
        if beside:
            made[f"{module}.alpha"] = alpha.clone() if torch.is_tensor(alpha) else torch.tensor(float(alpha))
    return made


def written(tmp_path, tensors, metadata=None) -> Path:
    save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
    return tmp_path / "a.safetensors"


# -- alphas ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "alpha",
    [torch.tensor(4.0).bfloat16(), torch.tensor([4.0]).half(), torch.tensor(4), torch.tensor(4.0)],
    ids=["bf16", "one axis", "int64", "fp32"],
)
def test_alphas_are_read_in_every_form(tmp_path, alpha):
    found = studio.inspect(written(tmp_path, lora(rank=16, alpha=alpha)))
    assert (found.ranks, found.alphas, found.scales) == ({16: 4}, {4.0: 4}, {0.25: 4})


def test_alpha_of_a_peft_config_and_of_a_diffusers_header(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(64, 64))
    studio.attach(model, studio.LoRA(rank=8, alpha=32, rank_stabilized=True, targets=("0",)))
    for file in (tmp_path / "peft", tmp_path / "a.safetensors"):
        found = studio.inspect(studio.save(model, file))
        assert found.alphas == {32.0: 1} and list(found.scales) == [pytest.approx(32 / 8**0.5)]


def test_an_alpha_in_the_header_counts_where_no_tensor_has_one(tmp_path):
    found = studio.inspect(written(tmp_path, lora(rank=8, beside=False), {"network_alpha": "4"}))
    assert found.alphas == {4.0: 4} and found.scales == {0.5: 4}


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count what is read")
def test_a_large_file_is_inspected_from_its_header(tmp_path):
    """Of a GB (the file is sparse) the header and the alphas are read, and nothing else."""
    entries, offset = {}, 0
    for number in range(500):
        for part, size in (("lora_down.weight", 1_000_000), ("alpha", 1)):
            entries[f"{UNET.format(number, 'attn2_to_k')}.{part}"] = {
                "dtype": "F16", "shape": [8, size // 8] if size > 1 else [],
                "data_offsets": [offset, offset + 2 * size],
            }  # fmt: skip
            offset += 2 * size
    text = json.dumps(entries).encode()
    with (tmp_path / "big.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + offset)
    studio.inspect(written(tmp_path, lora()))  # what is imported once

    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = read()
    found = studio.inspect(tmp_path / "big.safetensors")
    assert read() - before < 500 * (1 << 15) and len(found.tensors) == 1000  # a buffer for each alpha, at most
    assert (tmp_path / "big.safetensors").stat().st_size > 1_000_000_000


# -- what looks wrong --------------------------------------------------------------------------------------------------


def fused(alpha):
    """A fused layer of rank 24 beside layers of rank 8."""
    part = {"lora_unet_double_blocks_0_img_attn_qkv": 24, "lora_unet_double_blocks_0_img_attn_proj": 8}
    made = {}
    for module, rank in part.items():
        made[f"{module}.lora_down.weight"] = torch.zeros(rank, 3072)
        made[f"{module}.lora_up.weight"] = torch.zeros(9216 if rank == 24 else 3072, rank)
        made[f"{module}.alpha"] = torch.tensor(alpha if rank == 24 else 8.0)
    return made


WRONG = {
    "alpha is missing at 2 layers": ({**lora(layers=2), **lora(layers=2, name="attn2_to_v", beside=False)}, {}),
    "alpha is 0 at 4 layers": (lora(alpha=0), {}),
    "alpha/rank is 8 at 4 layers": (lora(alpha=64), {}),
    "alpha/rank is 0.0125 at 4 layers": (lora(alpha=0.1), {}),
    "alpha/rank is not the same in all layers, 0.5 (2), 1 (2)": (
        {**lora(layers=2), **lora(layers=2, name="attn2_to_v", alpha=4)}, {}
    ),
    "alpha/rank is a part of the others' at 1 layer (lora_unet_double_blocks_0_img_attn_qkv)": (fused(8.0), {}),
    "it was trained with split_qkv": (lora(), {"ss_network_args": '{"split_qkv": "True"}'}),
    "the header says ss_network_dim=32, and no layer has that rank (they have 8)": (lora(), {"ss_network_dim": "32"}),
    "the header says ss_network_alpha=1, and no layer has that alpha": (lora(), {"ss_network_alpha": "1.0"}),
    "alpha is NaN at 4 layers": (lora(alpha=torch.tensor(float("nan"))), {}),
    "alpha is stored as a whole number at 4 layers": (lora(alpha=torch.tensor(8)), {}),
    "8 tensors are of 8 bits (F8_E4M3)": (lora(dtype=torch.float8_e4m3fn), {}),
    'the header says ss_base_model_version="sdxl_base_v1-0", which is Stable Diffusion XL': (
        lora(), {"ss_base_model_version": "sdxl_base_v1-0"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("sentence", WRONG)
def test_what_looks_wrong_is_said_in_a_sentence(tmp_path, sentence):
    """Each of these files says one thing that is suspicious; checks 7 and 30 among them."""
    tensors, metadata = WRONG[sentence]
    said = studio.inspect(written(tmp_path, tensors, metadata)).suspicions
    assert any(line.startswith(sentence) for line in said), said
    assert all("\n" not in line and line[-1] != "." for line in said)


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        (lora(), {}),
        (lora(alpha=4), {"ss_network_dim": "8", "ss_network_alpha": "4.0", "ss_base_model_version": "sd_v1"}),
        (lora(), {"ss_network_dim": "Dynamic", "ss_network_alpha": "None"}),
        (lora(), {"modelspec.architecture": "stable-diffusion-v1/lora"}),
        (lora(beside=False), {}),
        (fused(24.0), {"ss_network_args": "None"}),
        (fused(24.0), {"ss_network_args": '{"split_qkv": "False"}'}),
    ],
)
def test_sound_files_say_nothing(tmp_path, tensors, metadata):
    assert studio.inspect(written(tmp_path, tensors, metadata)).suspicions == ()


def test_the_family_that_a_header_states_counts_where_the_layers_allow_it(tmp_path):
    """Attentions of Flux and Chroma have the same names and sizes."""
    tensors = {}
    for module in ("transformer.transformer_blocks.0.attn.to_q", "transformer.single_transformer_blocks.0.attn.to_q"):
        tensors |= {f"{module}.lora_A.weight": torch.zeros(4, 3072), f"{module}.lora_B.weight": torch.zeros(3072, 4)}
    for stated, family in (("flux1", "flux1"), ("chroma", "chroma"), ("sdxl_1.0", "flux1"), ("", "flux1")):
        found = studio.inspect(written(tmp_path, tensors, {"ss_base_model_version": stated}))
        assert found.family == family
        assert bool(found.suspicions) == (stated == "sdxl_1.0")


# -- where it comes from -----------------------------------------------------------------------------------------------

KOHYA = {
    "ss_output_name": "sksdog", "ss_sd_model_name": "v1-5-pruned.safetensors", "ss_new_sd_model_hash": "ab" * 32,
    "ss_base_model_version": "sd_v1", "ss_steps": "1600", "ss_max_train_steps": "2000", "ss_epoch": "8",
    "ss_num_epochs": "10", "ss_learning_rate": "0.0", "ss_unet_lr": "1e-04", "ss_text_encoder_lr": "5e-05",
    "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1)", "ss_lr_scheduler": "cosine",
    "ss_lr_warmup_steps": "100", "ss_resolution": "(512, 768)", "ss_num_train_images": "20", "ss_num_reg_images": "0",
    "ss_seed": "42", "ss_mixed_precision": "bf16", "ss_clip_skip": "None", "ss_noise_offset": "0.0357",
    "ss_session_id": "123", "ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "lokr", "factor": "8"}',
    "ss_tag_frequency": json.dumps({"10_sks dog": {"sks dog": 20, "grass": 3}, "5_more": {" grass": 4, "bad": "x"}}),
}  # fmt: skip


def test_kohyas_settings_are_told_in_words():
    said = provenance_of(KOHYA)
    assert said.title == "sksdog" and said.base == "v1-5-pruned.safetensors" and said.base_hash == "ab" * 32
    assert said.triggers == () and said.tags == {"sks dog": 20, "grass": 7}
    assert said.training == {
        "tool": "kohya's scripts", "network": "lycoris.kohya, algo lokr, factor 8", "steps": "1600",
        "epochs": "8 of 10", "denoiser's rate": "0.0001", "text encoder's rate": "5e-05",
        "optimizer": "AdamW8bit(weight_decay=0.1)", "schedule": "cosine, 100 steps of warm-up",
        "resolution": "512x768", "images": "20", "seed": "42", "precision": "bf16", "noise offset": "0.0357",
    }  # fmt: skip


def test_folders_name_what_captions_do_not():
    said = provenance_of({"ss_dataset_dirs": json.dumps({"10_sks dog": {"n_repeats": 10, "img_count": 7}, "reg": {}})})
    assert said.tags == {"sks dog": 7} and said.triggers == ()


def test_ai_toolkit_states_its_trigger_word_as_a_tag():
    said = provenance_of({
        "software": json.dumps({"name": "ai-toolkit", "repo": "https://…", "version": "0.1.0"}), "name": "my_flux",
        "training_info": json.dumps({"step": 2000, "epoch": 12}), "version": "1.0", "ss_base_model_version": "flux.1",
        "ss_tag_frequency": json.dumps({"1_p3r5on": {"p3r5on": 1}}),
    })  # fmt: skip
    assert said.triggers == ("p3r5on",) and said.tags == {} and said.title == "my_flux"
    assert said.training == {"tool": "ai-toolkit 0.1.0", "steps": "2000", "epochs": "12"}


def test_onetrainers_config_and_the_model_spec():
    config = {"base_model_name": "sdxl.safetensors", "epochs": 30, "learning_rate": 3e-4, "batch_size": 2,
              "resolution": "1024", "optimizer": {"optimizer": "ADAFACTOR"}}  # fmt: skip
    said = provenance_of({
        "ot_branch": "master", "ot_revision": "15967e69980d", "ot_config": json.dumps(config),
        "modelspec.trigger_phrase": "sks dog", "modelspec.license": "CC0", "modelspec.author": "None",
        "modelspec.title": '"Dog"', "modelspec.date": "2025-01-02",
    })  # fmt: skip
    assert (said.triggers, said.licence, said.author, said.title, said.date) == (
        ("sks dog",), "CC0", "", "Dog", "2025-01-02",
    )  # fmt: skip
    assert said.base == "sdxl.safetensors"
    assert said.training == {"tool": "OneTrainer 15967e69", "epochs": "30", "learning rate": "0.0003", "batch": "2",
                             "optimizer": "ADAFACTOR", "resolution": "1024"}  # fmt: skip


NESTED = "[" * 100_000
HUGE = '{"epochs": 1%s, "batch_size": -1e999, "step": 1e999}' % ("0" * 400)
HOSTILE = [
    HUGE,
    "None",
    "",
    "null",
    NESTED,
    "{" * 100_000,
    '{"a": ' * 5_000,
    "[]",
    "3",
    '"',
    "{}",
    "9" * 10_000,
    "\0",
    "-",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:8])
def test_metadata_that_makes_no_sense_says_nothing_and_breaks_nothing(text):
    keys = {*KOHYA, "software", "training_info", "ot_config", "ss_dataset_dirs", "modelspec.trigger_phrase", "trigger"}
    said = provenance_of(dict.fromkeys(keys, text))
    assert all(len(value) <= 1200 for value in said.training.values()) and len(said.title) <= 400
    assert plain_value("None") == "" and set(said.training) <= set(TRAINING)


# -- hashes ------------------------------------------------------------------------------------------------------------


def kohyas(tensors, metadata):
    """What sd-scripts stores: both hashes of a file in memory that has the ss_ metadata alone."""
    content = safetensors.torch.save(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    start = 8 + int.from_bytes(content[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(content[start:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8],
    }


@pytest.mark.parametrize("layers", [1, 200], ids=["below 1 MiB", "2 MiB"])
def test_the_hashes_are_kohyas_and_those_of_the_bytes(tmp_path, layers):
    """Check 40: the model hash is of the payload; the legacy hash of a file below 1 MiB is that of nothing."""
    tensors, metadata = lora(layers=layers), {"ss_steps": "3", "ss_training_comment": 'é "quoted"\n', "other": "x"}
    stored = kohyas(tensors, metadata)
    file = written(tmp_path, tensors, {**metadata, **stored})
    found, content = file_hashes(file), file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert found.file == hashlib.sha256(content).hexdigest() and found.short == found.file[:10]
    assert found.payload == hashlib.sha256(content[start:]).hexdigest() and found.short_payload == found.payload[:12]
    assert found.legacy == stored["sshs_legacy_hash"] and (found.legacy == "e3b0c442") == (layers == 1)
    assert found.wrong == {} and set(found.right) == set(stored) and studio.inspect(file).hashes == stored


def test_a_legacy_hash_below_a_header_of_a_mib_is_neither_right_nor_wrong(tmp_path):
    """The bytes that it is of are the header's then, as another program spelled it."""
    tensors, metadata = lora(layers=1), {"ss_tag_frequency": "x" * 0x110000}
    stored = kohyas(tensors, metadata)
    found = file_hashes(written(tmp_path, tensors, {**metadata, **stored}))
    assert found.legacy == "" and found.wrong == {} and found.right == ("sshs_model_hash",)


def test_a_hash_that_is_not_true_is_named(tmp_path):
    tensors, metadata = lora(layers=200), {"ss_steps": "3"}
    stored = kohyas(tensors, metadata) | {"modelspec.hash_sha256": "0x" + "0" * 64}
    changed = {key: tensor * 2 for key, tensor in tensors.items()}
    found = file_hashes(written(tmp_path, changed, {**metadata, **stored}))
    assert set(found.wrong) == set(stored) and found.wrong["sshs_model_hash"] == found.payload


def test_onetrainer_hashes_by_name(tmp_path):
    tensors = lora(layers=2)  # two types, so that the payload lies in another order
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    file = written(tmp_path, tensors, {"modelspec.hash_sha256": f"0x{digest.hexdigest()}"})
    found = file_hashes(file)
    assert digest.hexdigest() != found.payload and found.wrong == {}
    assert load_file(file).keys() == tensors.keys()
