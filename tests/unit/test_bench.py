"""The step benchmark: its ways against the textbook's gradient, its counters against what is known."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
import torch

from mcn import bench
from mcn.bench import Case, Memory, bench_step, largest_batch, measure_memory
from mcn.bench_measure import operations, peak_bytes, peak_rate, take_turns
from mcn.bench_plots import trade_off
from mcn.bench_records import file_name, load_steps, save, step_record, table
from mcn.bench_ways import WAYS, missing
from mcn.cli import main
from mcn.config import BenchConfig, PretrainConfig, build
from mcn.errors import MCNError

CPU = torch.device("cpu")
SMALL = {"backbone": "r3d_small", "width": 4, "dim": 8, "frames": 4, "size": 16}


def _case(videos: int = 2, **changes) -> Case:
    return Case(build(PretrainConfig, {**SMALL, **changes}), videos, dtype=torch.float64)


@pytest.fixture(scope="module")
def record():
    return step_record(
        BenchConfig(**SMALL, batch_size=2, rounds=2, ways=("higher", "fast", "lean"), device="cpu")
    )


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("plain", "first")])
def test_every_way_is_the_textbooks_gradient(way):
    if missing(way):
        pytest.skip(f"{way}: {missing(way)}")
    case = _case()
    expected, found = case.step("textbook"), case.step(way)
    largest = max(g.abs().max() for g in expected.values())
    assert list(found) == list(expected)
    for name, g in expected.items():
        assert (found[name] - g).abs().max() <= 1e-9 * largest, name


def test_the_plain_step_is_two_gradients_and_the_first_order_another():
    case = _case()
    theta = {name: p.detach().requires_grad_() for name, p in case.params.items()}
    support, query = case.losses()
    both = torch.autograd.grad(support(theta) + query(theta), tuple(theta.values()), materialize_grads=True)
    for found, expected in zip(case.step("plain").values(), both, strict=True):
        torch.testing.assert_close(found, expected)
    first, textbook = case.step("first"), case.step("textbook")
    assert any(not torch.allclose(first[name], textbook[name], rtol=1e-6) for name in first)


def test_operations_are_those_of_the_formula():
    """A convolution's gradient is twice the work of the convolution."""
    x, w = torch.randn(2, 3, 4, 8, 8, requires_grad=True), torch.randn(5, 3, 3, 3, 3, requires_grad=True)
    forward = 2 * 2 * 5 * (2 * 6 * 6) * 3 * 27

    assert operations(lambda: torch.conv3d(x, w)) == forward
    assert operations(lambda: torch.conv3d(x, w).sum().backward()) == 3 * forward


def test_the_textbook_graph_takes_twice_the_operations_of_the_plain_step():
    """Reverse over reverse goes through the support's graph once more, forth and back."""
    counted = {way: operations(lambda way=way: _case().step(way)) for way in ("plain", "first", "textbook")}
    assert counted["first"] == counted["plain"]
    assert 1.9 < counted["textbook"] / counted["plain"] <= 2


def test_peak_counts_what_lives_at_a_time_only():
    mib = 2**18  # float32 in a MiB

    def three_in_turn():
        for _ in range(3):
            torch.ones(mib)

    def three_at_once():
        return [torch.ones(mib) for _ in range(3)]

    outside = torch.ones(mib)
    assert peak_bytes(three_in_turn, CPU) == pytest.approx(2**20, rel=0.01)
    assert peak_bytes(three_at_once, CPU) == pytest.approx(3 * 2**20, rel=0.01)
    assert peak_bytes(lambda: outside.add_(1), CPU) < 1000


def test_rounds_alternate_their_order_and_end_in_time():
    order = []
    work = {name: lambda name=name: order.append(name) for name in "abc"}
    spent = take_turns(work, CPU, 2)
    assert "".join(order) == "abccba"
    assert {name: (len(clock), len(cpu)) for name, (clock, cpu) in spent.items()} == dict.fromkeys(
        "abc", (2, 2)
    )
    assert len(take_turns(work, CPU, 9, until=time.monotonic() - 1)["a"].seconds) == 1


def test_cpu_time_is_that_of_work_and_not_of_waiting():
    def work():
        start = time.process_time()
        while time.process_time() - start < 0.05:
            pass

    spent = take_turns({"wait": lambda: time.sleep(0.2), "work": work}, CPU, 1)
    assert spent["wait"].seconds[0] >= 0.2
    assert spent["wait"].cpu_seconds[0] < 0.05 <= spent["work"].cpu_seconds[0]


def test_memory_of_a_clip_does_not_depend_on_the_batch_it_was_measured_at():
    lines = [
        measure_memory(lambda videos: _case(videos, size=32), "textbook", videos, CPU) for videos in (4, 8)
    ]
    assert lines[0].slope == pytest.approx(lines[1].slope, rel=0.05)
    assert sorted(lines[0].peaks) == [4, 8]


def test_the_largest_batch_is_the_first_that_fits(monkeypatch):
    monkeypatch.setattr(bench, "fits", lambda work, device: work.func.__self__.videos <= 7)
    assert largest_batch(_case, "plain", 9, CPU) == 7
    assert largest_batch(_case, "plain", 5, CPU) == 5
    monkeypatch.setattr(bench, "fits", lambda work, device: False)
    assert largest_batch(_case, "plain", 9, CPU) == 0
    assert Memory({}, 0.0, 0.0).largest(100) == 0


