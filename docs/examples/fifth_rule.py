"""A search of one's own: noise around the best sequence so far, whose width follows the one-fifth rule."""

from dataclasses import dataclass

import torch

from worldmodel import Goal, MPCAgent
from worldmodel.control.objectives import GoalDistance
from worldmodel.planners.sampling import SamplingPlanner, Search, spread_of
from worldmodel.testing import PointMassEnv, PointMassModel, check_planner


@dataclass(kw_only=True)
class FifthRule(SamplingPlanner):
    growth: float = 1.5

    def _search(self, problems, warm_start):
        return FifthRuleSearch(self, problems, warm_start, num_elites=min(8, self.num_samples))


class FifthRuleSearch(Search):  # bounds, memory of the best, deadline and trace are the base class's
    def _refit(self, scored, iteration):
        better = (scored.cost < self.best_cost.unsqueeze(1)).sum(dim=1) > self.config.num_samples / 5
        factor = torch.where(better, self.config.growth, 1 / self.config.growth)
        _, spread = spread_of(scored.elites)
        return scored.best_actions.clone(), self.std * factor.view(-1, 1, 1), spread


if __name__ == "__main__":
    check_planner(FifthRule(horizon=3, num_samples=16, num_iterations=4))
    env, model = PointMassEnv(), PointMassModel()  # or watch("shipped", planner=FifthRule(action_repeat=3))
    obs, info = env.reset(seed=0)
    agent = MPCAgent(model, FifthRule(horizon=4, num_samples=64, num_iterations=6), GoalDistance())
    agent.reset([Goal(pixels=env.render_goal())], seeds=[0])
    for _ in range(env.max_steps):
        action = agent.act({name: value[None] for name, value in obs.items()})[0]
        obs, _, _, _, info = env.step(action)
    print(f"{100 * info['goal_distance']:.1f} cm from the goal, success: {info['is_success']}")
