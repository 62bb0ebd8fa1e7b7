"""Products block by block: against the Hessian itself, PyTorch's forward over reverse, and one graph."""

import dataclasses
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mcn.errors import MCNError
from mcn.lean import Block, Chain, ChainedLoss, checkpointed, hessian_product, run_lightly
from mcn.memory import counted
from mcn.network import MetaContrastiveNetwork, blocks_with, call_with, running_statistics, shared_parameters


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _direction(params):
    return {name: _random(*p.shape, seed=7 + i) for i, (name, p) in enumerate(params.items())}


def _double_backward(loss, params, v):
    theta = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
    g = torch.autograd.grad(loss(theta), tuple(theta.values()), create_graph=True, materialize_grads=True)
    along = sum((gi * v[name]).sum() for name, gi in zip(theta, g, strict=True))
    parts = torch.autograd.grad(along, tuple(theta.values()), materialize_grads=True)
    return dict(zip(theta, parts, strict=True))


def _assert_close(found, expected):
    assert list(found) == list(expected)
    largest = max(x.abs().max().item() for x in expected.values())
    assert largest > 0
    for name, x in expected.items():
        assert (found[name] - x).abs().max().item() < 1e-11 * largest, name


# ---- chains


def _branching(light: bool = False) -> Chain:
    """A border that two blocks take, one of them twice; a block that leads nowhere; an idle parameter."""
    x = _random(5, 3)
    return Chain(
        (
            Block(lambda p, c: torch.tanh(c @ p["a"]), ("a",), constants=(x,), light=light),
            Block(lambda p, h: torch.sin(h @ p["b"]), ("b",), (0,)),
            Block(lambda p, h: h.exp(), (), (0,)),
            Block(lambda p, h, k: (h.square() * k * h + h @ p["b"]).sum(), ("b",), (0, 1)),
        )
    )


def _branching_params():
    return {"a": _random(3, 4, seed=1), "b": _random(4, 4, seed=2), "idle": _random(2, seed=3)}


@pytest.mark.parametrize("light", [False, True])
def test_any_order_of_blocks_is_the_hessian(light):
    chain, params = _branching(light), _branching_params()
    v = _direction(params)
    found = hessian_product(chain.blocks(), params, v)
    flat = torch.cat([p.flatten() for p in params.values()])
    sizes = [p.numel() for p in params.values()]

    def loss(flat):
        parts = flat.split(sizes)
        return chain({n: x.view_as(p) for (n, p), x in zip(params.items(), parts, strict=True)})

    hessian = torch.autograd.functional.hessian(loss, flat)
    expected = hessian @ torch.cat([x.flatten() for x in v.values()])
    parts = dict(zip(params, expected.split(sizes), strict=True))
    _assert_close(found, {name: parts[name].view_as(p) for name, p in params.items()})
    assert not any(x.requires_grad for x in found.values())


def test_a_chain_is_its_blocks_however_it_is_run():
    chain, params = _branching(light=True), _branching_params()
    theta = {name: p.clone().requires_grad_() for name, p in params.items()}
    whole, lightly = chain(theta), run_lightly(chain.blocks(), theta)
    assert torch.equal(whole, lightly)
    one, other = (
        torch.autograd.grad(x, tuple(theta.values()), materialize_grads=True, allow_unused=True)
        for x in (whole, lightly)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert isinstance(chain, ChainedLoss)
    assert not isinstance(lambda p: 0.0, ChainedLoss)


@pytest.mark.parametrize("light", [False, True])
def test_dropout_drops_the_same_units_again(light):
    """Blocks draw from PyTorch's own generator; only the first sets its seed.

    A light one is made again in the middle of others' draws.
    """

    def first(p, c):
        torch.manual_seed(3)
        return F.dropout(torch.tanh(c @ p["a"]), 0.4)

    chain = Chain(
        (
            Block(first, ("a",), constants=(_random(6, 3),), light=light),
            Block(lambda p, h: F.dropout(torch.tanh(h @ p["b"]), 0.4), ("b",), (0,), light=light),
            Block(lambda p, h: F.dropout(h, 0.4).square(), (), (0,)),
            Block(lambda p, h, k: F.dropout(h * k, 0.4).pow(3).sum(), (), (1, 2)),
        )
    )
    params = {"a": _random(3, 8, seed=1), "b": _random(8, 8, seed=2)}
    v = _direction(params)
    expected = _double_backward(chain, params, v)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    _assert_close(hessian_product(chain.blocks(), params, v), expected)
    assert torch.equal(torch.get_rng_state(), before)
    theta = {name: p.clone().requires_grad_() for name, p in params.items()}
    one, other = (
        torch.autograd.grad(x, tuple(theta.values()))
        for x in (chain(theta), run_lightly(chain.blocks(), theta))
    )
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ---- the rules of duals, against PyTorch's forward over reverse of the same modules


class _Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x):
        out = self.body(x)
        out += x
        return F.relu(out, inplace=True)


