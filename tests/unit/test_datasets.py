"""Folders and lists -> videos and labels; plans and clips made from them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mcn.data.augment import AugmentConfig
from mcn.data.bad import BadVideos
from mcn.data.datasets import EXTENSIONS, Videos, load_videos
from mcn.data.loader import Clip, TestClips, TrainClips, clip_views, train_steps
from mcn.data.plan import Request, epoch_plan, steps_per_epoch
from mcn.data.readers import open_video
from mcn.errors import MCNError

OFFICIAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "splits" / "ucfTrainTestlist"


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def ucf(root: Path, videos: str = "UCF-101", lists: str = "ucfTrainTestlist") -> Path:
    """Four videos of two classes, one of them for testing in each class."""
    names = [f"{c}/v_{c}_g0{g}_c01.avi" for c in ("Archery", "Bowling") for g in (1, 2)]
    touch(root / videos, *names)
    write_lists(root / lists, names[1::2], names[::2])
    return root


def write_lists(folder: Path, train: list[str], test: list[str], index: str | None = None) -> None:
    folder.mkdir(parents=True)
    classes = sorted({name.split("/")[0] for name in train + test})
    lines = [f"{name} {classes.index(name.split('/')[0]) + 1}" for name in train]
    (folder / "trainlist01.txt").write_text("\n".join(lines) + "\n")
    (folder / "testlist01.txt").write_text("\r\n".join(test) + "\r\n")  # the official ones have these
    text = "".join(f"{i} {name}\n" for i, name in enumerate(classes, 1)) if index is None else index
    if text:
        (folder / "classInd.txt").write_text(text)


@pytest.mark.parametrize("videos", ["UCF-101", "videos", "."])
@pytest.mark.parametrize("lists", ["ucfTrainTestlist", "splits"])
def test_ucf101_lists(videos: str, lists: str, tmp_path: Path) -> None:
    ucf(tmp_path, videos, lists)
    train, test = load_videos(tmp_path, "train"), load_videos(tmp_path, "test")
    assert train.names == ("Archery/v_Archery_g02_c01.avi", "Bowling/v_Bowling_g02_c01.avi")
    assert test.names == ("Archery/v_Archery_g01_c01.avi", "Bowling/v_Bowling_g01_c01.avi")
    assert train.labels == test.labels == (0, 1)
    assert train.classes == test.classes == ("Archery", "Bowling")
    assert train.path(1).is_file()
    assert train.root.resolve() == tmp_path.resolve()
    assert "lists" in train.layout
    assert len(load_videos(tmp_path, "all")) == 4
    with pytest.raises(MCNError, match=r"no such list: .*trainlist02\.txt"):
        load_videos(tmp_path, "train", split=2)


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the official UCF101 lists are not beside the repository")
@pytest.mark.parametrize(("split", "train", "test"), [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)])
def test_the_official_lists(split: int, train: int, test: int, tmp_path: Path) -> None:
    (tmp_path / "ucfTrainTestlist").symlink_to(OFFICIAL)
    names = [
        line.split()[0]
        for subset in ("train", "test")
        for line in (OFFICIAL / f"{subset}list{split:02d}.txt").read_text().splitlines()
        if line.strip()
    ]
    touch(tmp_path / "UCF-101", *names)
    both = [load_videos(tmp_path, subset, split) for subset in ("train", "test")]
    assert [len(videos) for videos in both] == [train, test]
    assert not set(both[0].names) & set(both[1].names)
    for videos in both:
        assert len(videos.classes) == 101
        assert set(videos.labels) == set(range(101))
        for name, label in zip(videos.names, videos.labels, strict=True):
            assert name.split("/")[0].lower() == videos.classes[label].lower()
    # The lists' own numbers agree with the class names.
    for line, label in zip((OFFICIAL / f"trainlist{split:02d}.txt").read_text().splitlines(),
                           both[0].labels, strict=True):  # fmt: skip
        assert int(line.split()[1]) == label + 1


def test_folder_and_list_may_differ_in_case(tmp_path: Path) -> None:
    """The official lists say HandstandPushups, the files in it v_HandStandPushups."""
    name = "HandStandPushups/v_HandStandPushups_g01_c01.avi"
    touch(tmp_path / "videos", name, "Archery/v_Archery_g01_c01.avi")
    index = "1 Archery\n2 HandstandPushups\n"
    write_lists(tmp_path / "splits", [name], ["Archery/v_Archery_g01_c01.avi"], index)
    train = load_videos(tmp_path, "train")
    assert train.labels == (1,)
    assert train.classes == ("Archery", "HandstandPushups")


def test_a_class_that_is_not_in_the_index(tmp_path: Path) -> None:
    touch(tmp_path / "videos", "Juggling/a.avi", "Archery/b.avi")
    write_lists(tmp_path / "splits", ["Juggling/a.avi"], ["Archery/b.avi"], "1 Archery\n")
    with pytest.raises(MCNError, match=r"trainlist01.*'Juggling'.*classInd"):
        load_videos(tmp_path, "train")


def test_lists_without_an_index_agree_on_the_labels(tmp_path: Path) -> None:
    """A class that is only in one of the lists must not shift the labels of the other."""
    train, test = ["Archery/a.avi", "Bowling/a.avi", "Curling/a.avi"], ["Bowling/b.avi", "Curling/b.avi"]
    touch(tmp_path / "videos", *train, *test)
    write_lists(tmp_path / "splits", train, test, index="")
    assert not (tmp_path / "splits" / "classInd.txt").exists()
    both = [load_videos(tmp_path, subset) for subset in ("train", "test")]
    assert both[0].classes == both[1].classes == ("Archery", "Bowling", "Curling")
    assert (both[0].labels, both[1].labels) == ((0, 1, 2), (1, 2))


def test_names_may_have_spaces(tmp_path: Path) -> None:
    train, test = "playing guitar/my clip 7.mp4", "playing guitar/another.mp4"
    touch(tmp_path / "videos", train, test)
    write_lists(tmp_path / "splits", [train], [test])
    assert load_videos(tmp_path, "train").names == (train,)
    assert load_videos(tmp_path, "test").names == (test,)
    assert load_videos(tmp_path, "train").classes == ("playing guitar",)


def test_class_folders_without_lists(tmp_path: Path) -> None:
    touch(tmp_path, "run/b.mp4", "run/a.AVI", "walk/c.webm", "walk/notes.txt", "walk/.hidden.mp4")
    train = load_videos(tmp_path, "train")
    assert train.names == ("run/a.AVI", "run/b.mp4", "walk/c.webm")
    assert train.labels == (0, 0, 1)
    assert train.classes == ("run", "walk")
    assert load_videos(tmp_path, "all") == train
    test = load_videos(tmp_path, "test")
    assert len(test) == 0
    assert test.labels == ()


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    touch(tmp_path, *(f"clip{i}{extension}" for i, extension in enumerate(EXTENSIONS)))
    videos = load_videos(tmp_path, "train")
    assert len(videos) == len(EXTENSIONS)
    assert videos.labels == ()
    assert videos.classes == ()
    assert "no labels" in videos.layout


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(MCNError, match="add --data FOLDER"):
        load_videos("")
    with pytest.raises(MCNError, match=r"no such folder: .*nowhere"):
        load_videos(tmp_path / "nowhere")
    with pytest.raises(MCNError, match=r"no videos in .*looked for \.avi, \.mp4"):
        load_videos(tmp_path)
    ucf(tmp_path)
    (tmp_path / "ucfTrainTestlist" / "testlist01.txt").write_text("\n")
    with pytest.raises(MCNError, match="is empty"):
        load_videos(tmp_path, "test")


def test_a_list_that_does_not_belong_to_the_videos(tmp_path: Path) -> None:
    ucf(tmp_path)
    lost = tmp_path / "UCF-101/Archery/v_Archery_g02_c01.avi"
    lost.unlink()
    assert len(load_videos(tmp_path, "train")) == 2  # one lost file is for the loader to count
    shutil.rmtree(tmp_path / "UCF-101/Bowling")
    with pytest.raises(MCNError, match=r"names 2 videos, 2 are not in .*first: Archery/v_Archery_g02"):
        load_videos(tmp_path, "train")


def test_the_root_is_where_the_flow_is(tmp_path: Path) -> None:
    assert Videos(tmp_path / "videos", ("a.mp4",)).root == tmp_path
    assert Videos(tmp_path / "UCF-101", ("a.mp4",)).root == tmp_path
    assert Videos(tmp_path, ("a.mp4",)).root == tmp_path


@pytest.mark.parametrize(("number", "batch"), [(40, 4), (41, 4), (9, 2), (100, 7)])
def test_a_plan_with_stages_has_two_disjoint_halves(number: int, batch: int) -> None:
    plan = epoch_plan(number, batch, epoch=0, seed=0, stages=True)
    assert len(plan) == steps_per_epoch(number, batch, stages=True) == number // (2 * batch)
    support = [request.video for step in plan for request in step.support]
    query = [request.video for step in plan for request in step.query]
    assert all(len(step.support) == len(step.query) == batch for step in plan)
    assert len({*support, *query}) == len(support) + len(query)
    assert {*support, *query} <= set(range(number))
    positions = [request.position for step in plan for request in [*step.support, *step.query]]
    assert len(set(positions)) == len(positions)  # each clip of an epoch has a draw of its own


def test_a_plan_without_stages_is_one_pass() -> None:
    plan = epoch_plan(40, 4, epoch=0, seed=0, stages=False)
    assert len(plan) == steps_per_epoch(40, 4, stages=False) == 10
    assert all(step.support == [] for step in plan)
    assert sorted(request.video for step in plan for request in step.query) == list(range(40))


@pytest.mark.parametrize("stages", [True, False])
def test_plans_follow_from_seed_and_epoch(stages: bool) -> None:
    plan = epoch_plan(40, 4, 0, 0, stages)
    assert plan == epoch_plan(40, 4, 0, 0, stages)
    assert [s.query for s in plan] != [s.query for s in epoch_plan(40, 4, 1, 0, stages)]
    assert [s.query for s in plan] != [s.query for s in epoch_plan(40, 4, 0, 1, stages)]
    if stages:  # the halves themselves are drawn anew, not only their order
        halves = [
            {request.video for step in epoch_plan(40, 4, epoch, 0, True) for request in step.support}
            for epoch in range(4)
        ]
        assert len({frozenset(half) for half in halves}) == 4


def test_clips_have_one_frame_more_than_asked(action_data: Path) -> None:
    videos = load_videos(action_data, "train")
    dataset = TrainClips(videos, frames=4, stride=2, augment=AugmentConfig(size=24))
    clip = dataset[Request(3, 0, 0)]
    assert clip.frames.shape == (5, 32, 32, 3)
    assert clip.frames.dtype == torch.uint8
    assert clip.video == 3
    assert clip.augmentation is not None
    with open_video(videos.path(3)) as video:
        whole = torch.from_numpy(video.frames(range(16)))
    starts = [s for s in range(8) if torch.equal(whole[s : s + 9 : 2], clip.frames)]
    assert len(starts) == 1

    view1, view2, index = clip_views([clip, dataset[Request(4, 0, 1)]], 24, "residual")
    assert view1.shape == view2.shape == (2, 3, 4, 24, 24)
    assert index.tolist() == [3, 4]


def test_a_clip_follows_from_seed_epoch_and_position(action_data: Path) -> None:
    videos = load_videos(action_data, "train")

    def draw(seed: int, *request: int) -> Clip:
        dataset = TrainClips(videos, frames=4, augment=AugmentConfig(size=24), seed=seed)
        return dataset[Request(*request)]

    first = draw(0, 3, 0, 0)
    assert draw(0, 3, 0, 0).augmentation == first.augmentation
    assert torch.equal(draw(0, 3, 0, 0).frames, first.frames)
    others = [draw(1, 3, 0, 0), draw(0, 3, 1, 0), draw(0, 3, 0, 1)]
    assert all(other.augmentation != first.augmentation for other in others)


def test_steps_come_in_order_whoever_decodes(action_data: Path) -> None:
    dataset = TrainClips(load_videos(action_data, "train"), frames=2, augment=AugmentConfig(size=24))
    plan = epoch_plan(32, 4, 0, 0, stages=True)
    made = [list(train_steps(dataset, iter(plan), workers)) for workers in (0, 2)]
    for step, here, there in zip(plan, *made, strict=True):
        for stage in (0, 1):
            assert [c.video for c in here[stage]] == [request.video for request in step[stage]]
            for one, other in zip(here[stage], there[stage], strict=True):
                assert torch.equal(one.frames, other.frames)
                assert one.augmentation == other.augmentation


def test_evaluation_clips_are_even_and_whole(action_data: Path) -> None:
    videos = load_videos(action_data, "test")
    index, clips, reason = TestClips(videos, frames=4, stride=1, clips=3)[2]
    assert (index, reason) == (2, "")
    assert clips is not None
    assert clips.shape == (3, 5, 32, 32, 3)
    with open_video(videos.path(2)) as video:
        whole = video.frames(range(16))
    for clip, start in zip(clips, (0, 5, 11), strict=True):
        assert np.array_equal(clip.numpy(), whole[start : start + 5])


def test_bad_videos_are_counted_once() -> None:
    bad = BadVideos(total=10, limit=0.2)
    assert len(bad.report((("a.mp4", "a.mp4: empty"),))) == 1
    assert bad.report((("a.mp4", "a.mp4: empty"), ("a.mp4", "a.mp4: empty"))) == []
    assert len(bad.report((("b.mp4", "b.mp4: broken"),))) == 1
    assert bad.summary() == ["2 of 10 videos could not be read: a.mp4, b.mp4"]
    assert bad.note("c.mp4", "cut short") == [
        "damaged video, what can be read of it is used: c.mp4: cut short"
    ]
    assert bad.note("c.mp4", "cut short") == bad.note("d.mp4", "") == []
    assert bad.summary()[1:] == ["1 of 10 videos are damaged and were used in part: c.mp4"]
    with pytest.raises(MCNError, match=r"3 of 10 videos cannot be read.*c\.mp4: gone.*--max_bad"):
        bad.report((("c.mp4", "c.mp4: gone"),))


def test_a_reader_that_is_not_installed_is_said_at_once(
    action_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcn.data.readers.decord", None)
    videos = load_videos(action_data, "train")
    with pytest.raises(MCNError, match="not installed"):
        TrainClips(videos, frames=4, reader="decord")
    with pytest.raises(MCNError, match="not installed"):
        TestClips(videos, frames=4, stride=1, clips=1, reader="decord")
    TrainClips(videos, frames=4, reader="auto")
