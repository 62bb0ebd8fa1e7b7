"""``mcn attend``: pictures and video files of maps, and motion lift over a list."""

import csv
import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mcn.attend import attend, watched_networks
from mcn.attention import attention_maps, counted_pixels, motion_coverage, moving_pixels
from mcn.attention_plots import Example, activation_bars, activation_grid, activation_video, overlay
from mcn.checkpoint import find_checkpoint, load_checkpoint
from mcn.cli import main
from mcn.clip_features import evaluation_crops, one_view
from mcn.config import AttendConfig, PretrainConfig, build
from mcn.data.datasets import load_videos
from mcn.data.loader import clips_of
from mcn.errors import MCNError
from mcn.loading import network_from_config
from mcn.motion import bootstrap, measure
from mcn.pretrain import pretrain

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "samples"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def contrast(smoke_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without MCN."""
    out = tmp_path_factory.mktemp("contrast") / "run"
    return pretrain(smoke_config("pretrain", out=out, order="none", cls_weight=0.0, epochs=1))


@pytest.fixture
def films(action_data: Path) -> list[str]:
    videos = load_videos(action_data, "test")
    return [str(videos.path(i)) for i in (0, 3)]


def smoke(checkpoint: Path | str = "") -> list[str]:
    where = ["--checkpoint", str(checkpoint)] if checkpoint else []
    return ["--preset", "smoke", "--threads", "1", "--device", "cpu", *where]


def settings(data: Path, **changes: Any) -> AttendConfig:
    sizes: dict[str, Any] = {"frames": 8, "size": 32, "clips": 1, "workers": 0, "device": "cpu"}
    return AttendConfig(data=str(data), backbone="r3d_small", width=4, **{**sizes, **changes})


def read_video(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_grid_with_and_without_mcn(
    trained: Path, contrast: Path, films: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "maps.png"
    flags = [
        "--compare",
        str(contrast),
        "-o",
        str(path),
        "--frames",
        "12",
        "--stride",
        "1",
        "--moving",
        "true",
    ]
    assert main(["attend", *films, *smoke(trained), *flags]) == 0
    said = capsys.readouterr().out.splitlines()
    for film, lines in zip(films, (said[:2], said[2:4]), strict=True):
        for line, title, run in zip(lines, ("without MCN", "with MCN"), (contrast, trained), strict=True):
            assert line.startswith(f"{Path(film).name}: {title} (")
            assert Path(re.search(r"\((.*?)\): ", line)[1]) == find_checkpoint(run)  # to be pasted
            assert re.search(r"motion lift \d\.\d\d, AUC 0\.\d\d", line)
    with Image.open(path) as picture:
        assert picture.width > 600
        assert picture.height > 1.5 * picture.width  # two films, four rows each
        assert len(picture.convert("RGB").quantize(64).getcolors()) > 30


def test_the_labels_tell_checkpoints_of_one_name_apart(
    trained: Path, contrast: Path, action_data: Path
) -> None:
    config = settings(action_data, checkpoint=str(trained), compare=str(contrast))
    first, second = watched_networks(config, torch.device("cpu"))
    assert (first.title, second.title) == ("without MCN", "with MCN")
    assert first.label != second.label  # both runs are folders named "run"
    for network, run in ((first, contrast), (second, trained)):
        assert network.label.endswith(".pt")
        assert run.parent.name in network.label
    twice = settings(action_data, checkpoint=str(trained), compare=str(trained))
    assert [n.title for n in watched_networks(twice, torch.device("cpu"))] == ["with MCN (1)", "with MCN (2)"]


def test_untrained_is_the_network_before_its_training(trained: Path, action_data: Path) -> None:
    config = settings(action_data, checkpoint=str(trained), compare="untrained")
    before, after = watched_networks(config, torch.device("cpu"))
    assert before.title == "untrained"
    start = network_from_config(build(PretrainConfig, load_checkpoint(trained)["config"]))
    for name, weight in start.backbone(0).state_dict().items():
        assert torch.equal(before.backbone.state_dict()[name], weight)
    assert not torch.equal(before.backbone.stem[0].weight, after.backbone.stem[0].weight)


def test_the_second_view_and_a_fine_tuned_network(
    trained: Path, finetuned: Path, action_data: Path, films: list[str]
) -> None:
    config = settings(action_data, checkpoint=str(trained), view="residual")
    (network,) = watched_networks(config, torch.device("cpu"))
    state = load_checkpoint(trained)["network"]
    for name, buffer in network.backbone.named_buffers():  # the second view's own statistics
        assert torch.equal(buffer, state[f"backbones.1.{name}"])
    examples, _ = attend(settings(action_data, checkpoint=str(finetuned)), films[:1])
    assert list(examples[0].maps) == ["fine-tuned"]
    with pytest.raises(MCNError, match=r"fine-tuned and does not know how it began"):
        watched_networks(settings(action_data, checkpoint=str(finetuned), compare="untrained"),
                         torch.device("cpu"))  # fmt: skip


def test_what_is_drawn_is_what_attention_says(action_data: Path, films: list[str]) -> None:
    config = settings(action_data)
    (network,) = watched_networks(config, torch.device("cpu"))
    (example,), fps = attend(config, films[:1])
    assert fps == 25
    videos = load_videos(action_data, "test")
    with videos.open(0) as opened:
        crops = evaluation_crops(clips_of(opened, 8, 1, 1), 32)
    assert torch.equal(example.frames, crops[0, :, :-1])
    maps = attention_maps(network.backbone, one_view(crops, "rgb"))
    torch.testing.assert_close(example.maps["untrained"], maps[0])
    found = motion_coverage(maps[0], moving_pixels(crops[0]), counted_pixels(crops[0]))
    assert f"motion lift {found.lift:.2f}, AUC {found.auc:.2f}" in example.notes["untrained"]


def test_a_video_file_of_maps(
    trained: Path, films: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "maps.mp4"
    flags = ["--compare", "untrained", "-o", str(path), "--frames", "8", "--stride", "1"]
    assert main(["attend", *films, *smoke(trained), *flags]) == 0
    assert "2 clips of 8 frames" in capsys.readouterr().out
    frames = read_video(path)
    assert len(frames) == 8
    assert frames.shape[1] % 2 == frames.shape[2] % 2 == 0
    assert frames.shape[2] > 3 * 200  # frames, untrained, with MCN
    assert np.abs(np.diff(frames[:, 24:200].astype(float), axis=0)).mean() > 0.5  # and it moves


def test_an_untrained_network_needs_no_checkpoint(films: list[str], tmp_path: Path) -> None:
    assert main(["attend", films[0], *smoke(), "-o", str(tmp_path / "maps.svg")]) == 0
    assert "<svg" in (tmp_path / "maps.svg").read_text()


def test_bars_are_the_callers_numbers(
    trained: Path, films: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bars.png"
    two = ["--compare", "untrained", "--accuracy", "[12.5,50]"]
    base = ["attend", films[0], *smoke(trained), "-o", str(path)]
    assert main([*base, *two]) == 1
    assert "--accuracy_source: say where" in capsys.readouterr().err
    assert main([*base, "--accuracy", "[12.5,50]", "--accuracy_source", "x"]) == 1
    assert "2 numbers for 1 networks" in capsys.readouterr().err
    assert not path.exists()
    for value in ("120", "-1", ".nan"):  # before the checkpoint is looked for
        flags = [*base[:2], *smoke(), "-o", str(path), "--compare", "no/such/run"]
        assert main([*flags, "--accuracy", f"[50,{value}]", "--accuracy_source", "x"]) == 1
        assert "it should be per cent" in capsys.readouterr().err
    assert main(["attend", *smoke(), "--data", "no/such/folder", "--accuracy", "[50]"]) == 1
    assert "give a video file" in capsys.readouterr().err
    assert main([*base, *two, "--accuracy_source", "made up"]) == 0
    assert path.exists()


def test_bars_have_the_heights_and_the_source_is_said() -> None:
    example = Example(
        "film", torch.rand(3, 8, 16, 16), {"a": torch.rand(8, 16, 16), "b": torch.rand(8, 16, 16)}
    )
    figure = activation_bars(example, {"a": 20.0, "b": 30.5}, source="a test")
    heights = [patch.get_height() for patch in figure.axes[-1].patches]
    assert heights == [20.0, 30.5]
    figure.draw_without_rendering()
    maps, bars = figure.axes[:2], figure.axes[-1]
    for axis, bar in zip(maps, bars.patches, strict=True):  # each bar under the middle of its map
        map_box, bar_box = axis.get_window_extent(), bar.get_window_extent()
        assert (bar_box.x0 + bar_box.x1) / 2 == pytest.approx((map_box.x0 + map_box.x1) / 2, abs=0.5)
        assert bar_box.y1 < map_box.y0
    assert [label.get_text() for label in bars.get_xticklabels()] == ["a", "b"]
    assert any("a test" in text.get_text() for text in figure.texts)
    with pytest.raises(MCNError, match="give one each"):
        activation_bars(example, {"a": 20.0}, source="a test")


def test_rows_of_a_grid_share_a_scale_and_show_the_papers_frames() -> None:
    weak = torch.ones(16, 16, 16)
    strong = torch.ones(16, 16, 16)
    strong[3, :8] = 9.0  # in frame 4
    example = Example("film", torch.rand(3, 16, 16, 16), {"weak": weak, "strong": 1000 * strong})
    figure = activation_grid([example])
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["frame 1", "frame 4", "frame 8", "frame 12"]
    labels = [axis.get_ylabel() for axis in figure.axes if len(axis.get_images()) and axis.get_ylabel()]
    assert labels[:3] == ["frames", "weak", "strong"]
    images = [axis.get_images()[0].get_array() for axis in figure.axes if axis.get_images()]
    maps = np.stack([np.asarray(image) for image in images if np.shape(image) == (16, 16, 3)])
    frames, weak_row, strong_row = maps.reshape(3, 4, 16, 16, 3)
    expected = overlay(example.images[[0, 3, 7, 11]], np.ones((4, 16, 16)), float(9.0 / strong.mean()))
    np.testing.assert_allclose(weak_row, expected, atol=1e-6)  # not stretched to its own maximum
    np.testing.assert_allclose(frames, example.images[[0, 3, 7, 11]])
    assert strong_row[1, 0, 0, 0] > 0.8  # the strongest colour is bright


def test_a_map_without_focus_is_not_drawn_as_if_it_had_one() -> None:
    flat = Example("film", torch.rand(3, 4, 16, 16), {"flat": torch.ones(4, 16, 16)})
    image = np.asarray(activation_grid([flat]).axes[5].get_images()[0].get_array())
    np.testing.assert_allclose(image, overlay(flat.images, np.ones((4, 16, 16)), 2.0)[0], atol=1e-6)


def test_a_path_that_cannot_be_drawn_is_refused_before_the_work(
    films: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for bad in ("maps.gif", "maps", ""):
        flags = ["-o", bad] if bad else []
        assert main(["attend", films[0], *smoke("no/such/run"), *flags]) == 1
        capsys.readouterr()
        assert main(["attend", films[0], *smoke(), *flags]) == 1
        said = capsys.readouterr().err
        assert "give a file ending in .png, .pdf, .svg or .mp4" in said
        assert (f"-o {bad}: " if bad else "-o is missing: ") in said
    assert main(["attend", *smoke()]) == 1
    assert "give video files to draw, or --data" in capsys.readouterr().err
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    assert main(["attend", str(broken), *smoke(), "-o", "maps.png"]) == 1
    assert "broken.mp4" in capsys.readouterr().err


def test_examples_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MCNError, match=r"map 'a' is \(8, 16, 15\)"):
        Example("film", torch.rand(3, 8, 16, 16), {"a": torch.rand(8, 16, 15)})
    for function in (activation_grid, lambda none: activation_video(none, tmp_path / "x.mp4")):
        with pytest.raises(MCNError, match="of no video"):
            function([])


def test_lift_over_a_list(
    trained: Path, action_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "lift.csv"
    flags = ["--data", str(action_data), "--subset", "test", "--compare", "untrained", "-o", str(table)]
    assert main(["attend", *smoke(trained), *flags]) == 0
    said = capsys.readouterr().out
    number = r"-?\d\.\d{3} \[-?\d\.\d{3}, -?\d\.\d{3}\]"
    for title in ("untrained", "with MCN"):
        assert re.search(rf"^{title} \(.*\): motion lift {number}, AUC {number}$", said, re.M)
    assert len(re.findall(rf"another video's map on the same motion: lift {number}", said)) == 2
    assert re.search(rf"^with MCN minus untrained: lift {number}, AUC {number}$", said, re.M)
    assert "this project's measures, not the paper's" in said
    assert "8 of 8 videos tell" in said
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert tuple(row["video"] for row in rows) == load_videos(action_data, "test").names
    assert f"\nwith MCN ({find_checkpoint(trained)}): motion lift" in said  # a path that can be pasted
    one = measure(settings(action_data, workers=0), "test")
    assert one.names != sorted(one.names)  # though they were read in another order
    mean = sum(float(row["with MCN lift"]) for row in rows) / 8
    assert re.search(rf"with MCN \(.*motion lift {mean:.3f} ", said)
    (result,) = Path("runs").glob("attend-*/result.json")
    kept = json.loads(result.read_text())
    assert kept["with MCN/lift/mean"] == pytest.approx(mean, rel=1e-5)
    assert f"protocol: {kept['protocol']}\n" in said


def test_each_video_of_a_list_has_its_own_clips_coverage(action_data: Path) -> None:
    config = settings(action_data, clips=2)
    found = measure(config, "test")
    (network,) = watched_networks(config, torch.device("cpu"))
    videos = load_videos(action_data, "test")
    assert len(found.names) == len(set(found.names)) == 8
    first_maps, motions = {}, {}
    for name, lift, auc in zip(found.names, found.networks[0].lift, found.networks[0].auc, strict=True):
        with videos.open(videos.names.index(name)) as opened:
            crops = evaluation_crops(clips_of(opened, 8, 1, 2), 32)
        maps = network.maps(crops, config)
        each = [
            motion_coverage(m, moving_pixels(c), counted_pixels(c)) for m, c in zip(maps, crops, strict=True)
        ]
        assert lift == pytest.approx((each[0].lift + each[1].lift) / 2, rel=1e-5)
        assert auc == pytest.approx((each[0].auc + each[1].auc) / 2, rel=1e-5)
        first_maps[name], motions[name] = maps[0], (moving_pixels(crops[0]), counted_pixels(crops[0]))
    lent = zip([*found.names[1:], found.names[0]], found.names, found.networks[0].other, strict=True)
    for onto, from_, lift in lent:  # a video's map on the next one's motion, the last's on the first
        assert lift == pytest.approx(motion_coverage(first_maps[from_], *motions[onto]).lift, rel=1e-5)
    again = measure(dataclasses.replace(config, workers=2, batch_size=1), "test")
    assert again.names == found.names
    np.testing.assert_allclose(again.networks[0].lift, found.networks[0].lift, rtol=1e-5)


def test_static_and_broken_videos_of_a_list_are_named_and_left_out(
    own_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = load_videos(own_data, "test")
    videos.path(0).write_bytes(b"no video")
    still = np.full((16, 32, 32, 3), 120, np.uint8)
    with av.open(str(videos.path(1)), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for image in still:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    found = measure(settings(own_data, max_bad=0.5), "test")
    assert len(found.names) == 7
    assert sum(math.isnan(lift) for lift in found.networks[0].lift) == 1
    lines = found.lines()
    assert "6 of 7 videos tell still from moving pixels" in lines
    assert any("1 of their clips: no picture: every frame repeats" in line for line in lines)
    assert videos.names[0] in "".join(capsys.readouterr())
    assert all(math.isfinite(value) for value in found.numbers().values())


def test_bootstrap_covers_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for trial in range(100):
        interval = bootstrap(random.normal(1.0, 0.5, 40).tolist(), trial)
        assert interval.low < interval.mean < interval.high
        hits += interval.low <= 1.0 <= interval.high
    assert 85 <= hits <= 99
    assert math.isnan(bootstrap([math.nan]).mean)
    assert bootstrap([1.5]).mean == 1.5
    assert bootstrap([1.0, 2.0, 4.0], 3) == bootstrap([1.0, 2.0, 4.0, math.nan], 3)


def test_a_network_that_sees_motion_only_has_more_lift_than_one_that_sees_the_scene(
    action_data: Path,
) -> None:
    """Of one untrained network: maps of residual frames lie on what moves, those of RGB need not."""
    scene = measure(settings(action_data), "test")
    motion = measure(settings(action_data, view="residual"), "test")
    gain = [m - s for m, s in zip(motion.networks[0].auc, scene.networks[0].auc, strict=True)]
    assert sum(gain) > 0


def test_real_clips(tmp_path: Path) -> None:
    films = sorted((REAL / "ucf101_original").glob("*/*.avi"))[:2]
    if not films:
        pytest.skip(f"no real clips at {REAL}")
    flags = ["--backbone", "r3d_small", "--frames", "16", "--size", "64", "--device", "cpu"]
    path = tmp_path / "real.mp4"
    assert main(["attend", *map(str, films), *flags, "-o", str(path)]) == 0
    assert len(read_video(path)) == 16
