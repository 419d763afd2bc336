"""The optimizer: Muon for the matrices inside the layers, AdamW for everything else.

Muon makes each update of a matrix nearly orthogonal. On a budget of minutes on one core it reaches
a given loss in clearly fewer tokens than AdamW alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalize(batch: Tensor) -> Tensor:
    """Bring a batch of matrices near to orthogonal ones, by a quintic Newton-Schulz iteration."""
    a, b, c = NEWTON_SCHULZ
    x = batch.bfloat16()
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x.mT if tall else x).float()
    return result


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal; matrices of one shape are worked on together."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Move every matrix against its orthogonalized momentum."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    by_shape[param.shape].append(param)
            for shape, params in by_shape.items():
                updates = [self._momentum(param, group["momentum"]) for param in params]
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for param, update in zip(params, orthogonalize(torch.stack(updates)), strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                    param.add_(update, alpha=-group["lr"] * scale)

    def _momentum(self, param: Tensor, momentum: float) -> Tensor:
        assert param.grad is not None
        state = self.state[param]
        if "buffer" not in state:
            state["buffer"] = torch.zeros_like(param)
        buffer: Tensor = state["buffer"].lerp_(param.grad, 1 - momentum)
        return param.grad.lerp(buffer, momentum)


def optimizers(model: nn.Module, muon_lr: float, adam_lr: float) -> tuple[Muon, torch.optim.AdamW]:
    """Share the parameters out between the two optimizers."""
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, param in model.named_parameters():
        inner = param.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices if inner else rest).append(param)
    return (
        Muon(matrices, lr=muon_lr, momentum=0.95, weight_decay=0.02),
        torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    )
