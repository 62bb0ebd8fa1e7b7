"""The losses against loops written from the paper's Eq. 2-5, closed forms, symmetries, numerics."""

import math

import pytest
import torch
import torch.nn.functional as F

from mcn.bank import draw_negatives
from mcn.losses import classification_loss, contrastive_loss, meta_loss, multiview_loss
from mcn.network import MetaContrastiveNetwork
from mcn.pairing import combine_features

# A loop in Python floats and a tensor formula differ by some hundred roundings of float64.
CLOSE = {"rel": 1e-11, "abs": 1e-12}
FLOOR = 16 * -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))  # 8.99736, protocol row 33


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _sizes(seed: int) -> tuple[int, int, int]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(2, 9, (3,), generator=generator).tolist())


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.tolist(), b.tolist()
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b)))


def _contrast_by_loop(z, positive, negatives, tau) -> float:
    """Eq. 2 and 3 as printed: -log(h+ / sum of h), ``negatives[i]`` being video i's own list."""
    total = 0.0
    for i in range(len(z)):
        own = math.exp(_cosine(z[i], positive[i]) / tau)
        others = sum(math.exp(_cosine(z[i], other) / tau) for other in negatives[i])
        total += -math.log(own / (own + others))
    return total / len(z)


# ---- Eq. 2 and 3


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tau", [0.07, 0.5])
def test_contrast_with_a_set_of_negatives_a_video(seed, tau):
    batch, dim, k = _sizes(seed)
    z, positive = _random(batch, dim, seed=seed), _random(batch, dim, seed=seed + 10)
    negatives = _random(batch, k, dim, seed=seed + 20)
    expected = _contrast_by_loop(z, positive, negatives, tau)
    assert contrastive_loss(z, positive, negatives, tau=tau).item() == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("excluding", [True, False])
def test_contrast_with_one_set_of_negatives_for_all(seed, excluding):
    batch, dim, rows = _sizes(seed)
    z, positive = _random(batch, dim, seed=seed), _random(batch, dim, seed=seed + 10)
    bank = _random(rows, dim, seed=seed + 20)
    own = torch.arange(batch) % rows
    lists = [[r for j, r in enumerate(bank) if not (excluding and j == own[i])] for i in range(batch)]
    loss = contrastive_loss(z, positive, bank, tau=0.3, exclude=own if excluding else None)
    assert loss.item() == pytest.approx(_contrast_by_loop(z, positive, lists, 0.3), **CLOSE)


def test_contrast_default_tau_is_the_protocols():
    z, positive, negatives = _random(3, 4), _random(3, 4, seed=1), _random(3, 5, 4, seed=2)
    default = contrastive_loss(z, positive, negatives)
    assert torch.equal(default, contrastive_loss(z, positive, negatives, tau=0.07))


@pytest.mark.parametrize("k", [1, 7, 1024])
def test_contrast_of_features_that_are_all_alike_is_log_of_the_choices(k):
    z = torch.ones(3, 4, dtype=torch.float64)
    loss = contrastive_loss(z, z, torch.ones(3, k, 4, dtype=torch.float64))
    assert loss.item() == pytest.approx(math.log(k + 1), **CLOSE)


@pytest.mark.parametrize("tau", [0.07, 1.0])
def test_contrast_of_identical_views_among_orthogonal_videos(tau):
    z = torch.eye(5, dtype=torch.float64)
    loss = contrastive_loss(z, z, z, tau=tau, exclude=torch.arange(5))
    assert loss.item() == pytest.approx(math.log1p(4 * math.exp(-1 / tau)), **CLOSE)


def test_contrast_of_opposite_and_of_orthogonal_negatives():
    z = torch.eye(3, dtype=torch.float64)
    opposite = contrastive_loss(z, z, -z[:, None], tau=0.5)
    assert opposite.item() == pytest.approx(math.log1p(math.exp(-4)), **CLOSE)
    orthogonal = contrastive_loss(z, z, z.roll(1, 0)[:, None], tau=0.5)
    assert orthogonal.item() == pytest.approx(math.log1p(math.exp(-2)), **CLOSE)


def test_contrast_ignores_the_length_of_every_feature():
    z, positive, negatives = _random(5, 4), _random(5, 4, seed=1), _random(5, 6, 4, seed=2)
    lengths = [_random(*x.shape[:-1], 1, seed=9).exp() for x in (z, positive, negatives)]
    scaled = [x * length for x, length in zip((z, positive, negatives), lengths, strict=True)]
    expected = contrastive_loss(z, positive, negatives).item()
    assert contrastive_loss(*scaled).item() == pytest.approx(expected, **CLOSE)


