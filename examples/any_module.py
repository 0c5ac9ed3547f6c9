"""Adapters on any module: attach, train by hand, blend, bake, and give the module back as it was.

python examples/any_module.py
"""

import torch
from torch import nn

import studio

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
before = {key: tensor.clone() for key, tensor in model.state_dict().items()}

x, y = torch.randn(256, 16), torch.randn(256, 16)
configs = {"first": studio.LoRA(rank=4, targets=("0", "2")), "second": studio.DoRA(rank=2, targets=("2",))}
for name, config in configs.items():
    studio.blend(model, {})
    studio.attach(model, config, name=name)
    print(name, studio.trainable(model))
    parameters = studio.state(model, name).values()
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(100):
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"  loss {loss.item():.4f}")
    for parameter in parameters:
        parameter.requires_grad_(False)

studio.blend(model, {"first": 0.5, "second": 0.5})
live = model(x)
studio.bake(model)
print("live and baked differ by", float((model(x) - live).abs().max()))
studio.unbake(model)

strengths = torch.linspace(0, 1, 256).tolist()  # one strength per sample
studio.blend(model, {"first": strengths})
model(x)

studio.detach(model)
assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
print("the module is bit for bit what it was")
