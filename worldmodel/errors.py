"""Every exception the library raises on purpose, so that callers can catch one root and the CLI can print one line.

Each subclass also inherits the builtin that describes it best: code that does not know this package still catches it.
"""


class WorldModelError(Exception):
    """Root of all errors raised on purpose; the CLI prints it as one line and exits with status 2."""


class ConfigError(WorldModelError, ValueError):
    """A setting, name or argument is unknown, out of range or inconsistent with another."""


class DataError(WorldModelError, ValueError):
    """A data file is missing, unreadable, corrupt, or holds values that make no sense (NaN, wrong shape)."""


class CheckpointError(WorldModelError, ValueError):
    """A checkpoint is missing, corrupt, or does not fit the environment or model it is asked to serve."""


class PlanningError(WorldModelError, ValueError):
    """A planner was given bounds, costs or warm starts it cannot use."""


class SimulationError(WorldModelError, RuntimeError):
    """The simulator reached a state that cannot be continued from, or a task could not be set up."""


class RenderingError(WorldModelError, RuntimeError):
    """No OpenGL backend could be created; the message names the package to install."""