def test_contrast_falls_towards_the_positive_and_rises_towards_a_negative():
    z = _random(4, 6).requires_grad_()
    positive, negatives = _random(4, 6, seed=1), _random(4, 3, 6, seed=2)
    contrastive_loss(z, positive, negatives).backward()
    # cos is scale free, so the gradient has no component along z.
    assert (z.grad * z).sum(-1).abs().max() < 1e-12 * z.grad.norm()
    step = z.detach() - 1e-3 * z.grad
    before, after = (contrastive_loss(x, positive, negatives) for x in (z, step))
    assert after < before


@pytest.mark.parametrize("length", [1e-6, 1.0, 1e15])
def test_contrast_in_float32_with_short_and_long_features(length):
    z, positive, negatives = _random(4, 8), _random(4, 8, seed=1), _random(4, 16, 8, seed=2)
    expected = contrastive_loss(z, positive, negatives).item()
    short = (length * z.float()).requires_grad_()
    loss = contrastive_loss(short, length * positive.float(), length * negatives.float())
    loss.backward()
    # 1 / tau = 14 times a float32 ulp of 1, a few roundings.
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert short.grad.isfinite().all()


def test_contrast_is_finite_for_the_worst_possible_positive():
    z = F.normalize(_random(2, 4).float(), dim=-1).requires_grad_()
    loss = contrastive_loss(z, -z.detach(), z.detach()[:, None], tau=0.01)  # exp(200) overflows
    loss.backward()
    assert loss.item() == pytest.approx(200, rel=1e-5)
    assert z.grad.isfinite().all()


def test_contrast_is_finite_for_features_of_length_zero():
    z = torch.zeros(2, 4, requires_grad=True)
    loss = contrastive_loss(z, torch.ones(2, 4), torch.ones(2, 3, 4))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(4), rel=1e-6)
    assert z.grad.isfinite().all()


# ---- both directions against the bank


def _multiview_case(seed: int = 0):
    batch, dim, rows = 4, 5, 9
    z1, z2 = _random(batch, dim, seed=seed), _random(batch, dim, seed=seed + 1)
    bank = F.normalize(_random(2, rows, dim, seed=seed + 2), dim=-1)
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(rows, generator=generator)[:batch]
    return z1, z2, bank, index, draw_negatives(index, rows, 6, generator)


def _multiview_by_loop(z1, z2, bank, index, negatives, tau, positive, directions) -> float:
    def one_way(z, other, rows):
        own = [rows[i] for i in index] if positive == "bank" else other
        if negatives is None:
            lists = [[row for j, row in enumerate(rows) if j != i] for i in index.tolist()]
        else:
            lists = [[rows[j] for j in line] for line in negatives.tolist()]
        return _contrast_by_loop(z, own, lists, tau)

    forth, back = one_way(z1, z2, bank[1]), one_way(z2, z1, bank[0])
    return {"sum": forth + back, "mean": (forth + back) / 2, "one": forth}[directions]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("positive", ["bank", "current"])
@pytest.mark.parametrize("directions", ["sum", "mean", "one"])
def test_multiview_loss_in_all_options(whole, positive, directions):
    z1, z2, bank, index, drawn = _multiview_case()
    negatives = None if whole else drawn
    options = {"tau": 0.2, "positive": positive, "directions": directions}
    loss = multiview_loss(z1, z2, bank, index, negatives=negatives, **options)
    expected = _multiview_by_loop(z1, z2, bank, index, negatives, **options)
    assert loss.item() == pytest.approx(expected, **CLOSE)


def test_multiview_defaults_are_the_protocols():
    z1, z2, bank, index, negatives = _multiview_case()
    loss = multiview_loss(z1, z2, bank, index, negatives=negatives)
    expected = _multiview_by_loop(z1, z2, bank, index, negatives, 0.07, "bank", "sum")
    assert loss.item() == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("positive", ["bank", "current"])
