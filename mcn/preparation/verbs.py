"""The verbs of the scripts in ``data_scripts/``: get, extract, check, prepare, flow, for any data set.

A script says what is special to its data set in a :class:`DataSource` and leaves the rest to :func:`main`.
Each verb can be stopped and started again, and ends with the same files.
"""

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from shlex import quote
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings

from mcn._flags import refusal
from mcn.data.datasets import load_videos
from mcn.errors import MCNError
from mcn.files import printable, write_atomically
from mcn.preparation._space import size_text
from mcn.preparation.archives import extract
from mcn.preparation.check import check
from mcn.preparation.download import RemoteFile, fetch_all, place_in
from mcn.preparation.flow import Method, write_flow_of
from mcn.preparation.prepare import PrepareConfig, prepare

set_parsing_settings(docstring_parse_attribute_docstrings=True)

#: Where ``get`` puts archives, in the data set's folder.
ARCHIVES = "archives"
Bring = Callable[[RemoteFile], Path]
"""Fetches one file below ``ROOT/archives``, or takes it from ``--from``; gives its path."""


@dataclass(frozen=True)
class DataSource:
    """What is special to a data set.

    ``remotes`` gives the files that ``get`` fetches, below ``ROOT/archives``; it is called with the parts
    asked for, and with what brings a list of such files. ``parts`` are those there are (empty: one whole).
    ``folder_of`` says into which folder below ROOT an archive or list of a name goes (None: it is of
    something else), ``archives`` in words which ones there are. ``terms`` is printed by ``get``: the
    licence, and where to look. ``make``, where there is one, writes the data set instead of fetching it:
    it takes ROOT and ``settings``, a dataclass. ``kind`` is its key in :data:`mcn.data.splits.BENCHMARKS`,
    if it is one of them.
    """

    script: str
    title: str
    terms: str = ""
    remotes: Callable[[Sequence[str], Bring], Sequence[RemoteFile]] | None = None
    parts: tuple[str, ...] = ()
    folder_of: Callable[[str], str | None] = lambda name: ""
    archives: str = ".rar, .zip, .tar, .tar.gz, .tgz"
    make: Callable[..., object] | None = None
    settings: type | None = None
    kind: str = ""


def main(source: DataSource, arguments: Sequence[str] | None = None) -> int:
    """Run one verb; gives the exit status: 0, 1 for what the user can mend, 2 for a bad flag."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(source))
        return 0 if arguments else 2
    verb, rest = arguments[0], arguments[1:]
    if verb not in _VERBS:
        print(f"{source.script}: unknown verb {verb!r}: one of {', '.join(_VERBS)}", file=sys.stderr)
        return 2
    run, add, _ = _VERBS[verb]
    parser = ArgumentParser(
        prog=f"{source.script} {verb}",
        description=_help(source, verb),
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("root", type=str, help="the data set's folder")
    add(parser, source)
    try:
        chosen = parser.parse_args(rest)
    except Exception as error:  # jsonargparse raises several types for one thing: a bad flag
        print(refusal(_flag(error), parser), file=sys.stderr)
        return 2
    return _reported(f"{source.script} {verb}", lambda: run(source, Path(chosen.root), chosen))


def _reported(what: str, run: Callable[[], int]) -> int:
    """The exit status of ``run``, whose failure becomes one line."""
    try:
        status = run()
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read our lines has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MCNError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.filename or 'writing what was found'}: {error.strerror or error}"
    except KeyboardInterrupt:
        print(f"{what}: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{what}: {printable(reason)}", file=sys.stderr)
    return 1


def _flag(error: Exception) -> str:
    """What is wrong with a flag; jsonargparse tells it in terms of Python's types."""
    said = " ".join(str(error).split())
    value = re.fullmatch(r'Parser key "(.+?)": (.*?)\.? (?:Got|Given) value: (.*)', said)
    if value is None:
        return said
    known = {"int": "a whole number", "bool": "true or false", "float": "a number"}
    types = [known[name] for name in re.findall(r"<class '(\w+)'>", value[2]) if name in known]
    names = re.findall(r"'([^']+)'", value[2])
    return f"--{value[1]} takes {types[0] if types else ' or '.join(names)}, not {value[3]!r}"


