"""Retrieval: search against cases by hand and scikit-learn, lookups of one file, and their pictures."""

import dataclasses
import os
import shutil
import tracemalloc
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from sklearn.neighbors import NearestNeighbors

from mcn import nearest as search
from mcn.cli import main
from mcn.config import RetrieveConfig
from mcn.data.datasets import Videos, load_videos
from mcn.data.readers import open_video
from mcn.errors import MCNError
from mcn.features import Features
from mcn.lookup import Neighbour, find, load_index, open_index, query_feature
from mcn.nearest import cosines, nearest
from mcn.plots import RIGHT, WRONG
from mcn.retrieval import Retrieval, protocol, random_picks, retrieve, run_retrieval
from mcn.retrieval_plots import contact_sheet, neighbour_sheet, retrieval_sheet, save_sheet, spread_queries


def features(x: Any, labels: str, classes: str = "abc") -> Features:
    """Features of videos whose classes are letters."""
    numbers = tuple(classes.index(letter) for letter in labels)
    names = tuple(f"{letter}/{i}.mp4" for i, letter in enumerate(labels))
    return Features(torch.tensor(x, dtype=torch.float32), Videos(Path(), names, numbers, tuple(classes)))


# By hand.


def test_cosine_not_distance_not_product() -> None:
    # Nearest by angle: row 1; by distance: row 0; by dot product: row 2.
    gallery = np.array([[1.0, 1.0], [9.0, 1.0], [20.0, 20.0]])
    assert nearest(np.array([[1.0, 0.0]]), gallery, 3).tolist() == [[1, 0, 2]]  # 0 and 2 tie: first first
    assert cosines(np.array([2.0, 0.0]), gallery, np.array([2, 1])).tolist() == pytest.approx(
        [0.5**0.5, 9 / 82**0.5]
    )


def test_ties_go_to_the_video_that_comes_first() -> None:
    v, w = [3.0, 4.0], [4.0, 3.0]
    gallery = np.array([w, v, [6.0, 8.0], w, [0.3, 0.4], v])
    assert nearest(np.array([v]), gallery, 6).tolist() == [[1, 2, 4, 5, 0, 3]]
    assert nearest(np.array([v]), gallery, 2).tolist() == [[1, 2]]
    found = retrieve(features([v], "a"), features(gallery, "baaabc"), top=(1, 4, 5))
    assert found.neighbours.tolist() == [[1, 2, 4, 5, 0]]
    assert found.accuracy == {1: 100.0, 4: 100.0, 5: 100.0}
    assert retrieve(features([v], "c"), features(gallery, "baaabc"), (1, 3, 4)).accuracy == {
        1: 0.0,
        3: 0.0,
        4: 100.0,
    }


def test_zero_and_unreadable_features() -> None:
    nan = float("nan")
    gallery = np.array([[nan, 1.0], [-1.0, 0.0], [0.0, 0.0], [1.0, 0.1], [np.inf, 1.0]])
    got = nearest(np.array([[1.0, 0.0], [nan, 0.0], [0.0, 0.0]]), gallery, 5)
    assert got.tolist() == [[3, 2, 1], [-1, -1, -1], [1, 2, 3]]  # zero is like nothing, 0: above -1
    with pytest.raises(MCNError, match="no finite feature among the 2"):
        nearest(np.ones((1, 2)), np.full((2, 2), nan), 1)
    with pytest.raises(MCNError, match="one width"):
        nearest(np.ones((1, 3)), np.ones((1, 2)), 1)


def test_every_query_counts() -> None:
    gallery = features(np.eye(3), "abc")
    nan = [float("nan")] * 3
    asked = features([[1, 0, 0], [0, 1, 0], nan, [1, 0, 0], [0, 0, 1]], "aacbc")
    found = retrieve(asked, gallery, top=(1, 3))
    assert found.queries == 5
    assert found.accuracy == {1: 40.0, 3: 80.0}  # the unreadable one is wrong even where all are taken
    assert found.neighbours[2].tolist() == [-1, -1, -1]


def test_a_class_that_is_missing_from_the_gallery() -> None:
    gallery = features([[1.0, 0.0], [0.0, 1.0]], "ac", classes="ac")
    asked = features([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], "abc", classes="abc")
    found = retrieve(asked, gallery, top=(1, 2, 9))
    # Labels 0, 1, 2 ask labels 0, 1: class b is nowhere, and c is c though its number differs.
    assert found.accuracy == {k: pytest.approx(200 / 3) for k in (1, 2, 9)}


