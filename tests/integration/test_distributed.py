"""Many ranks are one process with as many shares: the same numbers, the same state, the same files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from on_ranks import on_ranks, trained_in_double

PLAIN = {"order": "exact", "method": "fast", "negatives": 8}
SETTINGS: dict[str, dict[str, Any]] = {
    "fast": PLAIN,
    "balanced": {**PLAIN, "method": "balanced"},
    "lean": {**PLAIN, "method": "lean"},
    "two inner steps": {**PLAIN, "inner_steps": 2, "outer_support_weight": 0.3, "norm_update": "query"},
    "first": {**PLAIN, "order": "first", "bank_update": "query"},
    "none": {**PLAIN, "order": "none", "negatives": 0, "shuffle_views": True},
    "task a share": {**PLAIN, "task": "share"},
    "task a share, first": {**PLAIN, "task": "share", "order": "first"},
}


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest difference of two trainings, of any tensor's entry or logged number."""
    assert one["tensors"].keys() == other["tensors"].keys()
    assert one["numbers"].keys() == other["numbers"].keys()
    tensors = [(value - other["tensors"][name]).abs().max().item() for name, value in one["tensors"].items()]
    return max(tensors + [abs(value - other["numbers"][name]) for name, value in one["numbers"].items()])


@pytest.mark.parametrize(("size", "shares", "batch"), [(2, 2, 5), (3, 3, 7)])
def test_ranks_are_one_process_with_as_many_shares(
    size: int, shares: int, batch: int, processes: Any, tmp_path: Path
) -> None:
    """In float64, after three steps: network, statistics, bank, momenta and what is logged."""
    settings = [{**changes, "shares": shares, "batch_size": batch} for changes in SETTINGS.values()]
    found = on_ranks(processes, size, tmp_path, trained_in_double, settings)
    expected = trained_in_double(settings)
    for number, name in enumerate(SETTINGS):
        ranks = [each[number] for each in found]
        assert distance(ranks[0], expected[number]) <= 1e-9, name
        for other in ranks[1:]:
            assert ranks[0]["numbers"] == other["numbers"], name
            for key, value in ranks[0]["tensors"].items():
                assert torch.equal(value, other["tensors"][key]), (name, key)
    named = dict(zip(SETTINGS, expected, strict=True))
    assert distance(named["fast"], named["balanced"]) <= 1e-9
    assert distance(named["fast"], named["lean"]) <= 1e-9
    assert distance(named["fast"], named["task a share"]) > 1e-6  # another algorithm