def _say(text: str) -> None:
    print(printable(text))


def _there(root: Path) -> Path:
    if not root.is_dir():
        raise MCNError(f"no such folder: {root} (ROOT is the folder of the data set)")
    return root


def _get(source: DataSource, root: Path, chosen: Any) -> int:
    following = f"{source.script} check {quote(str(root))}"
    if source.make and source.settings:
        settings = {field.name: chosen[field.name] for field in fields(source.settings)}
        source.make(root, source.settings(**settings), chosen.workers, progress=True)
        _say(f"{root}: {len(load_videos(root, 'all')):,} videos (next: {following})")
        return 0
    if source.remotes is None:
        _say(f"{source.title}: there is nothing to fetch; put the videos into {root} (next: {following})")
        return 0
    parts = list(dict.fromkeys(part.strip() for part in chosen.parts.split(","))) if source.parts else []
    if unknown := [part for part in parts if part not in source.parts]:
        raise MCNError(f"--parts {chosen.parts}: there is no {unknown[0]!r}, only {', '.join(source.parts)}")
    folder, given, trusted = root / ARCHIVES, chosen["from"] or None, chosen.ca_bundle
    if given and not Path(given).exists():
        raise MCNError(f"no such folder or file: {given} (--from takes the folder the archives are in)")
    print(source.terms, flush=True)

    def bring(remote: RemoteFile) -> Path:
        here = given if given and place_in(Path(given), remote) else None
        return fetch_all([remote], folder, source=here, ca_bundle=trusted)[0]

    paths = fetch_all(source.remotes(parts, bring), folder, source=given, ca_bundle=trusted)
    size = size_text(sum(path.stat().st_size for path in paths))
    _say(f"{folder}: {len(paths)} files, {size} (next: {source.script} extract {quote(str(root))})")
    return 0


def _extract(source: DataSource, root: Path, chosen: Any) -> int:
    following = f"{source.script} check {quote(str(root))}"
    if source.make:
        _say(f"{source.title}: there is nothing to unpack (next: {following})")
        return 0
    folder = Path(chosen.archives) if chosen.archives else root / ARCHIVES
    how = "give --archives FOLDER" if source.remotes is None else "run get first, or give --archives FOLDER"
    if not folder.is_dir():
        raise MCNError(f"no such folder: {folder}: {how}")
    places = {
        path: source.folder_of(path.relative_to(folder).as_posix()) for path in sorted(folder.rglob("*"))
    }
    ours = {path: root / place for path, place in places.items() if place is not None}
    archives = [path for path in ours if path.name.lower().endswith(_ARCHIVES)]
    if not archives:
        raise MCNError(f"{folder} has no archives of {source.title} (looked for {source.archives}): {how}")
    for archive in archives:
        extract(archive, ours[archive])
    for path in ours:  # lists that come as they are
        if path.suffix == ".csv":
            copy = ours[path] / path.name
            write_atomically(copy, lambda file, path=path: file.write(path.read_bytes()))  # type: ignore[misc]
    number = f"{len(archives)} archive{'s' * (len(archives) > 1)} unpacked"
    _say(f"{root}: {number} (next: {following})")
    return 0


def _check(source: DataSource, root: Path, chosen: Any) -> int:
    report = check(_there(root), of=source.kind, quick=chosen.quick, workers=chosen.workers, dask=chosen.dask)
    print(report)
    if chosen.json:
        report.save(Path(chosen.json))
    return 0 if report.ok else 1


