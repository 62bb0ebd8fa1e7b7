"""Activation maps of one or two networks for video files (paper, Figs. 1 and 5).

The networks see the same clip: that of a checkpoint, and another to compare it with if there is one.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from mcn.attention import Coverage, attention_maps, counted_pixels, motion_coverage, moving_pixels
from mcn.attention_plots import Example, activation_bars, activation_grid, activation_video, check_accuracies
from mcn.clip_features import VIEWS, evaluation_crops, one_view
from mcn.config import AttendConfig, EvalConfig, PretrainConfig, build
from mcn.data.loader import clips_of_file
from mcn.errors import MCNError
from mcn.files import save_figure
from mcn.loading import load_network, network_from_config
from mcn.run import choose_device
from mcn.starting_points import StartingPoint, classifier_backbone, read_starting_point, weights_file

#: What ``--compare`` takes for the checkpoint's own network as it was before training.
UNTRAINED = "untrained"
_BEFORE = "before training, seed {}"
_PICTURES = (".png", ".pdf", ".svg")
_VIDEO = ".mp4"
#: What can be written, for messages.
KINDS = f"give a file ending in {', '.join(_PICTURES)} or {_VIDEO}"


@dataclass(frozen=True)
class Watched:
    """A network whose maps are drawn: what it is, which checkpoint it came from, and its backbone."""

    title: str
    label: str
    backbone: nn.Module

    def maps(self, crops: Tensor, config: AttendConfig) -> Tensor:
        """Maps ``(B, T, H, W)`` of clips ``(B, 3, T + 1, H, W)`` in [0, 1], on the CPU."""
        made = [
            attention_maps(self.backbone, one_view(some, config.view), config.placement).cpu()
            for some in crops.split(config.batch_size)
        ]
        return torch.cat(made)


def watched_networks(config: AttendConfig, device: torch.device) -> list[Watched]:
    """The networks of a config, ``--compare``'s first (Fig. 5: without MCN above, with MCN below).

    Raises :class:`~mcn.errors.MCNError` as :func:`mcn.loading.load_network` does.
    """
    wanted = _wanted(config)
    given = dict.fromkeys(where for where in (*wanted, config.checkpoint) if where not in ("", UNTRAINED))
    starts = {where: read_starting_point(where, config.backbone) for where in given}
    found = [_network(where, config, starts, device) for where in wanted]
    titles = [title for title, _ in found]
    if len(set(titles)) < len(titles):
        titles = [f"{title} ({number})" for number, title in enumerate(titles, 1)]
    labels = _labels(wanted, config.seed)
    return [
        Watched(title, label, backbone)
        for title, label, (_, backbone) in zip(titles, labels, found, strict=True)
    ]


def places(config: AttendConfig) -> list[str]:
    """For messages: the path of each network's checkpoint, in the order of :func:`watched_networks`."""
    return [
        _BEFORE.format(config.seed) if where in ("", UNTRAINED) else str(weights_file(where))
        for where in _wanted(config)
    ]


def _wanted(config: AttendConfig) -> list[str]:
    return [config.compare, config.checkpoint] if config.compare else [config.checkpoint]


def _network(
    where: str, config: AttendConfig, starts: dict[str, StartingPoint], device: torch.device
) -> tuple[str, nn.Module]:
    """What a network is, and its backbone."""
    start = dataclasses.replace(config, checkpoint=config.checkpoint if where == UNTRAINED else where)
    read = starts.get(start.checkpoint)
    state = read.ours if read else {}
    if "classes" in state:
        if where == UNTRAINED:
            raise MCNError(
                f"--compare {UNTRAINED}: {start.checkpoint} is fine-tuned and does not know how it began; "
                "give its pre-training checkpoint"
            )
        return "fine-tuned", classifier_backbone(state, start.checkpoint).to(device)
    network, trained = load_network(build(EvalConfig, dataclasses.asdict(start)), device, read)
    if where == UNTRAINED:
        network = network_from_config(trained).to(device)
    title = _title(trained, where) if where not in ("", UNTRAINED) else UNTRAINED
    return title, network.backbone(VIEWS[config.view])


def _title(trained: PretrainConfig, where: str) -> str:
    """The paper's name for what a run trained with; a file of other weights says nothing of that."""
    if trained.init_from == where:
        return "not trained by mcn"
    meta, binary = trained.order != "none", trained.cls_weight > 0
    if meta and binary:
        return "with MCN"
    return "meta stages only" if meta else "binary loss only" if binary else "without MCN"


