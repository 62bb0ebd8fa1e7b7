r"""Dual numbers for the operations of convolutional backbones: values with tangents, forth and back.

A :class:`Dual` is a tensor and its derivative along a direction :math:`v` of the parameters. Modules are
called with duals as they are with tensors; a :class:`Tape` notes how to go back, and its
:meth:`Tape.backward` turns the gradient of the result, with tangent, into those of the inputs and into
the tangents of the parameters' gradients, which is what a Hessian-vector product consists of.

PyTorch's own forward-over-reverse does the same for every operation it has. Written out for these few,
it need not make the parameters' gradients themselves (the costliest part of going back), and it keeps
nothing but the inputs of convolutions and BatchNorm.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mcn.errors import MCNError


class Pair(NamedTuple):
    """A value and its tangent; or a gradient and its tangent."""

    value: Tensor
    tangent: Tensor


class Slot:
    """Where the gradient of an intermediate result, with tangent, is summed up on the way back."""

    def __init__(self) -> None:
        self.pair: Pair | None = None

    def add(self, value: Tensor, tangent: Tensor) -> None:
        """One more consumer's share."""
        if self.pair is not None:  # never in place: a sum hands one tensor to both its terms
            value, tangent = self.pair.value + value, self.pair.tangent + tangent
        self.pair = Pair(value, tangent)


class Dual:
    """A value with its tangent, ``None`` for a constant, in a computation that ``tape`` follows."""

    def __init__(self, value: Tensor, tangent: Tensor | None, tape: "Tape") -> None:
        self.value, self.tangent, self.tape = value, tangent, tape
        self.slot = None if tangent is None else Slot()

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> "Dual":
        rule = _RULES.get(function)
        if rule is None:
            name = getattr(function, "__name__", str(function))
            raise MCNError(f"the lean and balanced ways have no rule for {name}(): choose --method fast")
        return rule(*args, **(kwargs or {}))

    def dim(self) -> int:
        """Number of dimensions (BatchNorm asks)."""
        return self.value.dim()

    def __add__(self, other: "Dual") -> "Dual":
        return _add(self, other)


class Parameter:
    """What the rules need of a parameter besides its value: its direction, and a place to add to."""

    def __init__(self, name: str, direction: Tensor, product: dict[str, Tensor]) -> None:
        self.name, self.direction, self.product = name, direction, product

    def add(self, tangent: Tensor) -> None:
        """Add to the tangent of the parameter's gradient."""
        before = self.product.get(self.name)
        self.product[self.name] = tangent if before is None else before + tangent


class Tape:
    """Parameters with their direction ``v``, and the way back through what was done with them.

    Nothing that it keeps refers to the tape, so that all is let go when the tape is.
    """

    def __init__(self, params: dict[str, Tensor], v: dict[str, Tensor]) -> None:
        self.product: dict[str, Tensor] = {}  #: tangents of the parameters' gradients
        self._parameters = {id(p): Parameter(name, v[name], self.product) for name, p in params.items()}
        self._steps: list[tuple[Slot, Callable[[Tensor, Tensor], None]]] = []

    def parameter(self, value: Tensor) -> Parameter:
        """The parameter with this value."""
        return self._parameters[id(value)]

    def result(self, value: Tensor, tangent: Tensor, back: Callable[[Tensor, Tensor], None]) -> Dual:
        """A result of an operation; ``back`` takes its gradient and tangent to the operation's inputs."""
        dual = Dual(value, tangent, self)
        assert dual.slot is not None
        self._steps.append((dual.slot, back))
        return dual

    def backward(self) -> None:
        """Go back from the slots that hold a gradient; what was kept is let go on the way."""
        while self._steps:
            slot, back = self._steps.pop()
            if slot.pair is not None:
                pair, slot.pair = slot.pair, None
                back(*pair)


def _convolution(
    x: Dual,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] = (0, 0, 0),
    dilation: Sequence[int] = (1, 1, 1),
    groups: int = 1,
) -> Dual:
    tape, value, tangent, slot = x.tape, x.value, x.tangent, x.slot
    kernel, offset = tape.parameter(weight), None if bias is None else tape.parameter(bias)
    v = kernel.direction
    how = (stride, padding, dilation, groups)

    def to_input(g: Tensor, by: Tensor) -> Tensor:
        return _convolution_backward(g, value, by, how, (True, False, False))[0]

    def to_weight(g: Tensor, given: Tensor) -> Tensor:
        return _convolution_backward(g, given, weight, how, (False, True, False))[1]

    def back(g: Tensor, dg: Tensor) -> None:
        dw = to_weight(dg, value)
        kernel.add(dw if tangent is None else dw.add_(to_weight(g, tangent)))
        if offset is not None:
            offset.add(_sum(dg))
        if slot is not None:
            slot.add(to_input(g, weight), to_input(dg, weight).add_(to_input(g, v)))

    y, dy = F.conv3d(value, weight, bias, *how), F.conv3d(value, v, None, *how)
    if tangent is not None:
        dy += F.conv3d(tangent, weight, None, *how)
    if offset is not None:
        dy += _wide(offset.direction)
    return tape.result(y, dy, back)


