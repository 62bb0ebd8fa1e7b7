"""What a command line says about a flag that is not there."""

import re
from difflib import get_close_matches

from jsonargparse import ArgumentParser


def refusal(said: str, parser: ArgumentParser) -> str:
    """The line for a parser's complaint; of unknown flags, with the one that each may have been meant to be.

    >>> parser = ArgumentParser(prog="mcn probe", allow_abbrev=False)
    >>> action = parser.add_argument("--epochs", type=int)
    >>> refusal("unrecognized arguments: --epoch 3", parser)
    'mcn probe: unrecognized arguments: --epoch 3 (did you mean --epochs?) (see mcn probe --help)'
    """
    return f"{parser.prog}: {_with_nearest(said, parser)} (see {parser.prog} --help)"


def _with_nearest(said: str, parser: ArgumentParser) -> str:
    if not said.startswith("unrecognized arguments: "):
        return said
    known = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    unknown = re.findall(r"(?<!\S)--[^\s=]+", said)
    nearest = [_nearest(flag, known) for flag in unknown]
    meant = " and ".join(dict.fromkeys(flag for flag in nearest if flag))
    return f"{said} (did you mean {meant}?)" if meant else said


def _nearest(flag: str, known: list[str]) -> str:
    """The shortest flag that ``flag`` abbreviates, else one that is spelt alike, else nothing."""
    longer = sorted((each for each in known if each.startswith(flag)), key=len)
    return (longer or get_close_matches(flag, known, 1) or [""])[0]