class _Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv3d(4, 3, 1), nn.Conv3d(4, 5, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x):
        return torch.cat((self.one(x), self.two(x)), 1)


MODULES = {
    "convolution": nn.Conv3d(
        4, 6, (2, 3, 3), stride=(1, 2, 1), padding=(1, 0, 1), dilation=(1, 1, 2), groups=2
    ),
    "without bias": nn.Conv3d(4, 6, 1, bias=False),
    "batch norm": nn.BatchNorm3d(4, eps=1e-3),
    "relu": nn.Sequential(nn.Conv3d(4, 4, 1), nn.ReLU(inplace=True), nn.Conv3d(4, 2, 1), nn.ReLU()),
    "max pool": nn.Sequential(
        nn.Conv3d(4, 4, 1), nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
    ),
    "residual": _Residual(nn.Sequential(nn.Conv3d(4, 4, 3, padding=1), nn.BatchNorm3d(4))),
    "branches": _Branches(),
}


def _around(module: nn.Module, by_duals: bool) -> tuple[Chain, dict[str, torch.Tensor]]:
    """A curved loss with the module in its middle: what goes in has tangents, what comes out a gradient."""
    params = {name: _random(*p.shape, seed=20 + i) for i, (name, p) in enumerate(module.named_parameters())}
    names, clip, aim = tuple(params), _random(3, 4, 4, 6, 6, seed=4), _random(1, seed=5)

    def middle(p, x):
        buffers = {name: b.clone() for name, b in module.named_buffers()}
        return torch.func.functional_call(module, {**p, **buffers}, (x,))

    parts = (
        Block(lambda p, c: torch.tanh(c * p["scale"]), ("scale",), constants=(clip,)),
        Block(middle, names, (0,), by_duals=by_duals),
        Block(lambda p, y: (torch.sin(y) * (y - aim)).mean(), (), (1,)),
    )
    return Chain(parts), {**params, "scale": _random(4, 1, 1, 1, seed=6)}


@pytest.mark.parametrize("name", MODULES)
def test_duals_are_forward_over_reverse(name):
    module = MODULES[name].double()
    chain, params = _around(module, by_duals=True)
    v = _direction(params)
    found = hessian_product(chain.blocks(), params, v)
    _assert_close(hessian_product(chain.blocks(), params, v, keep=True), found)
    generic = hessian_product(_around(module, by_duals=False)[0].blocks(), params, v)
    _assert_close(found, generic)
    _assert_close(found, _double_backward(chain, params, v))


def test_batch_norm_far_from_zero_keeps_its_digits():
    """Channels with a mean of a hundred deviations: sums are taken about the mean."""
    module = nn.BatchNorm3d(4)
    params = {"weight": torch.ones(4), "bias": torch.zeros(4), "by": torch.ones(4, 1, 1, 1)}
    clip, aim = _random(4, 4, 2, 8, 8).float(), _random(4, 4, 2, 8, 8, seed=1).float()

    def chain(kind):
        far = (clip + 100).to(kind)

        def norm(p, x):
            buffers = {name: b.clone() for name, b in module.named_buffers()}
            return torch.func.functional_call(module, {**p, **buffers}, (x,))

        last = Block(lambda p, y: (y * aim.to(kind)).pow(2).mean(), (), (1,))
        first = Block(lambda p: far * p["by"], ("by",))
        return [first, Block(norm, ("weight", "bias"), (0,), by_duals=True), last]

    exact = {name: p.double() for name, p in params.items()}
    v = _direction(exact)
    expected = hessian_product(chain(torch.float64), exact, v)
    found = hessian_product(chain(torch.float32), params, {name: x.float() for name, x in v.items()})
    for name in ("weight", "bias"):
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Conv3d(4, 4, 1), nn.GELU()), r"no rule for gelu\(\)"),
        (nn.BatchNorm3d(4).eval(), "training mode"),
    ],
)
def test_duals_refuse_what_they_cannot(module, message):
    chain, params = _around(module.double(), by_duals=True)
    with pytest.raises(MCNError, match=message + r".*--method fast"):
        hessian_product(chain.blocks(), params, _direction(params))


