"""The synthetic actions: bytes, lists, scenes, restarts, and that the label is the motion."""

import json
import re
from itertools import combinations
from pathlib import Path

import av
import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mcn.errors import MCNError
from mcn.preparation.synthetic import (
    CLASSES,
    SyntheticConfig,
    render_video,
    scene_of,
    video_phases,
    write_synthetic_actions,
)

TINY = {"classes": 3, "groups": 4, "clips_per_group": 1, "frames": 4, "size": 16}
PROBED = SyntheticConfig(classes=8, clips_per_group=6, frames=16, size=32)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def read_list(root: Path, name: str) -> list[list[str]]:
    return [line.split(" ") for line in (root / "splits" / name).read_text().splitlines()]


def load_split(root: Path, part: str) -> tuple[list[np.ndarray], np.ndarray]:
    labels = {name: int(index) for index, name in read_list(root, "classInd.txt")}
    names = [row[0] for row in read_list(root, f"{part}list01.txt")]
    videos = [decode(root / "videos" / name) for name in names]
    return videos, np.array([labels[name.split("/")[0]] for name in names])


def pooled(frames: np.ndarray, cells: int = 8) -> np.ndarray:
    """Mean over square blocks of the last three axes' first two: (..., cells, cells, 3)."""
    *lead, height, _, _ = frames.shape
    block = height // cells
    return frames.reshape(*lead, cells, block, cells, block, 3).mean((-2, -4)) / 255


def random_frames(videos: list[np.ndarray], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([video[rng.integers(len(video))] for video in videos])


def motion_features(video: np.ndarray) -> np.ndarray:
    """Where, and how widely, neighbouring frames differ, and how that changes over time."""
    change = np.abs(np.diff(video.mean(-1), axis=0)) + 1e-3
    mass = change.sum((1, 2))
    axis = np.linspace(-1, 1, video.shape[1])
    columns, rows = change.sum(1) / mass[:, None], change.sum(2) / mass[:, None]
    series = [np.log(mass)]
    for density in (columns, rows):
        mean = density @ axis
        series += [mean, density @ axis**2 - mean**2]
    return np.array([f(s) for s in series for f in (np.mean, np.std, np.ptp)])


def accuracy(train: np.ndarray, y_train: np.ndarray, test: np.ndarray, y_test: np.ndarray) -> float:
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    probe.fit(train.reshape(len(train), -1), y_train)
    return float(probe.score(test.reshape(len(test), -1), y_test))


# --- bytes and restarts


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_actions(tmp_path_factory.mktemp("tiny"), SyntheticConfig(**TINY))


def test_the_seed_fixes_the_bytes(tiny: Path, tmp_path: Path) -> None:
    same = write_synthetic_actions(tmp_path / "same", SyntheticConfig(**TINY))
    other = write_synthetic_actions(tmp_path / "other", SyntheticConfig(seed=1, **TINY))
    assert contents(same) == contents(tiny)
    first, second = contents(tiny), contents(other)
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first if name.endswith(".mp4"))


def test_processes_change_nothing(tmp_path: Path) -> None:
    config = SyntheticConfig(**{**TINY, "groups": 25})
    alone = write_synthetic_actions(tmp_path / "alone", config, workers=1)
    together = write_synthetic_actions(tmp_path / "together", config, workers=2)
    assert contents(alone) == contents(together)


