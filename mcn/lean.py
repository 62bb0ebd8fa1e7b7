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
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, get_device_states, set_device_states

from mcn.dual import Dual, Pair, Slot, Tape

Params = dict[str, Tensor]
RandomState = tuple[Tensor, list[int], list[Tensor]]  # of the CPU, and of each device in use


@dataclass(frozen=True)
class Block:
    """One piece of a loss: ``function(params, *constants, *inputs)`` gives one tensor."""

    function: Callable[..., Any]
    names: tuple[str, ...] = ()  #: of the parameters it takes
    inputs: tuple[int, ...] = ()  #: numbers of the earlier blocks whose outputs it takes
    constants: tuple[Tensor, ...] = ()  #: tensors that do not depend on parameters, such as clips
    by_duals: bool = False  #: made of the operations that :mod:`mcn.dual` knows, which is faster
    light: bool = False  #: little work for a large output: computed again rather than kept, in every pass
    small: bool = False  #: much work for a small output: kept rather than computed again, in a product
    checkpointed: bool = False  #: computed again wherever that spares memory, ``small`` or not


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


def run_lightly(blocks: Sequence[Block], params: Params) -> Tensor:
    """The loss, ready to be differentiated; light and checkpointed blocks are computed again on the way back.

    Each block is given its parameters, so that the second time it cannot but see the same ones.
    """
    outputs: list[Tensor] = []
    for block in blocks:
        arguments = (_own(block, params), *block.constants, *(outputs[i] for i in block.inputs))
        if block.light or block.checkpointed:
            outputs.append(checkpoint(block.function, *arguments, use_reentrant=False))
        else:
            outputs.append(block.function(*arguments))
    return outputs[-1]


def checkpointed(blocks: Sequence[Block]) -> list[Block]:
    """The same blocks, all but the last to be computed again by :func:`run_lightly` and in products.

    >>> double = Block(lambda p: 2 * p["w"], names=("w",))
    >>> [block.checkpointed for block in checkpointed([double, double])]
    [True, False]
    """
    return [*(replace(block, checkpointed=True) for block in blocks[:-1]), blocks[-1]]


def hessian_product(blocks: Sequence[Block], params: Params, v: Params, *, keep: bool = False) -> Params:
    r""":math:`H(\theta) v`, for the loss that ``blocks`` make, at ``params``; by parameter name.

    Exact; only the order of rounding differs from that of one graph over the whole loss. A parameter
    that no block takes gets zero. ``keep`` keeps what lies inside blocks as well, but light ones: about
    two and a half times the memory for an eighth less work.

    >>> cube = Block(lambda p: p["w"] ** 3, names=("w",))
    >>> total = Block(lambda p, x: x.sum(), inputs=(0,))
    >>> hessian_product([cube, total], {"w": torch.tensor([1.0, 2.0])}, {"w": torch.ones(2)})
    {'w': tensor([ 6., 12.])}
    """
    theta = {name: p.detach() for name, p in params.items()}
    cuda = sorted({p.device.index for p in theta.values() if p.device.type == "cuda"})
    with torch.no_grad(), torch.random.fork_rng(cuda):  # the caller's generators stay where they are
        sweeps = _Sweeps(blocks, theta, v, keep)
        sweeps.forward()
        return sweeps.backward()


class _Pass(NamedTuple):
    """A block that was computed with duals and can go back."""

    tape: Tape
    inputs: list[Dual]
    end: Slot


