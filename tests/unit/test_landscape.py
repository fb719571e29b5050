"""Energy landscapes: on a model whose dynamics are exact the minimum must lie at the true displacement."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldmodel.analysis.landscape import ActionAxis, energy_landscape, landscape_figure, tabletop_axes
from worldmodel.control.costs import LatentCost
from worldmodel.control.objectives import GoalDistance
from worldmodel.envs.tabletop import MAX_STEP_M, TabletopEnv
from worldmodel.errors import ConfigError
from worldmodel.testing import PointMassEnv, PointMassModel
from worldmodel.types import Context

AXES = (ActionAxis(index=0, name="x", unit="cm", scale=10.0), ActionAxis(index=1, name="y", unit="cm", scale=10.0))


def point_mass_cost(move: tuple[float, float]) -> tuple[LatentCost, PointMassModel]:
    """Cost of reaching, from the middle, the place that holding `move` for one model step leads to."""
    env, model = PointMassEnv(), PointMassModel(action_block=2)
    env.reset(seed=0)
    frames = []
    env.set_state(np.array([0.5, 0.5]))
    frames.append(env._observe()["pixels"])
    for _ in range(2):
        env.simulate(np.array(move, np.float32))
    frames.append(env._observe()["pixels"])
    latents = [model.encode(torch.from_numpy(frame)[None, None]) for frame in frames]
    context = Context(latent=latents[0], actions=torch.zeros(1, 0, 4))
    return LatentCost(model, GoalDistance(), context, latents[1]), model


@pytest.mark.parametrize("move", [(0.6, -0.3), (-1.0, 1.0), (0.0, 0.0)])
def test_the_minimum_is_the_true_displacement(move: tuple[float, float]) -> None:
    cost, model = point_mass_cost(move)
    start = torch.zeros(1, 4)
    landscape = energy_landscape(cost, start, model.spec.flat_bounds(), AXES, env_action_dim=2, resolution=21)
    assert landscape.apart((10 * move[0], 10 * move[1])) <= landscape.spacing
    assert landscape.cost.min() == landscape.cost[np.argmin(abs(landscape.y - landscape.minimum[1]))].min()


def test_rows_are_the_vertical_axis_and_the_rest_of_the_plan_stays() -> None:
    seen = []

    def cost(actions: torch.Tensor) -> torch.Tensor:
        seen.append(actions.clone())
        return actions[..., 0, 2]  # the vertical entry of the first environment action

    plan = torch.arange(12.0).view(2, 6) / 12  # two model steps of two actions of three numbers
    bounds = (-torch.ones(6), torch.ones(6))
    axes = (ActionAxis(index=0, name="a"), ActionAxis(index=2, name="b", scale=3.0))
    landscape = energy_landscape(cost, plan, bounds, axes, env_action_dim=3, resolution=5, marks={"chosen": plan})
    np.testing.assert_allclose(landscape.cost, np.linspace(-1, 1, 5)[:, None].repeat(5, axis=1))
    np.testing.assert_allclose(landscape.y, 3 * np.linspace(-1, 1, 5))
    assert landscape.chosen == pytest.approx((0.125, 3 * 3.5 / 12)), "mean over the two actions held"
    (actions,) = seen
    assert torch.equal(actions[0, :, 1], plan[1].expand(25, -1)), "later steps are not touched"
    assert torch.equal(actions[0, :, 0, [1, 4]], plan[0, [1, 4]].expand(25, -1))
    energy_landscape(cost, plan, bounds, axes, env_action_dim=3, resolution=5, step=None)
    assert torch.equal(seen[1][0, :, 1, 0], seen[1][0, :, 0, 0]), "step=None varies all steps alike"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": (AXES[0], AXES[0])}, "two different entries"),
        ({"resolution": 2}, "resolution must be >= 3"),
        ({"step": 4}, r"step must be in \[0, 1\)"),
        ({"env_action_dim": 3}, "a multiple of 3"),
        ({"marks": {"oracle": None}}, "'chosen' and 'expert'"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    arguments = {"axes": AXES, "env_action_dim": 2, **change}
    with pytest.raises(ConfigError, match=message):
        energy_landscape(
            lambda actions: actions.sum(dim=(-2, -1)),
            torch.zeros(1, 4),
            (-torch.ones(4), torch.ones(4)),
            **arguments,  # type: ignore[arg-type]
        )


def test_a_landscape_is_drawn_with_units_and_marks() -> None:
    cost, model = point_mass_cost((0.5, 0.5))
    plan = torch.full((1, 4), 0.5)
    landscape = energy_landscape(
        cost,
        plan,
        model.spec.flat_bounds(),
        AXES,
        env_action_dim=2,
        resolution=5,
        marks={"expert": plan, "chosen": None},
    )
    figure = landscape_figure([landscape, landscape])
    assert figure.axes[0].get_xlabel() == "x (cm)"
    assert [line.get_label() for line in figure.axes[0].lines] == ["minimum of the landscape", "action of the expert"]
    assert figure.legends
    assert tabletop_axes(3)["z"].scale == pytest.approx(300 * MAX_STEP_M)


def test_points_are_projected_to_where_they_are_drawn() -> None:
    """The object is the only red thing: the middle of its pixels must be where its centre is projected to."""
    from worldmodel.envs import make_env

    env = make_env("push", image_size=128)
    try:
        obs, _ = env.reset(seed=4)
        assert isinstance(env, TabletopEnv)
        pixels = obs["pixels"].astype(int)
        rows, columns = np.nonzero((pixels[..., 0] > 90) & (pixels[..., 1] < 80) & (pixels[..., 2] < 80))
        assert len(rows) > 20
        centre = env.project(env.object_pose()[0])
        assert np.hypot(columns.mean() - centre[0], rows.mean() - centre[1]) < 4
        assert env.project(np.zeros((2, 5, 3))).shape == (2, 5, 2)
    finally:
        env.close()
