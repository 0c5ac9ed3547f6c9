"""With ``sys.modules["peft"] = studio.peft`` diffusers and transformers treat our layers as they treat PEFT's."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAD = """
import sys, warnings
import torch
import studio.peft
sys.modules["peft"] = studio.peft
torch.manual_seed(0)

def same(a, b, tolerance=1e-5):
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)
"""

DIFFUSERS = """
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer

def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()

inputs = (torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 3, 8))
run = lambda model: model(*inputs).sample
file = {"weight_name": "pytorch_lora_weights.safetensors"}
with torch.no_grad():
    model, plain = unet(), run(unet())
    for name in ("dog", "ink"):
        model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False), name)
    model.set_adapters("dog"); dog = run(model)
    model.set_adapters("ink"); ink = run(model)
    assert not same(dog, plain, 1e-4) and not same(dog, ink, 1e-4)
    model.set_adapters(["dog", "ink"], weights=[0.5, 0.25]); both = run(model)
    assert sorted(model.active_adapters()) == ["dog", "ink"]
    model.fuse_lora(); assert same(run(model), both); model.unfuse_lora()
    assert same(run(model), both, 1e-6)
    model.disable_adapters(); assert same(run(model), plain, 0.0)
    model.enable_adapters(); assert same(run(model), both, 0.0)
    model.set_adapters("dog")
    model.save_lora_adapter(folder, adapter_name="dog")
    other = unet()
    other.load_lora_adapter(folder, adapter_name="cat", prefix=None, **file)
    assert same(run(other), dog)
    other.load_lora_adapter(folder, adapter_name="cat", prefix=None, hotswap=True, **file)
    assert same(run(other), dog)
    model.delete_adapters("dog"); model.set_adapters("ink"); assert same(run(model), ink)
    model.unload_lora(); assert same(run(model), plain, 0.0)
    assert not any(isinstance(module, BaseTunerLayer) for module in model.modules())
print("done")
"""

TRANSFORMERS = """
from transformers import LlamaConfig, LlamaForCausalLM
from peft import LoraConfig, PeftModel, get_peft_model

def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                        num_attention_heads=2)).eval()

ids = torch.arange(8).view(1, 8)
with torch.no_grad():
    model, plain = llama(), llama()(ids).logits
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False), adapter_name="a")
    first = model(ids).logits
    assert not same(first, plain, 1e-4) and model.active_adapters() == ["a"]
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False), adapter_name="b")
    second = model(ids).logits
    model.set_adapter("a"); assert same(model(ids).logits, first, 0.0)
    model.disable_adapters(); assert same(model(ids).logits, plain, 0.0)
    model.enable_adapters(); assert same(model(ids).logits, first, 0.0)
    assert set(model.get_adapter_state_dict("a")) == {
        f"model.layers.0.self_attn.{x}_proj.lora_{y}.weight" for x in "qv" for y in "AB"}
    model.save_pretrained(folder)
    other = llama()
    other.load_adapter(folder, "again")
    assert same(other(ids).logits, first)
    model.delete_adapter("a"); model.set_adapter("b"); assert same(model(ids).logits, second, 0.0)

from transformers import Trainer, TrainingArguments
wrapped = get_peft_model(llama(), LoraConfig(r=4, task_type="CAUSAL_LM"))
data = [{"input_ids": ids[0], "labels": ids[0]}] * 8
arguments = TrainingArguments(folder + "/run", max_steps=4, learning_rate=1e-2, report_to=[], use_cpu=True,
                              logging_steps=1, per_device_train_batch_size=2, save_steps=4, disable_tqdm=True,
                              label_names=["labels"])
trainer = Trainer(wrapped, arguments, train_dataset=data)
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
assert losses[-1] < losses[0], losses
saved = PeftModel.from_pretrained(llama(), folder + "/run/checkpoint-4")
with torch.no_grad():
    assert same(saved(ids).logits, wrapped.eval()(ids).logits)
print("done")
"""


@pytest.mark.parametrize("library, script", [("diffusers", DIFFUSERS), ("transformers", TRANSFORMERS)])
def test_under_the_name_peft(library, script, tmp_path):
    pytest.importorskip(library)
    code = f"{HEAD}\nfolder = {str(tmp_path)!r}\n{script}"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr[-3000:]
