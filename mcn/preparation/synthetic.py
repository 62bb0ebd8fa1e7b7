"""Synthetic actions: a small, honest video data set in UCF101's layout, made in seconds.

One object moves over a panning background, and *the class is the motion alone*. The object's pose
has four phases (x, y, scale, aspect) and an angle. Each video draws all five uniformly on the
circle; the class only decides which of them advance in time, and how. Adding an independent
advance to a uniform phase leaves it uniform and independent of the others, so each single frame
has exactly the same distribution in every class: what tells the classes apart is change over
time. Every class also stays itself under a horizontal flip, and forwards as backwards.

The videos are H.264 with intra frames only and a constant quantiser, so that the coding of a
frame depends on that frame alone and the compression cannot give the motion away either.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mcn._cores import usable_cores
from mcn._h264 import encode
from mcn.data.supervise import TIMEOUT, supervised
from mcn.data.videoinfo import Tick, nothing
from mcn.errors import MCNError
from mcn.files import write_atomically
from mcn.preparation._scenes import MOTIONS, draw_phases, draw_scene, render
from mcn.preparation.parallel import parallel_map

__all__ = [
    "CLASSES",
    "SyntheticConfig",
    "read_settings",
    "render_video",
    "scene_of",
    "turning",
    "video_key",
    "video_phases",
    "write_synthetic_actions",
]

_NARROW = 0.3
GENERATOR = 1  # raised whenever the same settings would give other videos

CLASSES: tuple[str, ...] = tuple(MOTIONS)
"""Names of all actions, the most distinct first; a data set of n classes uses the first n."""


@dataclass(frozen=True)
class SyntheticConfig:
    """Settings of a synthetic data set; equal settings give equal videos.

    A scene is all of the appearance and the camera. `hard_positives` puts the same motion into
    several scenes; `hard_negatives` puts several motions into the same scene:

    ==============  ==============  ==========================================================
    hard_positives  hard_negatives  scenes
    ==============  ==============  ==========================================================
    yes             yes             a pool shared by all classes, one scene for each group
    yes             no              a pool for each class, one scene for each group in it
    no              no              one for each class: a single frame gives the class away
    no              yes             one for the whole data set
    ==============  ==============  ==========================================================

    Raises `MCNError` for settings out of range.

    >>> SyntheticConfig(classes=8).groups
    25
    """

    seed: int = 0
    """What all chance follows from."""
    classes: int = 10
    """Number of actions, 2 to 12."""
    groups: int = 25
    """Groups of a class, 3 to 99; each split tests on some of them."""
    clips_per_group: int = 2
    """Videos of a group, 1 to 99: each class has groups times this many."""
    frames: int = 40
    """Frames of a video."""
    size: int = 64
    """Height and width in pixels: an even number, 16 or more."""
    fps: int = 25
    """Frames a second."""
    hard_positives: bool = True
    """Whether the same motion comes in several scenes."""
    hard_negatives: bool = True
    """Whether several motions come in the same scene."""
    scenes: int | None = None
    """Size of a pool of scenes, at most (and by default) the number of groups. With fewer, the groups
    take turns, and test videos share scenes with training videos. No effect without hard positives."""

    def __post_init__(self) -> None:
        _between("seed", self.seed, 0, 2**63)
        _between("classes", self.classes, 2, len(CLASSES))
        _between("groups", self.groups, 3, 99)
        _between("clips_per_group", self.clips_per_group, 1, 99)
        _between("frames", self.frames, 1, 10_000)
        _between("size", self.size, 16, 1024)
        _between("fps", self.fps, 1, 240)
        if self.size % 2:
            raise MCNError(f"size is {self.size}: H.264 with 4:2:0 colour needs an even size")
        if self.scenes is not None:
            _between("scenes", self.scenes, 1, self.groups)


def scene_of(config: SyntheticConfig, class_index: int, group: int) -> int:
    """Return the scene's number for a class (from 0) and a group (from 1, as in file names).

    >>> [scene_of(SyntheticConfig(), class_index, group=3) for class_index in range(3)]
    [2, 2, 2]
    >>> config = SyntheticConfig(hard_positives=False, hard_negatives=False)
    >>> [scene_of(config, class_index, group=3) for class_index in range(3)]
    [0, 1, 2]
    """
    pool = (config.scenes or config.groups) if config.hard_positives else 1
    scene = (group - 1) % pool
    return scene if config.hard_negatives else class_index * pool + scene


def video_phases(config: SyntheticConfig, class_index: int, group: int, clip: int) -> NDArray[np.float64]:
    """Return one video's pose track: float64 (frames, 5), in radians.

    The columns are the phases of x, y, scale and aspect, and the angle.
    `class_index` counts from 0; `group` and `clip` count from 1, as in file names. Phases are not
    wrapped to one turn. The track depends on the seed and these numbers, never on the scene.

    >>> video_phases(SyntheticConfig(), 0, group=1, clip=1).shape
    (40, 5)
    """
    _between("class_index", class_index, 0, config.classes - 1)
    _between("group", group, 1, config.groups)
    _between("clip", clip, 1, config.clips_per_group)
    rng = np.random.default_rng([config.seed, 1, class_index, group, clip])
    return draw_phases(rng, MOTIONS[CLASSES[class_index]], config.frames)


def turning(config: SyntheticConfig, class_index: int, group: int, clip: int) -> int:
    """Which way a video's object turns on the screen: 1 clockwise, -1 anticlockwise, 0 neither.

    It spins, or goes round on an ellipse; one of less than .3 of a circle's area is nearly a line and counts
    as neither. What swings to and fro has no direction: it is the same forwards and backwards.

    >>> [turning(SyntheticConfig(), CLASSES.index("Spin"), group, clip=1) for group in (1, 4)]
    [-1, 1]
    """
    phases, rates = video_phases(config, class_index, group, clip), MOTIONS[CLASSES[class_index]].rates
    sense = np.sign(phases[-1] - phases[0])
    if rates[4]:  # y points down, so that a growing angle is clockwise
        return int(sense[4])
    if not (rates[0] == rates[1] != 0):
        return 0
    # x = sin(a), y = sin(b) with equal speeds: x dy - y dx is constant, this much of its value on a circle.
    turn = sense[0] * sense[1] * np.sin(sense[0] * phases[0, 0] - sense[1] * phases[0, 1])
    return int(np.sign(turn)) if abs(turn) >= _NARROW else 0


def video_key(name: str) -> tuple[int, int, int]:
    """Class from 0, group from 1 and clip from 1 of a video by its file's name; raises `MCNError` for others.

    >>> video_key("v_Spin_g03_c02.mp4")
    (2, 3, 2)
    """
    match = re.fullmatch(rf"v_({'|'.join(CLASSES)})_g(\d+)_c(\d+)\.\w+", name)
    if match is None:
        raise MCNError(f"{name} is not a name of the synthetic actions, such as v_Spin_g03_c02.mp4")
    return CLASSES.index(match[1]), int(match[2]), int(match[3])


def read_settings(root: str | os.PathLike[str]) -> SyntheticConfig:
    """The settings that the data set under `root` was made with.

    Raises `MCNError` where there is none, or one of another generator.
    """
    path = Path(root) / "synthetic.json"
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError:
        raise MCNError(
            f"{path} is not there: only the built-in synthetic actions, as they were made, tell how their "
            "objects move"
        ) from None
    except (ValueError, TypeError) as error:
        raise MCNError(f"{path} is damaged ({error}): generate the data set again") from error
    if found.get("generator") != GENERATOR:
        raise MCNError(f"{path} is of another generator ({found.get('generator')}, not {GENERATOR})")
    names = {field.name for field in fields(SyntheticConfig)}
    return SyntheticConfig(**{name: value for name, value in found.items() if name in names})


def render_video(config: SyntheticConfig, class_index: int, group: int, clip: int) -> NDArray[np.uint8]:
    """Render one video, before compression: uint8 (frames, size, size, 3), RGB.

    `class_index` counts from 0; `group` and `clip` count from 1, as in file names.

    >>> render_video(SyntheticConfig(frames=4, size=16), 0, group=1, clip=1).shape
    (4, 16, 16, 3)
    """
    phases = video_phases(config, class_index, group, clip)
    scene_id = scene_of(config, class_index, group)
    scene = draw_scene(np.random.default_rng([config.seed, 0, scene_id]))
    return render(scene, phases, config.size)


def write_synthetic_actions(
    root: str | os.PathLike[str],
    config: SyntheticConfig | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> Path:
    """Write the data set under `root`, in UCF101's layout, and return `root` as a path.

    `config` defaults to ``SyntheticConfig()``. The files are
    ``videos/<Class>/v_<Class>_gNN_cMM.mp4``, ``splits/`` with UCF101's seven lists (three splits;
    each tests on its own 28 % of the groups, as UCF101 does), and ``synthetic.json`` with the
    settings, which comes last: where it is, the set is complete.

    `workers` is the number of processes (default: the usable cores; 1 starts no other process).
    `progress` shows a bar with the time left. The bytes follow from the settings for the same library
    versions and kind of processor. A complete set is left alone and an interrupted one is continued.
    Raises `MCNError` when `root` holds a set with other settings, or other videos, and where it cannot
    be written.
    """
    root, config = Path(root), config or SyntheticConfig()
    _between("workers", 1 if workers is None else workers, 1, 10_000)
    settings = _settings(config)
    done, begun = root / "synthetic.json", root / "synthetic.partial.json"
    trusted = _same_settings(done, settings) or _same_settings(begun, settings)
    videos = {_video_name(*key): key for key in _video_keys(config)}
    present = {path.relative_to(root / "videos").as_posix() for path in root.glob("videos/*/*.mp4")}
    if strangers := sorted(present - set(videos)):
        raise MCNError(
            f"{root / 'videos' / strangers[0]} does not belong to this data set: remove it and "
            f"its like ({len(strangers)} in all), or choose another folder"
        )
    # Videos of unknown settings (no file tells) are written anew rather than believed.
    missing = [videos[name] for name in videos if not (trusted and name in present)]
    if done.exists() and not missing and all((root / name).exists() for name in _lists(config)):
        return root
    text = json.dumps(settings, indent=2) + "\n"
    _write(begun, text.encode())
    done.unlink(missing_ok=True)
    _write_videos(root, config, missing, workers, progress)
    for name, lines in _lists(config).items():
        # UCF101's own lists end their lines with a carriage return, too.
        _write(root / name, "".join(f"{line}\r\n" for line in lines).encode())
    for left in root.glob("videos/*/.*.partial"):  # of processes that were killed
        left.unlink()
    os.replace(begun, done)
    return root


_Key = tuple[int, int, int]  # class from 0, group from 1, clip from 1


def _write_videos(
    root: Path, config: SyntheticConfig, keys: list[_Key], workers: int | None, progress: bool
) -> None:
    # Starting a process takes as long as writing some dozens of videos.
    count = min(workers or usable_cores(), 1 + len(keys) // 64)
    jobs = [(str(root), config, key) for key in keys]
    if count > 1:
        desc = "drawing" if progress else ""
        for _ in parallel_map(_write_in_child, jobs, workers=count, desc=desc):
            pass
        return
    for job in tqdm(jobs, desc="drawing", unit="video", disable=not progress, dynamic_ncols=True):
        _write_video(*job)


def _write_in_child(job: tuple[str, SyntheticConfig, _Key]) -> None:
    _, config, _ = job
    # A child is silent while it draws: allow many times what that takes.
    timeout = TIMEOUT + 1e-5 * config.frames * config.size**2
    supervised(_write_video, *job, timeout=timeout)


def _write_video(root: str, config: SyntheticConfig, key: _Key, *, tick: Tick = nothing) -> None:
    encoded = encode(render_video(config, *key), config.fps, **_CODING)
    _write(Path(root) / "videos" / _video_name(*key), encoded)


# Each frame is coded on its own with the same quantiser, so that the coding of a frame tells no motion.
_CODING = {"preset": "veryfast", "qp": "26", "g": "1", "bf": "0"}


def _video_keys(config: SyntheticConfig) -> Iterator[_Key]:
    for class_index in range(config.classes):
        for group in range(1, config.groups + 1):
            for clip in range(1, config.clips_per_group + 1):
                yield class_index, group, clip


def _video_name(class_index: int, group: int, clip: int) -> str:
    name = CLASSES[class_index]
    return f"{name}/v_{name}_g{group:02d}_c{clip:02d}.mp4"


def _lists(config: SyntheticConfig) -> dict[str, list[str]]:
    """Return the lines of each list under splits/, by path relative to the root."""
    names = CLASSES[: config.classes]
    lists = {"splits/classInd.txt": [f"{i} {name}" for i, name in enumerate(names, start=1)]}
    held_out = max(1, 7 * config.groups // 25)  # UCF101 tests on 7 of its 25 groups
    for split in (1, 2, 3):
        test_groups = range((split - 1) * held_out + 1, split * held_out + 1)
        keys = list(_video_keys(config))
        lists[f"splits/testlist{split:02d}.txt"] = [
            _video_name(*key) for key in keys if key[1] in test_groups
        ]
        lists[f"splits/trainlist{split:02d}.txt"] = [
            f"{_video_name(*key)} {key[0] + 1}" for key in keys if key[1] not in test_groups
        ]
    return lists


def _settings(config: SyntheticConfig) -> dict[str, object]:
    names = list(CLASSES[: config.classes])
    return {"generator": GENERATOR, **asdict(config), "class_names": names}


def _same_settings(path: Path, settings: dict[str, object]) -> bool:
    """Whether the file is there; raises if it tells of other settings."""
    if not path.exists():
        return False
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise MCNError(f"{path} is damaged ({error}): remove it and generate again") from error
    keys = [key for key in {**settings, **found} if settings.get(key) != found.get(key)]
    if keys:
        changes = ", ".join(f"{k} is {found.get(k)}, not {settings.get(k)}" for k in keys)
        raise MCNError(
            f"{path.parent} holds synthetic actions with other settings ({changes}): "
            "choose another folder, or remove this one"
        )
    return True


def _write(path: Path, data: bytes) -> None:
    write_atomically(path, lambda file: file.write(data))


def _between(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise MCNError(f"{name} is {value}: give a whole number from {low} to {high}")
