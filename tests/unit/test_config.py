"""Composition, strictness and building of settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

from worldmodel.commands import COMMANDS, settings_class
from worldmodel.config import load, presets, register_schemas, sweep
from worldmodel.errors import ConfigError
from worldmodel.schema import MANDATORY, build, field_names, mirror, real_class


@dataclass(kw_only=True)
class Part(ABC):
    weight: float = 1.0

    @abstractmethod
    def work(self) -> None: ...


@dataclass(kw_only=True)
class Inner:
    depth: int = 3


@dataclass(kw_only=True, frozen=True)
class Outer:
    """A dataclass with every annotation OmegaConf alone would refuse."""

    path: Path = Path("here")
    metric: Literal["l1", "l2"] = "l2"
    taps: tuple[int, ...] = (1, 2)
    pair: tuple[int, float] = (1, 0.5)
    either: Inner | Path | None = None
    limit: float | None = None
    inner: Inner = field(default_factory=Inner)
    part: Part


def test_a_mirror_has_the_same_fields_and_plain_defaults() -> None:
    schema = mirror(Outer)
    config = OmegaConf.structured(schema)
    assert list(config) == field_names(Outer)
    assert real_class(schema) is Outer
    assert config.path == "here"
    assert list(config.taps) == [1, 2]
    assert config.inner.depth == 3
    assert OmegaConf.is_missing(config, "part")


def test_build_restores_the_promised_types() -> None:
    inner = Inner(depth=7)
    built = build(Outer, {"path": "there", "taps": [4], "pair": [2, 0.1], "inner": inner, "part": None, "limit": None})
    assert built.path == Path("there")
    assert built.taps == (4,)
    assert built.pair == (2, 0.1)
    assert built.inner is inner


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"metric": "l3", "part": None}, ["outer.metric", "'l1'", "'l3'"]),
        ({"part": MANDATORY}, ["outer.part", "missing"]),
        ({"pair": [1], "part": None}, ["outer.pair", "2 values"]),
    ],
)
def test_build_refuses(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Outer, values, "outer")
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_settings_a_preset_and_help(command: str) -> None:
    assert command in presets()
    assert "run_dir" in field_names(settings_class(command))
    assert COMMANDS[command].examples


@pytest.mark.parametrize("preset", presets())
def test_every_preset_composes_and_builds(preset: str) -> None:
    """Commands with their mandatory values, group options through a command that has the group."""
    data = ("inspect", "pretrain", "probe", "efficiency", "train", "posttrain", "baselines")
    mandatory = {name: ["data=x.h5"] for name in data}
    mandatory |= {"replay": ["plans=x"], "explain": ["run=x"], "convert": ["path=x", "out=y"]}
    group, _, option = preset.rpartition("/")
    if not group:
        config = load(preset, mandatory.get(preset, []))
        assert isinstance(config.settings, settings_class(preset))
        return
    hosts = [(name, key) for name, entry in COMMANDS.items() for key in entry.groups if key.split("@")[0] == group]
    assert hosts, f"configs/{group} is a group of no command"
    for host, key in hosts:
        load(host, [*mandatory.get(host, []), f"{key}={option}"])


def test_the_small_target_is_the_library_recipe() -> None:
    from worldmodel.learning.vjepa import VJEPAConfig

    assert load("pretrain", ["data=x.h5", "target=ema_repaired"]).settings.target == VJEPAConfig.repaired()
    assert load("pretrain", ["data=x.h5", "target=ema"]).settings.target == VJEPAConfig()


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large", "huge", "giant"])
def test_encoder_presets_are_the_published_sizes(size: str) -> None:
    from worldmodel.models.sizes import sized

    assert load("pretrain", ["data=x.h5", f"encoder=vit_{size}"]).settings.encoder == sized(size)


@pytest.mark.parametrize("family", ["vjepa1", "vjepa2"])
def test_published_recipes_are_chosen_by_name(family: str) -> None:
    """An experiment and the three groups say the same."""
    alone = load("pretrain", ["data=x.h5", "encoder=vit_large", f"target={family}", f"fit={family}"]).settings
    chain = load("reproduce", [f"experiment={family}_vitl16"]).settings.pretrain
    assert (chain.target, chain.fit) == (alone.target, alone.fit)
    assert (chain.encoder.embed_dim, chain.encoder.depth, chain.batch_size) == (1024, 24, 3072)
    assert chain.encoder.pos_embed == ("sincos" if family == "vjepa1" else "rope")
    assert chain.target.mask.kind == "published"
    assert (chain.target.predictor.embed_dim, chain.target.predictor.depth) == (384, 12)
    momentum = (0.998, 1.0) if family == "vjepa1" else (0.99925, 0.99925)
    assert (chain.target.ema_start, chain.target.ema_end) == momentum


def test_the_distractor_is_all_that_sets_its_experiment_apart_from_the_low_label_cells() -> None:
    plain, noisy = (load("reproduce", [f"experiment={name}"]).settings for name in ("low_label", "distractor"))
    assert replace(noisy.collect_push, out="") == replace(plain.collect_push, out="")
    for command in ("pretrain", "train", "evaluate"):
        wanted = [*getattr(plain.low_label, command), "distractor.kind=flicker"]
        assert getattr(noisy.low_label, command) == wanted
    for name, arm in noisy.low_label.parsed().items():
        known = plain.low_label.parsed()[name]
        assert (arm.pretrain, arm.train, arm.like) == (known.pretrain, known.train, known.like)
    assert noisy.low_label.episodes == plain.low_label.episodes


def test_published_schedules_have_the_published_length_and_ends() -> None:
    """Vjepa.md 1.7: steps, warm-up, peak, and where the rate ends (version 1 is cut at 1 / 1.25 of its cosine)."""
    from worldmodel.learning.fit_config import learning_rate

    first, second = (load("pretrain", ["data=x.h5", f"fit={name}"]).settings.fit for name in ("vjepa1", "vjepa2"))
    assert (first.steps, second.steps) == (90_000, 252_000)
    for fit, start, peak in ((first, 2e-4, 6.25e-4), (second, 1e-4, 5.25e-4)):
        assert learning_rate(fit, 0) == pytest.approx(start, rel=1e-3)
        assert learning_rate(fit, 11_999) == pytest.approx(peak)
    assert learning_rate(first, 89_999) == pytest.approx(7.50e-5, rel=0.01)
    assert learning_rate(second, 239_999) == 5.25e-4
    assert learning_rate(second, 251_999) == pytest.approx(1e-6)


@pytest.mark.parametrize(
    "name", ["dinov2_small", "dinov2_base", "dinov2_large", "dinov3_small", "dinov3_base", "dinov3_large"]
)
def test_dino_presets_name_weights_that_timm_has(name: str) -> None:
    import timm

    encoder = load("train", ["data=x.h5", f"encoder={name}"]).settings.encoder
    known = timm.get_pretrained_cfg(encoder.name)
    assert known is not None
    assert known.hf_hub_id or known.url
    assert encoder.pretrained


def test_released_weights_are_chosen_by_name() -> None:
    from worldmodel.models.pretrained import OfficialEncoderConfig

    local = load("train", ["data=x.h5", "encoder=huggingface", "encoder.path=here", "encoder.image_size=64"]).settings
    assert local.encoder == OfficialEncoderConfig(path="here", image_size=64)
    assert load("train", ["data=x.h5", "encoder=original"]).settings.encoder.format == "vjepa2"


@pytest.mark.parametrize(
    ("command", "where", "chosen"),
    [
        ("evaluate", "worldmodel.evaluation.evaluate:EvaluateConfig", {"planner", "objective"}),
        ("manifest", "worldmodel.evaluation.baselines:ManifestConfig", {"oracle", "run_dir"}),
        ("collect", "worldmodel.control.collect:CollectConfig", {"out"}),
    ],
)
def test_defaults_come_from_the_dataclass(command: str, where: str, chosen: set[str]) -> None:
    """What a preset does not choose is what the library uses without any config."""
    module, _, name = where.partition(":")
    config_class = getattr(import_module(module), name)
    settings, plain = load(command).settings, config_class()
    for key in set(field_names(config_class)) - chosen:
        assert getattr(settings, key) == getattr(plain, key), key


def test_overrides_reach_real_objects() -> None:
    from worldmodel.planners import CEM

    settings = load(
        "evaluate", ["env=reach", "planner.num_samples=64", "objective=goal_distance", "objective.metric=l1"]
    ).settings
    assert isinstance(settings.planner, CEM)
    assert settings.planner.num_samples == 64
    assert settings.objective.metric == "l1"
    assert settings.env == "reach"


def test_a_known_key_may_carry_a_plus() -> None:
    assert load("collect", ["+env=reach"]).settings.env == "reach"


@pytest.mark.parametrize("line", ["planners.mine=['planner=cem']", "planners={mine: ['planner=cem']}"])
@pytest.mark.parametrize("plus", ["", "+"])
def test_a_free_mapping_takes_new_entries_beside_its_own(line: str, plus: str) -> None:
    planners = load("bench_planners", [plus + line]).settings.planners
    assert planners["mine"] == ["planner=cem"]
    assert "mppi" in planners


def test_a_reference_is_resolved() -> None:
    config = load("collect", ["env=reach"])
    assert config.settings.out.endswith("reach.h5")
    assert "${" not in config.to_yaml()


@pytest.mark.parametrize(
    ("command", "overrides", "words"),
    [
        ("evaluate", ["planner.num_sample=3"], ["planner.num_sample", "planner.num_samples"]),
        ("evaluate", ["+planner.num_sample=3"], ["planner.num_sample", "planner.num_samples"]),
        ("evaluate", ["++planner.num_sample=3"], ["planner.num_sample", "planner.num_samples"]),
        ("evaluate", ["+typo=3"], ["'typo'", "top-level keys", "episodes"]),
        ("evaluate", ["num_samples=3"], ["'num_samples'", "'planner.num_samples'"]),
        ("evaluate", ["planner=mppii"], ["unknown planner 'mppii'", "cem"]),
        ("evaluate", ["planner=cemm"], ["did you mean 'cem'"]),
        ("evaluate", ["episodes=many"], ["episodes=many", "Integer"]),
        ("evaluate", ["episodes"], ["'episodes'", "key=value"]),
        ("evaluate", ["env=reach,push"], ["-m"]),
        ("evaluate", ["env=${nowhere}"], ["nowhere"]),
        ("evaluate", ["~env"], ["~env"]),
        ("collect", ["planner=cem"], ["'planner'"]),
        ("collect", ["out=null"], ["out=null"]),
        ("evaluate", ["planner.horizon=0"], ["horizon", "0"]),
        (
            "evaluate",
            ["planner.num_samples=64", "planner.num_elites=999"],
            ["num_elites must be in [1, num_samples=64], got 999"],
        ),
        ("evaluat", [], ["unknown command 'evaluat'", "did you mean 'evaluate'"]),
    ],
)
def test_mistakes_are_named(command: str, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(command, overrides)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_a_sweep_runs_every_combination(tmp_path: Path) -> None:
    seen = []
    sweep(
        "collect",
        ["env=reach,push", "seed=1,2"],
        lambda config, folder: seen.append((config.settings.env, config.settings.seed, folder.name)),
        tmp_path,
    )
    assert seen == [("reach", 1, "0"), ("reach", 2, "1"), ("push", 1, "2"), ("push", 2, "3")]


def test_a_sweep_checks_before_it_runs(tmp_path: Path) -> None:
    """A mistake in the last combination is found before the first one has started."""
    seen: list[object] = []
    with pytest.raises(ConfigError, match="three"):
        sweep("collect", ["seed=1,2,three"], lambda config, folder: seen.append(config), tmp_path)
    with pytest.raises(ConfigError, match="foo"):
        sweep("collect", ["seed=1,2", "+foo=1"], lambda config, folder: seen.append(config), tmp_path)
    assert not seen


def test_registering_twice_is_harmless() -> None:
    register_schemas("collect")
    register_schemas("collect")
    assert load("collect").settings.env
