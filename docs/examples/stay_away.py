"""A cost of one's own, added to another: reach the goal, and stay away from what one picture shows."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from worldmodel import CEM, Goal, MPCAgent
from worldmodel.control.objectives import GoalDistance, Objective
from worldmodel.envs import Task
from worldmodel.testing import PointMassEnv, PointMassModel


@dataclass(kw_only=True)
class StayAway(Objective):
    forbidden: torch.Tensor  # (N, D), the latent of a picture
    radius: float = 0.2  # in units of the latent

    def __call__(self, latent, goal, actions):  # visual (B, S, H, N, D), actions (B, S, H, A) -> (B, S)
        distance = (latent.visual - self.forbidden).square().sum(dim=(-2, -1)).sqrt()
        return 10 * (1 - distance / self.radius).clamp(min=0).sum(dim=-1)


def closest(objective, env, model, task, middle):
    obs, info = env.reset(options={"task": task})
    agent, seen = MPCAgent(model, CEM(horizon=4), objective), []
    agent.reset([Goal(pixels=env.render_goal())], seeds=[0])
    for _ in range(env.max_steps):
        obs, _, _, _, info = env.step(agent.act({name: value[None] for name, value in obs.items()})[0])
        seen.append(np.linalg.norm(env.get_state() - middle))
    return min(seen), info["goal_distance"]


if __name__ == "__main__":
    env, model = PointMassEnv(), PointMassModel()
    left, middle, right = (np.array([x, 0.5]) for x in (0.2, 0.5, 0.8))
    task = Task(env_id=env.env_id, start=left, goal=np.append(right, 0), goal_state=right)
    forbidden = model.encode(torch.tensor(env.render_goal(replace(task, goal_state=middle)))[None, None]).visual[0, 0]
    for objective in (GoalDistance(), GoalDistance() + StayAway(forbidden=forbidden)):
        print("%.2f m off the middle, %.2f m off the goal" % closest(objective, env, model, task, middle))