def _labels(wanted: Sequence[str], seed: int) -> list[str]:
    """For pictures: the end of each checkpoint's path, as much of it as tells them apart."""
    paths = [None if where in ("", UNTRAINED) else weights_file(where).resolve().parts for where in wanted]
    for count in range(3, max([3, *(len(path) for path in paths if path)]) + 1):
        labels = [_end(path, count) if path else _BEFORE.format(seed) for path in paths]
        if len(set(labels)) == len(labels):
            break
    return labels


def _end(path: Sequence[str], count: int) -> str:
    return "/".join([part for part in path if part != "checkpoints"][-count:])


def draw(config: AttendConfig, files: Sequence[str], path: Path) -> list[str]:
    """Write the picture or video file that ``path``'s suffix names; gives what was found, in lines.

    ``config.accuracy`` draws the paper's Fig. 1 instead of Fig. 5. Raises :class:`~mcn.errors.MCNError` for
    a path of another kind, and for accuracies that do not fit, before anything is computed.
    """
    _check_output(config, files, path)
    examples, fps = attend(config, files)
    if path.suffix.lower() == _VIDEO:
        activation_video(examples, path, fps)
    else:
        save_figure(_picture(config, examples), path, dpi=160, facecolor="white")
    lines = [
        f"{example.title}: {name} ({place}): {example.notes[name].partition(chr(10))[2]}"
        for example in examples
        for name, place in zip(example.maps, places(config), strict=True)
    ]
    return [*lines, f"{path}: {len(examples)} clip{'s' * (len(examples) > 1)} of {config.frames} frames"]


def _picture(config: AttendConfig, examples: Sequence[Example]) -> Figure:
    if not config.accuracy:
        return activation_grid(examples, title="Activation maps of conv5")
    bars = dict(zip(examples[0].maps, config.accuracy, strict=True))
    return activation_bars(examples[0], bars, source=config.accuracy_source)


def _check_output(config: AttendConfig, files: Sequence[str], path: Path) -> None:
    if path.suffix.lower() not in (*_PICTURES, _VIDEO):
        raise MCNError(f"-o {path}: {KINDS}")
    if not config.accuracy:
        return
    check_accuracies(config.accuracy)
    networks = 2 if config.compare else 1
    if len(config.accuracy) != networks or len(files) > 1 or path.suffix.lower() == _VIDEO:
        raise MCNError(
            f"--accuracy draws one video with a number a network, as a picture: got {len(config.accuracy)} "
            f"numbers for {networks} networks and {len(files)} videos, -o {path}"
        )
    if not config.accuracy_source:
        raise MCNError("--accuracy needs --accuracy_source: say where the numbers come from")


def attend(config: AttendConfig, files: Sequence[str]) -> tuple[list[Example], float]:
    """The middle clip of each video file with its maps, coverage noted; and frames a second.

    Raises :class:`~mcn.errors.MCNError` for a video that cannot be read.
    """
    device = choose_device(config.device)
    networks = watched_networks(config, device)
    examples, rates = [], []
    for file in files:
        raw, info = clips_of_file(
            file, frames=config.frames, stride=config.stride, clips=1,
            reader=config.reader, timeout=config.read_timeout,
        )  # fmt: skip
        rates.append((info.fps or 25.0) / config.stride)
        examples.append(_example(Path(file).name, raw, networks, config, device))
    return examples, rates[0]


def _example(
    name: str, raw: Tensor, networks: Sequence[Watched], config: AttendConfig, device: torch.device
) -> Example:
    crops = evaluation_crops(raw.to(device), config.size)
    maps = {network.title: network.maps(crops, config)[0] for network in networks}
    clip = crops[0].cpu()
    moving, counted = moving_pixels(clip, config.threshold), counted_pixels(clip)
    notes = {}
    for network in networks:
        found = motion_coverage(maps[network.title], moving, counted)
        notes[network.title] = f"{network.label}\n{_said(found)}"
        notes["moving"] = f"{100 * found.moving:.1f} % of the pixels move (residual above {config.threshold})"
    return Example(name, clip[:, :-1], maps, notes, moving & counted if config.moving else None)


def _said(found: Coverage) -> str:
    if found.reason:
        return f"motion lift undefined: {found.reason}"
    return f"motion lift {found.lift:.2f}, AUC {found.auc:.2f}"
