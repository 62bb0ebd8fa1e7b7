"""Settings: one list of names for config, code and presets, and sizes that make sense."""

import dataclasses
import types
from importlib import resources
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import yaml

from mcn import backbones, losses, meta, network, pairing, views
from mcn.commands import COMMANDS
from mcn.config import (
    EvalConfig,
    FinetuneConfig,
    PretrainConfig,
    ProbeConfig,
    RetrieveConfig,
    build,
    load_preset,
    presets,
    to_yaml,
)
from mcn.data import readers
from mcn.errors import MCNError

CONFIGS = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "probe": ProbeConfig,
    "retrieve": RetrieveConfig,
    "features": EvalConfig,
}


def choices(config: type, name: str) -> tuple[Any, ...]:
    return get_args(get_type_hints(config)[name])


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("backbone", backbones.BACKBONES),
        ("projection", network.PROJECTIONS),
        ("head", network.HEADS),
        ("fcm_input", network.FCM_INPUTS),
        ("sharing", network.SHARING),
        ("statistics", network.STATISTICS),
        ("fcm_pairing", pairing.PAIRINGS),
        ("view2", views.SECOND_VIEWS),
        ("directions", losses.DIRECTIONS),
        ("cls_reduction", losses.REDUCTIONS),
        ("order", (*meta.ORDERS, "none")),
        ("method", meta.METHODS),
        ("reader", readers.READERS),
    ],
)
def test_settings_offer_what_the_code_takes(name: str, known: tuple[str, ...]) -> None:
    assert choices(PretrainConfig, name) == known


def test_evaluations_offer_the_same_backbones_and_views() -> None:
    from mcn.clip_features import CROPS, FEATURES, VIEWS

    for config in (FinetuneConfig, ProbeConfig):
        assert choices(config, "backbone") == backbones.BACKBONES
    assert choices(ProbeConfig, "crops") == tuple(CROPS)
    assert choices(ProbeConfig, "feature") == FEATURES
    joined = tuple(f"rgb+{view}" for view in views.SECOND_VIEWS)
    assert choices(ProbeConfig, "view") == (*VIEWS, *joined)
    assert set(choices(FinetuneConfig, "view")) < set(VIEWS)
    assert tuple(VIEWS) == ("rgb", *views.SECOND_VIEWS)


@pytest.mark.parametrize("command", CONFIGS)
def test_commands_have_their_config(command: str) -> None:
    assert COMMANDS[command].config is CONFIGS[command]


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of a YAML file is of a field's type (a whole number may stand for a float)."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return any(fits(value, part) for part in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, list) and all(fits(v, get_args(hint)[0]) for v in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if hint is type(None) else isinstance(value, hint)


@pytest.mark.parametrize("preset", presets())
def test_presets_say_only_what_commands_understand(preset: str) -> None:
    blocks = yaml.safe_load(resources.files("mcn.presets").joinpath(f"{preset}.yaml").read_text())
    assert set(blocks) <= {"all", *CONFIGS}
    hints = {command: get_type_hints(config) for command, config in CONFIGS.items()}
    for command, settings in blocks.items():
        for name, value in settings.items():
            takers = [h for h in hints.values() if name in h] if command == "all" else [hints[command]]
            assert takers, f"{command}: {name}"
            for hint in takers:
                assert name in hint, f"{command}: {name}"
                assert fits(value, hint[name]), f"{command}: {name}: {value!r}"
    for command, config in CONFIGS.items():
        built = build(config, load_preset(preset, command))
        for name, value in load_preset(preset, command).items():
            if name in hints[command]:
                assert getattr(built, name) == (tuple(value) if isinstance(value, list) else value)


def test_presets_have_their_own_numbers() -> None:
    assert {"smoke", "laptop"} <= set(presets())
    with pytest.raises(MCNError, match=r"unknown preset 'huge': one of .*laptop"):
        load_preset("huge", "pretrain")
    smoke = load_preset("smoke", "finetune")
    assert "dim" not in smoke  # that is pre-training's
    assert smoke["backbone"] == "r3d_small"


@pytest.mark.parametrize("config", [*CONFIGS.values()])
def test_a_config_survives_its_file(config: Any) -> None:
    changed = {"seed": 3, "out": "some: 'odd' name # 1", "max_bad": 0.25}
    for settings in (config(), config(**changed)):
        assert build(config, yaml.safe_load(to_yaml(settings))) == settings


def test_configs_cannot_be_changed_by_accident() -> None:
    config = PretrainConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        PretrainConfig("somewhere")  # type: ignore[misc]
    with pytest.raises(TypeError):
        PretrainConfig(nonsense=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("config", "settings", "words"),
    [
        (PretrainConfig, {"frames": 0}, "--frames is 0: .*at least 1"),
        (PretrainConfig, {"lr": -0.1}, r"--lr is -0\.1: .*at least 0"),
        (PretrainConfig, {"lr": float("nan")}, "--lr is nan"),
        (PretrainConfig, {"tau": 0}, "--tau is 0: .*above 0"),
        (PretrainConfig, {"max_bad": 1.5}, r"--max_bad is 1\.5: .*from 0 to 1"),
        (PretrainConfig, {"cls_weight": -1}, "--cls_weight is -1"),
        (PretrainConfig, {"bank_momentum": 1}, "--bank_momentum is 1: .*below 1"),
        (PretrainConfig, {"inner_lr": -1}, "--inner_lr is -1"),
        (PretrainConfig, {"fcm_group": 1}, "--fcm_group is 1: .*at least 2"),
        (FinetuneConfig, {"dropout": 2}, "--dropout is 2"),
        (ProbeConfig, {"c": 0}, "--c is 0"),
        (ProbeConfig, {"clips": 0}, "--clips is 0"),
        (RetrieveConfig, {"top": ()}, r"--top is \(\)"),
        (RetrieveConfig, {"top": (1, 0)}, "--top is"),
        (RetrieveConfig, {"top": 0}, "--top is"),
    ],
)
def test_numbers_that_make_no_sense(config: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(MCNError, match=words):
        config(**settings)


def test_the_paper_s_numbers_are_the_defaults() -> None:
    """What the paper states (Sec. 4.1 and 4.2) is not to drift."""
    config, tuning = PretrainConfig(), FinetuneConfig()
    assert (config.frames, config.size, config.epochs, config.lr) == (32, 128, 500, 0.01)
    assert (config.weight_decay, config.cls_weight, config.fcm_group) == (0.001, 0.2, 4)
    assert (config.inner_steps, config.inner_lr, config.order) == (1, None, "exact")
    assert (tuning.epochs, tuning.lr, tuning.batch_size) == (300, 0.02, 72)
