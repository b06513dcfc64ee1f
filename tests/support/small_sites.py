"""A few steps at small sites, and their average: what every design has to stay exact through."""

import copy

import torch

from popmi_core.models import exchanged_state, load_exchanged


def images(side, count=3, seed=9, dtype=torch.float64):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed)).to(dtype)


def trained(model, side, seed):
    model = copy.deepcopy(model)
    dtype = next(model.parameters()).dtype
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.05)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images(side, 2, seed, dtype)), torch.arange(2)).backward()
        optimizer.step()
    return model.eval()


def averaged(models):
    states = [exchanged_state(model) for model in models]
    fused = copy.deepcopy(models[0])
    load_exchanged(fused, {name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]})
    return fused
