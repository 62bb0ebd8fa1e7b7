"""Stored optical flow as the second view: which image belongs to which frame, and what a flip does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mcn.checkpoint import load_checkpoint
from mcn.cli import main
from mcn.data.augment import Augmentation, AugmentConfig
from mcn.data.datasets import Videos, load_videos
from mcn.data.flow import flow_folder, read_flow
from mcn.data.loader import Clip, TrainClips, clip_views
from mcn.data.plan import Request
from mcn.data.readers import VideoError, open_video
from mcn.pretrain import pretrain


def store(folder: Path, frames: int, size: int = 32) -> None:
    """Flow of a video; the value says which image it is: 10, 20, ... for x, one more for y."""
    folder.mkdir(parents=True)
    for number in range(1, frames):
        for axis, value in (("x", 10 * number), ("y", 10 * number + 1)):
            grey = np.full((size, size), value, np.uint8)
            Image.fromarray(grey).save(folder / f"flow_{axis}_{number:05d}.jpg", quality=100)


def test_image_n_is_the_flow_that_leaves_frame_n_minus_1(tmp_path: Path) -> None:
    store(tmp_path / "v", 16)
    for view, extra in (("flow_u", 0), ("flow_v", 1)):
        flow = read_flow(tmp_path / "v", [3, 4, 5, 6], view, 32, 32)
        assert flow.shape == (3, 32, 32, 3)
        assert flow.dtype == np.uint8
        assert flow[:, 0, 0, 0].tolist() == [40 + extra, 50 + extra, 60 + extra]
        assert (flow == flow[..., :1]).all()  # one channel three times
        assert read_flow(tmp_path / "v", [0, 2, 4], view, 32, 32)[:, 5, 5, 1].tolist() == [
            10 + extra,
            30 + extra,
        ]
        last = read_flow(tmp_path / "v", [14, 15], view, 32, 32)  # 16 frames have 15 images
        assert last[:, 0, 0, 0].tolist() == [150 + extra]


def test_nothing_moves_in_the_padding(tmp_path: Path) -> None:
    store(tmp_path / "v", 3)
    flow = read_flow(tmp_path / "v", [0, 0, 0, 1, 2], "flow_v", 32, 32)
    assert flow[:, 0, 0, 0].tolist() == [128, 128, 11, 21]
    one_frame = read_flow(tmp_path / "nothing stored", [0, 0, 0], "flow_u", 8, 6)
    assert one_frame.shape == (2, 8, 6, 3)
    assert (one_frame == 128).all()


def test_images_of_another_size_are_resized(tmp_path: Path) -> None:
    store(tmp_path / "v", 4, size=16)
    flow = read_flow(tmp_path / "v", [0, 1, 2], "flow_u", 24, 40)
    assert flow.shape == (2, 24, 40, 3)
    assert flow[:, 3, 3, 0].tolist() == [10, 20]


@pytest.mark.parametrize("damage", ["missing", "broken", "empty"])
def test_an_image_that_cannot_be_read_is_named(damage: str, tmp_path: Path) -> None:
    store(tmp_path / "v", 6)
    path = tmp_path / "v" / "flow_y_00003.jpg"
    path.unlink()
    if damage != "missing":
        path.write_bytes(b"no image" if damage == "broken" else b"")
    with pytest.raises(VideoError, match=r"flow_y_00003\.jpg.*stored flow of every frame"):
        read_flow(tmp_path / "v", [0, 1, 2, 3], "flow_v", 32, 32)
    read_flow(tmp_path / "v", [0, 1, 2, 3], "flow_u", 32, 32)  # x is not needed for y


def test_where_flow_is_looked_for(tmp_path: Path) -> None:
    name = "Bowling/v_Bowling_g01_c01.avi"
    for folder in (tmp_path, tmp_path / "videos", tmp_path / "UCF-101"):
        assert flow_folder(Videos(folder, (name,)), 0) == tmp_path / "flow/Bowling/v_Bowling_g01_c01"


@pytest.fixture(scope="module")
def flow_data(action_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set with stored flow beside it."""
    root = tmp_path_factory.mktemp("flow")
    for name in ("videos", "splits"):
        (root / name).symlink_to(action_data / name)
    videos = load_videos(root, "all")
    for index in range(len(videos)):
        store(flow_folder(videos, index), 16)
    return root


