"""The measures of :mod:`mcn.diagnosis` for the checkpoints of a run, on fresh clips of its own videos.

Every checkpoint sees the same batches, drawn with the run's settings from a seed of their own, so that what
differs is the network. A run without meta stages is asked what a meta step would do.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mcn.checkpoint import all_checkpoints, load_checkpoint
from mcn.config import DiagnoseConfig, PretrainConfig, ProbeConfig, build
from mcn.data.loader import Clip, train_steps
from mcn.data.plan import Request, Step, epoch_plan, steps_per_epoch, steps_since
from mcn.diagnosis import adapt, answers, bank_cosines, compare_orders, constant_answer, loss_at, mean_of
from mcn.errors import MCNError
from mcn.features import features_of_lists
from mcn.files import write_text
from mcn.holdout import videos_of
from mcn.lean import Params
from mcn.loop import checked_steps, training_clips
from mcn.network import shared_parameters
from mcn.optim import learning_rate, order_at
from mcn.pretrain import Pretraining
from mcn.probe import probe_of
from mcn.run import choose_device, environment, seed_for
from mcn.shares import Share
from mcn.stage import Batch, StageLoss, Traces
from mcn.targets import questions

FORMAT = 1
#: Ages of rows of the bank, in epochs, that are told apart.
AGES = (0.0, 0.5, 1.0, 1.5, 2.0)
#: Quantiles of the cosine of a row with the present feature.
QUANTILES = (0.1, 0.5, 0.9)
_CLIPS = 4  # of a video, whose mean is probed
_AGAIN = 1 << 20  # epochs later: a second clip of the same videos
# Each a line of a table: its title, and the measures in it.
_TABLES = (
    ("inner step", ("ratio", "cosine", "curvature", "support", "support_adapted", "query", "query_adapted")),
    ("head", ("same", "other", "same_adapted", "other_adapted", "bl", "bl_adapted", "bl_constant")),
    ("bank", ("row", "fresh", "others")),
)
MEANING = {
    "ratio": "|alpha_1 H v| / |v| with v the query's gradient at the adapted parameters",
    "cosine": "between the first-order and the exact meta-gradient",
    "curvature": "v' H v / v' v: beyond 2 / alpha_1 the inner step overshoots along v",
    "support, query": "the loss before the inner step; _adapted: after it",
    "same, other": "per cent of the head's answers on query pairs of one video, of two, that are right",
    "bl": "the head's loss a group; bl_constant: of the best answer that is the same for all pairs",
    "row": "cosine of a video's row in the bank with the network's feature of a fresh clip of it",
    "fresh": "cosine of the features of two fresh clips of a video; others: of one with others' rows",
    "class, group": "per cent right of the quick probe, for the class, for the source video (scene) in one",
}


class Fresh(NamedTuple):
    """A support and a query batch of clips, and other clips of the same videos."""

    support: list[Clip]
    query: list[Clip]
    again: tuple[list[Clip], list[Clip]]


def diagnose(config: DiagnoseConfig, runs: Sequence[str]) -> tuple[Path, list[dict[str, Any]]]:
    """Measure every checkpoint of ``runs`` (run folders or ``.pt`` files); gives the file and its entries.

    Raises :class:`~mcn.errors.MCNError` for what is no pre-training checkpoint, other videos than the bank
    has rows for, too few of them, and a run whose tasks are shares, each with an inner step of its own.
    """
    device = choose_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    found = [
        {"run": str(run), "checkpoint": path.name, **_measured(config, path, device)}
        for run in runs
        for path in all_checkpoints(run)
    ]
    about = environment(device)
    content = {
        "format": FORMAT,
        "batches": config.batches,
        "seed": config.seed,
        **{name: about[name] for name in ("device", "threads", "mcn", "torch", "commit")},
        "meaning": MEANING,
        "checkpoints": found,
    }
    path = Path(config.out) / f"{config.name or _name(Path(runs[0]))}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")
    return path, found


def lines(found: Sequence[dict[str, Any]]) -> list[str]:
    """What was measured as tables, a line a checkpoint: means and their standard errors."""
    said = [f"{name}: {meaning}" for name, meaning in MEANING.items()]
    runs = dict.fromkeys(each["run"] for each in found)
    name_of = {run: f"{_name(Path(run))}, " if len(runs) > 1 else "" for run in runs}
    labels = [f"{name_of[each['run']]}step {each['step']}" for each in found]
    width = max(map(len, labels))
    for title, names in _TABLES:
        if not any(title in each for each in found):
            said += ["", f"{title}: not trained (--cls_weight 0)"]
            continue
        said += ["", f"{title:<{width}} {'order':>5} {'alpha_1':>7} " + " ".join(f"{n:>15}" for n in names)]
        for label, each in zip(labels, found, strict=True):
            if title in each:
                numbers = " ".join(f"{_shown(each[title][name]):>15}" for name in names)
                said.append(f"{label:<{width}} {each['order']:>5} {each['inner_lr']:>7.2g} {numbers}")
    if found[0]["probes"]:
        said += ["", f"{'probe':<{width}} {'class':>15} {'group':>15}"]
        for label, each in zip(labels, found, strict=True):
            top1 = " ".join(f"{each['probes'][target]['top1']:>15.1f}" for target in ("class", "group"))
            said.append(f"{label:<{width}} {top1}")
    said += ["", "row by the epochs since it was written:"]
    for label, each in zip(labels, found, strict=True):
        ages = (
            f"{age['from']:g}-{age['to'] or ''}: {age['row']:.3f} ({age['rows']})" for age in each["ages"]
        )
        said.append(f"{label:<{width}} " + ", ".join(ages))
    return said


def _shown(value: dict[str, float | None]) -> str:
    error = "" if value["error"] is None else f" ±{value['error']:.2g}"
    return f"{value['mean']:.4g}{error}"


def _name(run: Path) -> str:
    """A run folder's name; that above where it has a command's name, as an ablation's have."""
    run = run.parent if run.is_file() else run
    run = run.resolve().parent if run.name == "checkpoints" else run.resolve()
    return run.parent.name if run.name == "pretrain" else run.name


