"""What a probe may ask beside the class: sources within classes, directions of synthetic objects."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from mcn.config import ProbeConfig
from mcn.data.datasets import Videos, load_videos
from mcn.errors import MCNError
from mcn.features import Features
from mcn.preparation.synthetic import (
    CLASSES,
    SyntheticConfig,
    read_settings,
    turning,
    video_key,
    video_phases,
    write_synthetic_actions,
)
from mcn.probe import linear_probe, probe_of, run_probe
from mcn.targets import questions

WIDTH = 24


def planted(seen: str, classes: int = 3, sources: int = 4, clips: int = 6) -> Features:
    """Videos named as UCF101's, whose features say the class, or the source, or neither; and noise."""
    draw = torch.Generator().manual_seed(0)
    known = {"class": torch.randn(classes, WIDTH, generator=draw)}
    known["source"] = torch.randn(classes * sources, WIDTH, generator=draw)
    rows, names, labels = [], [], []
    for label in range(classes):
        for source in range(sources):
            for clip in range(clips):
                of = {"class": label, "source": label * sources + source}
                signal = 5 * known[seen][of[seen]] if seen else torch.zeros(WIDTH)
                rows.append(signal + torch.randn(WIDTH, generator=draw))
                names.append(f"A{label}/v_A{label}_g{source:02d}_c{clip:02d}.avi")
                labels.append(label)
    names_of = tuple(f"A{label}" for label in range(classes))
    return Features(torch.stack(rows), Videos(Path("data"), tuple(names), tuple(labels), names_of))


def test_a_group_is_asked_for_within_its_class() -> None:
    features = planted("source")
    asked = questions("group", features, features)
    assert len(asked) == 2 * 3  # each half of each class
    scored = []
    for train, test in asked:
        assert not set(train.videos.names) & set(test.videos.names)
        assert sorted({*train.videos.labels}) == sorted({*test.videos.labels}) == [0, 1, 2, 3]
        assert len({name[:2] for name in (*train.videos.names, *test.videos.names)}) == 1  # one class
        for part in (train, test):  # labels and features are still those of the names
            for name, label, x in zip(part.videos.names, part.videos.labels, part.x, strict=True):
                assert part.videos.classes[label] in name
                assert torch.equal(x, features.x[features.videos.names.index(name)])
        scored += test.videos.names
    assert sorted(scored) == sorted(features.videos.names)  # every video once


def test_who_sees_only_the_class_does_not_know_the_group() -> None:
    found = {
        seen: probe_of(questions("group", f, f)) for seen in ("class", "source") for f in [planted(seen)]
    }
    assert found["source"].chance == found["class"].chance == 25.0
    assert found["source"].top1 > 95
    assert found["class"].top1 < 45  # 72 answers: two standard errors above chance are 35
    assert found["source"].videos == len(found["source"].right) == 72


def test_answers_of_several_questions_are_counted_together() -> None:
    features = planted("source", classes=2)
    asked = questions("group", features, features)
    single = [linear_probe(*question) for question in asked]
    found = probe_of(asked)
    assert found.right == tuple(hit for each in single for hit in each.right)
    assert found.top1 == pytest.approx(100 * sum(found.right) / len(found.right))
    one = probe_of(questions("class", features, features))
    assert one == linear_probe(features, features)


def test_scenes_that_all_classes_share_are_asked_of_all_at_once(tmp_path: Path) -> None:
    settings = SyntheticConfig(classes=3, groups=8, clips_per_group=2, frames=2, size=16)
    videos = load_videos(write_synthetic_actions(tmp_path, settings, workers=1), "test")
    features = Features(torch.randn(len(videos), WIDTH), videos)
    asked = questions("group", features, features)
    assert len(asked) == 2
    assert asked[0].train.videos.classes == ("g01", "g02")  # 2 of 8 groups are the test list's
    assert len(asked[0].train.x) + len(asked[0].test.x) == len(videos) == 3 * 2 * 2