def test_a_clip_carries_the_flow_of_its_own_frames(flow_data: Path) -> None:
    videos = load_videos(flow_data, "train")
    for index, stride in ((0, 1), (5, 2), (9, 3)):
        dataset = TrainClips(videos, frames=4, stride=stride, flow="flow_v", augment=AugmentConfig(size=24))
        clip = dataset[Request(index, 0, index)]
        assert clip.flow is not None
        assert clip.flow.shape == (4, 32, 32, 3)
        numbers = [value // 10 - 1 for value in clip.flow[:, 0, 0, 0].tolist()]  # the frame each leaves
        with open_video(videos.path(index)) as video:
            assert np.array_equal(video.frames(numbers), clip.frames[:-1].numpy())


def ramp() -> torch.Tensor:
    """Flow that differs from left to right: uint8 (2, 24, 24, 3)."""
    row = torch.arange(24, dtype=torch.uint8) * 10
    return row.expand(2, 24, 24)[..., None].repeat(1, 1, 1, 3)


@pytest.mark.parametrize("view", ["flow_u", "flow_v"])
def test_a_flip_turns_horizontal_motion_round(view: str) -> None:
    frames = torch.randint(256, (3, 24, 24, 3), dtype=torch.uint8)
    made = {}
    for flip in (False, True):
        augmentation = Augmentation(0, 0, 24, 24, flip=flip)
        made[flip] = clip_views([Clip(frames, ramp(), augmentation, 0, ())] * 2, 24, view)
    assert torch.allclose(made[True][0], made[False][0].flip(-1), atol=1e-5)
    sign = -1 if view == "flow_u" else 1
    # 8 bits have no exact middle: 128 stands for no motion, its mirror image is 127.
    off_by_one = (1 / 255) / 0.1
    difference = made[True][1] - sign * made[False][1].flip(-1)
    assert difference.abs().max() <= (off_by_one if view == "flow_u" else 0) + 1e-5
    assert made[False][1].std() > 1  # there is something to see


def test_colour_and_blur_leave_flow_alone() -> None:
    frames = torch.randint(256, (3, 24, 24, 3), dtype=torch.uint8)
    plain = Augmentation(2, 3, 16, 18)
    strong = Augmentation(2, 3, 16, 18, False, 1.4, 0.6, 1.4, 0.1, (3, 1, 0, 2), 2.0)
    views = [clip_views([Clip(frames, ramp(), a, 0, ())], 24, "flow_v") for a in (plain, strong)]
    assert torch.equal(views[0][1], views[1][1])
    assert not torch.allclose(views[0][0], views[1][0])


def test_without_augmentation_flow_is_centre_cropped() -> None:
    frames = torch.randint(256, (3, 24, 40, 3), dtype=torch.uint8)
    row = torch.arange(40, dtype=torch.uint8) * 5
    flow = row.expand(2, 24, 40)[..., None].repeat(1, 1, 1, 3)
    _, view, _ = clip_views([Clip(frames, flow, None, 0, ())], 24, "flow_u")
    expected = (row[8:32].float() - 128) / 255 / 0.1
    assert torch.allclose(view[0, 0, 0, 0], expected, atol=1e-4)


def test_pre_training_on_flow(
    flow_data: Path, smoke_config: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = ["--preset", "smoke", "--data", str(flow_data), "--threads", "1", "--device", "cpu"]
    assert main(["pretrain", *flags, "--out", str(run), "--view2", "flow_v", "--epochs", "1"]) == 0
    state = load_checkpoint(run)
    assert state["config"]["view2"] == "flow_v"
    assert state["bad_videos"] == {}
    other = pretrain(smoke_config("pretrain", out=tmp_path / "other", epochs=1))
    one, two = (load_checkpoint(path)["network"]["backbones.1.stem.1.running_mean"] for path in (run, other))
    assert not torch.equal(one, two)
    capsys.readouterr()

    evaluate = [*flags, "--checkpoint", str(run)]
    assert main(["probe", *evaluate, "--out", str(tmp_path / "probe")]) == 0
    capsys.readouterr()
    assert main(["probe", *evaluate, "--view", "residual", "--out", str(tmp_path / "residual")]) == 1
    assert "trained on rgb and flow_v" in capsys.readouterr().err


def test_videos_without_flow_are_counted(
    flow_data: Path, action_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for name in ("videos", "splits"):
        (root / name).symlink_to(action_data / name)
    (root / "flow").mkdir()
    videos = load_videos(flow_data, "train")
    missing = videos.names[7]
    for index, name in enumerate(videos.names):
        if name != missing:
            folder = flow_folder(load_videos(root, "train"), index)
            folder.parent.mkdir(exist_ok=True)
            folder.symlink_to(flow_folder(videos, index))
    flags = ["--preset", "smoke", "--data", str(root), "--out", str(tmp_path / "run"), "--threads", "1"]
    assert main(["pretrain", *flags, "--view2", "flow_u", "--epochs", "1"]) == 0
    said = capsys.readouterr().out
    assert f"1 of 32 videos could not be read: {missing}" in said
    assert said.count("flow_x_0") == 1
