"""What a command line says about a flag that is not there."""

import re
from difflib import get_close_matches

from jsonargparse import ArgumentParser


def with_nearest(said: str, parser: ArgumentParser) -> str:
    """A parser's complaint about unknown flags, with the flag that each may have been meant to be.

    >>> parser = ArgumentParser(allow_abbrev=False)
    >>> action = parser.add_argument("--epochs", type=int)
    >>> with_nearest("unrecognized arguments: --epoch 3", parser)
    'unrecognized arguments: --epoch 3 (did you mean --epochs?)'
    """
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
