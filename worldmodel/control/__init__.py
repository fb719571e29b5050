"""From a model to actions: objectives, cost functions, agents, and data collection with agents in environments.

The oracle lives here too: it is the same planner on the simulator's true dynamics, behind the same seam.
"""
