"""``mcn diagnose``: every kind of run, the same batches for every checkpoint, refusals in a sentence."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mcn.checkpoint import load_checkpoint
from mcn.cli import main
from mcn.config import DiagnoseConfig, ProbeConfig
from mcn.diagnose import diagnose, lines
from mcn.errors import MCNError
from mcn.pretrain import pretrain
from mcn.probe import run_probe

INNER = ("ratio", "cosine", "curvature", "support", "support_adapted", "query", "query_adapted")


@pytest.fixture
def measured(smoke_config: Callable[..., Any], tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Pre-train with some settings, and measure every checkpoint."""

    def make(how: dict[str, Any] | None = None, **settings: Any) -> list[dict[str, Any]]:
        run = pretrain(
            smoke_config("pretrain", out=tmp_path / "run", **{"epochs": 1, "checkpoint_every": 2, **settings})
        )
        return diagnose(
            DiagnoseConfig(out=str(tmp_path), device="cpu", batches=2, **(how or {})), [str(run)]
        )[1]

    return make


@pytest.mark.parametrize("order", ["none", "first", "exact"])
@pytest.mark.parametrize("cls_weight", [0.0, 0.2])
def test_every_kind_of_run(measured: Callable[..., Any], order: str, cls_weight: float) -> None:
    found = measured(order=order, cls_weight=cls_weight, inner_lr=0.02)
    assert [each["step"] for each in found] == ([6, 8] if order == "none" else [2, 4])
    for each in found:
        assert each["order"] == order
        assert each["inner_lr"] == 0.02
        for name in INNER:
            assert math.isfinite(each["inner step"][name]["mean"])
            assert each["inner step"][name]["error"] >= 0
        assert each["inner step"]["ratio"]["mean"] > 0
        assert -1 <= each["inner step"]["cosine"]["mean"] <= 1
        assert ("head" in each) == (cls_weight > 0)
        assert -1 <= each["bank"]["row"]["mean"] <= 1
        assert list(each["row_quantiles"].values()) == sorted(each["row_quantiles"].values())
    early, late = (sum(age["rows"] for age in each["ages"]) for each in found)
    assert early < late == 2 * 2 * 4  # batches, stages, videos; before the epoch's end some have no row yet
    if cls_weight:
        assert found[0]["head"]["bl_constant"]["mean"] == pytest.approx(8.997, abs=1e-3)
    said = "\n".join(lines(found))
    assert ("head: not trained" in said) == (cls_weight == 0)


def test_shares_steps_clips_and_other_rates(measured: Callable[..., Any]) -> None:
    """Shares, several clipped inner steps; with a smaller alpha_1 the orders are nearer."""
    settings = {"shares": 2, "inner_steps": 2, "inner_clip": 1.0, "bank_update": "query", "redraw": False}
    near, far = (measured({"inner_lr": alpha}, **settings)[-1] for alpha in (1e-4, 0.1))
    assert near["inner step"]["ratio"]["mean"] < far["inner step"]["ratio"]["mean"] / 100
    assert near["inner step"]["query"] == far["inner step"]["query"]
    assert near["bank"] == far["bank"]


def test_probes_are_those_of_the_probe_command(trained: Path, tmp_path: Path) -> None:
    """For class and group, at the last checkpoint, the numbers that ``mcn probe`` finds."""
    config = DiagnoseConfig(out=str(tmp_path), device="cpu", batches=1, probes=True)
    _, found = diagnose(config, [str(trained)])
    state = load_checkpoint(trained, torch.device("cpu"))["config"]
    clips = {name: state[name] for name in ("frames", "stride", "size", "split")} | {"clips": 4}
    for target in ("class", "group"):
        probed = ProbeConfig(data=state["data"], checkpoint=str(trained), device="cpu", cache="none", **clips)
        expected = run_probe(probed, target)
        assert found[-1]["probes"][target] == {"top1": expected.top1, "chance": expected.chance}
        assert f"{expected.top1:.1f}" in "\n".join(lines(found))


def test_a_checkpoint_alone_and_again_is_the_same(trained: Path, tmp_path: Path) -> None:
    config = DiagnoseConfig(out=str(tmp_path), device="cpu", batches=2, seed=3)
    both = [diagnose(config, [str(where)])[1][-1] for where in (trained, next(trained.glob("checkpoints/*")))]
    assert {**both[0], "run": ""} == {**both[1], "run": ""}
    said = "\n".join(lines([{**both[0], "run": "runs/a"}, {**both[1], "run": "runs/b"}]))
    assert said.count("a, step 4") == said.count("b, step 4") == 4  # three tables and the ages
    other = diagnose(DiagnoseConfig(out=str(tmp_path), device="cpu", batches=2, seed=4), [str(trained)])[1][
        -1
    ]
    assert other["inner step"] != both[0]["inner step"]


def test_the_bank_is_the_checkpoints_own(trained: Path, tmp_path: Path) -> None:
    """Rows turned round: their cosines change sign, those of fresh clips with each other do not."""
    state = load_checkpoint(trained)
    rows = state["bank"]["rows"]
    config = DiagnoseConfig(out=str(tmp_path), device="cpu", batches=1)
    found = {}
    for sign in (1.0, -1.0):
        state["bank"]["rows"] = sign * rows
        torch.save(state, tmp_path / "step_00000004.pt")
        found[sign] = diagnose(config, [str(tmp_path / "step_00000004.pt")])[1][0]["bank"]
    assert found[1.0]["row"]["mean"] == pytest.approx(-found[-1.0]["row"]["mean"], abs=1e-6)
    assert found[1.0]["fresh"]["mean"] == pytest.approx(found[-1.0]["fresh"]["mean"])


def test_the_command(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--batches", "1", "--out", str(tmp_path), "--name", "smoke", "--inner_lr", "0.01"]
    assert main(["diagnose", str(trained), *flags]) == 0
    said = capsys.readouterr().out
    content = json.loads((tmp_path / "smoke.json").read_text())
    assert content["checkpoints"][0]["inner step"]["ratio"]["error"] is None  # one batch has no error
    assert f"{tmp_path / 'smoke.json'}" in said
    assert "inner step" in said


@pytest.mark.parametrize(
    ("settings", "how", "message"),
    [
        ({"task": "share", "shares": 2, "order": "first"}, {}, "--task share"),
        ({}, {"inner_lr": 0.0}, "alpha_1 is 0.*--inner_lr"),
    ],
)
def test_what_cannot_be_measured(
    measured: Callable[..., Any], settings: dict[str, Any], how: dict[str, Any], message: str
) -> None:
    with pytest.raises(MCNError, match=message):
        measured(how, **settings)


def test_what_is_no_pretraining_of_these_videos(finetuned: Path, trained: Path, tmp_path: Path) -> None:
    from mcn.preparation.synthetic import SyntheticConfig, write_synthetic_actions

    small = write_synthetic_actions(
        tmp_path / "few",
        SyntheticConfig(classes=2, groups=5, clips_per_group=1, frames=8, size=16),
        workers=1,
    )
    with pytest.raises(MCNError, match="not a pre-training checkpoint"):
        diagnose(DiagnoseConfig(out=str(tmp_path), device="cpu"), [str(finetuned)])
    with pytest.raises(MCNError, match=r"8 training videos, the bank of .* 32 rows"):
        diagnose(DiagnoseConfig(out=str(tmp_path), device="cpu", data=str(small)), [str(trained)])
