"""What ``mcn COMMAND --help`` shows: settings by what they are about, the command's own first."""

import dataclasses
import inspect
import re
from argparse import Action
from typing import Any, get_args

from jsonargparse import ArgumentParser, DefaultHelpFormatter

_TYPE = re.compile(r"type: %\(type\)s, |(, | \()type: %\(type\)s(?=\))")
_ROWS = re.compile(r" \(rows? \d[^)]*\)|, rows? \d+(?=\))")


def without_rows(text: str) -> str:
    """A description without its rows of ``book/protocol.md``, which are for readers of code and book.

    >>> without_rows("Learning rate (row 28). Or weights (as init_from, row 29); none.")
    'Learning rate. Or weights (as init_from); none.'
    """
    return _ROWS.sub("", text)


class Formatter(DefaultHelpFormatter):
    """Choices and default of each setting once, and no other word of its type."""

    def _get_help_string(self, action: Action) -> str:
        return without_rows(_TYPE.sub("", super()._get_help_string(action)))

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        kind = getattr(action, "_typehint", action.type)
        for number, letter in ((int, "N"), (float, "X")):
            if number is kind or number in get_args(kind):
                return letter
        return super()._get_default_metavar_for_optional(action)


def usage(name: str, arguments: tuple[tuple[tuple[str, ...], dict[str, Any]], ...]) -> str:
    """The first line: what has to be given, and that there are settings.

    >>> usage("predict", ((("video",), {}), (("-o", "--output"), {"required": True}), (("--top",), {})))
    'mcn predict VIDEO --output OUTPUT [--SETTING VALUE ...]'
    """
    words = []
    for names, options in arguments:
        word = names[-1].lstrip("-").upper()
        if not names[-1].startswith("-"):
            words.append(f"[{word} ...]" if options.get("nargs") == "*" else word)
        elif options.get("required"):
            words.append(f"{names[-1]} {word}")
    return " ".join(["mcn", name, *words, "[--SETTING VALUE ...]"])


def by_subject(parser: ArgumentParser, config: type) -> None:
    """Show each setting of ``config`` under the block that it comes from, the command's own first."""
    names = {field.name for field in dataclasses.fields(config)}
    (one,) = (
        group for group in parser._action_groups if names & {action.dest for action in group._group_actions}
    )
    left = list(one._group_actions)
    one._group_actions.clear()
    for block in config.__mro__:
        own = inspect.get_annotations(block)
        if actions := [action for action in left if action.dest in own]:
            title = re.split("[.:;]", without_rows(block.__doc__ or ""))[0]
            parser.add_argument_group(title)._group_actions.extend(actions)
            left = [action for action in left if action not in actions]
