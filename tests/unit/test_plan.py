"""Support and query halves of an epoch (protocol rows 20 and 21)."""

import pytest

from mcn.data.plan import epoch_plan, share_of
from mcn.errors import MCNError


def halves(epoch, redraw, seed=0, videos=40):
    plan = epoch_plan(videos, 5, epoch, seed, stages=True, redraw=redraw)
    support = {request.video for step in plan for request in step.support}
    query = {request.video for step in plan for request in step.query}
    return support, query


@pytest.mark.parametrize("redraw", [True, False])
def test_the_halves_are_disjoint_and_together_all_videos(redraw):
    for epoch in range(3):
        support, query = halves(epoch, redraw)
        assert not support & query
        assert support | query == set(range(40))


def test_redrawn_halves_differ_from_epoch_to_epoch_and_fixed_ones_do_not():
    assert halves(0, redraw=True) != halves(1, redraw=True)
    assert halves(0, redraw=False) == halves(1, redraw=False) == halves(7, redraw=False)
    assert halves(0, redraw=False) != halves(0, redraw=False, seed=1)


def test_fixed_halves_still_come_in_another_order():
    first, second = (epoch_plan(40, 5, epoch, 0, stages=True, redraw=False) for epoch in (0, 1))
    assert [r.video for s in first for r in s.query] != [r.video for s in second for r in s.query]


def test_without_stages_an_epoch_is_one_pass_in_batches():
    plan = epoch_plan(42, 5, 0, 0, stages=False)
    assert all(not step.support and len(step.query) == 5 for step in plan)
    assert len({request.video for step in plan for request in step.query}) == 40


def test_no_two_clips_of_an_epoch_share_their_seed():
    plan = epoch_plan(40, 5, 3, 0, stages=True)
    requests = [request for step in plan for request in step.support + step.query]
    assert len({(request.epoch, request.position) for request in requests}) == len(requests) == 40


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("stages", [True, False])
def test_shares_of_a_step_are_disjoint_and_together_the_step(stages, ranks):
    for step in epoch_plan(60, 7, 1, 0, stages):
        shares = [share_of(step, rank, ranks) for rank in range(ranks)]
        for stage, whole in enumerate(step):
            assert [request for share in shares for request in share[stage]] == whole  # in rank order
            sizes = {len(share[stage]) for share in shares}
            assert max(sizes) - min(sizes) <= 1


def test_no_rank_may_be_left_without_a_video():
    step = epoch_plan(60, 3, 0, 0, stages=True)[0]
    with pytest.raises(MCNError, match="--batch_size 3 is less than a video for each of 4 processes"):
        share_of(step, 0, 4)
    with pytest.raises(MCNError, match="rank 4 of 4"):
        share_of(step, 4, 4)
