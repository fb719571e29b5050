"""Planners: search over action sequences, given nothing but a cost function.

This package knows no model, environment, file or logger: any function from actions to costs will do.
"""

from worldmodel.planners.base import CostFn, Plan, Planner, PlanTrace
from worldmodel.planners.cem import CEM
from worldmodel.planners.cmaes import CMAES
from worldmodel.planners.gradient import CEMGradient, Gradient
from worldmodel.planners.icem import ICEM
from worldmodel.planners.mppi import MPPI
from worldmodel.planners.settling import SettlingCEM
from worldmodel.planners.shooting import PredictiveSampling, RandomShooting

__all__ = [
    "CEM",
    "CMAES",
    "ICEM",
    "MPPI",
    "CEMGradient",
    "CostFn",
    "Gradient",
    "Plan",
    "PlanTrace",
    "Planner",
    "PredictiveSampling",
    "RandomShooting",
    "SettlingCEM",
]