@pytest.mark.parametrize("whole", [True, False])
def test_multiview_order_of_the_batch_and_of_the_views_do_not_count(positive, whole):
    z1, z2, bank, index, drawn = _multiview_case(3)
    negatives = None if whole else drawn
    loss = multiview_loss(z1, z2, bank, index, negatives=negatives, positive=positive).item()
    order = torch.tensor([2, 0, 3, 1])
    taken = None if whole else negatives[order]
    args = (z1[order], z2[order], bank, index[order])
    permuted = multiview_loss(*args, negatives=taken, positive=positive)
    assert permuted.item() == pytest.approx(loss, **CLOSE)
    swapped = multiview_loss(z2, z1, bank.flip(0), index, negatives=negatives, positive=positive)
    assert swapped.item() == pytest.approx(loss, **CLOSE)


def test_one_direction_does_depend_on_the_order_of_the_views():
    z1, z2, bank, index, negatives = _multiview_case(3)
    forth = multiview_loss(z1, z2, bank, index, negatives=negatives, directions="one")
    back = multiview_loss(z2, z1, bank.flip(0), index, negatives=negatives, directions="one")
    assert forth.item() != pytest.approx(back.item(), rel=1e-3)


def test_every_other_row_as_a_negative_is_the_whole_bank():
    z1, z2, bank, index, _ = _multiview_case()
    rows = bank.shape[1]
    every = torch.stack([torch.tensor([j for j in range(rows) if j != i]) for i in index.tolist()])
    sampled = multiview_loss(z1, z2, bank, index, negatives=every).item()
    assert multiview_loss(z1, z2, bank, index).item() == pytest.approx(sampled, **CLOSE)


def test_multiview_gradients_reach_both_views_and_not_past_the_bank():
    z1, z2, bank, index, negatives = _multiview_case()
    z1.requires_grad_(), z2.requires_grad_()
    multiview_loss(z1, z2, bank, index, negatives=negatives).backward()
    assert z1.grad.abs().sum() > 0
    assert z2.grad.abs().sum() > 0
    assert not bank.requires_grad


def test_multiview_errors():
    z1, z2, bank, index, _ = _multiview_case()
    with pytest.raises(ValueError, match="'both'"):
        multiview_loss(z1, z2, bank, index, directions="both")
    with pytest.raises(ValueError, match="'queue'"):
        multiview_loss(z1, z2, bank, index, positive="queue")


# ---- Eq. 4


def _classification_by_loop(logits, labels, group, reduction) -> float:
    """Eq. 4 for each group, then the mean over groups weighted by their videos."""
    total, videos = 0.0, 0
    for number in sorted(set(group.tolist())):
        terms, true = [], 0
        for s, y, g in zip(logits.tolist(), labels.tolist(), group.tolist(), strict=True):
            if g == number:
                answer = 1 / (1 + math.exp(-s))
                terms.append(-y * math.log(answer) - (1 - y) * math.log(1 - answer))
                true += int(y)
        total += true * (sum(terms) if reduction == "sum" else sum(terms) / len(terms))
        videos += true
    return total / videos


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("pairing", ["cross", "all"])
@pytest.mark.parametrize("videos", [2, 4, 5, 7, 9, 11])
def test_classification_against_a_loop(videos, pairing, reduction):
    pairs = combine_features(_random(videos, 3), _random(videos, 3, seed=1), pairing=pairing)
    logits = 2 * _random(len(pairs.labels), seed=videos)
    loss = classification_loss(logits, pairs.labels, pairs.group, reduction=reduction)
    expected = _classification_by_loop(logits, pairs.labels, pairs.group, reduction)
    assert loss.item() == pytest.approx(expected, **CLOSE)


def test_classification_without_groups_is_one_group():
    labels, logits = torch.eye(4, dtype=torch.float64).flatten(), _random(16)
    group = torch.zeros(16, dtype=torch.int64)
    assert torch.equal(classification_loss(logits, labels), classification_loss(logits, labels, group))


def test_classification_of_undecided_logits():
    labels, zeros = torch.eye(4).flatten(), torch.zeros(16)
    assert classification_loss(zeros, labels).item() == pytest.approx(16 * math.log(2), rel=1e-6)
    mean = classification_loss(zeros, labels, reduction="mean")
    assert mean.item() == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_classification_adds_over_ranks_by_their_videos(reduction):
    """7 videos are groups of 4 and 3: a rank with 4 and one with 3 say the same together."""
    pairs = combine_features(_random(7, 3), _random(7, 3, seed=1))
    logits = _random(len(pairs.labels), seed=2)
    whole = classification_loss(logits, pairs.labels, pairs.group, reduction=reduction)
    shares = [
        classification_loss(logits[mine], pairs.labels[mine], reduction=reduction)
        for mine in (pairs.group == 0, pairs.group == 1)
    ]
    assert whole.item() == pytest.approx(((4 * shares[0] + 3 * shares[1]) / 7).item(), **CLOSE)