def test_chance_is_what_random_picks_find() -> None:
    """Exact against every way to pick: classes of 3, 1 and 2 in a gallery of 6, one of them unreadable."""
    x = np.eye(7)
    x[6] = float("nan")
    gallery = features(x, "aaabcca")
    asked = features(np.eye(7)[:4], "abcc", classes="abcd")
    found = retrieve(asked, gallery, top=(1, 2, 4, 50))
    labels = "aaabcc"
    for k in (1, 2, 4):
        picked = [[labels[i] for i in rows] for rows in combinations(range(6), k)]
        each = [np.mean([label in some for some in picked]) for label in "abcc"]
        assert found.chance[k] == pytest.approx(100 * np.mean(each), rel=1e-12)
    assert (found.chance[50], found.gallery) == (100.0, 6)
    assert retrieve(features(np.eye(7)[:1], "d", classes="abcd"), gallery, top=(5,)).chance == {5: 0.0}
    i = np.arange(50)  # HMDB51's size, and the book's formula
    assert random_picks(50, 3570, 70) == pytest.approx(100 * (1 - np.prod((3500 - i) / (3570 - i))))


# Against others.


def by_definition(queries: np.ndarray, gallery: np.ndarray, k: int) -> np.ndarray:
    """All similarities in float64, ties (to 2 to the -40) by place."""
    q, g = (x.astype(np.float64) for x in (queries, gallery))
    unit = [x / np.maximum(np.sqrt((x**2).sum(1, keepdims=True)), 1e-300) for x in (q, g)]
    return np.argsort(-(unit[0] @ unit[1].T * 2.0**40).round(), axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("kind", ["random", "copies", "nearly alike", "ascending"])
@pytest.mark.parametrize("tile", [(7, 11, 5), (64, 50, 50), (4096, 16384, 2048)])
def test_search_equals_the_definition(
    kind: str, tile: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in zip(("_QUERIES", "_GALLERY", "_COLUMNS"), tile, strict=True):
        monkeypatch.setattr(search, name, value)
    rng = np.random.default_rng(3)
    queries = rng.standard_normal((40, 16)).astype(np.float32)
    gallery = rng.standard_normal((203, 16)).astype(np.float32)
    if kind == "copies":  # each gallery video four times, at other scales
        gallery = np.resize(gallery[:50], (203, 16)) * np.exp2(rng.integers(-3, 4, (203, 1))).astype(
            np.float32
        )
    if kind == "nearly alike":  # float32 cannot tell these apart
        gallery = (1 + 1e-4 * gallery).astype(np.float32)
        queries = (1 + 1e-4 * queries).astype(np.float32)
    if kind == "ascending":  # each tile is better than those before
        gallery = gallery[np.argsort(gallery @ queries[0])]
    for k in (1, 30, 203):
        got = nearest(queries, gallery, k)
        assert got.shape == (40, k)
        np.testing.assert_array_equal(got, by_definition(queries, gallery, k))


def test_top_50_of_ucf101s_size_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((3783, 64), dtype=np.float32)
    gallery = rng.standard_normal((9537, 64), dtype=np.float32)
    got = nearest(queries, gallery, 50)
    other = NearestNeighbors(n_neighbors=50, metric="cosine", algorithm="brute").fit(gallery)
    distance, theirs = other.kneighbors(queries)
    for row in np.flatnonzero((got != theirs).any(axis=1)):  # only ties may be in another order
        mine = 1 - cosines(queries[row], gallery, got[row])
        np.testing.assert_allclose(mine, distance[row], atol=1e-6, rtol=0)
    assert (got != theirs).mean() < 1e-3


def test_memory_does_not_grow_with_the_matrix_of_similarities(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [tmp_path / "queries.npy", tmp_path / "gallery.npy"]
    for path, count in zip(paths, (4000, 48000), strict=True):  # a fifth of 20,000 x 240,000 either way
        np.save(path, rng.standard_normal((count, 32), dtype=np.float32))
    queries, gallery = (np.load(path, mmap_mode="r") for path in paths)
    tracemalloc.start()
    try:
        got = nearest(queries, gallery, 50)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 120e6 < 4 * 4000 * 48000 / 6  # the matrix has 768 MB
    np.testing.assert_array_equal(got[:20], by_definition(queries[:20], gallery, 50))


# Lookups of one file.


@pytest.fixture
def lookup(own_data: Path, smoke_config: Callable[..., Any], trained: Path) -> RetrieveConfig:
    return smoke_config("retrieve", data=own_data, checkpoint=trained, cache="none")


def test_a_file_finds_its_copy_and_not_itself(lookup: RetrieveConfig, tmp_path: Path) -> None:
    index = open_index(lookup)
    videos = index.features.videos
    assert len(videos) == 40
    own = videos.path(7)
    copy = tmp_path / "elsewhere.mp4"
    copy.write_bytes(own.read_bytes())
    asked = query_feature(lookup, copy)
    first = find(asked, index, 3)
    assert first[0].row == 7
    assert first[0].cosine == pytest.approx(1, abs=1e-6)
    assert [each.name for each in first] == [videos.names[each.row] for each in first]
    assert first == find(asked, index, 40)[:3]
    without = find(asked, index, 3, leave_out=own)
    assert without[:2] == first[1:]
    assert len(find(asked, index, 40, leave_out=own)) == 39
    with pytest.raises(MCNError, match=r"nowhere\.mp4"):
        query_feature(lookup, tmp_path / "nowhere.mp4")


def test_joined_views_ask_and_answer_alike(lookup: RetrieveConfig) -> None:
    joined = dataclasses.replace(lookup, view="rgb+residual")
    index = open_index(joined)
    own = index.features.videos.path(3)
    assert find(query_feature(joined, own), index, 1)[0].row == 3
    assert query_feature(joined, own).shape == (64,)
    with pytest.raises(MCNError, match="no stored flow"):
        query_feature(dataclasses.replace(lookup, view="rgb+flow_v"), own)


def test_an_index_is_used_while_it_is_true(
    lookup: RetrieveConfig, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mcn import lookup as module

    made: list[str] = []
    whole = module.features_of
    monkeypatch.setattr(
        module, "features_of", lambda *given, **more: made.append("x") or whole(*given, **more)
    )
    path = tmp_path / "index.npz"
    first = open_index(lookup, path)
    again = open_index(lookup, path)
    assert len(made) == 1
    assert torch.equal(again.features.x, first.features.x)
    assert again.features.videos.names == first.features.videos.names
    nowhere = dataclasses.replace(lookup, data="")
    assert torch.equal(open_index(nowhere, path).features.x, first.features.x)
    assert [load_index(path).features.videos.path(i) for i in (0, 39)] == [
        first.features.videos.path(i).absolute() for i in (0, 39)
    ]
    untrained = dataclasses.replace(nowhere, checkpoint="")
    with pytest.raises(MCNError, match=r"index\.npz was made by another network.*--data"):
        open_index(untrained, path)
    with pytest.raises(MCNError, match="--data is missing"):
        open_index(nowhere, tmp_path / "other.npz")
    assert len(made) == 1
    open_index(dataclasses.replace(lookup, clips=1), path)  # other settings: made again
    changed = open_index(lookup, path)  # and again
    assert len(made) == 3
    os.utime(changed.features.videos.path(0), (1, 1))
    open_index(lookup, path)
    assert len(made) == 4
    (Path(lookup.data) / "videos/Bob/one_more.mp4").write_bytes(changed.features.videos.path(0).read_bytes())
    assert len(open_index(lookup, path).features.videos) == 41
    path.write_bytes(b"PK broken")
    with pytest.raises(MCNError, match=r"index\.npz is no index of videos"):
        open_index(lookup, path)


def test_the_command_answers_with_neighbours_and_a_sheet(
    own_data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = load_videos(own_data, "all").path(4)
    flags = ["retrieve", "--preset", "smoke", "--checkpoint", str(trained), "--cache", str(tmp_path / "kept")]
    flags += ["--query", str(query), "--top", "3", "--index", str(tmp_path / "x.npz"), "--threads", "1"]
    assert main([*flags, "--data", str(own_data), "--sheet", str(tmp_path / "sheet.png")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[-6:]] == ["1", "2", "3", "left", "protocol:", "sheet:"]
    assert all(query.name not in line for line in said[-6:-3])
    assert said[-3] == f"left out: {query.parent.name}/{query.name}, which is {query} itself"
    made_of = "pooled features, mean of 2 clips of 4 frames, stride 2, 24 pixels, centre crop, rgb"
    assert said[-2] == f"protocol: {made_of}, cosine"
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert main(flags) == 0  # from the index alone
    assert capsys.readouterr().out.splitlines() == said[-6:-1]
    other = Path(shutil.copy(query, tmp_path / "other.mp4"))  # which is not among them
    flags[flags.index("--query") + 1] = str(other)
    at = flags.index("--top")
    assert main(flags[:at] + flags[at + 2 :]) == 0
    places = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert places == [*map(str, range(1, 11)), "protocol:"]  # ten, unless more are asked for


# Results as a whole.


def test_two_views_from_the_command_line(
    action_data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["retrieve", "--preset", "smoke", "--checkpoint", str(trained), "--data", str(action_data)]
    flags += ["--cache", str(tmp_path / "kept"), "--threads", "1", "--out", str(tmp_path / "run")]
    sheet = tmp_path / "fig4.png"
    flags += ["--view", "rgb+residual", "--top", "[1,32]", "--sheet", str(sheet), "--beside", "untrained"]
    assert main(flags) == 0
    said = capsys.readouterr().out
    assert "top-32 100.0 % (8 queries)" in said
    assert "rgb+residual, each view at unit length" in said
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_the_protocol_says_what_was_compared() -> None:
    said = protocol(RetrieveConfig(feature="conv5", crops="ten", clips=3, view="residual", split=2))
    for word in ("conv5", "max-pooled", "3 clips", "ten crops", "residual", "cosine", "split 2"):
        assert word in said


@pytest.mark.parametrize("setting", [{"feature": "conv5"}, {"crops": "ten"}, {"view": "residual"}])
def test_options_reach_the_features(
    setting: dict[str, str], smoke_config: Callable[..., Any], trained: Path, tmp_path: Path
) -> None:
    config = smoke_config("retrieve", checkpoint=trained, cache=tmp_path, top=(1, 32), **setting)
    found = run_retrieval(config)
    assert found.accuracy[32] == 100.0
    assert found.neighbours.shape == (8, 32)


# Pictures.


def frames_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (*shape, 6, 6, 3), dtype=np.uint8)


def edge(axis: Any) -> str:
    return to_hex(next(iter(axis.spines.values())).get_edgecolor())


def labelled(figure: Any, text: str) -> list[Any]:
    return [axis for axis in figure.axes if axis.get_xlabel().startswith(text)]


def test_wrong_neighbours_are_red_and_right_ones_green_with_a_word() -> None:
    figure = neighbour_sheet(
        frames_of(2), ["Sway", "Spin"],
        {"untrained": frames_of(2, 3), "MCN": frames_of(2, 3)},
        {"untrained": [["Bob", "Bob", "Sway"], ["Bob", "Bob", "Bob"]], "MCN": [["Sway"] * 3, ["Spin"] * 3]},
    )  # fmt: skip
    assert {edge(axis) for axis in labelled(figure, "Bob (no)")} == {WRONG}
    assert {edge(axis) for axis in labelled(figure, "Sway (ok)")} == {RIGHT}
    assert len(labelled(figure, "Bob")) == 5
    assert len(labelled(figure, "Spin (ok)")) == 3
    assert len(figure.axes) == 2 * (1 + 2 * 3)


def test_neighbour_sheet_refuses_numbers_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="one entry a query"):
        neighbour_sheet(frames_of(2), ["a", "b"], {"x": frames_of(1, 3)}, {"x": [["a"] * 3]})
    with pytest.raises(ValueError, match="labels of"):
        neighbour_sheet(frames_of(1), ["a"], {"x": frames_of(1, 3)}, {"y": [["a"] * 3]})


def test_fig_4_shows_middle_frames_of_queries_and_answers(action_data: Path) -> None:
    test, train = (load_videos(action_data, subset) for subset in ("test", "train"))
    order = torch.arange(32).repeat(8, 1)
    order[0] = -1  # a query that could not be read
    figure = retrieval_sheet(
        test,
        train,
        {
            "a": Retrieval({}, order, 8, torch.zeros(8, dtype=torch.bool)),
            "b": Retrieval({}, order.flip(1), 8, torch.zeros(8, dtype=torch.bool)),
        },
        rows=3,
    )
    assert len(figure.axes) == 3 * (1 + 3 + 3)
    assert [axis.get_title() for axis in figure.axes[:7]] == ["query", "a: 1", "2", "3", "b: 1", "2", "3"]
    for axis, videos, index in (
        (figure.axes[0], test, 1),
        (figure.axes[1], train, 0),
        (figure.axes[5], train, 30),
    ):
        with open_video(videos.path(index)) as video:
            np.testing.assert_array_equal(axis.images[0].get_array(), video.frames([len(video) // 2])[0])
    first = test.classes[test.labels[1]]
    for place, axis in enumerate(figure.axes[1:4]):
        found = train.classes[train.labels[place]]
        assert axis.get_xlabel() == f"{found} ({'ok' if found == first else 'no'})"
        assert edge(axis) == (RIGHT if found == first else WRONG)
    order[:] = -1
    with pytest.raises(MCNError, match="nothing to draw"):
        retrieval_sheet(test, train, {"a": Retrieval({}, order, 8, torch.zeros(8, dtype=torch.bool))})


def test_queries_of_fig_4_are_of_different_classes_and_sources() -> None:
    def drawn(groups: int, classes: str, clips: int, count: int, step: int = 1) -> list[str]:
        names = [
            f"{a}/v_{a}_g{g:02d}_c{c:02d}.avi" for a in classes for g in range(groups) for c in range(clips)
        ]
        labels = tuple(classes.index(name[0]) for name in names)
        rows = range(0, len(names), step)
        chosen = spread_queries(Videos(Path(), tuple(names), labels, tuple(classes)), rows, count)
        assert len(set(chosen)) == len(chosen) == min(count, len(rows))
        assert set(chosen) <= set(rows)
        return [names[row] for row in chosen]

    six = drawn(groups=7, classes="abcdefghijklm", clips=4, count=6)
    assert len({name[0] for name in six}) == 6
    assert len({name.split("_")[2] for name in six}) == 6  # groups of one number may be one scene
    few = drawn(groups=7, classes="ab", clips=4, count=6)
    assert [name[0] for name in few] == list("aaabbb")
    assert len({name[:-8] for name in few}) == 6  # six sources
    assert len(drawn(groups=1, classes="a", clips=3, count=6)) == 3
    assert len(drawn(groups=2, classes="ab", clips=3, count=6, step=2)) == 6


def test_rows_of_fig_4_are_as_tall_as_their_frames() -> None:
    wide = np.zeros((1, 6, 12, 3), np.uint8)
    heights = [
        neighbour_sheet(frames, ["a"] * len(frames), {"x": frames[:, None]}, {"x": [["a"]] * len(frames)})
        .get_size_inches()[1]
        for frames in (frames_of(4), wide.repeat(4, 0))
    ]  # fmt: skip
    assert heights[1] < 0.8 * heights[0]


def test_a_contact_sheet_names_what_it_shows(lookup: RetrieveConfig, tmp_path: Path) -> None:
    index = open_index(lookup)
    videos = index.features.videos
    found = find(query_feature(lookup, videos.path(0)), index, 7, leave_out=videos.path(0))
    figure = contact_sheet(videos.path(0), videos, found)
    assert [axis.get_xlabel().replace("\n", "") for axis in figure.axes] == [
        videos.path(0).name,
        *(each.name for each in found),
    ]
    assert figure.axes[1].get_title() == f"1: cosine {found[0].cosine:.3f}"
    assert save_sheet(figure, tmp_path / "new/sheet.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(MCNError, match=r"sheet\.mp4.*\.png"):
        save_sheet(figure, tmp_path / "sheet.mp4")


def test_long_names_do_not_run_into_each_other(lookup: RetrieveConfig) -> None:
    index = open_index(lookup)
    path = index.features.videos.path(0)
    folder = "a_folder_with_a_name_that_is_long/"
    figure = contact_sheet(path, index.features.videos, [Neighbour(0, 0.5, folder + path.name)] * 2)
    figure.draw_without_rendering()
    boxes = [axis.xaxis.label.get_window_extent() for axis in figure.axes[1:]]
    assert not boxes[0].overlaps(boxes[1])
    assert figure.axes[1].get_xlabel().endswith(path.name[-8:])
