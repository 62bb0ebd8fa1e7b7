"""FCM: pairs and labels by hand, the table of group sizes, gradients, errors."""

import pytest
import torch

from mcn.pairing import combine_features, group_sizes


def _numbered(videos: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features that carry their own name: 0, 1, .. for view 1 and 10, 11, .. for view 2."""
    z1 = torch.arange(videos, dtype=torch.float64)[:, None]
    return z1, z1 + 10


def test_cross_pairs_of_four_videos_listed_by_hand():
    pairs = combine_features(*_numbered(4))
    listed = [
        [0, 10], [0, 11], [0, 12], [0, 13],
        [1, 10], [1, 11], [1, 12], [1, 13],
        [2, 10], [2, 11], [2, 12], [2, 13],
        [3, 10], [3, 11], [3, 12], [3, 13],
    ]  # fmt: skip
    assert pairs.features.tolist() == listed
    assert pairs.labels.tolist() == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert pairs.group.tolist() == [0] * 16
    assert pairs.group.dtype == torch.int64


def test_all_pairs_of_four_videos_are_the_28_unordered_ones():
    pairs = combine_features(*_numbered(4), pairing="all")
    names = [0, 1, 2, 3, 10, 11, 12, 13]
    listed = [[a, b] for i, a in enumerate(names) for b in names[i + 1 :]]
    assert len(listed) == 28
    assert pairs.features.tolist() == listed
    assert pairs.labels.tolist() == [float(b == a + 10) for a, b in listed]
    assert pairs.labels.sum() == 4


@pytest.mark.parametrize("pairing", ["cross", "all"])
def test_groups_pair_only_their_own_consecutive_videos(pairing):
    z1, z2 = _numbered(7)
    pairs = combine_features(z1, z2, pairing=pairing)
    first = combine_features(z1[:4], z2[:4], pairing=pairing)
    second = combine_features(z1[4:], z2[4:], pairing=pairing)
    assert torch.equal(pairs.features, torch.cat([first.features, second.features]))
    assert torch.equal(pairs.labels, torch.cat([first.labels, second.labels]))
    assert pairs.group.tolist() == [0] * len(first.labels) + [1] * len(second.labels)


def test_one_true_pair_a_video():
    for videos in range(2, 20):
        for pairing in ("cross", "all"):
            pairs = combine_features(*_numbered(videos), pairing=pairing)
            true = pairs.features[pairs.labels == 1].tolist()
            assert true == [[i, i + 10] for i in range(videos)]


def test_features_sit_side_by_side():
    z1, z2 = torch.randn(3, 5), torch.randn(3, 5)
    pairs = combine_features(z1, z2)
    assert pairs.features.shape == (9, 10)
    assert torch.equal(pairs.features[1 * 3 + 2], torch.cat([z1[1], z2[2]]))


@pytest.mark.parametrize(
    ("videos", "sizes"),
    [
        (2, [2]), (3, [3]), (4, [4]), (5, [3, 2]), (6, [4, 2]), (7, [4, 3]), (8, [4, 4]),
        (9, [4, 3, 2]), (10, [4, 4, 2]), (28, [4] * 7), (29, [4] * 6 + [3, 2]), (80, [4] * 20),
    ],
)  # fmt: skip
def test_group_sizes_table(videos, sizes):
    assert group_sizes(videos) == sizes


@pytest.mark.parametrize("group_size", [2, 3, 4, 5, 8])
def test_group_sizes_add_up_and_none_is_under_two(group_size):
    for videos in range(2, 41):
        sizes = group_sizes(videos, group_size)
        assert sum(sizes) == videos
        assert min(sizes) >= 2
        # Groups of two have nowhere to put a single one left over but a group of three.
        assert max(sizes) <= max(group_size, 3)


@pytest.mark.parametrize(("videos", "group_size"), [(1, 4), (0, 4), (4, 1)])
def test_fewer_than_two_videos_raise(videos, group_size):
    with pytest.raises(ValueError, match="at least 2 videos"):
        group_sizes(videos, group_size)


@pytest.mark.parametrize(("pairing", "uses"), [("cross", 4), ("all", 7)])
def test_gradients_flow_to_both_sides(pairing, uses):
    z1, z2 = (z.requires_grad_() for z in _numbered(4))
    combine_features(z1, z2, pairing=pairing).features.sum().backward()
    # Each feature meets the 4 of the other view, or each of the 7 others.
    assert z1.grad.tolist() == z2.grad.tolist() == [[uses]] * 4


def test_labels_take_the_type_of_the_features():
    assert combine_features(*_numbered(4)).labels.dtype == torch.float64


def test_errors_name_what_was_given():
    with pytest.raises(ValueError, match=r"\(4, 8\), \(3, 8\)"):
        combine_features(torch.zeros(4, 8), torch.zeros(3, 8))
    with pytest.raises(ValueError, match=r"\(B, D\)"):
        combine_features(torch.zeros(4, 8, 1), torch.zeros(4, 8, 1))
    with pytest.raises(ValueError, match="'every'"):
        combine_features(torch.zeros(4, 8), torch.zeros(4, 8), pairing="every")
    with pytest.raises(ValueError, match="at least 2 videos"):
        combine_features(torch.zeros(1, 8), torch.zeros(1, 8))
