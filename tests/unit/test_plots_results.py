"""Pictures of results show the records they are given, and say where there is none."""

from dataclasses import replace

import numpy as np
import pytest

from mcn.errors import MCNError
from mcn.plots_results import coverage, hit_map, paper_and_measured
from mcn.results import HELD_OUT, DataUsed, Record

DATA = DataUsed("made up", 1, 10, 8)


def made(row, seed, value, **changes):
    known = {
        "table": "5", "row": row, "setting": {"lr": 0.1}, "seed": seed, "metrics": {"probe_top1": value},
        "data": DATA, "profile": "smoke", "protocol": "quick probe", "device": "none", "versions": {},
        "commit": "0123abc", "wall_seconds": 1.0,
    }  # fmt: skip
    return Record(**{**known, **changes})


def texts(axis):
    return [text.get_text() for text in axis.texts]


def test_the_papers_rows_come_first_and_stand_alone_without_records():
    (paper,) = paper_and_measured(5, []).axes
    assert texts(paper) == ["77.3", "79.2", "84.8"]
    assert paper.get_title(loc="left") == "the paper's; measured here: none"
    assert [label.get_text() for label in paper.get_yticklabels()][-1] == "CL + BL + Meta Stages"


def test_measured_values_are_the_records_and_what_is_missing_is_said():
    records = [made("contrast", seed, value) for seed, value in enumerate((40.0, 44.0))]
    records += [made("untrained", 0, 30.0)]
    paper, here = paper_and_measured(5, records, "probe_top1").axes
    assert texts(paper)[-1] == "not in the paper"  # untrained
    assert texts(here) == ["no record"] * 2  # contrast-binary, mcn
    dots = [sorted(line.get_xdata()) for line in here.lines if line.get_marker() == "o"]
    assert [40.0, 44.0] in dots
    assert [30.0] in dots
    assert [bar.lines[0].get_xdata()[0] for bar in here.containers] == [42.0]  # no interval of one seed


def test_what_cannot_be_compared_stands_apart_and_held_out_videos_are_no_result():
    record = made("contrast", 0, 40.0)
    other = replace(record, device="another")
    held = replace(record, data=replace(DATA, subset=HELD_OUT))
    assert len(paper_and_measured(5, [record, other, held], "probe_top1").axes) == 3
    assert len(paper_and_measured(5, [record], "finetune_top1").axes) == 1
    twice = paper_and_measured(5, [record, replace(record, protocol="another")], "probe_top1").axes[1:]
    assert [a.get_title(loc="left").split("\n")[-1] for a in twice] == ["protocol 1 of 2", "protocol 2 of 2"]
    with pytest.raises(MCNError, match="no table 11"):
        paper_and_measured(11, [])


def test_two_settings_of_one_row_are_both_drawn():
    records = [made("contrast", 0, 40.0), made("contrast", 0, 50.0, setting={"lr": 0.2})]
    here = paper_and_measured(5, records, "probe_top1").axes[1]
    heights = [line.get_ydata()[0] for line in here.lines]
    assert len(set(heights)) == 2


def test_a_hit_map_puts_the_videos_of_a_source_together():
    figure = hit_map({"a": [[1, 0, 1]], "b": [[0, 0, 0], [1, 1, 0]]}, [1, 0, 1])
    first, second = figure.axes
    assert np.asarray(first.images[0].get_array()).tolist() == [[0, 1, 1]]
    assert len(first.lines) == 1  # one edge between two sources
    assert len(second.get_yticks()) == 2
    for wrong in ({}, {"a": [[1, 0]]}):
        with pytest.raises(MCNError, match="3 videos"):
            hit_map(wrong, [1, 0, 1])


def test_intervals_that_miss_are_counted_and_look_different():
    axis = coverage([[0.0, -1.0, 1.0], [5.0, 4.0, 6.0]], 0.5, x_label="x").axes[0]
    assert axis.get_title(loc="left").startswith("1 of 2")
    assert axis.lines[0].get_color() != axis.lines[2].get_color()
    with pytest.raises(MCNError, match=r"\(N, 3\)"):
        coverage([1.0, 2.0], 0.5, x_label="x")