def _convolution_backward(
    g: Tensor, x: Tensor, weight: Tensor, how: tuple[Any, ...], wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    stride, padding, dilation, groups = how
    return torch.ops.aten.convolution_backward(
        g, x, weight, None, stride, padding, dilation, False, (0, 0, 0), groups, wanted
    )


def _batch_norm(
    x: Dual,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Dual:
    r"""BatchNorm on the batch's own statistics; running statistics are let be.

    With :math:`\hat x = r (x - \mu)`, :math:`r = (\sigma^2 + \epsilon)^{-1/2}`, everything is, channel by
    channel, a combination of few tensors; only the factors take sums over the batch.
    """
    if not training or x.tangent is None or weight is None:
        raise MCNError(
            "the lean and balanced ways take BatchNorm with weights, in training mode: choose --method fast"
        )
    tape, value, tangent, slot = x.tape, x.value, x.tangent, x.slot
    scale, offset = tape.parameter(weight), tape.parameter(bias)
    v = scale.direction
    count = value.numel() // value.shape[1]
    y, mean, r = torch.native_batch_norm(value, weight, bias, None, None, True, 0.0, eps)
    dmean = _sum(tangent) / count
    centred = value - _wide(mean)
    s = r * _dot(centred, tangent) / count  # mean of \hat x dx; dr = -r^2 s
    dy = _combine(
        (weight * r, tangent),
        (v * r - weight * r * r * s, centred),
        (offset.direction - weight * r * dmean, None),
    )

    def back(g: Tensor, dg: Tensor) -> None:
        centred = value - _wide(mean)
        g_sum, dg_sum, g_x = _sum(g), _sum(dg), r * _dot(g, centred)  # g_x: sum of g \hat x
        dg_x = r * (_dot(dg, centred) + _dot(g, tangent) - dmean * g_sum - s * g_x)
        scale.add(dg_x)
        offset.add(dg_sum)
        if slot is None:
            return
        # dL/dx = q (g - mean(g) - \hat x mean(g \hat x)) with q = weight r; k = dq
        q, k = weight * r, v * r - weight * r * r * s
        m, dm = g_x / count, dg_x / count
        gx = _combine((q, g), (-q * m * r, centred), (-q * g_sum / count, None))
        dgx = _combine(
            (q, dg), (k, g), (-q * m * r, tangent), (r * (q * m * r * s - k * m - q * dm), centred),
            (q * m * r * dmean - (k * g_sum + q * dg_sum) / count, None),
        )  # fmt: skip
        slot.add(gx, dgx)

    return tape.result(y, dy, back)


def _wide(per_channel: Tensor) -> Tensor:
    return per_channel.view(-1, 1, 1, 1)


def _sum(x: Tensor) -> Tensor:
    """Sum by channel of ``(B, C, T, H, W)``."""
    return x.sum((0, 2, 3, 4))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Sum by channel of ``x * y``, without making the product."""
    rows = x.flatten(2).unsqueeze(2) @ y.flatten(2).unsqueeze(3)
    return rows.sum((0, 2, 3))


def _combine(*terms: tuple[Tensor, Tensor | None]) -> Tensor:
    """Sum of channel factors times tensors; a factor of its own is a constant."""
    (first, x), *rest = terms
    assert x is not None
    out = x * _wide(first)
    for factor, tensor in rest:
        if tensor is None:
            out += _wide(factor)
        else:
            out.addcmul_(tensor, _wide(factor))
    return out


def _relu(x: Dual, inplace: bool = False) -> Dual:
    """What passes is told by the result, which what follows keeps anyway: no mask is."""
    slot = x.slot
    assert x.tangent is not None
    y = x.value.relu()

    def back(g: Tensor, dg: Tensor) -> None:
        if slot is not None:
            slot.add(_where_positive(y, g), _where_positive(y, dg))

    return x.tape.result(y, _where_positive(y, x.tangent), back)


def _where_positive(y: Tensor, x: Tensor) -> Tensor:
    """``x`` where ``y > 0``, else 0, in one go."""
    return torch.ops.aten.threshold_backward(x, y, 0)


def _add(x: Dual, y: Dual) -> Dual:
    slots = [slot for slot in (x.slot, y.slot) if slot is not None]
    assert x.tangent is not None
    assert y.tangent is not None

    def back(g: Tensor, dg: Tensor) -> None:
        for slot in slots:
            slot.add(g, dg)

    return x.tape.result(x.value + y.value, x.tangent + y.tangent, back)


def _concatenate(parts: Sequence[Dual], dim: int = 0) -> Dual:
    sizes, slots = [p.value.shape[dim] for p in parts], [p.slot for p in parts]

    def back(g: Tensor, dg: Tensor) -> None:
        for slot, *pair in zip(slots, g.split(sizes, dim), dg.split(sizes, dim), strict=True):
            if slot is not None:
                slot.add(*(x.contiguous() for x in pair))

    tangents = [p.tangent for p in parts if p.tangent is not None]
    return parts[0].tape.result(torch.cat([p.value for p in parts], dim), torch.cat(tangents, dim), back)


def _max_pool(
    x: Dual,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Dual:
    y, index = F.max_pool3d(x.value, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)
    shape, where, slot = x.value.shape, index.flatten(2), x.slot
    assert x.tangent is not None

    def spread(g: Tensor) -> Tensor:
        return g.new_zeros(shape).flatten(2).scatter_add_(2, where, g.flatten(2)).view(shape)

    def back(g: Tensor, dg: Tensor) -> None:
        if slot is not None:
            slot.add(spread(g), spread(dg))

    return x.tape.result(y, x.tangent.flatten(2).gather(2, where).view_as(y), back)


_RULES: dict[Callable[..., Any], Callable[..., Dual]] = {
    torch.conv3d: _convolution,
    F.conv3d: _convolution,
    F.batch_norm: _batch_norm,
    F.relu: _relu,
    torch.cat: _concatenate,
    F.max_pool3d: _max_pool,
    torch.max_pool3d: _max_pool,
}
