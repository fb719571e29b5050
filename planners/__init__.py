"""Planners: search over action sequences, given nothing but a cost function.

This package knows no model, environment, file or logger: any function from actions to costs will do.
"""

from worldmodel.planners.base import CostFn, Plan, Planner, PlanTrace
from worldmodel.planners.cem import CEM

__all__ = ["CEM", "CostFn", "Plan", "PlanTrace", "Planner"]