def test_single_clips_are_left_out_and_data_without_sources_refused() -> None:
    features = planted("source", classes=1, sources=3, clips=3)
    keep = [
        row
        for row, name in enumerate(features.videos.names)
        if "g02_c01" not in name and "g02_c02" not in name
    ]
    names = tuple(features.videos.names[row] for row in keep)
    videos = dataclasses.replace(features.videos, names=names, labels=(0,) * len(names))
    (first, second) = questions("group", *[Features(features.x[keep], videos)] * 2)
    assert first.train.videos.classes == ("A0/v_A0_g00", "A0/v_A0_g01")
    assert (len(first.train.x), len(second.train.x)) == (4, 2)
    plain = dataclasses.replace(videos, names=tuple(f"A0/{row}.avi" for row in range(len(names))))
    with pytest.raises(MCNError, match="--target group needs a class with two sources"):
        questions("group", *[Features(features.x[keep], plain)] * 2)


@pytest.mark.parametrize("action", ["Spin", "SwaySpin", "Orbit"])
def test_the_direction_is_that_of_the_path(action: str) -> None:
    """By the pose track: the object's axis, or its place, moves clockwise (y points down) in every frame."""
    config, which = SyntheticConfig(classes=12, frames=30), CLASSES.index(action)
    seen = set()
    for group in range(1, 25):
        phases = video_phases(config, which, group, 1)
        along = np.cos(phases[:, 4]), np.sin(phases[:, 4])
        x, y = along if action != "Orbit" else (np.sin(phases[:, 0]), np.sin(phases[:, 1]))
        steps = x[:-1] * y[1:] - x[1:] * y[:-1]
        said = turning(config, which, group, 1)
        seen.add(said)
        if said:
            assert (said * steps > 0).all()
        else:  # nearly a line: the area that a circle of the same speed would sweep is sin(step) a step
            step = abs(phases[1, 0] - phases[0, 0])
            assert np.abs(steps).max() < 0.3 * np.sin(step) + 1e-12
    assert seen == ({-1, 0, 1} if action == "Orbit" else {-1, 1})


def test_what_swings_has_no_direction() -> None:
    config = SyntheticConfig(classes=12)
    for action in set(CLASSES) - {"Spin", "SwaySpin", "Orbit"}:
        assert turning(config, CLASSES.index(action), 1, 1) == 0


def test_settings_and_names_of_synthetic_actions(action_data: Path, tmp_path: Path) -> None:
    config = read_settings(action_data)
    assert config == SyntheticConfig(classes=4, groups=10, clips_per_group=1, frames=16, size=32)
    for name in load_videos(action_data, "all").names:
        which, group, clip = video_key(Path(name).name)
        assert name == f"{CLASSES[which]}/v_{CLASSES[which]}_g{group:02d}_c{clip:02d}.mp4"
    with pytest.raises(MCNError, match="is not a name of the synthetic actions"):
        video_key("v_Archery_g01_c01.avi")
    with pytest.raises(MCNError, match=r"synthetic\.json is not there: only the built-in"):
        read_settings(tmp_path)
    for text, message in (("{", "is damaged"), ('{"generator": 99}', "of another generator")):
        (tmp_path / "synthetic.json").write_text(text)
        with pytest.raises(MCNError, match=message):
            read_settings(tmp_path)


def test_directions_are_asked_for_within_an_action(tmp_path: Path) -> None:
    settings = SyntheticConfig(classes=5, groups=14, clips_per_group=2, frames=2, size=16)
    root = write_synthetic_actions(tmp_path, settings, workers=1)
    train, test = (load_videos(root, subset) for subset in ("train", "test"))

    def features(videos: Videos) -> Features:
        """The direction itself, in one of the columns."""
        turns = torch.tensor([turning(settings, *video_key(Path(name).name)) for name in videos.names])
        noise = torch.randn(len(videos), 3, generator=torch.Generator().manual_seed(len(videos)))
        return Features(torch.cat([turns[:, None].float(), noise], dim=1), videos)

    asked = questions("direction", features(train), features(test))
    assert [question.train.videos.names[0].split("/")[0] for question in asked] == ["Spin", "Orbit"]
    found = probe_of(asked)
    assert (found.top1, found.chance) == (100.0, 50.0)
    assert found.videos == sum(len(question.test.x) for question in asked) <= 2 * 3 * 2
    still = dataclasses.replace(train, names=train.names[:4], labels=train.labels[:4])  # Sway alone
    with pytest.raises(MCNError, match="--target direction needs an action that turns"):
        questions("direction", *[Features(torch.randn(4, 3), still)] * 2)


def test_a_sweep_is_of_classes(action_data: Path) -> None:
    with pytest.raises(MCNError, match="--sweep chooses by classes, and --target is group"):
        run_probe(ProbeConfig(data=str(action_data), sweep=(0.1, 1.0)), "group")
