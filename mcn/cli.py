"""The command line: ``mcn COMMAND``, one for each thing that is done with a data set or a network.

Settings come from, in rising order: the fields' defaults, ``--preset NAME``, the clips that a
``--checkpoint`` was trained on, ``--config FILE``, flags. What the user can mend is one line on
standard error and exit status 1 (2 for a bad flag).
"""

import dataclasses
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from io import StringIO
from itertools import islice
from typing import Any

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from mcn._cores import processes
from mcn._flags import refusal
from mcn._help import Formatter, by_subject, usage
from mcn._version import __version__
from mcn.commands import COMMANDS
from mcn.config import load_preset, presets
from mcn.errors import MCNError

set_parsing_settings(docstring_parse_attribute_docstrings=True)

_ON_RANKS = ("pretrain", "finetune", "probe", "retrieve", "features")  # the rest the first rank does alone
_STARTS_RUNS = ("ablate", "demo")


def command_parser(name: str, settings: dict[str, Any] | None = None) -> ArgumentParser:
    """The parser of one command, with other defaults where ``settings`` names its fields."""
    command = COMMANDS[name]
    parser = ArgumentParser(
        prog=f"mcn {name}",
        description=command.help,
        usage=usage(name, command.arguments),
        formatter_class=Formatter,
        exit_on_error=False,
        allow_abbrev=False,  # --e would change its meaning with the next flag that begins like it
    )
    for names, options in command.arguments:
        parser.add_argument(*names, **options)
    if command.config is not None:
        if command.presets:
            parser.add_argument("--preset", type=str, default=None, help=f"one of: {', '.join(presets())}")
        parser.add_argument(
            "--config", action="config", help="YAML file of settings, e.g. a run's config.yaml"
        )
        parser.add_class_arguments(command.config, as_group=True)
        by_subject(parser, command.config)
        fields = {field.name: field.type for field in dataclasses.fields(command.config)}
        for action in parser._actions:
            if fields.get(action.dest) in (bool, "bool"):  # --from_scratch alone says true
                action.nargs, action.const = "?", True
        parser.set_defaults({key: value for key, value in (settings or {}).items() if key in fields})
    return parser


def _parse(name: str, arguments: Sequence[str]) -> Any:
    """The settings of a command line.

    In rising order: defaults, preset, the clips a checkpoint was trained on, config file, flags,
    wherever they stand.
    """
    files, flags, left = [], [], iter(arguments)
    for argument in left:
        if argument == "--config":
            files += [argument, *islice(left, 1)]
        elif argument.startswith("--config="):
            files.append(argument)
        else:
            flags.append(argument)
    if COMMANDS[name].config is None:
        return command_parser(name).parse_args(files + flags)
    asked = _first_look(name, files + flags)
    preset = asked.get("preset")
    settings = load_preset(preset, COMMANDS[name].block or name) if preset else {}
    settings |= _trained_on(asked.get("checkpoint"), asked.get("out"))
    return command_parser(name, settings).parse_args(files + flags)


def _first_look(name: str, arguments: list[str]) -> dict[str, Any]:
    """What is asked for, whatever preset and checkpoint will make of the rest.

    --print_config prints and ends the program: here what it prints is read, and it is still to come.
    """
    parser = command_parser(name)
    prints = any(argument.startswith("--print_config") for argument in arguments)
    if not prints or not {"-h", "--help"}.isdisjoint(arguments):
        return dict(parser.parse_args(arguments))
    printed = StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        parser.parse_args(arguments)
    settings = yaml.safe_load(printed.getvalue())
    return settings if isinstance(settings, dict) else {}


def _trained_on(checkpoint: str | None, out: str | None) -> dict[str, Any]:
    """Length, stride and size of the clips that a checkpoint's network has seen.

    A run that is continued says so itself: the checkpoint that it started from may be gone.
    """
    if not checkpoint:
        return {}
    from mcn.checkpoint import own_checkpoint
    from mcn.starting_points import clips_seen

    return clips_seen(own_checkpoint(out or "") or checkpoint)


def _usage() -> str:
    lines = [f"  {name:10} {command.help}" for name, command in COMMANDS.items()]
    return "usage: mcn COMMAND [--help] ...\n\n" + "\n".join(lines) + f"\n\nmcn {__version__}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        print(f"mcn: unknown command {name!r}: one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    threading.excepthook = _quiet_thread
    try:
        return _run_on_ranks(name, rest) if processes() > 1 else _run(name, rest)
    except MCNError as error:
        print(f"mcn {name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        how = "the same command, with the run's folder as --out, goes on from the last checkpoint"
        print(f"mcn {name}: interrupted; {how}", file=sys.stderr)
        return 130


def _quiet_thread(failure: threading.ExceptHookArgs) -> None:
    """TensorBoard's writing thread may be the first to meet a full disk; the main thread reports it."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


def _run_on_ranks(name: str, arguments: Sequence[str]) -> int:
    """A command in a process that is one of several: the first shows results, the first to fail says why."""
    from mcn.distributed import asked_for, leave_ranks, speaks

    ranks = asked_for()
    if name in _STARTS_RUNS and ranks.first:
        raise MCNError("starts its runs itself: start it without torchrun")
    if name not in _ON_RANKS and not ranks.first:
        return 0
    with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if ranks.first else nowhere):
        try:
            status = _run(name, arguments, silent=not ranks.first)
            leave_ranks()
            return status
        except Exception as error:
            if speaks():
                reason = str(error) if isinstance(error, MCNError) else repr(error)
                print(f"mcn {name}: rank {ranks.rank} of {ranks.size}: {reason}", file=sys.stderr)
            if isinstance(error, MCNError):
                return 1
            raise


def _run(name: str, arguments: Sequence[str], *, silent: bool = False) -> int:
    command = COMMANDS[name]
    try:
        args = _parse(name, arguments)
    except MCNError:
        raise
    except Exception as error:  # jsonargparse raises several types for one thing: a bad flag
        if not silent:
            print(refusal(" ".join(str(error).split()), command_parser(name)), file=sys.stderr)
        return 2
    config = None
    if command.config is not None:
        config = command.config(
            **{field.name: getattr(args, field.name) for field in dataclasses.fields(command.config)}
        )
    command.run(config, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
