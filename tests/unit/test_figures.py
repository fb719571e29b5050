from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from worldmodel.analysis.figures import PlanView, cumulative_xy, metrics_figure, plan_figure, save_figure
from worldmodel.errors import DataError


@pytest.fixture(name="view")
def _view() -> PlanView:
    rng = np.random.default_rng(0)
    elites = cumulative_xy(rng.uniform(-1, 1, (6, 3, 8)), 4, 0.03)
    return PlanView(
        frame=rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
        goal=rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
        best_cost=np.array([3.0, 2.0, 2.0]),
        elite_cost=np.array([5.0, 3.0, 2.5]),
        imagined_cost=np.array([4.0, 3.0, 2.0, 1.0]),
        chosen_xy_m=elites[0],
        elite_xy_m=elites,
        executed=2,
        step_s=0.2,
        seconds=0.25,
        title="Test-v0",
    )


def test_displacement_sums_the_first_two_entries_of_every_env_action() -> None:
    actions = np.array([[1.0, 0.0, 9.0, 9.0, 1.0, -1.0, 9.0, 9.0], [0.0, 0.5, 9.0, 9.0, 0.0, 0.0, 9.0, 9.0]])
    expected = [[0, 0], [0.03, 0], [0.06, -0.03], [0.06, -0.015], [0.06, -0.015]]
    np.testing.assert_allclose(cumulative_xy(actions, 4, 0.03), expected, atol=1e-12)
    with pytest.raises(DataError, match="does not split"):
        cumulative_xy(actions, 3, 0.03)


def test_every_panel_of_a_plan_is_labelled_with_units(view: PlanView) -> None:
    figure = plan_figure(view)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        "camera now",
        "goal image",
        "search",
        "what the model expects of the chosen plan",
        "plans seen from above",
    ]
    _, _, search, imagined, fan = figure.axes
    assert (search.get_xlabel(), search.get_ylabel()) == ("planner iteration", "planning cost (a.u.)")
    assert "(s)" in imagined.get_xlabel()
    assert "(cm)" in fan.get_xlabel()
    assert "(cm)" in fan.get_ylabel()
    assert search.get_legend() is not None
    best = next(line for line in search.lines if line.get_label() == "best so far")
    np.testing.assert_array_equal(best.get_ydata(), view.best_cost)
    np.testing.assert_allclose(imagined.lines[0].get_xdata(), [0, 0.2, 0.4, 0.6])


def test_fan_shows_all_elites_and_the_executed_part_in_centimetres(view: PlanView) -> None:
    fan = plan_figure(view).axes[-1]
    lines = {line.get_label(): line for line in fan.lines}
    assert len([line for line in fan.lines if line.get_color() == "0.70"]) == 6
    done = lines["carried out before the next replan"]
    np.testing.assert_allclose(done.get_xdata(), 100 * view.chosen_xy_m[:3, 1])
    np.testing.assert_allclose(done.get_ydata(), 100 * view.chosen_xy_m[:3, 0])
    assert fan.yaxis_inverted(), "x grows towards the camera, as in the frames"


def test_a_plan_is_saved_as_a_picture(tmp_path: Path, view: PlanView) -> None:
    path = save_figure(plan_figure(view), tmp_path / "new" / "plan.png")
    picture = iio.imread(path)
    assert picture.shape[0] > 600
    assert picture.std() > 10
    assert [entry.name for entry in path.parent.iterdir()] == ["plan.png"]
    with pytest.raises(DataError, match="png"):
        save_figure(plan_figure(view), tmp_path / "plan.jpg")


def test_views_refuse_shapes_that_do_not_belong_together(view: PlanView) -> None:
    with pytest.raises(DataError, match="elite_cost"):
        replace(view, elite_cost=np.zeros(2))
    with pytest.raises(DataError, match="elite_xy_m"):
        replace(view, elite_xy_m=np.zeros((6, 2, 2)))


def test_training_curves(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i, "loss": 1 / (i + 1), "phase": "warm"}) + "\n" for i in range(4)))
    figure = metrics_figure(path)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimiser step", "loss")
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [1, 1 / 2, 1 / 3, 1 / 4])
    with pytest.raises(DataError, match=r"\['speed'\].*\['loss'\]"):
        metrics_figure(path, ["speed"])
    path.write_text('{"loss": 1}\n')
    with pytest.raises(DataError, match="line 1"):
        metrics_figure(path)
    with pytest.raises(DataError, match="does not exist"):
        metrics_figure(tmp_path / "none.jsonl")