def _prepare(source: DataSource, root: Path, chosen: Any) -> int:
    settings = {field.name: chosen[field.name] for field in fields(PrepareConfig)}
    for line in prepare(_there(root), Path(chosen.out), PrepareConfig(**settings)).report:
        _say(line)
    _say(f"next: mcn pretrain --data {quote(chosen.out)} ...")
    return 0


def _flow(source: DataSource, root: Path, chosen: Any) -> int:
    videos = load_videos(_there(root), "all")
    written = write_flow_of(
        videos, method=chosen.method, device=chosen.device, workers=chosen.workers, dask=chosen.dask
    )
    for line in written.damaged:
        _say(f"damaged, its readable part has flow: {line}")
    for line in written.unreadable:
        _say(f"unreadable, without flow: {line}")
    following = f"mcn pretrain --data {quote(str(root))} --view2 flow_v ..."
    _say(f"{root}: flow of {written.pairs:,} pairs of frames (next: {following})")
    return 0 if not written.unreadable else 1


def _add_get(parser: ArgumentParser, source: DataSource) -> None:
    if source.settings:
        parser.add_class_arguments(source.settings)
        parser.add_argument("--workers", type=int | None, default=None, help="at a time (default: cores)")
    elif source.remotes:
        if source.parts:
            told = f"which, with commas between; of {', '.join(source.parts)}"
            parser.add_argument("--parts", type=str, default=",".join(source.parts), help=told)
        parser.add_argument("--from", type=str, default="", help="folder of archives that are here already")
        parser.add_argument(
            "--ca-bundle",
            type=str,
            default="",
            help="PEM file of certificates to trust, root and intermediate",
        )


def _add_extract(parser: ArgumentParser, source: DataSource) -> None:
    parser.add_argument("--archives", type=str, default="", help="where they are (default: ROOT/archives)")


def _add_work(parser: ArgumentParser, source: DataSource) -> None:
    parser.add_argument("--workers", type=int | None, default=None, help="at a time (default: cores)")
    parser.add_argument("--dask", type=str, default="", help="address of a dask.distributed scheduler to use")


def _add_check(parser: ArgumentParser, source: DataSource) -> None:
    parser.add_argument("--quick", action="store_true", help="do not decode the videos")
    parser.add_argument("--json", type=str, default="", help="file to write the whole report to")
    _add_work(parser, source)


def _add_prepare(parser: ArgumentParser, source: DataSource) -> None:
    parser.add_argument("out", type=str, help="folder to write")
    parser.add_class_arguments(PrepareConfig)


def _add_flow(parser: ArgumentParser, source: DataSource) -> None:
    parser.add_argument("--method", type=Method, default="opencv", help="torch: for a GPU")
    parser.add_argument("--device", type=str, default="cpu", help="of the method torch: cpu, cuda, ...")
    _add_work(parser, source)


_ARCHIVES = (".rar", ".zip", ".tar", ".tar.gz", ".tgz")
_Run = Callable[[DataSource, Path, Any], int]
_Add = Callable[[ArgumentParser, DataSource], None]
_VERBS: dict[str, tuple[_Run, _Add, str]] = {
    "get": (_get, _add_get, "fetch the archives, or take them from a folder (--from)"),
    "extract": (_extract, _add_extract, "unpack the archives"),
    "check": (_check, _add_check, "counts; what is missing, doubled, damaged or unreadable, by name"),
    "prepare": (_prepare, _add_prepare, "write a small copy that is quick to read"),
    "flow": (_flow, _add_flow, "store the TV-L1 optical flow beside the videos"),
}


def _help(source: DataSource, verb: str) -> str:
    told = "write the data set" if verb == "get" and source.make else _VERBS[verb][2]
    return f"{source.title}: {told}."


def _usage(source: DataSource) -> str:
    lines = [f"  {verb:8} {_help(source, verb).split(': ', 1)[1]}" for verb in _VERBS]
    return f"usage: {source.script} VERB ROOT [--help] ...\n\n{source.title}\n" + "\n".join(lines)