def test_a_way_that_does_not_fit_is_said_and_the_others_are_measured(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setitem(WAYS, "lean", full)
    config = BenchConfig(**SMALL, batch_size=2, rounds=1, ways=("lean",), device="cpu")
    ways = bench_step(config)["ways"]
    assert ways["lean"] == {"note": "out of memory"}
    assert ways["textbook"]["time_to_textbook"] == 1


def test_the_record_holds_every_number_with_both_units(record):
    for way, row in record["ways"].items():
        if missing(way):
            assert row == {"note": missing(way)}
            continue
        assert len(row["seconds"]) == record["rounds"] == 2
        assert len(row["cpu_seconds"]) == 2
        for what in ("time", "cpu_time", "operations", "memory"):
            assert row[f"{what}_to_plain"] > 0
            assert row[f"{what}_to_textbook"] > 0
        assert row["share_of_peak"] > 0
        assert row["largest_batch"]["by_slope"] > 2
        assert row["largest_batch"]["confirmed"] is None  # nothing is tried out on a CPU
    assert record["ways"]["lean"]["memory_to_textbook"] < record["ways"]["fast"]["memory_to_textbook"]
    assert record["commit"]
    assert record["versions"]["torch"] == torch.__version__


def test_records_are_read_back_and_named_by_what_they_are_of(tmp_path: Path, record):
    path = save(record, tmp_path / file_name(record))
    assert path.name.startswith("step-r3d_small-width4-4x16-batch2-")
    (found,) = load_steps(tmp_path)
    assert found["ways"].keys() == record["ways"].keys()
    assert len(table(found)) == 4 + len(record["ways"])
    assert table(found)[-1].startswith("CPU time / textbook: plain 0.")
    older = {way: {k: v for k, v in row.items() if "cpu" not in k} for way, row in found["ways"].items()}
    assert table({**found, "ways": older}) == table(found)[:-1]  # a record without CPU time
    assert all(len(line) <= 100 for line in table(found))
    figure = trade_off([found])
    drawn = {line.get_label() for line in figure.axes[0].lines if not line.get_label().startswith("_")}
    assert drawn == {way for way in found["ways"] if not missing(way)}
    fewer = {**found, "ways": {way: row for way, row in found["ways"].items() if way != "plain"}}
    figure = trade_off([found, fewer])
    assert {text.get_text() for text in figure.legends[0].get_texts()} == drawn  # one legend for both
    panels = figure.axes
    looks = [
        {line.get_label(): (line.get_color(), line.get_marker()) for line in panel.lines} for panel in panels
    ]
    both = [way for way in drawn if way != "plain"]
    assert all(looks[0][way] == looks[1][way] for way in both)  # one way, one look
    assert len({looks[0][way] for way in drawn}) == len(drawn)
    for damaged in ("{", "[]", json.dumps({**found, "format": 0})):
        path.write_text(damaged)
        with pytest.raises(MCNError, match=r"step-r3d_small.*measure again"):
            load_steps(tmp_path)


def test_the_command_takes_a_presets_pretraining(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    short = ["--rounds", "1", "--ways", "[first]", "--memory", "false", "--device", "cpu"]
    assert main(["bench", "step", "--preset", "smoke", *short, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    (made,) = load_steps(tmp_path)
    assert f"{made['setting']['frames']} frames of {made['setting']['size']}" in said
    assert made["setting"]["dim"] == 16  # of the preset's block for pre-training
    assert list(made["ways"]) == ["plain", "first", "textbook"]
    assert main(["bench", "step", "--ways", "[slow]"]) == 1
    assert "unknown slow; there are plain, first" in capsys.readouterr().err


def test_the_peak_rate_is_one_that_a_product_reaches():
    assert peak_rate(CPU, 0.05) > 1e8


def test_the_gpu_script_runs_on_a_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    script = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"
    spec = importlib.util.spec_from_file_location("gpu", script)
    gpu = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", gpu)  # its dataclass looks itself up
    spec.loader.exec_module(gpu)
    assert gpu.main(["--smoke", "--out", str(tmp_path)]) == 0
    assert "all parts done" in capsys.readouterr().out
    records = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    made = {record["benchmark"]: record for record in records}
    assert made.keys() == {"exactness", "step", "loader"}
    assert made["loader"]["seconds_a_clip"]["network"] > 0
    assert sum(gpu.BUDGETS.values()) < 600

    exact = gpu.parts(gpu.smoke(CPU))["exactness"]

    def fail():
        raise RuntimeError("broken")

    monkeypatch.setattr(gpu, "BAR", -1.0)  # nothing is that exact
    monkeypatch.setattr(gpu, "parts", lambda plan: {"loader": fail, "exactness": exact})
    assert gpu.main(["--smoke", "--out", str(tmp_path)]) == 1
    assert "loader: RuntimeError: broken; exactness: " in capsys.readouterr().out
    with pytest.raises(TimeoutError, match="not done in"), gpu.within(0.05):
        time.sleep(5)