def _measured(config: DiagnoseConfig, path: Path, device: torch.device) -> dict[str, Any]:
    """One checkpoint's entry."""
    state = load_checkpoint(path, device)
    if not {"bank", "config", "step"} <= state.keys():
        raise MCNError(f"{path} is not a pre-training checkpoint: give one that `mcn pretrain` wrote")
    trained, step = build(PretrainConfig, state["config"]), int(state["step"])
    if trained.task == "share" and trained.order != "none":
        raise MCNError(
            f"{path} was trained with --task share, where each share has an inner step of its own: "
            "what mcn diagnose measures is the step of a whole batch"
        )
    training, batches = _opened(config, trained, state, path, device)
    rate = learning_rate(trained, step - 1, training.total)
    alpha = next(each for each in (config.inner_lr, trained.inner_lr, rate) if each is not None)
    if not alpha:
        raise MCNError(
            f"{path}: alpha_1 is 0, and without an inner step nothing can be said: give --inner_lr"
        )
    found = [_of_batch(training, fresh, number, alpha) for number, fresh in enumerate(batches)]
    names = [(title, name) for title, table in found[0].tables.items() for name in table]
    tables: dict[str, dict[str, Any]] = {title: {} for title in found[0].tables}
    for title, name in names:
        tables[title][name] = mean_of([each.tables[title][name] for each in found])._asdict()
    rows, videos = (
        torch.cat(parts) for parts in zip(*((each.row, each.videos) for each in found), strict=True)
    )
    return {
        "step": step,
        "order": order_at(trained, step - 1, training.total),
        "cls_weight": trained.cls_weight,
        "lr": rate,
        "inner_lr": alpha,
        **tables,
        "probes": _probed(config, trained, path) if config.probes else {},
        "row_quantiles": dict(zip(map(str, QUANTILES), _quantiles(rows), strict=True)),
        "ages": _by_age(rows, videos, trained, step, len(training.bank)),
    }


def _probed(config: DiagnoseConfig, trained: PretrainConfig, path: Path) -> dict[str, dict[str, float]]:
    """What the features encode: per cent right, and chance, for the class and for the source video."""
    clips = {name: getattr(trained, name) for name in ("frames", "stride", "size", "split")}
    lists = features_of_lists(ProbeConfig(
        checkpoint=str(path), data=config.data or trained.data, reader=config.reader, workers=config.workers,
        device=config.device, seed=config.seed, cache="none", clips=_CLIPS, **clips,
    ))  # fmt: skip
    probes = {target: probe_of(questions(target, *lists)) for target in ("class", "group")}
    return {target: {"top1": found.top1, "chance": found.chance} for target, found in probes.items()}


def _opened(
    config: DiagnoseConfig, trained: PretrainConfig, state: dict[str, Any], path: Path, device: torch.device
) -> tuple[Pretraining, Iterator[Fresh]]:
    """A checkpoint's network and bank, and the batches that every checkpoint of its run is shown."""
    settings = dataclasses.replace(
        trained, data=config.data or trained.data, reader=config.reader, workers=config.workers,
        seed=seed_for(config.seed, "diagnosis"), precision="fp32", compile=False, checkpointing=False,
    )  # fmt: skip
    videos, rows = videos_of(settings, "train"), state["bank"]["rows"].shape[1]
    if len(videos) != rows:
        raise MCNError(
            f"{settings.data} has {len(videos)} training videos, the bank of {path} {rows} rows: "
            "give the run's own videos as --data"
        )
    checked_steps(len(videos), settings.batch_size, stages=True)
    training = Pretraining(settings, rows, device)
    training.network.load_state_dict(state["network"])
    training.bank.load_state_dict(state["bank"])
    dataset = training_clips(videos, settings, settings.view2 if settings.view2.startswith("flow") else None)
    clips = train_steps(dataset, _plan(len(videos), settings, config.batches), settings.workers)
    return training, (Fresh(*first, again) for first, again in zip(clips, clips, strict=True))


