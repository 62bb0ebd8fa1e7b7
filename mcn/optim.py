"""What the optimiser is told: rate and order of the gradient at each step, and which parameters decay."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mcn.settings import MetaConfig, OptimConfig


def learning_rate(config: OptimConfig, step: int, total: int) -> float:
    """The rate at ``step`` of ``total``: warm-up, then steps, cosine or constant (protocol row 28).

    >>> [round(learning_rate(OptimConfig(lr=1.0), step, 12), 3) for step in (0, 6, 9, 11)]
    [1.0, 0.1, 0.01, 0.001]
    """
    done = step / max(total, 1)
    if done < config.warmup:
        return config.lr * (step + 1) / max(math.ceil(config.warmup * total), 1)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "cosine":
        progress = (done - config.warmup) / max(1 - config.warmup, 1e-9)
        return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * 0.1 ** sum(done >= milestone for milestone in config.milestones)


def order_at(config: MetaConfig, step: int, total: int) -> str:
    """The order of the meta-gradient at ``step`` of ``total``: first before exact, where that is asked for.

    MAML++ (Antoniou, Edwards and Storkey, 2019, derivative-order annealing) does so because the exact order
    is the less stable one far from a good start.

    >>> [order_at(MetaConfig(first_order_until=0.5), step, 4) for step in range(4)]
    ['first', 'first', 'exact', 'exact']
    """
    return "first" if step / max(total, 1) < config.first_order_until else config.order


def parameter_groups(module: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Parameters for SGD: all with weight decay, or all but those of BatchNorm and biases (row 55).

    >>> groups = parameter_groups(nn.Linear(2, 2), OptimConfig(weight_decay=0.1, decay_norm=False))
    >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
    [(1, 0.1), (1, 0.0)]
    """
    parameters = list(module.parameters())
    if config.decay_norm:
        return [{"params": parameters, "weight_decay": config.weight_decay}]
    # BatchNorm's scale and shift and every bias are the vectors; weights have two dimensions or more.
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def sgd(groups: list[dict[str, Any]], config: OptimConfig, device: torch.device) -> torch.optim.SGD:
    """SGD with momentum over :func:`parameter_groups`; on a GPU in one kernel for all parameters (fused).

    >>> groups = parameter_groups(nn.Linear(2, 2), OptimConfig())
    >>> sgd(groups, OptimConfig(), torch.device("cpu")).defaults["momentum"]
    0.9
    """
    fused = True if device.type == "cuda" else None
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)


def laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """A gradient in its parameter's memory order, which fused optimisers ask for; the same if it has it.

    >>> like = torch.zeros(2, 3, 1, 2, 2).to(memory_format=torch.channels_last_3d)
    >>> laid_out_as(like, torch.ones(2, 3, 1, 2, 2)).stride() == like.stride()
    True
    """
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def check_finite(loss: Tensor, gradients: Iterable[Tensor]) -> None:
    """Raise ``FloatingPointError`` for a loss or gradient that is not finite, before it does harm."""
    if not math.isfinite(loss.item()):
        raise FloatingPointError(f"the loss is {loss.item()}")
    largest = nn.utils.get_total_norm(gradients, norm_type=math.inf).item()
    if not math.isfinite(largest):
        raise FloatingPointError(f"the gradient is {largest}")
