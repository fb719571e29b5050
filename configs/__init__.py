"""YAML presets of the `worldmodel` program: one per command, and groups to choose from.

They hold deviations from the dataclass defaults and composition, never code paths. A package so that Hydra finds them
inside a wheel (`pkg://worldmodel.configs`).
"""
