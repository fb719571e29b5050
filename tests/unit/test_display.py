"""Records show themselves: the same table in a terminal and a notebook, a picture beside it, everything escaped."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable

import imageio.v3 as imageio
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from worldmodel.data.episodes import Episode, EpisodeDataset
from worldmodel.data.normalize import Normalizer
from worldmodel.display import facts_table, html_of, sparkline
from worldmodel.evaluation.episodes import EpisodeResult
from worldmodel.evaluation.result import EvalResult
from worldmodel.models.action_transformer import TransformerPredictorConfig, build_predictor
from worldmodel.models.frozen_encoders import build_encoder
from worldmodel.models.latent_head import IdentityHeadConfig, build_head
from worldmodel.models.vit import ViTConfig
from worldmodel.models.world_model import ModelSpec, WorldModel
from worldmodel.planners import CEM, Plan
from worldmodel.testing import quadratic

ATTACK = '"><script>alert(1)</script>'
MakeEpisode = Callable[..., Episode]


def printed(record: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(record)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def cells(html: str) -> list[str]:
    return re.findall("<t[dh]>(.*?)</t[dh]>", html)


def picture(html: str) -> np.ndarray:
    (data,) = re.findall('src="data:image/png;base64,([^"]+)"', html)
    return np.asarray(imageio.imread(base64.b64decode(data), extension=".png"))


def evaluation(env_id: str, *moments: str | None) -> EvalResult:
    rows = [
        EpisodeResult(
            episode=number,
            held=bool(text) and str(text).endswith("1"),
            ever="1" in (text or ""),
            steps_to_success=None,
            start_distance_m=0.2,
            final_distance_m=0.1,
            min_distance_m=0.1,
            steps=2,
            replans=0,
            success=text,
        )
        for number, text in enumerate(moments)
    ]
    return EvalResult(
        env_id=env_id,
        manifest_hash="a" * 64,
        rows=tuple(rows),
        replan_p50_s=None,
        replan_p95_s=None,
        model_calls_per_episode=None,
        flops_per_episode=None,
        baselines={ATTACK: None},
        budgets={},
        agent={},
        hardware={},
    )


def test_an_evaluation_shows_its_table_and_its_curve() -> None:
    result = evaluation("worldmodel/Push-v0", "001", "011", "000", "000")
    html = result._repr_html_()
    assert {"model", "50 %"} <= set(cells(html))
    assert "50 %" in printed(result)
    assert "worldmodel/Push-v0, 4 held-out episodes" in html
    (corners,) = re.findall('points="([^"]+)"', html)
    heights = [float(corner.split(",")[1]) for corner in corners.split()]
    assert heights == [66.0, 50.5, 35.0], "none, a quarter and half of the episodes"
    assert "<svg" not in evaluation("x", None)._repr_html_(), "a record without moments has no curve"


def test_what_is_shown_is_escaped() -> None:
    html = evaluation(ATTACK, "01")._repr_html_() + html_of(
        facts_table(ATTACK, {ATTACK: ATTACK}), sparkline([0, 1], ATTACK)
    )
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 6


def test_an_episode_shows_frames_from_start_to_end(make_episode: MakeEpisode) -> None:
    episode = make_episode(2, 9, env_id=ATTACK)
    html = episode._repr_html_()
    assert "<script" not in html
    chosen = [0, 1, 3, 4, 6, 8]
    assert f"frames {', '.join(map(str, chosen))}" in html
    np.testing.assert_array_equal(picture(html), np.concatenate(list(episode.pixels[chosen]), axis=1))
    assert cells(html)[:6] == ["steps", "8", "policy", "play", "ends in", "success"]
    assert "play" in printed(episode)


def test_a_data_set_shows_what_is_in_it(episode_file: EpisodeDataset) -> None:
    html = episode_file._repr_html_()
    facts = dict(zip(cells(html)[::2], cells(html)[1::2], strict=True))
    assert facts["episodes"] == "10, 5 of them end in success"
    assert facts["frames"] == "95 of 8 x 8 pixels"
    assert facts["policies"] == "play 10"
    first = [episode_file.episode(number).pixels[0] for number in range(6)]
    np.testing.assert_array_equal(picture(html), np.concatenate(first, axis=1))
    assert "10, 5 of them end in success" in printed(episode_file)


def make_plan(problems: int, *, iterations: int = 3) -> Plan:
    target = torch.linspace(-0.5, 0.5, problems * 8).view(problems, 4, 2)
    streams = [torch.Generator().manual_seed(seed) for seed in range(problems)]
    planner = CEM(horizon=4, num_samples=12, num_elites=3, num_iterations=iterations)
    return planner.plan(quadratic(target), -torch.ones(2), torch.ones(2), rng=streams)


def test_a_plan_shows_its_cost_and_its_search() -> None:
    plan = make_plan(1)
    html = plan._repr_html_()
    facts = dict(zip(cells(html)[::2], cells(html)[1::2], strict=True))
    assert facts["plan"] == "4 model steps of 2 numbers"
    assert facts["cost"] == f"{float(plan.cost[0]):.4g}"
    assert facts["search"].startswith("3 iterations, 3 elites, spread of the elites ")
    assert "3 iterations" in printed(plan)
    (corners,) = re.findall('points="([^"]+)"', html)
    heights = [float(corner.split(",")[1]) for corner in corners.split()]
    assert len(heights) == 3
    assert heights == sorted(heights), "the lowest cost falls, so the curve does"
    assert "<svg" not in make_plan(1, iterations=1)._repr_html_(), "one iteration is no curve"


def test_plans_for_many_problems_and_shifted_ones_show_themselves() -> None:
    plan = make_plan(6)
    html = plan._repr_html_()
    assert "plans for 6 problems" in html
    assert " and 2 more" in html
    assert "unknown after a shift" in plan.shifted(1)._repr_html_()


def test_a_model_shows_its_parts() -> None:
    encoder = build_encoder(ViTConfig(image_size=32, embed_dim=24, depth=1, num_heads=2, num_frames=2))
    head = build_head(IdentityHeadConfig(), num_tokens=16, embed_dim=24)
    spec = ModelSpec(
        env_ids=(ATTACK,),
        action_dim=2,
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        action_block=3,
        image_size=32,
        proprio_names=("x",),
        latent="patch",
    )
    config = TransformerPredictorConfig(embed_dim=24, depth=1, num_heads=2, window=3)
    predictor = build_predictor(config, num_tokens=16, latent_dim=24, action_dim=6)
    model = WorldModel(encoder, head, predictor, Normalizer(6), Normalizer(1), spec)
    html = model._repr_html_()
    assert "<script" not in html
    facts = dict(zip(cells(html)[::2], cells(html)[1::2], strict=True))
    assert facts["actions"] == "2 numbers in model steps of 3"
    assert facts["latent"].startswith("patch: 16 x 24 numbers a frame, IdentityHead")
    assert facts["predictor"].endswith("looks back 3 frames")
    count = sum(parameter.numel() for parameter in encoder.parameters())
    assert facts["encoder"] == f"VideoViT, {count / 1000:.0f} k parameters, 16 tokens of 24"
    assert facts["temporal distance"] == "none"
    assert "looks back 3 frames" in printed(model)


def test_brackets_are_no_markup() -> None:
    shown = printed(facts_table("[/a]", {"[/b]": "[bold]c"}))
    assert all(text in shown for text in ("[/a]", "[/b]", "[bold]c"))


def test_a_table_without_a_header_has_none() -> None:
    table = Table("name", "value", title="a title")
    table.add_row("x", "1")
    assert cells(html_of(table)) == ["name", "value", "x", "1"]
    assert cells(html_of(facts_table("", {"x": 1}))) == ["x", "1"]
