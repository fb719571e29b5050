"""Planning with V-JEPA 2-AC: its energy as a cost function, and the actions it searches over.

With the preset `planner=vjepa2_ac` this is the published controller (arXiv:2506.09985, section 3.2): the planner sees a
function of actions and bounds, as with any other model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.errors import PlanningError
from worldmodel.models.ac_predictor import ACPredictor
from worldmodel.models.pose import POSE_DIM


@dataclass(frozen=True, kw_only=True)
class ACContext:
    """What has been seen and done, B problems.

    Attributes:
        tokens: (B, T0, N, D) layer-normed tokens of single frames.
        states: (B, T0, 7) poses at these frames.
        actions: (B, T0 - 1, 7) actions between them.
    """

    tokens: Tensor
    states: Tensor
    actions: Tensor


class ACEnergy:
    """Mean absolute difference between the last predicted tokens and the goal's (a `CostFn`).

    Candidates go through the model in blocks, whose size does not depend on the number of problems.

    Args:
        predictor: Predicts tokens.
        context: Where to start from.
        goal: (B, N, D) layer-normed tokens of the goal image.
        candidate_block: Candidates computed at once.

    Raises:
        PlanningError: Goal and context do not belong together.
    """

    def __init__(self, predictor: ACPredictor, context: ACContext, goal: Tensor, *, candidate_block: int = 64) -> None:
        expected = (len(context.tokens), *context.tokens.shape[2:])
        if tuple(goal.shape) != expected:
            raise PlanningError(f"the goal must be (B, N, D) = {expected}, got {tuple(goal.shape)}")
        if candidate_block < 1:
            raise PlanningError(f"candidate_block must be >= 1, got {candidate_block}")
        self._predictor, self._context, self._goal = predictor, context, goal
        self._block = candidate_block

    def __call__(self, actions: Tensor) -> Tensor:
        """Energy (B, S) of actions (B, S, H, 7)."""
        context, rows = self._context, []
        for problem in range(len(actions)):
            one = slice(problem, problem + 1)
            seen = context.tokens[one], context.states[one], context.actions[one]
            goal = self._goal[problem]
            parts = [
                (self._predictor.rollout(*seen, block)[0, :, -1] - goal).abs().mean(dim=(-1, -2))
                for block in actions[one].split(self._block, dim=1)
            ]
            rows.append(torch.cat(parts))
        return torch.stack(rows)


def action_bounds(*, max_shift_m: float = 0.075, max_grip: float = 0.75) -> tuple[Tensor, Tensor]:
    """Lowest and highest action (7,): a box for the shift, no rotation, a range for the gripper.

    Args:
        max_shift_m: Largest shift along each axis, metres. The paper speaks of an L1 ball of .075; its 13 cm per action
            and the released code fit a box of that half-width.
        max_grip: Largest change of the gripper's closedness (vjepa2 `notebooks/utils/mpc_utils.py`).
    """
    high = torch.zeros(POSE_DIM)
    high[:3], high[6] = max_shift_m, max_grip
    return -high, high
