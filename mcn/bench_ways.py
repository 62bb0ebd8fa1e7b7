"""Ways to the gradient of a meta step that ``mcn bench step`` compares: ours, MAML's, other libraries'.

Every way is a function ``(support, query, params, inner_lr) -> gradients`` of the same two losses at the
same parameters. Other libraries want a module whose parameters they can exchange: :class:`AsModule` is
one around any loss, so that all of them differentiate the very same computation.
"""

import importlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor, nn

from mcn.meta import Loss, Params, meta_gradient

Step = Callable[[Loss, Loss, Params, float], Params]


def plain(support: Loss, query: Loss, params: Params, inner_lr: float) -> Params:
    """Two plain training steps, one on each half of the clips: the unit that all others are measured in."""
    first = meta_gradient(None, support, params, 0.0, inner_steps=0).gradients
    second = meta_gradient(None, query, params, 0.0, inner_steps=0).gradients
    return {name: first[name] + second[name] for name in params}


def textbook(support: Loss, query: Loss, params: Params, inner_lr: float) -> Params:
    """MAML as written: one graph through the inner update (``create_graph=True``), differentiated whole.

    >>> half = lambda target: lambda p: 0.5 * (p["w"] - target).square().sum()
    >>> textbook(half(1.0), half(0.0), {"w": torch.tensor([3.0])}, 0.5)
    {'w': tensor([1.])}
    """
    theta = {name: p.detach().requires_grad_() for name, p in params.items()}
    g = torch.autograd.grad(
        support(theta), tuple(theta.values()), create_graph=True, allow_unused=True, materialize_grads=True
    )
    adapted = {name: p - inner_lr * d for (name, p), d in zip(theta.items(), g, strict=True)}
    del g
    parts = torch.autograd.grad(
        query(adapted), tuple(theta.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(theta, parts, strict=True))


class AsModule(nn.Module):
    """Parameters as a module's own, and a loss of them as its forward pass.

    >>> AsModule({"a.b": torch.ones(2)})(lambda p: p["a.b"].sum())
    tensor(2., grad_fn=<SumBackward0>)
    """

    def __init__(self, params: Params) -> None:
        super().__init__()
        self._own = {name: f"p{number}" for number, name in enumerate(params)}  # no dots in their names
        for name, attribute in self._own.items():
            setattr(self, attribute, nn.Parameter(params[name].detach()))

    def forward(self, loss: Loss) -> Tensor:
        """The loss at the parameters that the module has now."""
        return loss({name: getattr(self, attribute) for name, attribute in self._own.items()})

    def gradients(self) -> Params:
        """What ``backward()`` left, zero where it left nothing."""
        return _gradients({name: getattr(self, attribute) for name, attribute in self._own.items()})


def _gradients(leaves: Params) -> Params:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in leaves.items()}


def _learn2learn(support: Loss, query: Loss, params: Params, inner_lr: float) -> Params:
    library = importlib.import_module("learn2learn.algorithms.maml")
    module = AsModule(params)
    learner = library.MAML(module, lr=inner_lr, allow_unused=True).clone()
    learner.adapt(learner(support))
    learner(query).backward()
    return module.gradients()


def _higher(support: Loss, query: Loss, params: Params, inner_lr: float) -> Params:
    library = importlib.import_module("higher")
    module = AsModule(params)
    optimiser = torch.optim.SGD(module.parameters(), lr=inner_lr)
    with library.innerloop_ctx(module, optimiser, copy_initial_weights=False) as (functional, inner):
        inner.step(functional(support))
        functional(query).backward()
    return module.gradients()


def _torchopt(support: Loss, query: Loss, params: Params, inner_lr: float) -> Params:
    library = importlib.import_module("torchopt")
    module = AsModule(params)
    own = dict(module.named_parameters())
    library.MetaSGD(module, lr=inner_lr).step(module(support))
    module(query).backward()
    found = (own[attribute].grad for attribute in module._own.values())
    return {
        name: torch.zeros_like(params[name]) if g is None else g
        for name, g in zip(params, found, strict=True)
    }


def _ours(**options: str) -> Step:
    return lambda support, query, params, inner_lr: (
        meta_gradient(support, query, params, inner_lr, **options).gradients  # type: ignore[arg-type]
    )


#: The ways by name, in the order of the table.
WAYS: dict[str, Step] = {
    "plain": plain,
    "first": _ours(order="first"),
    "textbook": textbook,
    "learn2learn": _learn2learn,
    "higher": _higher,
    "torchopt": _torchopt,
    "fast": _ours(method="fast"),
    "balanced": _ours(method="balanced"),
    "lean": _ours(method="lean"),
}
_MODULES = {"learn2learn": "learn2learn.algorithms.maml", "higher": "higher", "torchopt": "torchopt"}


def missing(way: str) -> str:
    """Why a way cannot be taken here: ``"not installed"``, what its import raises, or nothing.

    >>> missing("lean")
    ''
    """
    if way not in _MODULES:
        return ""
    try:
        version(way)
        importlib.import_module(_MODULES[way])
    except PackageNotFoundError:
        return "not installed"
    except Exception as error:  # a library of another time may fail in any way; the others are still measured
        return f"cannot be imported: {type(error).__name__}"
    return ""


def versions() -> dict[str, str]:
    """Versions of the other libraries that can be used here."""
    return {way: version(way) for way in _MODULES if not missing(way)}