def test_classification_order_of_the_pairs_does_not_count():
    pairs = combine_features(_random(7, 3), _random(7, 3, seed=1))
    logits = _random(25, seed=2)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(0))
    loss = classification_loss(logits, pairs.labels, pairs.group).item()
    permuted = classification_loss(logits[order], pairs.labels[order], pairs.group[order])
    assert permuted.item() == pytest.approx(loss, **CLOSE)


def test_classification_with_certain_logits_in_float32():
    labels = torch.eye(4).flatten()
    right = (1e4 * (2 * labels - 1)).requires_grad_()
    assert classification_loss(right, labels).item() == 0
    wrong = (-1e4 * (2 * labels - 1)).requires_grad_()
    loss = classification_loss(wrong, labels)
    loss.backward()
    assert loss.item() == pytest.approx(16e4, rel=1e-6)
    assert wrong.grad.tolist() == (1 - 2 * labels).tolist()


def test_classification_errors():
    with pytest.raises(ValueError, match="'none'"):
        classification_loss(torch.zeros(16), torch.eye(4).flatten(), reduction="none")


# ---- the floor of a single fc on concatenated features (protocol row 33)


def _minimise(loss_of, parameters, steps: int = 20) -> list[float]:
    """Every loss LBFGS looks at."""
    optimiser = torch.optim.LBFGS(parameters, max_iter=20, line_search_fn="strong_wolfe", tolerance_grad=1e-9)
    seen = []

    def closure():
        optimiser.zero_grad()
        loss = loss_of()
        loss.backward()
        seen.append(loss.item())
        return loss

    for _ in range(steps):
        optimiser.step(closure)
    return seen


def test_the_best_additive_logits_give_16_times_the_entropy_of_a_quarter():
    u, v = (_random(4, seed=seed).requires_grad_() for seed in (0, 1))
    labels = torch.eye(4, dtype=torch.float64).flatten()
    seen = _minimise(lambda: classification_loss((u[:, None] + v).flatten(), labels), [u, v])
    assert abs(FLOOR - 8.99736) < 5e-6
    assert seen[-1] == pytest.approx(FLOOR, abs=1e-4)
    assert min(seen) > FLOOR - 1e-9
    logits = (u[:, None] + v).detach()  # constant: the odds of 4 in 16
    torch.testing.assert_close(logits, torch.full_like(logits, -math.log(3)), rtol=0, atol=1e-3)


def _train_head(head: str, z1: torch.Tensor, z2: torch.Tensor) -> list[float]:
    torch.manual_seed(0)
    network = MetaContrastiveNetwork("r3d_small", width=4, dim=z1.shape[1], head=head).double()

    def loss_of():
        logits, pairs = network.match(z1, z2)
        return classification_loss(logits, pairs.labels, pairs.group)

    return _minimise(loss_of, list(network.meta_head.parameters()))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("matching", [True, False])
def test_a_linear_head_never_goes_under_the_floor(seed, matching):
    z1 = _random(4, 16, seed=seed)
    z2 = z1 if matching else _random(4, 16, seed=seed + 50)
    seen = _train_head("linear", z1, z2)
    assert min(seen) >= FLOOR - 1e-6
    assert seen[-1] == pytest.approx(FLOOR, abs=1e-3)  # it was trained: it reaches the floor


@pytest.mark.parametrize("seed", range(4))
def test_the_default_head_goes_under_the_floor_on_the_same_features(seed):
    z1 = _random(4, 16, seed=seed)
    assert _train_head("mlp", z1, z1)[-1] < 5


# ---- Eq. 5


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.35, 1.0])
def test_meta_loss_is_eq_5(alpha):
    classification, contrast = torch.tensor([8.25, 13.5], dtype=torch.float64)
    loss = meta_loss(classification, contrast, cls_weight=alpha)
    assert loss.item() == pytest.approx(alpha * 8.25 + (1 - alpha) * 13.5, **CLOSE)


def test_meta_loss_default_is_the_papers_alpha():
    assert meta_loss(torch.tensor(10.0), torch.tensor(0.0)).item() == pytest.approx(2.0)
    assert meta_loss(torch.tensor(0.0), torch.tensor(10.0)).item() == pytest.approx(8.0)
