"""A trained model at the wheel of a recording.

A search finds what a model is wrong about: plans that cost little in the model and more in the world are rare in play
and common among the plans it makes. Recording what such plans really do, and training on it, is the correction (DAgger,
Ross et al., arXiv:1011.0686, here for a model instead of a policy).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldmodel.control.agents import MPCAgent
from worldmodel.control.costs import PlanningModel
from worldmodel.control.objectives import default_objective
from worldmodel.control.threads import torch_threads
from worldmodel.envs.base import GoalEnv
from worldmodel.planners import CEM
from worldmodel.types import Goal


class Planned:
    """Plans towards the goal picture of the episode; a `Policy` that has to see every observation.

    Args:
        model: What it plans in.
        seed: Of the search.
    """

    def __init__(self, model: PlanningModel, seed: int) -> None:
        repeat = model.spec.action_block
        search = CEM(num_samples=100, num_elites=10, num_iterations=4, action_repeat=repeat)  # planner=cem_fast
        self._agent = MPCAgent(model, search, default_objective(model))
        self._seed = seed
        self._seen: Mapping[str, NDArray[Any]] | None = None
        self._begun = False

    def see(self, observation: Mapping[str, NDArray[Any]]) -> None:
        """Take the observation that the next action answers."""
        self._seen = observation

    def act(self, env: GoalEnv) -> NDArray[np.float32]:
        """Action (A_env,) for the observation seen last; `env` shows the goal, once."""
        assert self._seen is not None, "see(observation) comes before act(env)"
        with torch_threads(1):  # a plan must not depend on how many workers record
            if not self._begun:
                self._agent.reset([Goal(pixels=env.render_goal())], seeds=[self._seed])
                self._begun = True
            action: NDArray[np.float32] = self._agent.act({key: value[None] for key, value in self._seen.items()})[0]
        return action
