"""What a graph keeps, counted; and the rule of method="auto" on both sides of its limits."""

from pathlib import Path

import pytest
import torch

from mcn import memory
from mcn.memory import SHARE, choose_way, counted, memory_of


def test_each_storage_counts_once():
    x = torch.ones(100, 3, requires_grad=True)  # 1200 bytes
    with counted() as kept:
        y = x.exp()  # keeps its result
        z = y[:50].exp() * y[50:]  # keeps its factors: a new tensor, and part of y
    assert kept.bytes == 1200 + 600
    z.sum().backward()
    assert x.grad is not None


def test_counting_changes_no_gradient_of_either_order():
    def second(count: bool):
        x = torch.linspace(-1, 2, 7, dtype=torch.float64, requires_grad=True)
        if count:
            with counted():
                y = (x.tanh() * x.relu()).square().sum()
        else:
            y = (x.tanh() * x.relu()).square().sum()
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), x)[0]

    assert torch.equal(second(True), second(False))


def test_fast_up_to_the_share_and_not_a_byte_more():
    limit = 1000
    fits = int(SHARE * limit) // 3
    assert choose_way(fits, limit) == "fast"
    assert choose_way(fits + 1, limit) == "lean"
    assert choose_way(fits + 1, limit, chained=False) == "balanced"
    assert choose_way(fits, limit, graphs=2) == "lean"  # holds two support graphs
    assert choose_way(int(SHARE * limit) // 5, limit, graphs=2) == "fast"


def test_a_machine_has_what_its_container_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cpu = torch.device("cpu")
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_LIMITS", (str(limit), str(tmp_path / "no such file")))
    whole = memory_of(cpu)
    assert 2**28 < whole < 2**50
    limit.write_text("max\n")
    assert memory_of(cpu) == whole
    limit.write_text("12345678\n")
    assert memory_of(cpu) == 12345678