def test_a_complete_set_is_left_alone(tiny: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    write_synthetic_actions(tiny, SyntheticConfig(**TINY))
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before


@pytest.mark.parametrize("lost", ["synthetic.json", "splits/testlist02.txt", None])
def test_lost_files_come_back(tiny: Path, tmp_path: Path, lost: str | None) -> None:
    root = write_synthetic_actions(tmp_path / "set", SyntheticConfig(**TINY))
    for path in [*sorted(root.glob("videos/*/*.mp4"))[::3], *([root / lost] if lost else [])]:
        path.unlink()
    write_synthetic_actions(root, SyntheticConfig(**TINY))
    assert contents(root) == contents(tiny)


def test_an_interrupted_run_is_continued(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[tuple[int, int, int]] = []

    def failing(config: SyntheticConfig, *key: int) -> np.ndarray:
        if len(rendered) == 5:
            raise KeyboardInterrupt
        rendered.append(key)  # type: ignore[arg-type]
        return render_video(config, *key)

    with monkeypatch.context() as patch:
        patch.setattr("mcn.preparation.synthetic.render_video", failing)
        with pytest.raises(KeyboardInterrupt):
            write_synthetic_actions(tmp_path, SyntheticConfig(**TINY), workers=1)
    assert not (tmp_path / "synthetic.json").exists()
    with pytest.raises(MCNError, match="seed is 0, not 9"):
        write_synthetic_actions(tmp_path, SyntheticConfig(seed=9, **TINY))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("videos/*/*.mp4")}
    assert len(kept) == 5
    write_synthetic_actions(tmp_path, SyntheticConfig(**TINY), workers=1)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert contents(tmp_path) == contents(tiny)


def test_other_settings_are_refused(tiny: Path) -> None:
    before = contents(tiny)
    with pytest.raises(MCNError, match=r"frames is 4, not 5\): choose another folder"):
        write_synthetic_actions(tiny, SyntheticConfig(**{**TINY, "frames": 5}))
    assert contents(tiny) == before


def test_videos_of_unknown_settings_are_not_believed(tiny: Path, tmp_path: Path) -> None:
    root = write_synthetic_actions(tmp_path / "set", SyntheticConfig(seed=5, **TINY))
    (root / "synthetic.json").unlink()
    write_synthetic_actions(root, SyntheticConfig(**TINY))
    assert contents(root) == contents(tiny)


def test_foreign_videos_are_refused(tmp_path: Path) -> None:
    (tmp_path / "videos" / "Holiday").mkdir(parents=True)
    (tmp_path / "videos" / "Holiday" / "beach.mp4").touch()
    with pytest.raises(MCNError, match=r"beach\.mp4 does not belong"):
        write_synthetic_actions(tmp_path, SyntheticConfig(**TINY))


def test_a_damaged_settings_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "synthetic.json").write_text("{")
    with pytest.raises(MCNError, match=r"synthetic\.json is damaged"):
        write_synthetic_actions(tmp_path, SyntheticConfig(**TINY))


@pytest.mark.parametrize(
    "setting",
    [
        {"classes": 1},
        {"classes": 99},
        {"groups": 2},
        {"size": 33},
        {"size": 8},
        {"scenes": 26},
        {"seed": -1},
        {"frames": 0},
    ],
)
def test_settings_out_of_range_are_named(setting: dict[str, int]) -> None:
    with pytest.raises(MCNError, match=f"{next(iter(setting))} is {next(iter(setting.values()))}"):
        SyntheticConfig(**setting)


# --- layout


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_actions(tmp_path_factory.mktemp("probed"), PROBED)


def test_lists_are_ucf101s(probed: Path) -> None:
    assert read_list(probed, "classInd.txt") == [
        [str(i), name] for i, name in enumerate(CLASSES[:8], start=1)
    ]
    files = {p.relative_to(probed / "videos").as_posix() for p in probed.glob("videos/*/*.mp4")}
    assert len(files) == 8 * 25 * 6
    pattern = re.compile(r"(\w+)/v_(\w+)_g(\d\d)_c(\d\d)\.mp4")
    tested: list[set[str]] = []
    for split in ("01", "02", "03"):
        train, test = (read_list(probed, f"{part}list{split}.txt") for part in ("train", "test"))
        assert {row[0] for row in train + test} == files
        assert len(train) + len(test) == len(files)
        assert len(test) == 8 * 7 * 6
        groups = []
        for rows in (train, test):
            found = [pattern.fullmatch(row[0]) for row in rows]
            assert all(match and match[1] == match[2] for match in found)
            groups.append({match[3] for match in found if match})
        assert not groups[0] & groups[1]
        assert all(CLASSES[int(label) - 1] == name.split("/")[0] for name, label in train)
        tested.append(groups[1])
    assert not any(a & b for a, b in combinations(tested, 2))
    assert tested[0] == {f"{group:02d}" for group in range(1, 8)}