class _Sweeps:
    """The two sweeps over a chain, and what the first leaves for the second."""

    def __init__(self, blocks: Sequence[Block], theta: Params, v: Params, keep: bool) -> None:
        self.blocks, self.theta, self.v, self.keep = blocks, theta, v, keep
        self.borders: dict[int, Pair] = {}  # outputs with tangents, of blocks that are not light
        self.passes: dict[int, _Pass] = {}  # of blocks that need not be computed again
        self.states: list[RandomState] = []  # of the generators, before each block

    def forward(self) -> None:
        """Every block but the last, which is computed where the way back begins."""
        for number in range(len(self.blocks) - 1):
            self.states.append(_random_state(self.theta))
            output, made = self._forth(number)
            self.borders[number] = output
            if made is not None and self._keeps(self.blocks[number]):
                self.passes[number] = made
            del output, made
            for i in self.blocks[number].inputs:
                if self.blocks[i].light:
                    self.borders.pop(i, None)
        self.states.append(_random_state(self.theta))

    def _keeps(self, block: Block) -> bool:
        """Whether what lies inside a block is kept for the way back."""
        return not block.light and (self.keep or (block.small and not block.checkpointed))

    def backward(self) -> Params:
        """Tangents of the parameters' gradients."""
        product = {name: torch.zeros_like(p) for name, p in self.theta.items()}
        arriving = {number: Slot() for number in range(len(self.blocks))}
        for number in reversed(range(len(self.blocks))):
            end = arriving.pop(number)
            self.borders.pop(number, None)
            if end.pair is None and number < len(self.blocks) - 1:
                continue  # nothing that follows takes its output
            of_parameters, of_inputs = self._back(number, end)
            for name, tangent in of_parameters.items():
                product[name] += tangent
            for i, pair in zip(self.blocks[number].inputs, of_inputs, strict=True):
                if pair is not None:
                    arriving[i].add(*pair)
        return product

    def _inputs(self, number: int) -> list[Pair]:
        """Inputs of a block, light ones computed again where need be."""
        for i in self.blocks[number].inputs:
            if i not in self.borders:
                self.borders[i] = self._forth(i)[0]
        return [self.borders[i] for i in self.blocks[number].inputs]

    def _forth(self, number: int) -> tuple[Pair, "_Pass | None"]:
        """A block's output and its tangent."""
        block, inputs = self.blocks[number], self._inputs(number)
        _set_random_state(self.states[number])  # now: to make an input again may have drawn numbers
        own, along = _own(block, self.theta), _own(block, self.v)
        if block.by_duals:
            tape = Tape(own, along)
            constants = [Dual(c, None, tape) for c in block.constants]
            duals = [Dual(*pair, tape) for pair in inputs]
            output = block.function(own, *constants, *duals)
            return Pair(output.value, output.tangent), _Pass(tape, duals, output.slot)
        values, tangents = [x.value for x in inputs], [x.tangent for x in inputs]
        function = partial(_with_constants, block)
        return Pair(*_jvp(function, (own, *values), (along, *tangents))), None

    def _back(self, number: int, end: Slot) -> tuple[Params, list[Pair | None]]:
        """Tangents of the parameters' gradients, and the inputs' gradients, from what arrived at its end."""
        block = self.blocks[number]
        if not block.by_duals:
            inputs = self._inputs(number)
            _set_random_state(self.states[number])
            return _back_through(block, _own(block, self.theta), _own(block, self.v), inputs, end)
        made = self.passes.pop(number, None) or self._forth(number)[1]
        assert made is not None
        assert end.pair is not None  # a loss is a number, which duals cannot make
        made.end.pair, end.pair = end.pair, None
        made.tape.backward()
        return made.tape.product, [x.slot.pair for x in made.inputs if x.slot is not None]


def _back_through(
    block: Block, p: Params, v: Params, inputs: list[Pair], end: Slot
) -> tuple[Params, list[Pair | None]]:
    """The same for a block of any operations, by PyTorch's forward over reverse.

    Nothing arrives at the loss itself, whose gradient is the constant 1.
    """

    def gradients(g: Tensor | None, *at: Any) -> tuple:
        y, pull_back = torch.func.vjp(partial(_with_constants, block), *at)  # type: ignore[misc]
        return pull_back(torch.ones_like(y) if g is None else g)

    at, along = (p, *(x.value for x in inputs)), (v, *(x.tangent for x in inputs))
    if end.pair is None:
        (_, *made), (of_parameters, *tangents) = _jvp(partial(gradients, None), at, along)
    else:
        g, dg = (x.contiguous() for x in end.pair)  # a sum's gradient is one number, expanded
        (_, *made), (of_parameters, *tangents) = _jvp(gradients, (g, *at), (dg, *along))
    return of_parameters, [Pair(*pair) for pair in zip(made, tangents, strict=True)]


def _with_constants(block: Block, p: Params, *inputs: Tensor) -> Tensor:
    return block.function(p, *block.constants, *inputs)


def _jvp(function: Callable[..., Any], at: tuple, along: tuple) -> tuple[Any, Any]:
    """``torch.func.jvp``, whose type says three results although there are two without ``has_aux``."""
    value, tangent = torch.func.jvp(function, at, along)  # type: ignore[misc]
    return value, tangent


def _own(block: Block, params: Params) -> Params:
    return {name: params[name] for name in block.names}


def _random_state(theta: Params) -> RandomState:
    return (torch.get_rng_state(), *get_device_states(*theta.values()))


def _set_random_state(state: RandomState) -> None:
    torch.set_rng_state(state[0])
    set_device_states(*state[1:])
