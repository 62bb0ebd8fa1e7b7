"""The commands of ``mcn`` that evaluate a network: probe, fine-tuning, retrieval, features, maps, prediction.

A command imports what it needs when it runs, so that ``mcn --help`` answers at once.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from mcn._command import Command, argument, of_folder
from mcn._cores import is_first
from mcn.config import AttendConfig, DiagnoseConfig, EvalConfig, FinetuneConfig, ProbeConfig, RetrieveConfig
from mcn.errors import MCNError


def _say_if_untrained(config: ProbeConfig | RetrieveConfig | EvalConfig) -> None:
    """Before anything is computed: without a checkpoint it is not the network that somebody trained."""
    if not config.checkpoint and is_first():
        from mcn.clip_features import clips_in_words

        print(f"no --checkpoint: an untrained {config.backbone}, clips of {clips_in_words(config)}")


def _finetune(config: FinetuneConfig, _: Any) -> None:
    from mcn.finetune import finetune, protocol

    path, found = finetune(config)
    if found:
        first, *others = found.lines(config.clips)
        print("\n".join([f"test list: {first}", *others]))
        print(f"protocol:  {protocol(config)}")
    print(f"run folder: {path}" + "   (test.json, classes.csv, confusion.csv)" * bool(found))
    print(f"next:       mcn predict VIDEO --checkpoint {path}")


def _probe(config: ProbeConfig, args: Any) -> None:
    from mcn.probe import headline_probe, protocol, run_probe

    if config.recipe == "headline":
        if args.target != "class":
            raise MCNError(f"--target {args.target}: it is for --recipe quick; headline probes classes")
        path, found = headline_probe(config)
        first, *others = found.lines(config.clips)
        print("\n".join([f"linear probe: {first}", *others]))
        print(f"protocol:     {protocol(config)}")
        print(f"run folder: {path}   (test.json, classes.csv, confusion.csv)")
        return
    _say_if_untrained(config)
    result = run_probe(config, args.target)
    what = "linear probe" if args.target == "class" else f"linear probe of {args.target}"
    print(f"{what}: top-1 {result.top1:.1f} % of {result.videos} videos (chance {result.chance:.1f} %)")
    said = protocol(config, result.c, args.target)
    print(f"protocol:     {said}")
    _record(config, "probe", result.summary(), said)


def _retrieve(config: RetrieveConfig, args: Any) -> None:
    from mcn.holdout import labelled_lists
    from mcn.retrieval import protocol, run_retrieval

    if args.query:
        if args.beside:
            raise MCNError(f"--beside {args.beside}: it goes with --sheet of a test list, not with --query")
        if is_first():  # one file, or a folder's features once: the first process does it alone
            _look_up(config, args)
        return
    if args.index:
        raise MCNError(f"--index {args.index}: it goes with --query")
    if args.beside and not args.sheet:
        raise MCNError(f"--beside {args.beside}: it goes with --sheet")
    lists = labelled_lists(config)
    _say_if_untrained(config)
    result = run_retrieval(config, lists)
    shown = ", ".join(f"top-{k} {value:.1f} %" for k, value in result.accuracy.items())
    print(f"retrieval: {shown} ({result.queries} queries)")
    chance = ", ".join(f"top-{k} {value:.1f} %" for k, value in result.chance.items())
    print(f"chance:    {chance} (random picks of {result.gallery} training videos)")
    print(f"protocol:  {protocol(config)}")
    if args.sheet:
        _fig_4(config, args, result, lists)
    numbers = {f"top{k}": value for k, value in result.accuracy.items()}
    numbers |= {f"chance_top{k}": value for k, value in result.chance.items()}
    _record(config, "retrieve", numbers, protocol(config))


def _look_up(config: RetrieveConfig, args: Any) -> None:
    """The videos nearest to a file."""
    from mcn.loading import load_networks
    from mcn.lookup import open_index, protocol, query_feature, search
    from mcn.retrieval_plots import contact_sheet, save_sheet

    query = Path(args.query)
    networks = load_networks(config)
    asked = query_feature(config, query, networks)  # before the folder is read
    index = open_index(config, Path(args.index) if args.index else None, networks)
    found, itself = search(asked, index, config.shown, leave_out=query)
    for place, each in enumerate(found, 1):
        print(f"{place:3}  {each.cosine:6.3f}  {each.name}")
    for each in itself:
        print(f"left out: {each.name}, which is {query} itself")
    print(f"protocol: {protocol(config)}")
    if args.sheet:
        print(f"sheet: {save_sheet(contact_sheet(query, index.features.videos, found), Path(args.sheet))}")


def _fig_4(config: RetrieveConfig, args: Any, result: Any, lists: Any) -> None:
    """Queries and their nearest by another network and by this one, as in the paper's Fig. 4."""
    from mcn.retrieval import run_retrieval
    from mcn.retrieval_plots import retrieval_sheet, save_sheet

    found = {"this network": result}
    if args.beside:
        checkpoint = "" if args.beside == "untrained" else args.beside
        found = {
            args.beside: run_retrieval(dataclasses.replace(config, checkpoint=checkpoint), lists),
            **found,
        }
    if not is_first():
        return
    train, test = lists
    print(f"sheet:     {save_sheet(retrieval_sheet(test, train, found), Path(args.sheet))}")


