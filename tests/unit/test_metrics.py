"""Top-k, confusion and per-class numbers against naive loops and cases counted by hand."""

import csv
import json
import random
from pathlib import Path

import pytest
import torch

from mcn.errors import MCNError
from mcn.metrics import Evaluation, Tally, rank_of

NAMES = ["bow", "dig", "fly", "hop", "nod", "run", "wave"]


def tally_of(labels: list[int], clips: list[list[list[float]] | None], names: list[str]) -> Evaluation:
    tally = Tally(labels, names)
    for video, each in enumerate(clips):
        if each is not None:
            tally.add(video, torch.tensor(each))
    return tally.evaluation()


def naive(labels: list[int], clips: list[list[list[float]] | None], count: int) -> dict[str, object]:
    """The same numbers, video by video in plain Python."""
    found: dict[str, float] = {"top1": 0, "top5": 0, "clip_top1": 0, "clip_top5": 0}
    confusion = [[0] * count for _ in range(count)]
    for label, each in zip(labels, clips, strict=True):
        if each is None:
            continue
        mean = [sum(clip[c] for clip in each) / len(each) for c in range(count)]
        order = sorted(range(count), key=lambda c: -mean[c])
        confusion[label][order[0]] += 1
        found["top1"] += order[0] == label
        found["top5"] += label in order[:5]
        for clip in each:
            order = sorted(range(count), key=lambda c: -clip[c])
            found["clip_top1"] += (order[0] == label) / len(each)
            found["clip_top5"] += (label in order[:5]) / len(each)
    share = 100 / len(labels)
    return {**{name: share * value for name, value in found.items()}, "confusion": confusion}


@pytest.mark.parametrize("seed", range(5))
def test_a_naive_loop_counts_the_same(seed: int) -> None:
    """Eighths of probabilities: sums are exact and ties are many."""
    chance = random.Random(seed)
    labels = [chance.randrange(7) for _ in range(60)]
    clips: list[list[list[float]] | None] = [
        None if chance.random() < 0.1 else [[chance.randrange(8) / 8 for _ in range(7)] for _ in range(4)]
        for _ in labels
    ]
    found, expected = tally_of(labels, clips, NAMES), naive(labels, clips, 7)
    for name in ("top1", "top5", "clip_top1", "clip_top5"):
        assert getattr(found, name) == pytest.approx(expected[name], abs=1e-10)
    assert found.confusion.tolist() == expected["confusion"]
    assert found.unreadable == clips.count(None)
    for number, score in enumerate(found.classes):
        own = [each for label, each in zip(labels, clips, strict=True) if label == number]
        right = naive([number] * len(own), own, 7)
        assert score.videos == labels.count(number)
        assert (score.top1, score.top5) == pytest.approx((right["top1"], right["top5"]))


def test_the_order_of_videos_changes_nothing() -> None:
    labels = [0, 1, 2, 3, 4, 5, 6] * 5
    clips = torch.rand(35, 3, 7, generator=torch.Generator().manual_seed(0))
    results = []
    for order in (range(35), random.Random(0).sample(range(35), 35)):
        tally = Tally(labels, NAMES)
        for video in order:
            tally.add(video, clips[video])
        results.append(tally.evaluation())
    assert results[0].summary() == results[1].summary()
    assert torch.equal(results[0].confusion, results[1].confusion)


def test_the_mean_over_clips_decides_and_not_the_vote() -> None:
    """Two clips of three are for class 1, the mean is for class 0."""
    found = tally_of([0], [[[0.9, 0.1], [0.45, 0.55], [0.45, 0.55]]], ["a", "b"])
    assert found.top1 == 100
    assert found.clip_top1 == pytest.approx(100 / 3)


def test_one_answer_to_everything_is_not_right() -> None:
    """Equal probabilities are an answer: the first class. Ranks of equals do not all count as first."""
    found = tally_of([0, 1, 2, 3, 4, 5, 6], [[[1 / 7] * 7]] * 7, NAMES)
    assert found.top1 == pytest.approx(100 / 7)
    assert found.top5 == pytest.approx(500 / 7)
    assert [rank_of(torch.full((7,), 1 / 7), c).item() for c in range(7)] == list(range(7))


def test_an_unreadable_video_is_wrong_however_few_classes_there_are() -> None:
    found = tally_of([0, 1], [[[0.6, 0.4]], None], ["a", "b"])
    assert (found.top1, found.top5, found.clip_top1, found.clip_top5) == (50, 50, 50, 50)
    assert found.confusion.tolist() == [[1, 0], [0, 0]]
    assert (found.classes[1].top5, found.classes[1].taken_for) == (0, "")


def test_what_is_saved_and_said(tmp_path: Path) -> None:
    one_hot = torch.eye(7).tolist()
    # Two videos a class; runs are taken for waves, once for a nod, and nobody flies.
    labels = [0, 0, 1, 1, 3, 3, 4, 4, 5, 5, 5, 6]
    answers = [0, 0, 1, 0, 3, 3, 4, 4, 6, 6, 4, 6]
    found = tally_of(labels, [[one_hot[a]] for a in answers], NAMES)
    assert found.top1 == pytest.approx(100 * 8 / 12)
    found.save(tmp_path)
    stored = json.loads((tmp_path / "classes.json").read_text())
    assert stored["confusion"] == found.confusion.tolist()
    assert stored["classes"][5] == {
        "name": "run", "videos": 3, "top1": 0.0, "top5": 0.0,
        "taken_for": "wave", "taken_for_videos": 2,
    }  # fmt: skip
    with (tmp_path / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == NAMES
    assert (rows[1]["top1"], rows[1]["taken_for"], rows[2]["videos"]) == ("50.0", "bow", "0")
    with (tmp_path / "confusion.csv").open() as file:
        matrix = list(csv.reader(file))
    assert matrix[0] == ["", *NAMES]
    assert matrix[6] == ["run", "0", "0", "0", "0", "1", "0", "2"]
    said = found.lines(clips=1)
    assert "top-1 66.7 %" in said[0]
    assert "(12 videos, 1 clips each; chance: top-1 14.3 %, top-5 71.4 %)" in said[0]
    assert tally_of([0, 1], [[[0.6, 0.4]], None], ["a", "b"]).chance == {1: 50.0, 5: 100.0}
    assert said[1] == "classes:      bow 100 %, hop 100 %, nod 100 %, wave 100 %, dig 50 %, run 0 %"
    more = tally_of([*labels, 2], [[one_hot[a]] for a in [*answers, 2]], NAMES).lines(clips=1)
    assert more[1] == "best classes: bow 100 %, fly 100 %, hop 100 %"
    assert more[2] == "worst:        run 0 % (taken for wave), dig 50 % (taken for bow), wave 100 %"


def test_what_is_not_a_number_is_never_right() -> None:
    """Comparisons with NaN are false, so a rank counted by them would be 0: everything right."""
    assert (rank_of(torch.full((3, 7), float("nan")), 2) > 4).all()
    with pytest.raises(MCNError, match="test video 0 is not a number: it has diverged"):
        Tally([0], NAMES).add(0, torch.full((2, 7), float("nan")))
