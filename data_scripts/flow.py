"""Store the TV-L1 flow of every video of a data set, for ``mcn pretrain --view2 flow_v``.

For example ``python data_scripts/flow.py data/synthetic``. It writes ``data/synthetic/flow/`` and can
be stopped and started again.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from jsonargparse import ArgumentParser
from tqdm import tqdm

from mcn.data.datasets import Videos, load_videos
from mcn.data.flow import flow_folder
from mcn.data.readers import VideoError
from mcn.errors import MCNError
from mcn.flow import write_flow


def _one(videos: Videos, index: int) -> str:
    """Flow of one video; gives what went wrong, if anything."""
    try:
        write_flow(videos.path(index), flow_folder(videos, index))
    except VideoError as error:
        return str(error)
    return ""


def main(args: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = ArgumentParser(prog="flow.py", description=__doc__)
    parser.add_argument("root", help="the data set's folder")
    parser.add_argument("--workers", type=int | None, default=None, help="processes (default: cores)")
    chosen = parser.parse_args(args)
    try:
        videos = load_videos(chosen.root, "all")
        with ProcessPoolExecutor(chosen.workers, mp_context=get_context("spawn")) as pool:
            done = pool.map(partial(_one, videos), range(len(videos)))
            bad = [line for line in tqdm(done, total=len(videos), unit="video", desc="flow") if line]
    except MCNError as error:
        print(f"flow.py: {error}", file=sys.stderr)
        return 1
    for line in bad:
        print(f"flow.py: {line}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
