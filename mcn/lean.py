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
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

from mcn.dual import Dual, Pair, Slot, Tape

Params = dict[str, Tensor]
RandomState = tuple[Tensor, list[int], list[Tensor]]  # of the CPU, and of each device in use


@dataclass(frozen=True)
class Block:
    """One piece of a loss: ``function(params, *constants, *inputs)`` gives one tensor."""

    function: Callable[..., Tensor]
    names: tuple[str, ...] = ()  #: of the parameters it takes
    inputs: tuple[int, ...] = ()  #: numbers of the earlier blocks whose outputs it takes
    constants: tuple[Tensor, ...] = ()  #: tensors that do not depend on parameters, such as clips
    by_duals: bool = False  #: made of the operations that :mod:`mcn.dual` knows, which is faster


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
            inputs = (outputs[i] for i in block.inputs)
            outputs.append(block.function(_own(block, params), *block.constants, *inputs))
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
) -> tuple[dict[int, Pair], list[RandomState]]:
    """Outputs of all blocks but the last, with tangents; and the generators' states before each block."""
    borders: dict[int, Pair] = {}
    states: list[RandomState] = []
    for number, block in enumerate(blocks):
        states.append(_random_state(theta))
        if number < len(blocks) - 1:  # the last is computed where its way back begins
            borders[number] = _forth(block, theta, v, [borders[i] for i in block.inputs])
    return borders, states


def _backward_sweep(
    blocks: Sequence[Block], theta: Params, v: Params, borders: dict[int, Pair], states: list[RandomState]
) -> Params:
    """Tangents of the parameters' gradients; empties ``borders`` on its way."""
    product = {name: torch.zeros_like(p) for name, p in theta.items()}
    arriving = {number: Slot() for number in range(len(blocks))}
    for number in reversed(range(len(blocks))):
        block, gradient = blocks[number], arriving.pop(number).pair
        borders.pop(number, None)
        if gradient is None and number < len(blocks) - 1:
            continue  # nothing that follows takes its output
        _set_random_state(states[number])
        inputs = [borders[i] for i in block.inputs]
        of_parameters, of_inputs = _back(block, theta, v, inputs, gradient)
        for name, tangent in of_parameters.items():
            product[name] += tangent
        for i, pair in zip(block.inputs, of_inputs, strict=True):
            if pair is not None:
                arriving[i].add(*pair)
    return product


def _forth(block: Block, theta: Params, v: Params, inputs: list[Pair]) -> Pair:
    """A block's output and its tangent."""
    own, along = _own(block, theta), _own(block, v)
    if block.by_duals:
        tape = Tape(own, along, recording=False)
        output = block.function(own, *_duals(block, inputs, tape))
        return Pair(output.value, output.tangent)
    function = partial(_with_constants, block)
    values, tangents = [x.value for x in inputs], [x.tangent for x in inputs]
    return Pair(*torch.func.jvp(function, (own, *values), (along, *tangents)))


def _back(
    block: Block, theta: Params, v: Params, inputs: list[Pair], gradient: Pair | None
) -> tuple[Params, list[Pair | None]]:
    """Tangents of the parameters' gradients, and the inputs' gradients, from the output's gradient.

    The loss itself has no ``gradient``: it is the constant 1.
    """
    own, along = _own(block, theta), _own(block, v)
    if block.by_duals and gradient is not None:
        tape = Tape(own, along)
        duals = _duals(block, inputs, tape)
        tape.backward(block.function(own, *duals), gradient)
        return tape.product, [x.slot.pair for x in duals if x.slot is not None]

    def gradients(g: Tensor | None, *at: Any) -> tuple:
        y, pull_back = torch.func.vjp(partial(_with_constants, block), *at)  # type: ignore[misc]
        return pull_back(torch.ones_like(y) if g is None else g)

    at, direction = (own, *(x.value for x in inputs)), (along, *(x.tangent for x in inputs))
    if gradient is None:
        made, (of_parameters, *tangents) = torch.func.jvp(partial(gradients, None), at, direction)
    else:
        made, (of_parameters, *tangents) = torch.func.jvp(
            gradients, (gradient.value, *at), (gradient.tangent, *direction)
        )
    return of_parameters, [Pair(*pair) for pair in zip(made[1:], tangents, strict=True)]


def _with_constants(block: Block, p: Params, *inputs: Tensor) -> Tensor:
    return block.function(p, *block.constants, *inputs)


def _duals(block: Block, inputs: list[Pair], tape: Tape) -> list[Dual]:
    constants = [Dual(c, None, tape) for c in block.constants]
    return [*constants, *(Dual(*pair, tape) for pair in inputs)]


def _own(block: Block, params: Params) -> Params:
    return {name: params[name] for name in block.names}


def _random_state(theta: Params) -> RandomState:
    return (torch.get_rng_state(), *get_device_states(*theta.values()))


def _set_random_state(state: RandomState) -> None:
    torch.set_rng_state(state[0])
    set_device_states(*state[1:])
