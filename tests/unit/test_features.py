"""One extraction of features: what is shown, what is kept on disk, and what must not matter."""

import dataclasses
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mcn import features as module
from mcn._torchvision import torchvision  # noqa: F401  (mends the import of functional below)
from mcn.clip_features import conv5_feature, evaluation_crops, ten_crops
from mcn.config import EvalConfig
from mcn.data.augment import center_crop
from mcn.data.datasets import Videos, load_videos
from mcn.data.flow import flow_folder, read_flow
from mcn.data.readers import open_video
from mcn.data.sampling import uniform_clips
from mcn.errors import MCNError
from mcn.feature_cache import FeatureCache, weights_hash
from mcn.features import Features, cache_folder, extract_features, features_of, features_of_lists, unit
from mcn.loading import single_views
from mcn.network import MetaContrastiveNetwork
from mcn.probe import linear_probe
from mcn.retrieval import retrieve
from mcn.views import make_views, normalise

functional = pytest.importorskip("torchvision.transforms.functional")
SIZES: dict[str, Any] = {"frames": 4, "stride": 2, "size": 24, "clips": 3}


@pytest.fixture(scope="module")
def network() -> MetaContrastiveNetwork:
    torch.manual_seed(5)
    made = MetaContrastiveNetwork("r3d_small", width=4, dim=8)
    for layer in made.modules():  # statistics that eval mode makes use of, apart for each view
        if isinstance(layer, torch.nn.BatchNorm3d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return made


@pytest.fixture(scope="module")
def some(action_data: Path) -> Videos:
    return load_videos(action_data, "test")


def clips_of(videos: Videos, index: int) -> Iterator[Tensor]:
    """Each of a video's clips by itself, uint8 ``(T + 1, H, W, 3)``."""
    with open_video(videos.path(index)) as video:
        for wanted in uniform_clips(len(video), SIZES["frames"] + 1, SIZES["stride"], SIZES["clips"]):
            yield torch.from_numpy(video.frames(wanted))


@torch.no_grad()
def naive(network: MetaContrastiveNetwork, videos: Videos, view: str, maps: bool = False) -> Tensor:
    """One clip at a time, as the definition reads."""
    network.eval()
    rows = []
    for index in range(len(videos)):
        each = []
        for clip in clips_of(videos, index):
            both = make_views(center_crop(clip, SIZES["size"])[None], "residual" if view == "rgb" else view)
            backbone = network.backbone(0 if view == "rgb" else 1)
            shown = both[0 if view == "rgb" else 1]
            each.append(conv5_feature(backbone.maps(shown))[0] if maps else backbone(shown)[0])
        rows.append(torch.stack(each).double().mean(0))
    return torch.stack(rows)


@pytest.mark.parametrize("view", ["rgb", "residual", "signed_residual"])
def test_features_are_the_mean_over_clips_of_the_views_own_backbone(
    network: MetaContrastiveNetwork, some: Videos, view: str
) -> None:
    got = extract_features(network.train(), some, view=view, **SIZES).x
    assert network.training  # given back as it was
    assert got.shape == (8, 32)
    torch.testing.assert_close(got.double(), naive(network, some, view), atol=1e-5, rtol=0)


def test_conv5_is_max_pooled_and_flattened(network: MetaContrastiveNetwork, some: Videos) -> None:
    maps = torch.tensor([[1.0, 5.0, 2.0], [3.0, 4.0, 9.0], [7.0, 7.0, 7.0]]).view(1, 1, 1, 3, 3)
    assert conv5_feature(maps).tolist() == [[5.0]]  # whole windows only, as nn.MaxPool3d has it
    assert conv5_feature(torch.tensor([2.0, 3.0]).view(1, 2, 1, 1, 1)).tolist() == [[2.0, 3.0]]
    got = extract_features(network, some, feature="conv5", **SIZES).x
    torch.testing.assert_close(got.double(), naive(network, some, "rgb", maps=True), atol=1e-5, rtol=0)


def test_ten_crops_are_torchvisions_of_seven_eighths() -> None:
    raw = torch.randint(256, (2, 3, 16, 24, 3), dtype=torch.uint8)
    got = evaluation_crops(raw, 14, "ten").view(2, 10, 3, 3, 14, 14)  # clips, crops, C, T: nothing is resized
    frames = raw.permute(0, 1, 4, 2, 3) / 255
    *corners, centre = functional.five_crop(frames, 14)
    expected = [centre, *corners]
    expected += [functional.hflip(crop) for crop in expected]
    for mine, theirs in zip(got.unbind(1), expected, strict=True):
        torch.testing.assert_close(mine, theirs.transpose(1, 2), atol=1e-6, rtol=0)
    assert {(box.height, box.width) for box in ten_crops(256, 341)} == {(224, 224)}  # CoCLR's


def test_mirrored_horizontal_flow_points_the_other_way() -> None:
    raw = torch.randint(256, (1, 2, 16, 24, 3), dtype=torch.uint8)
    u, v = (evaluation_crops(raw, 14, "ten", view) for view in ("flow_u", "flow_v"))
    torch.testing.assert_close(u[:5], v[:5])
    torch.testing.assert_close(u[5:], 1 - v[5:])


def test_ten_crop_features_are_means_over_crops_too(network: MetaContrastiveNetwork, some: Videos) -> None:
    got = extract_features(network, some, crops="ten", **SIZES).x
    network.eval()
    with torch.no_grad():
        each = [evaluation_crops(clip[None], SIZES["size"], "ten") for clip in clips_of(some, 2)]
        mean = torch.cat([network.features(make_views(x, "residual")[0]) for x in each]).mean(0)
    torch.testing.assert_close(got[2], mean, atol=1e-5, rtol=0)


def metrics(train: Features, test: Features) -> tuple[Any, ...]:
    probe = linear_probe(train, test)
    right = dict(zip(test.videos.names, probe.right, strict=True))  # of each video, wherever it stands
    return retrieve(test, train, (1, 2, 5)).accuracy, dataclasses.replace(probe, right=()), right


def in_order(videos: Videos, order: Any) -> Videos:
    names, labels = (tuple(of[i] for i in order) for of in (videos.names, videos.labels))
    return dataclasses.replace(videos, names=names, labels=labels)


def test_order_workers_ranks_and_batch_size_do_not_matter(
    network: MetaContrastiveNetwork, action_data: Path, tmp_path: Path
) -> None:
    lists = [load_videos(action_data, subset) for subset in ("train", "test")]
    plain = [extract_features(network, videos, **SIZES) for videos in lists]
    reference = metrics(*plain)
    orders = [np.random.default_rng(0).permutation(len(videos)) for videos in lists]
    shuffled = [in_order(videos, order) for videos, order in zip(lists, orders, strict=True)]
    kept = {"cache": tmp_path}
    for rank in (1, 0):
        for videos in lists:
            extract_features(network, videos, **SIZES, **kept, share=(rank, 2))
    for of, settings in (
        (shuffled, {}), (lists, {"workers": 2}), (lists, kept), (shuffled, kept),
        (lists, {"batch_size": 1}), (shuffled, {"batch_size": 2, "workers": 2}),
    ):  # fmt: skip
        again = [extract_features(network, videos, **SIZES, **settings) for videos in of]
        for one, known, order in zip(again, plain, orders, strict=True):
            expected = known.x[order] if of is shuffled else known.x
            if "batch_size" not in settings:
                assert torch.equal(one.x, expected)
            torch.testing.assert_close(one.x, expected, atol=1e-5, rtol=0)
        assert metrics(*again) == reference


def share(data: str, cache: str, rank: int, world: int, fatal: int = 0) -> None:
    """Extract one share in a process of its own; SIGKILL it once ``fatal`` features are kept."""
    torch.set_num_threads(1)
    torch.manual_seed(5)
    made = MetaContrastiveNetwork("r3d_small", width=4, dim=8)
    keep, left = FeatureCache.add, [fatal]

    def add(self: FeatureCache, key: bytes, feature: Any) -> None:
        keep(self, key, feature)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    FeatureCache.add = add  # type: ignore[method-assign]
    videos = load_videos(data, "train")
    extract_features(made, videos, cache=Path(cache), share=(rank, world), **SIZES)


def fresh() -> MetaContrastiveNetwork:
    torch.manual_seed(5)
    return MetaContrastiveNetwork("r3d_small", width=4, dim=8)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Videos that extraction has opened, by number in the list."""
    opened: list[int] = []
    whole = module.readable_videos

    def watched(
        dataset: Any, workers: int, max_bad: float, progress: str, only: list[int], *ranks: Any
    ) -> Any:
        opened.extend(only)
        return whole(dataset, workers, max_bad, progress, only, *ranks)

    monkeypatch.setattr(module, "readable_videos", watched)
    return opened


def test_two_processes_share_the_work(
    action_data: Path, tmp_path: Path, processes: Any, read: list[int]
) -> None:
    running = [processes.start(share, str(action_data), str(tmp_path), rank, 2) for rank in (0, 1)]
    for process in running:
        process.join(120)
        assert process.exitcode == 0
    videos = load_videos(action_data, "train")
    merged = extract_features(fresh(), videos, cache=tmp_path, **SIZES)
    assert read == []
    assert torch.equal(merged.x, extract_features(fresh(), videos, **SIZES).x)


def test_a_share_leaves_the_others_rows_empty(some: Videos, tmp_path: Path) -> None:
    one = extract_features(fresh(), some, cache=tmp_path, share=(1, 3), **SIZES)
    assert one.readable.tolist() == [i % 3 == 1 for i in range(8)]
    both = extract_features(fresh(), some, cache=tmp_path, share=(0, 3), **SIZES)
    assert both.readable.tolist() == [i % 3 != 2 for i in range(8)]  # what is there is there
    for wrong in ((3, 3), (-1, 2), (0, 9)):
        with pytest.raises(MCNError, match=f"--rank {wrong[0]} --world {wrong[1]}"):
            extract_features(fresh(), some, cache=tmp_path, share=wrong, **SIZES)
    with pytest.raises(MCNError, match="--cache"):
        extract_features(fresh(), some, share=(0, 2), **SIZES)


def test_a_killed_extraction_goes_on(
    action_data: Path, tmp_path: Path, processes: Any, read: list[int]
) -> None:
    assert processes.finish(share, str(action_data), str(tmp_path), 0, 1, 7) == -signal.SIGKILL
    videos = load_videos(action_data, "train")
    whole = extract_features(fresh(), videos, cache=tmp_path, **SIZES)
    assert read == list(range(7, 32))
    assert torch.equal(whole.x, extract_features(fresh(), videos, **SIZES).x)


def test_torn_and_damaged_records_do_not_exist(some: Videos, tmp_path: Path, read: list[int]) -> None:
    first = extract_features(fresh(), some, cache=tmp_path, **SIZES).x
    (path,) = tmp_path.rglob("*.bin")
    content = bytearray(path.read_bytes())
    record = (len(content) - 16) // 8
    content[16 + 2 * record + 30] ^= 1  # a bit of the third feature
    path.write_bytes(content[:-5])
    read.clear()
    assert torch.equal(extract_features(fresh(), some, cache=tmp_path, **SIZES).x, first)
    assert read == [2, 7]
    path.write_bytes(b"MC")  # all that was written of it
    read.clear()
    assert torch.equal(extract_features(fresh(), some, cache=tmp_path, **SIZES).x, first)
    assert read == [0, 1, 3, 4, 5, 6]


def test_only_what_is_still_true_is_used(own_data: Path, tmp_path: Path, read: list[int]) -> None:
    videos, network = load_videos(own_data, "test"), fresh()
    before = extract_features(network, videos, cache=tmp_path, **SIZES).x

    def again(**changes: Any) -> Tensor:
        read.clear()
        return extract_features(network, videos, cache=tmp_path, **{**SIZES, **changes}).x

    assert torch.equal(again(), before)
    assert read == []
    for changes in ({"clips": 2}, {"size": 16}, {"view": "residual"}, {"crops": "ten"}, {"feature": "conv5"},
                    {"stride": 1}, {"frames": 3}, {"reader": "pyav"}):  # fmt: skip
        changed = again(**changes)
        assert read == list(range(8)), changes
        assert "reader" in changes or changed.shape != before.shape or not torch.equal(changed, before)
    assert again(batch_size=1, workers=1).shape == before.shape
    assert read == []  # these change nothing
    # Another file under an old name, of the same size and at the same time of day.
    os.replace(videos.path(0), videos.path(3))
    changed = again(max_bad=0.2)
    assert read == [0, 3]
    assert torch.equal(changed[3], before[0])
    assert changed[0].isnan().all()
    with torch.no_grad():
        next(network.parameters()).mul_(1 + 1e-6)
    again(max_bad=0.2)
    assert read == list(range(8))


def test_what_could_not_be_read_is_tried_again(
    own_data: Path, tmp_path: Path, read: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    videos = load_videos(own_data, "test")
    good = videos.path(5).read_bytes()
    videos.path(5).write_bytes(b"broken")
    for _ in range(2):
        read.clear()
        got = extract_features(fresh(), videos, cache=tmp_path, max_bad=0.2, **SIZES)
        assert got.readable.tolist() == [i != 5 for i in range(8)]
        assert "1 of 8 videos could not be read" in capsys.readouterr().out
    assert read == [5]
    with pytest.raises(MCNError, match="1 of 8 videos cannot be read, the limit is 5%"):
        extract_features(fresh(), videos, cache=tmp_path, **SIZES)
    videos.path(5).write_bytes(good)
    assert extract_features(fresh(), videos, cache=tmp_path, **SIZES).readable.all()


def test_large_features_lie_in_a_file_that_is_gone_afterwards(
    some: Videos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = extract_features(fresh(), some, cache=tmp_path, **SIZES).x
    monkeypatch.setattr(module, "_IN_MEMORY", 0)
    maps: list[np.memmap] = []
    memmap = np.memmap
    monkeypatch.setattr(np, "memmap", lambda *a, **k: maps.append(memmap(*a, **k)) or maps[-1])
    large = extract_features(fresh(), some, cache=tmp_path, **SIZES).x
    assert len(maps) == 1
    assert np.shares_memory(large.numpy(), maps[0])
    assert torch.equal(large, small)
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".bin"]


def test_clips_do_not_pile_up(some: Videos, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[Any] = []
    whole, most = module.video_feature, [0]

    def watched(network: Any, raw: Tensor, **settings: Any) -> Tensor:
        alive.append(weakref.ref(raw))
        most[0] = max(most[0], sum(one() is not None for one in alive))
        return whole(network, raw, **settings)

    monkeypatch.setattr(module, "video_feature", watched)
    extract_features(fresh(), some, **SIZES)
    assert len(alive) == 8
    assert most[0] <= 2


def test_a_full_disk_is_one_line_that_names_the_folder(some: Videos, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MCNError, match=r"cannot keep features in .*file.*--cache"):
        extract_features(fresh(), some, cache=tmp_path / "file", **SIZES)


@pytest.fixture
def with_flow(own_data: Path) -> Videos:
    videos, rng = load_videos(own_data, "test"), np.random.default_rng(0)
    for index in range(len(videos)):
        folder = flow_folder(videos, index)
        folder.mkdir(parents=True)
        for number in range(1, 16):
            for axis in "xy":
                grey = rng.integers(0, 255, (32, 32), dtype=np.uint8)
                Image.fromarray(grey).save(folder / f"flow_{axis}_{number:05d}.jpg")
    return videos


@pytest.mark.parametrize("view", ["flow_u", "flow_v"])
def test_flow_features_are_of_the_stored_images(
    network: MetaContrastiveNetwork, with_flow: Videos, tmp_path: Path, read: list[int], view: str
) -> None:
    got = extract_features(network, with_flow, view=view, cache=tmp_path / "kept", **SIZES).x
    rows = []
    for wanted in uniform_clips(16, 5, 2, 3):
        images = torch.from_numpy(read_flow(flow_folder(with_flow, 4), wanted, view, 32, 32))
        with torch.no_grad():
            rows.append(network.eval().features(normalise(center_crop(images, 24)[None], view), 1)[0])
    torch.testing.assert_close(got[4], torch.stack(rows).mean(0), atol=1e-5, rtol=0)
    read.clear()
    axis = {"flow_u": "x", "flow_v": "y"}
    (flow_folder(with_flow, 2) / f"flow_{axis[view]}_00003.jpg").unlink()  # no clip's: moments are 0, 2, ...
    other = {"flow_u": "y", "flow_v": "x"}
    (flow_folder(with_flow, 3) / f"flow_{other[view]}_00003.jpg").unlink()
    extract_features(network, with_flow, view=view, cache=tmp_path / "kept", max_bad=0.5, **SIZES)
    assert read == [2]  # images of the other direction are not its business


def test_joined_views_are_each_at_unit_length(
    with_flow: Videos, smoke_config: Callable[..., Any], trained: Path
) -> None:
    data = with_flow.root
    settings = {"data": data, "checkpoint": trained, "cache": "none", "clips": 1}
    two = fresh()
    joined = features_of(smoke_config("retrieve", view="rgb+flow_v", **settings), "test", [two, two])
    parts = [
        features_of(smoke_config("retrieve", view=v, **settings), "test", [two]) for v in ("rgb", "flow_v")
    ]
    assert torch.equal(joined.x, torch.cat([unit(part.x) for part in parts], dim=1))
    torch.testing.assert_close(joined.x.norm(dim=1), torch.full((8,), 2**0.5))


def test_the_second_of_two_views_may_have_a_network_of_its_own(
    smoke_config: Callable[..., Any], trained: Path, tmp_path: Path
) -> None:
    shared = {"view": "rgb+residual", "cache": "none"}
    own = features_of(smoke_config("retrieve", checkpoint=trained, **shared), "test").x
    untrained = smoke_config("retrieve", view="residual", cache="none")
    mixed = smoke_config("retrieve", second_checkpoint=trained, **shared)
    assert [one.checkpoint for one in single_views(mixed)] == ["", str(trained)]
    got = features_of(mixed, "test").x
    width = got.shape[1] // 2
    assert torch.equal(got[:, width:], own[:, width:])
    assert not torch.equal(got[:, :width], own[:, :width])
    assert untrained.view == "residual"


def test_where_features_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/step_00000001.pt").touch()
    (tmp_path / "alone.pt").touch()
    for given in (run, run / "checkpoints/step_00000001.pt"):
        assert cache_folder(EvalConfig(checkpoint=str(given))) == run / "features"
    assert cache_folder(EvalConfig(checkpoint=str(tmp_path / "alone.pt"))) == tmp_path / "features"
    assert cache_folder(EvalConfig(checkpoint=str(run), cache="none")) is None
    assert cache_folder(EvalConfig(checkpoint=str(run), cache="there")) == Path("there")
    assert cache_folder(EvalConfig()) is None
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert cache_folder(EvalConfig(checkpoint=str(run))) is None
    assert f"features are not kept: {run}" in capsys.readouterr().out


def test_evaluations_share_features(
    smoke_config: Callable[..., Any], trained: Path, tmp_path: Path, read: list[int]
) -> None:
    place = {"checkpoint": trained, "cache": tmp_path / "kept"}
    one = features_of(smoke_config("probe", **place), "test")
    everything = features_of(smoke_config("retrieve", **place), "all")
    assert len(read) == 8 + 32  # of 8 + 40
    names = list(everything.videos.names)
    assert torch.equal(everything.x[[names.index(name) for name in one.videos.names]], one.x)


def test_a_network_that_serves_both_lists_is_prepared_once(
    smoke_config: Callable[..., Any], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    settings = {"checkpoint": trained, "cache": "none", "compile": True, "channels_last": True}
    train, test = features_of_lists(smoke_config("probe", **settings))
    assert (len(train.x), len(test.x)) == (32, 8)
    assert len(compiled) == len(set(compiled)) > 0
    assert all(
        weight.is_contiguous(memory_format=torch.channels_last_3d)
        for weight in compiled[0].parameters()
        if weight.dim() == 5
    )


def test_the_hash_of_weights_sees_names_values_and_buffers() -> None:
    layer = torch.nn.BatchNorm1d(3)
    seen = {weights_hash(layer)}
    layer.running_mean.add_(1e-7)
    seen.add(weights_hash(layer))
    seen.add(weights_hash(torch.nn.Sequential(layer)))
    seen.add(weights_hash(layer.double()))
    assert len(seen) == 4
    assert weights_hash(layer) == weights_hash(layer.eval())