def _features(config: EvalConfig, args: Any) -> None:
    from mcn.clip_features import made_of
    from mcn.features import write_features

    config = of_folder(config, args.folder)
    _say_if_untrained(config)
    print(write_features(config, args.subset, Path(args.output), (args.rank, args.world)))
    print(f"protocol: {made_of(config)}")


def _attend(config: AttendConfig, args: Any) -> None:
    from mcn.attend import KINDS, draw

    if args.video:
        if not args.output:
            raise MCNError(f"-o is missing: {KINDS}")
        if config.data:
            raise MCNError(
                f"{args.video[0]} and --data {config.data}: give files to draw or a list to measure"
            )
        for line in draw(config, args.video, Path(args.output)):
            print(line)
        return
    if not config.data:
        raise MCNError("give video files to draw, or --data (and --subset) to measure a list of videos")
    if config.accuracy:
        raise MCNError("--accuracy is drawn below the maps of a video: give a video file")
    from mcn.files import write_text
    from mcn.motion import measure, protocol

    found = measure(config, args.subset)
    for line in [*found.lines(config.seed), f"protocol: {protocol(config)}"]:
        print(line)
    if args.output:
        write_text(Path(args.output), found.table())
        print(f"{args.output}: a line a video")
    _record(config, "attend", found.numbers(config.seed), protocol(config))


def _diagnose(config: DiagnoseConfig, args: Any) -> None:
    from mcn.diagnose import diagnose, lines

    path, found = diagnose(config, args.run)
    print("\n".join([*lines(found), "", f"{path}: all of it"]))


def _predict(_: Any, args: Any) -> None:
    from mcn.finetune import predict

    found = predict(args.video, args.checkpoint, args.device)
    for name, probability in found.classes[: args.top]:
        print(f"{100 * probability:5.1f} %  {name}")
    print(f"protocol: {found.protocol}")


def _record(
    config: ProbeConfig | RetrieveConfig | AttendConfig, command: str, result: dict[str, float], protocol: str
) -> None:
    """Keep a result in a run folder, with its protocol, and the settings and versions it was made with."""
    from mcn.run import RunFolder

    if not is_first():
        return
    run = RunFolder(config, command)
    run.rewind_metrics(0)
    run.log(1, **result)
    run.write_json("result.json", {**result, "protocol": protocol})
    run.close()
    print(f"run folder: {run.path}")


#: What :data:`mcn.commands.COMMANDS` has of them, by name.
EVALUATIONS = {
    "probe": Command(
        _probe,
        "linear probe of frozen features: quick (cached) or headline (to compare)",
        ProbeConfig,
        arguments=(
            argument(
                "--target",
                type=Literal["class", "group", "direction"],
                default="class",
                help="quick: class, source video (scene), or the direction that a synthetic object turns in",
            ),
        ),
    ),
    "finetune": Command(
        _finetune, "supervised fine-tuning, of a checkpoint or --from_scratch", FinetuneConfig
    ),
    "retrieve": Command(
        _retrieve,
        "nearest neighbours: test videos ask, training videos answer; or those of one file",
        RetrieveConfig,
        arguments=(
            argument(
                "--query", type=str, default="", help="video file whose nearest in all of --data are shown"
            ),
            argument(
                "--index",
                type=str,
                default="",
                help="file (.npz) that keeps the features --query searches; used again while they are true",
            ),
            argument("--sheet", type=str, default="", help="picture to write: as the paper's Fig. 4"),
            argument(
                "--beside",
                type=str,
                default="",
                help="checkpoint whose answers the sheet shows beside, or untrained",
            ),
        ),
    ),
    "features": Command(
        _features,
        "one feature a video of a folder, as .npz",
        EvalConfig,
        arguments=(
            argument("folder", type=str, help="folder of videos"),
            argument("-o", "--output", type=str, required=True, help="file to write (.npz)"),
            argument("--subset", type=Literal["all", "train", "test"], default="all", help="which list"),
            argument("--rank", type=int, default=0, help="which share of the videos, from 0 to world - 1"),
            argument("--world", type=int, default=1, help="shares that are made, each by its own process"),
        ),
    ),
    "attend": Command(
        _attend,
        "where a network looks: activation maps of videos, or how well they cover motion over a list",
        AttendConfig,
        arguments=(
            argument("video", type=str, nargs="*", help="video files to draw; none: --data is measured"),
            argument(
                "-o",
                "--output",
                type=str,
                default="",
                help="picture (.png, .pdf, .svg) or video (.mp4) of the files; table (.csv) of the list",
            ),
            argument("--subset", type=Literal["all", "train", "test"], default="test", help="which list"),
        ),
    ),
    "diagnose": Command(
        _diagnose,
        "what a meta step does to a run's networks: step against curvature, head, bank",
        DiagnoseConfig,
        arguments=(
            argument(
                "run", type=str, nargs="+", help="run folders (every checkpoint that is kept) or .pt files"
            ),
        ),
        presets=False,
    ),
    "predict": Command(
        _predict,
        "classes of one video by a fine-tuned network",
        arguments=(
            argument("video", type=str, help="video file"),
            argument("--checkpoint", type=str, required=True, help="run folder or .pt of mcn finetune"),
            argument("--device", type=str, default="auto", help="auto, cpu, cuda, ..."),
            argument("--top", type=int, default=5, help="classes to print"),
        ),
    ),
}