def test_videos_are_as_set(probed: Path) -> None:
    with av.open(str(probed / "videos/Sway/v_Sway_g01_c01.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.average_rate) == (32, 32, 25)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    drawn = render_video(PROBED, 0, 1, 1)
    assert np.shape(frames) == drawn.shape == (16, 32, 32, 3)
    # Coding halves the colour resolution, so it is the brightness that is compared closely.
    error = np.asarray(frames, float).mean(-1) - drawn.astype(float).mean(-1)
    assert np.sqrt(np.mean(error**2)) < 10
    assert json.loads((probed / "synthetic.json").read_text())["frames"] == 16


# --- scenes


@pytest.mark.parametrize(
    ("positives", "negatives", "number", "by_class", "by_group"),
    [
        (True, True, 4, False, True),
        (True, False, 12, True, True),
        (False, False, 3, True, False),
        (False, True, 1, False, False),
    ],
)
def test_scenes(positives: bool, negatives: bool, number: int, by_class: bool, by_group: bool) -> None:
    config = SyntheticConfig(**TINY, hard_positives=positives, hard_negatives=negatives)
    scenes = np.array([[scene_of(config, c, g) for g in range(1, 5)] for c in range(3)])
    assert len(np.unique(scenes)) == number
    assert (len(np.unique(scenes[:, 0])) == 3) == by_class
    assert (len(np.unique(scenes[0])) == 4) == by_group


def test_a_smaller_pool_is_shared_in_turns() -> None:
    config = SyntheticConfig(**TINY, scenes=2)
    assert [scene_of(config, 1, group) for group in range(1, 5)] == [0, 1, 0, 1]


def test_the_scene_does_not_touch_the_motion() -> None:
    plain, hard = (SyntheticConfig(hard_positives=x, hard_negatives=x) for x in (False, True))
    assert np.array_equal(video_phases(plain, 3, 2, 1), video_phases(hard, 3, 2, 1))
    assert not np.array_equal(video_phases(hard, 3, 2, 1), video_phases(hard, 3, 2, 2))


# --- the label is the motion, and nothing but the motion


def test_each_frame_has_the_same_poses_in_every_class() -> None:
    """Phases, and sums of two, are uniform in every class and frame (with Bonferroni's bound)."""
    config = SyntheticConfig(classes=len(CLASSES), groups=50, clips_per_group=4, size=16)
    lowest, tests = 1.0, 0
    for index in range(config.classes):
        tracks = np.stack([video_phases(config, index, g, c) for g in range(1, 51) for c in range(1, 5)])
        for t in (0, 7, 39):
            pose = tracks[:, t]
            pairs = [pose[:, i] + pose[:, j] for i, j in combinations(range(5), 2)]
            for phase in [*pose.T, *pairs]:
                p = kstest(np.mod(phase / (2 * np.pi), 1), "uniform").pvalue
                lowest, tests = min(lowest, p), tests + 1
    assert lowest > 0.01 / tests
    # The test has teeth: by how much a phase has advanced is far from uniform.
    sway = np.stack([video_phases(config, 0, g, c) for g in range(1, 51) for c in range(1, 5)])
    advance = np.mod((sway[:, 7, 0] - sway[:, 0, 0]) / (2 * np.pi), 1)
    assert kstest(advance, "uniform").pvalue < 0.01 / tests


def test_one_frame_tells_nothing_and_motion_tells_much(probed: Path) -> None:
    (train, y_train), (test, y_test) = load_split(probed, "train"), load_split(probed, "test")
    chance = 1 / PROBED.classes
    sigma = np.sqrt(chance * (1 - chance) / len(test))
    one, other = random_frames(train, seed=0), random_frames(test, seed=1)
    frame = accuracy(pooled(one), y_train, pooled(other), y_test)
    colour = accuracy(one.mean((1, 2)), y_train, other.mean((1, 2)), y_test)
    motion = accuracy(
        np.stack([motion_features(video) for video in train]),
        y_train,
        np.stack([motion_features(video) for video in test]),
        y_test,
    )
    print(f"chance {chance:.3f} ± {sigma:.3f}: {frame=:.3f} {colour=:.3f} {motion=:.3f}")
    assert abs(frame - chance) < 2 * sigma
    assert abs(colour - chance) < 2 * sigma
    assert motion > chance + 10 * sigma


def test_the_frame_probe_finds_a_leak_where_there_is_one(tmp_path: Path) -> None:
    config = SyntheticConfig(
        classes=8, groups=8, frames=8, size=32, hard_positives=False, hard_negatives=False
    )
    root = write_synthetic_actions(tmp_path, config)
    (train, y_train), (test, y_test) = load_split(root, "train"), load_split(root, "test")
    frames = pooled(random_frames(train, seed=0)), pooled(random_frames(test, seed=1))
    assert accuracy(frames[0], y_train, frames[1], y_test) > 0.9