# ---- the network's chain


def _network(backbone: str) -> tuple[MetaContrastiveNetwork, list[torch.Tensor]]:
    torch.manual_seed(0)
    network = MetaContrastiveNetwork(backbone, width=None if backbone == "s3d" else 4, dim=8).double().train()
    return network, list(_random(2, 2, 3, 8, 32, 32))


def _sum_of_all(out):
    return out.z1.square().sum() + (out.z2 * out.z1).sum() + out.logits.sin().sum()


@pytest.mark.parametrize("backbone", ["r3d_small", "r3d_18", "r2plus1d_18", "s3d"])
def test_the_blocks_are_the_network(backbone):
    """Same loss, to the last bit; running statistics as after one pass, however often blocks are run."""
    network, clips = _network(backbone)
    params = shared_parameters(network)
    expected, written = running_statistics(network), running_statistics(network)
    before = running_statistics(network)
    blocks = blocks_with(network, written, *clips, _sum_of_all)
    assert len(blocks) > 10
    with torch.no_grad():
        assert torch.equal(
            Chain(tuple(blocks))(params), _sum_of_all(call_with(network, params, expected, *clips))
        )
    loss = run_lightly(blocks, params)
    torch.autograd.grad(loss, tuple(params.values()), allow_unused=True)
    hessian_product(blocks, params, params)
    for name, buffer in expected.items():
        assert torch.equal(written[name], buffer), name
        assert torch.equal(dict(network.named_buffers())[name], before[name]), name
        assert not name.endswith("num_batches_tracked") or buffer == 1


@pytest.mark.parametrize("backbone", ["r3d_18", "s3d"])
def test_light_blocks_keep_less_for_a_gradient(backbone):
    network = _network(backbone)[0].float()
    clips = _random(2, 2, 3, 8, 64, 64).float()
    params = shared_parameters(network)
    kept = []
    for run in (lambda blocks: Chain(tuple(blocks))(params), lambda blocks: run_lightly(blocks, params)):
        blocks = blocks_with(network, running_statistics(network), *clips, _sum_of_all)
        with counted() as bytes_kept:
            loss = run(blocks)
        kept.append(bytes_kept.bytes - sum(p.numel() * p.element_size() for p in params.values()))
        del loss
    assert 0 < kept[1] < 0.95 * kept[0]


def test_keeping_spares_the_second_computation_of_all_but_light_blocks():
    network, clips = _network("r3d_18")
    params = shared_parameters(network)
    calls = [0] * 20

    def counting(number, block):
        def function(*args):
            calls[number] += 1
            return block.function(*args)

        return dataclasses.replace(block, function=function)

    for keep, again, large, small in (
        (True, False, 1, 1),
        (False, False, 2, 1),
        (False, True, 2, 2),
        (True, True, 1, 1),
    ):
        calls[:] = [0] * 20
        blocks = blocks_with(network, running_statistics(network), *clips, _sum_of_all)
        chosen = checkpointed(blocks) if again else blocks
        hessian_product([counting(i, b) for i, b in enumerate(chosen)], params, params, keep=keep)
        for number, block in enumerate(blocks[:-1]):
            # A light one is made for the border, again for the block that takes it, and for its own way back.
            expected = small if block.small else large
            assert calls[number] > 1 if block.light else calls[number] == expected, (number, keep, again)
        assert sum(block.small for block in blocks) == 12  # all stages but the first, of both views


def test_nothing_is_left_when_a_product_is_done():
    """No cycle keeps a tape alive: borders and activations go without the garbage collector."""
    chain, params = _around(MODULES["residual"].double(), by_duals=True)
    before, middle, after = chain.parts
    made = []

    def watched(p, x):
        y = middle.function(p, x)
        made.extend(map(weakref.ref, (x.value, x.tangent, y.value)))  # the first two are on the tape
        return y

    blocks = [before, dataclasses.replace(middle, function=watched), after]
    gc.disable()
    try:
        hessian_product(blocks, params, _direction(params))
        left = [ref() for ref in made]
    finally:
        gc.enable()
    assert left == [None] * 6  # forth, and forth and back again