def _plan(num_videos: int, config: PretrainConfig, batches: int) -> Iterator[Step]:
    """Steps of support and query halves, each followed by one that draws other clips of the same videos."""
    plans = (epoch_plan(num_videos, config.batch_size, epoch, config.seed, stages=True) for epoch in count())
    for step in islice((step for plan in plans for step in plan), batches):
        yield step
        yield Step(*([Request(v, epoch + _AGAIN, at) for v, epoch, at in stage] for stage in step))


class _Found(NamedTuple):
    """What one batch says: numbers by table and name, and each video's cosine with its row."""

    tables: dict[str, dict[str, float]]
    row: Tensor
    videos: Tensor


def _of_batch(training: Pretraining, fresh: Fresh, number: int, alpha: float) -> _Found:
    config, theta = training.config, shared_parameters(training.network)
    inner: dict[str, Any] = {"inner_steps": max(config.inner_steps, 1), "inner_clip": config.inner_clip}
    support, query = (
        training.batches(clips, number, stage)
        for stage, clips in (("support", fresh.support), ("query", fresh.query))
    )
    adapted = adapt(_losses(training, support), theta, alpha, **inner)
    before, after = _evaluated(training, query, theta), _evaluated(training, query, adapted)
    first = _evaluated(training, support, theta)
    step = compare_orders(_losses(training, support), _losses(training, query), theta, alpha, **inner)
    tables = {
        "inner step": {
            **step._asdict(),
            "support": first.loss,
            "support_adapted": _evaluated(training, support, adapted).loss,
            "query": before.loss,
            "query_adapted": after.loss,
        }
    }
    if config.cls_weight:
        tables["head"] = {**_head(before), **{f"{n}_adapted": v for n, v in _head(after).items()}}
        tables["head"]["bl_constant"] = before.mean(
            lambda t: constant_answer(t.out.labels, t.out.group, reduction=config.cls_reduction)
        )
    own = [*first.stages, *before.stages]
    again = [
        stage
        for name, clips in zip(("support", "query"), fresh.again, strict=True)
        for stage in _evaluated(training, training.batches(clips, number, name), theta).stages
    ]
    row, others = (
        torch.cat(parts)
        for parts in zip(
            *(bank_cosines(batch.rows, batch.index, t.out.z1, t.out.z2) for batch, t in own), strict=True
        )
    )
    twice = [
        torch.stack([F.cosine_similarity(t.out.z1, u.out.z1), F.cosine_similarity(t.out.z2, u.out.z2)])
        for (_, t), (_, u) in zip(own, again, strict=True)
    ]
    tables["bank"] = {
        "row": row.mean().item(),
        "fresh": torch.cat(twice, dim=1).mean().item(),
        "others": others.mean().item(),
    }
    return _Found(tables, row.cpu(), torch.cat([batch.index for batch, _ in own]).cpu())


class _Evaluated(NamedTuple):
    """A stage's shares at some parameters: the loss, and what each share leaves behind."""

    loss: float
    stages: list[tuple[Batch, Traces]]

    def mean(self, of: Callable[[Traces], float]) -> float:
        """The weighted mean of a number over shares."""
        return sum(batch.weight * of(traces) for batch, traces in self.stages)


def _losses(training: Pretraining, batches: Sequence[Batch]) -> list[Share]:
    return [Share(StageLoss(training.network, batch, training.config), batch.weight) for batch in batches]


def _evaluated(training: Pretraining, batches: Sequence[Batch], params: Params) -> _Evaluated:
    losses = [StageLoss(training.network, batch, training.config) for batch in batches]
    loss = loss_at([Share(each, each.batch.weight) for each in losses], params)
    return _Evaluated(loss, [(each.batch, each.traces) for each in losses if each.traces is not None])


def _head(stage: _Evaluated) -> dict[str, float]:
    """What the head answers on a stage's pairs, and its loss."""
    logits, labels = (
        torch.cat([getattr(t.out, name) for _, t in stage.stages]) for name in ("logits", "labels")
    )
    return {**answers(logits, labels)._asdict(), "bl": stage.mean(lambda t: t.classification.item())}


def _quantiles(values: Tensor) -> list[float]:
    return [round(value, 5) for value in values.double().quantile(torch.tensor(QUANTILES).double()).tolist()]


def _by_age(
    rows: Tensor, videos: Tensor, config: PretrainConfig, step: int, num_videos: int
) -> list[dict[str, Any]]:
    """The mean cosine of rows by their age in epochs, which follows from the plan of the run.

    Rows that were never written are left out.
    """
    stages = config.order != "none"
    since = steps_since(
        num_videos, config.batch_size, step, config.seed, stages,
        redraw=config.redraw, query_only=config.bank_update == "query",
    )  # fmt: skip
    per_epoch = steps_per_epoch(num_videos, config.batch_size, stages)
    age = torch.tensor([math.inf if since[v] is None else since[v] / per_epoch for v in videos.tolist()])
    found = []
    for low, high in zip(AGES, (*AGES[1:], math.inf), strict=True):
        of = rows[(age >= low) & (age < high)]
        if len(of):
            mean = round(of.mean().item(), 5)
            found.append(
                {"from": low, "to": None if high == math.inf else high, "row": mean, "rows": len(of)}
            )
    return found
