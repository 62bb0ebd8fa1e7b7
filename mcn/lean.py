r"""The Hessian-vector product of a loss that is a chain of blocks, with one block's activations at a time.

Forward over reverse: the derivative of the gradient :math:`g(\theta)` along :math:`v` is what remains of
backpropagation when every quantity carries its tangent, its derivative along :math:`v`. Done over a
whole network, that keeps all activations twice. Here they are kept at the borders of blocks only:

1. *forward sweep*: each block's output and its tangent are kept; what lies inside a block is let go;
2. *backward sweep*, last block first: the block is computed again from its border, and the gradient of
   its output, with its tangent, becomes those of its inputs and parameters.

Blocks are pure functions. Where one draws random numbers from PyTorch's own generators (dropout), the
second computation draws the same ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

Params = dict[str, Tensor]
Dual = tuple[Tensor, Tensor]  # a value and its tangent
RandomState = tuple[Tensor, list[int], list[Tensor]]  # of the CPU, and of each device in use


@dataclass(frozen=True)
class Block:
    """One piece of a loss: ``function(params, *inputs)`` gives one tensor and changes nothing."""

    function: Callable[..., Tensor]
    names: tuple[str, ...] = ()  #: of the parameters it takes
    inputs: tuple[int, ...] = ()  #: numbers of the earlier blocks whose outputs it takes


@runtime_checkable
class ChainedLoss(Protocol):
    """A loss that can be had in one piece, and as blocks of which the last gives the loss."""

    def __call__(self, params: Params, /) -> Tensor:
        """The loss at ``params``, a scalar."""

    def blocks(self) -> Sequence[Block]:
        """The same loss as blocks, in the order in which they are computed."""


@dataclass(frozen=True)
class Chain:
    """A loss that is made of blocks.

    >>> double = Block(lambda p: 2 * p["w"], names=("w",))
    >>> square = Block(lambda p, x: x.square().sum(), inputs=(0,))
    >>> Chain((double, square))({"w": torch.ones(3)})
    tensor(12.)
    """

    parts: tuple[Block, ...]

    def __call__(self, params: Params, /) -> Tensor:
        """The loss at ``params``: each block once, in order."""
        outputs: list[Tensor] = []
        for block in self.parts:
            outputs.append(block.function(_own(block, params), *(outputs[i] for i in block.inputs)))
        return outputs[-1]

    def blocks(self) -> Sequence[Block]:
        """The blocks that it is made of."""
        return self.parts


def hessian_product(blocks: Sequence[Block], params: Params, v: Params) -> Params:
    r""":math:`H(\theta) v`, for the loss that ``blocks`` make, at ``params``; by parameter name.

    Exact; only the order of rounding differs from that of one graph over the whole loss. A parameter
    that no block takes gets zero.

    >>> cube = Block(lambda p: p["w"] ** 3, names=("w",))
    >>> total = Block(lambda p, x: x.sum(), inputs=(0,))
    >>> hessian_product([cube, total], {"w": torch.tensor([1.0, 2.0])}, {"w": torch.ones(2)})
    {'w': tensor([ 6., 12.])}
    """
    theta = {name: p.detach() for name, p in params.items()}
    cuda = sorted({p.device.index for p in theta.values() if p.device.type == "cuda"})
    with torch.no_grad(), torch.random.fork_rng(cuda):  # the caller's generators stay where they are
        borders, states = _forward_sweep(blocks, theta, v)
        return _backward_sweep(blocks, theta, v, borders, states)


def _forward_sweep(
    blocks: Sequence[Block], theta: Params, v: Params
) -> tuple[dict[int, Dual], list[RandomState]]:
    """Outputs of all blocks but the last, with tangents; and the generators' states before each block."""
    borders: dict[int, Dual] = {}
    states: list[RandomState] = []
    for number, block in enumerate(blocks):
        states.append(_random_state(theta))
        if number < len(blocks) - 1:  # the last is computed where its way back begins
            values, tangents = _inputs_of(block, borders)
            borders[number] = torch.func.jvp(
                block.function, (_own(block, theta), *values), (_own(block, v), *tangents)
            )
    return borders, states


def _backward_sweep(
    blocks: Sequence[Block], theta: Params, v: Params, borders: dict[int, Dual], states: list[RandomState]
) -> Params:
    """Tangents of the parameters' gradients; empties ``borders`` on its way."""
    product = {name: torch.zeros_like(p) for name, p in theta.items()}
    arriving: dict[int, Dual] = {}  # gradient of a block's output, with tangent, from all that take it
    for number in reversed(range(len(blocks))):
        block = blocks[number]
        borders.pop(number, None)
        if number < len(blocks) - 1 and number not in arriving:
            continue  # nothing that follows takes its output
        _set_random_state(states[number])
        (_, *gradients), (of_parameters, *tangents) = _back_through(
            block, _own(block, theta), _own(block, v), _inputs_of(block, borders), arriving.pop(number, None)
        )
        for name, tangent in of_parameters.items():
            product[name] += tangent
        for i, gradient, tangent in zip(block.inputs, gradients, tangents, strict=True):
            before = arriving.get(i)
            arriving[i] = (
                (gradient, tangent) if before is None else (before[0] + gradient, before[1] + tangent)
            )
    return product


def _back_through(
    block: Block, p: Params, v: Params, inputs: tuple[list[Tensor], list[Tensor]], output: Dual | None
) -> tuple[tuple, tuple]:
    """Gradients of a block's parameters and inputs, and their tangents, from those of its output."""
    values, tangents = inputs

    def gradients(gradient: Tensor | None, p: Params, *x: Tensor) -> tuple:
        loss, pull_back = torch.func.vjp(block.function, p, *x)  # type: ignore[misc]  # three with has_aux
        return pull_back(torch.ones_like(loss) if gradient is None else gradient)

    if output is None:  # the loss itself, whose gradient is the constant 1
        return torch.func.jvp(lambda *at: gradients(None, *at), (p, *values), (v, *tangents))
    return torch.func.jvp(gradients, (output[0], p, *values), (output[1], v, *tangents))


def _own(block: Block, params: Params) -> Params:
    return {name: params[name] for name in block.names}


def _inputs_of(block: Block, borders: dict[int, Dual]) -> tuple[list[Tensor], list[Tensor]]:
    return [borders[i][0] for i in block.inputs], [borders[i][1] for i in block.inputs]


def _random_state(theta: Params) -> RandomState:
    return (torch.get_rng_state(), *get_device_states(*theta.values()))


def _set_random_state(state: RandomState) -> None:
    torch.set_rng_state(state[0])
    set_device_states(*state[1:])
