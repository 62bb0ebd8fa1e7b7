"""What settings are chosen on: whole source videos of the training list, some of every class."""

from dataclasses import replace
from pathlib import Path

import pytest

from mcn.data.datasets import Videos, load_videos
from mcn.errors import MCNError
from mcn.holdout import hold_out, part_of, source_of, videos_of
from mcn.settings import DataConfig

LISTS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "splits"


def ucf_like(classes: int = 3, groups: int = 10, clips: int = 4) -> Videos:
    names = [
        f"Act{c}/v_Act{c}_g{g:02d}_c{n:02d}.avi"
        for c in range(classes) for g in range(8, 8 + groups) for n in range(1, clips + 1)
    ]  # fmt: skip
    labels = [int(name[3]) for name in names]
    return Videos(Path("data"), tuple(names), tuple(labels), tuple(f"Act{c}" for c in range(classes)))


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.95])
def test_sources_do_not_straddle_and_every_class_is_on_both_sides(share: float) -> None:
    videos = ucf_like()
    kept, held = hold_out(videos, share)
    assert sorted(kept + held) == list(range(len(videos)))
    sides = [{source_of(videos.names[row]) for row in rows} for rows in (kept, held)]
    assert not sides[0] & sides[1]
    assert all(len(source) == len("Act0/v_Act0_g08") for side in sides for source in side)
    for label in range(3):
        of_class = [row for row in held if videos.labels[row] == label]
        assert 4 * round(max(1, share * 10 - 0.5)) <= len(of_class) <= min(36, 40 * share + 4)
        assert any(videos.labels[row] == label for row in kept)


def test_what_is_held_out_follows_from_the_seed_and_the_names() -> None:
    videos = ucf_like()
    assert hold_out(videos, 0.2, seed=1) == hold_out(videos, 0.2, seed=1)
    assert hold_out(videos, 0.2, seed=1) != hold_out(videos, 0.2, seed=2)
    # Classes draw apart: not the same groups everywhere.
    groups = {label: set() for label in range(3)}
    for row in hold_out(videos, 0.3, seed=0)[1]:
        groups[videos.labels[row]].add(videos.names[row][12:15])
    assert len({frozenset(group) for group in groups.values()}) > 1


def test_names_that_tell_their_source() -> None:
    ucf = [
        "HandstandPushups/v_HandStandPushups_g03_c01.avi",
        "HandstandPushups/v_HandStandPushups_g03_c12.mp4",
    ]
    assert len({source_of(name) for name in ucf}) == 1
    hmdb = [
        "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi",
        "brush_hair/April_09_brush_hair_f_cm_np1_fr_med_11.avi",
    ]
    assert {source_of(name) for name in hmdb} == {"brush_hair/April_09_brush_hair"}
    other = ["a/v_X_g01_c01.avi", "b/v_X_g01_c01.avi", "a/v_X_g02_c01.avi", "a/clip.avi", "-abc_def.mp4"]
    assert len({source_of(name) for name in other}) == len(other)


def test_a_scene_that_classes_share_is_held_out_in_all_of_them(action_data: Path) -> None:
    videos = load_videos(action_data, "train")
    kept, held = hold_out(videos, 0.3)
    sides = [{Path(videos.names[row]).stem.split("_")[2] for row in rows} for rows in (kept, held)]
    assert not sides[0] & sides[1]  # the scene is the group's, in every class
    assert len(sides[1]) == 3
    assert len(held) == 3 * 4


def test_lists_for_validation_are_parts_of_the_training_list(own_data: Path) -> None:
    train = load_videos(own_data, "train")
    config = DataConfig(data=str(own_data), validation=True)
    kept, held, every = (videos_of(config, subset) for subset in ("train", "test", "all"))
    assert sorted(kept.names + held.names) == sorted(every.names) == sorted(train.names)
    assert (len(kept), len(held)) == (24, 8)
    # The same whatever the test list is, or if there is none.
    for path in own_data.glob("splits/testlist*"):
        path.unlink()
    for path in own_data.glob("videos/*/*"):
        if path.relative_to(own_data / "videos").as_posix() not in train.names:
            path.unlink()
    assert [videos_of(config, subset).names for subset in ("train", "test")] == [kept.names, held.names]


def test_lists_of_some_classes(action_data: Path) -> None:
    every = load_videos(action_data, "test")
    config = DataConfig(data=str(action_data), classes=(every.classes[2], every.classes[0]))
    some = videos_of(config, "test")
    assert some.classes == (every.classes[0], every.classes[2])
    kept = [row for row, label in enumerate(every.labels) if label in (0, 2)]
    assert some.names == tuple(every.names[row] for row in kept)
    assert some.labels == tuple(every.labels[row] // 2 for row in kept)
    held = [videos_of(replace(config, validation=True), subset) for subset in ("train", "test")]
    assert [len(part) for part in held] == [12, 4]
    with pytest.raises(MCNError, match=r"no class 'Nap' \(of 4: Sway, Bob, Spin, Pulse, "):
        videos_of(replace(config, classes=("Nap",)), "train")


def test_validation_needs_labels(tmp_path: Path, action_data: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(next(action_data.glob("videos/*/*.mp4")).read_bytes())
    with pytest.raises(MCNError, match="no labels: --validation"):
        videos_of(DataConfig(data=str(tmp_path), validation=True), "train")


def test_videos_without_groups_are_their_own() -> None:
    names = tuple(f"a/{n}.mp4" for n in range(10)) + tuple(f"b/{n}.mp4" for n in range(10))
    kept, held = hold_out(Videos(Path(), names, (0,) * 10 + (1,) * 10, ("a", "b")), 0.2)
    assert (len(kept), len(held)) == (16, 4)


def test_a_class_of_one_source_is_kept_whole() -> None:
    one, two = ucf_like(1, groups=1), ucf_like(2, groups=2)
    with pytest.raises(MCNError, match=r"one source video a class: nothing"):
        hold_out(one, 0.2)
    mixed = Videos(Path(), two.names[:4] + two.names[8:], (0,) * 4 + (1,) * 8, two.classes)
    _, held = hold_out(mixed, 0.2)
    assert [mixed.labels[row] for row in held] == [1] * 4


def test_a_part_of_a_list_is_a_list(action_data: Path) -> None:
    videos = load_videos(action_data, "train")
    part = part_of(videos, [3, 1])
    assert part.names == (videos.names[3], videos.names[1])
    assert part.labels == (videos.labels[3], videos.labels[1])
    assert part.path(0) == videos.path(3)
    assert (part.classes, part.folder) == (videos.classes, videos.folder)


def test_the_official_list_of_ucf101() -> None:
    found = sorted(LISTS.rglob("trainlist01.txt"))
    if not found:
        pytest.skip(f"no lists of UCF101 under {LISTS}")
    names = [line.split()[0] for line in found[0].read_text().splitlines() if line.strip()]
    classes = sorted({name.split("/")[0] for name in names})
    labels = tuple(classes.index(name.split("/")[0]) for name in names)
    assert len(names) == 9537
    videos = Videos(Path(), tuple(names), labels, tuple(classes))
    assert len({source_of(name) for name in names}) == 101 * 18  # groups 8 to 25
    kept, held = hold_out(videos, 0.2)
    assert 0.2 <= len(held) / 9537 <= 0.24
    assert not {source_of(names[row]) for row in kept} & {source_of(names[row]) for row in held}
    assert {labels[row] for row in held} == set(range(101))
