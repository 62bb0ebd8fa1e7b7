"""Which videos were right: what goes in comes out, and what does not fit together is named."""

import random

import pytest

from mcn.errors import MCNError
from mcn.hits import Hits, hits_of


@pytest.mark.parametrize("videos", [0, 1, 7, 8, 9, 503])
def test_bits_come_back(videos: int) -> None:
    chance = random.Random(videos)
    names = [f"a/{n}.avi" for n in range(videos)]
    right = {name: [chance.random() < 0.5 for _ in names] for name in ("probe_top1", "retrieval_top1")}
    hits = hits_of(names, right)
    assert {name: hits.of(name).tolist() for name in right} == right
    assert hits.sources == list(range(videos))


def test_the_digest_is_of_the_names_in_their_order() -> None:
    one, same, other = (hits_of(names, {}).digest for names in (["a", "b"], ["a", "b"], ["b", "a"]))
    assert one == same != other


def test_clips_of_a_source_have_its_number() -> None:
    names = ["A/v_A_g01_c01.avi", "B/v_B_g01_c01.avi", "A/v_A_g01_c02.avi", "A/v_A_g02_c01.avi"]
    assert hits_of(names, {}).sources == [0, 1, 0, 2]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (("", [0], {}), "hits.digest is ''"),
        (("z" * 16, [0], {}), "hits.digest"),
        (("0" * 16, [0.5], {}), "whole numbers"),
        (("0" * 16, [0, 1], {"probe_top1": "8000"}), "hits.right.probe_top1 should have a bit"),
        (("0" * 16, [0, 1], {"probe_top1": "zz"}), "hits.right.probe_top1 should have a bit"),
        (("0" * 16, [0, 1], {"probe_top1": "20"}), "behind the last of 2 videos"),
    ],
)
def test_what_does_not_fit_is_named(fields: tuple, said: str) -> None:
    with pytest.raises(MCNError, match=said):
        Hits(*fields)
    with pytest.raises(MCNError, match="probe_top1 has 1 answers, for a list of 2 videos"):
        hits_of(["a", "b"], {"probe_top1": [True]})
