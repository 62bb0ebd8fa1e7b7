"""The feature bank: unit rows, the moving average by hand, duplicates, snapshots, negatives."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from mcn.bank import FeatureBank, draw_negatives


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _bank(videos: int = 10, dim: int = 6, momentum: float = 0.5) -> FeatureBank:
    return FeatureBank(videos, dim, momentum=momentum, generator=_generator()).double()


def _features(batch: int, dim: int = 6, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    both = 3 * torch.randn(2, batch, dim, generator=_generator(seed), dtype=torch.float64)
    return both[0], both[1]


def _assert_unit_rows(bank: FeatureBank):
    norms = bank.rows.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-6)


def test_rows_are_unit_at_the_start_and_after_updates():
    bank = FeatureBank(10, 6, generator=_generator())
    _assert_unit_rows(bank)
    for seed in range(3):
        bank.update(torch.tensor([1, 7, 4]), *(z.float() for z in _features(3, seed=seed)))
    _assert_unit_rows(bank)


def test_the_generator_decides_the_rows():
    assert torch.equal(
        FeatureBank(10, 6, generator=_generator()).rows,
        FeatureBank(10, 6, generator=_generator()).rows,
    )
    assert not torch.equal(_bank().rows[0], _bank().rows[1])  # a row of its own for each view


def test_only_the_rows_of_the_batch_change():
    bank = _bank()
    before = bank.snapshot()
    bank.update(torch.tensor([8, 2]), *_features(2))
    changed = (bank.rows != before).any(dim=-1)
    expected = [row in (2, 8) for row in range(10)]
    assert changed.tolist() == [expected, expected]


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_a_row_moves_by_the_formula_and_is_normalised(momentum):
    bank = _bank(momentum=momentum)
    before = bank.snapshot()
    index, (z1, z2) = torch.tensor([5, 0]), _features(2)
    bank.update(index, z1, z2)
    for view, z in enumerate((z1, z2)):
        for place, row in enumerate(index.tolist()):
            moved = momentum * before[view, row] + (1 - momentum) * z[place] / z[place].norm()
            expected = moved / moved.norm()
            # float64, a dozen roundings of numbers below 1.
            torch.testing.assert_close(bank.rows[view, row], expected, rtol=0, atol=1e-14)


def test_the_length_of_a_feature_does_not_count():
    long, short = _bank(), _bank()
    index, (z1, z2) = torch.tensor([5, 0]), _features(2)
    long.update(index, 1000 * z1, 1000 * z2)
    short.update(index, z1, z2)
    torch.testing.assert_close(long.rows, short.rows, rtol=0, atol=1e-15)


def test_a_video_that_occurs_twice_is_given_its_mean():
    bank = _bank(momentum=0.0)
    z = torch.zeros(3, 6, dtype=torch.float64)
    z[0, 0], z[1, 5], z[2, 1] = 2.0, 1.0, 9.0  # video 3 says e0 and e1, whatever their lengths
    bank.update(torch.tensor([3, 7, 3]), z, z)
    expected = F.normalize(torch.tensor([1.0, 1, 0, 0, 0, 0], dtype=torch.float64), dim=0)
    torch.testing.assert_close(bank.rows[0, 3], expected, rtol=0, atol=1e-15)
    assert bank.rows[1, 7].tolist() == [0, 0, 0, 0, 0, 1]


def test_the_order_of_a_batch_does_not_count():
    index, (z1, z2) = torch.tensor([4, 1, 4, 4]), _features(4)
    results = []
    for order in itertools.permutations(range(4)):
        bank = _bank()
        bank.update(index[list(order)], z1[list(order)], z2[list(order)])
        results.append(bank.rows)
    for rows in results[1:]:  # a sum of three in another order: an ulp of 1 in float64
        torch.testing.assert_close(rows, results[0], rtol=0, atol=1e-15)


def test_updates_are_repeatable_to_the_bit():
    first, second = _bank(), _bank()
    for bank in (first, second):
        bank.update(torch.tensor([4, 1, 4, 4]), *_features(4))
    assert torch.equal(first.rows, second.rows)


def test_no_gradient_reaches_the_rows():
    bank = _bank()
    z1, z2 = (z.requires_grad_() for z in _features(2))
    bank.update(torch.tensor([1, 2]), z1, z2)
    assert not bank.rows.requires_grad
    assert list(bank.parameters()) == []
    assert "rows" in bank.state_dict()


def test_a_snapshot_does_not_move_and_does_not_move_the_bank():
    bank = _bank()
    snapshot = bank.snapshot()
    kept = snapshot.clone()
    bank.update(torch.tensor([1]), *_features(1))
    assert torch.equal(snapshot, kept)
    assert not torch.equal(bank.rows, kept)
    rows = bank.rows.clone()
    snapshot.zero_()
    assert torch.equal(bank.rows, rows)


def test_an_empty_batch_changes_nothing():
    bank = _bank()
    before = bank.snapshot()
    bank.update(torch.empty(0, dtype=torch.int64), torch.empty(0, 6), torch.empty(0, 6))
    assert torch.equal(bank.rows, before)


@pytest.mark.parametrize("row", [-1, 10])
def test_a_row_that_does_not_exist_raises_and_changes_nothing(row):
    bank = _bank()
    before = bank.snapshot()
    with pytest.raises(IndexError, match=r"rows 0\.\.9"):
        bank.update(torch.tensor([0, row]), *_features(2))
    assert torch.equal(bank.rows, before)


def test_errors_of_the_constructor():
    with pytest.raises(ValueError, match="at least 2 videos"):
        FeatureBank(1, 4)
    for momentum in (1.0, -0.1):
        with pytest.raises(ValueError, match="momentum"):
            FeatureBank(4, 4, momentum=momentum)


def test_negatives_are_never_the_own_row_and_cover_all_others():
    index = torch.arange(7)
    drawn = draw_negatives(index, 7, 500, _generator())
    assert drawn.shape == (7, 500)
    for own, row in zip(index.tolist(), drawn, strict=True):
        assert set(row.tolist()) == set(range(7)) - {own}


def test_negatives_are_uniform_over_the_others():
    k = 20_000
    drawn = draw_negatives(torch.tensor([0, 3, 9]), 10, k, _generator(5))
    for own, row in zip((0, 3, 9), drawn, strict=True):
        counts = torch.bincount(row, minlength=10).double()
        others = counts[[video for video in range(10) if video != own]]
        chi_square = ((others - k / 9) ** 2 / (k / 9)).sum()
        assert chi_square < 26.1  # 99.9 % of chi-square with 8 degrees of freedom


def test_negatives_are_the_generators():
    index = torch.arange(5)
    first = draw_negatives(index, 50, 20, _generator(3))
    assert torch.equal(first, draw_negatives(index, 50, 20, _generator(3)))
    assert not torch.equal(first, draw_negatives(index, 50, 20, _generator(4)))
