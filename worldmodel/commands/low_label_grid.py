"""The grid of the low-label comparison: its arms, and what is the same for all of them.

Separate from `low_label.py`, which runs it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from worldmodel.errors import ConfigError
from worldmodel.evaluation.manifest import LOOKS


@dataclass(kw_only=True)
class Arm:
    """One way to get a representation.

    Attributes:
        pretrain: Overrides of `worldmodel pretrain`; None for an arm that is not pretrained.
        train: Overrides of `worldmodel train`.
        like: Arm whose pretrained encoder this one uses instead of its own.
        clone: Clone behaviour on the frozen features instead of learning dynamics to plan with.
        student: Overrides of `worldmodel pretrain target=any_colour`: a student, trained on the video alone, takes the
            place of the encoder in the trained model. None leaves the model as it is.
        seeds: Training seeds, which also draw the labelled episodes: 0, 1, ...
        labels: Numbers of labelled episodes it is run at, of those of the grid; None means all of them.
    """

    pretrain: list[str] | None = None
    train: list[str] = field(default_factory=list)
    like: str | None = None
    clone: bool = False
    student: list[str] | None = None
    seeds: int = 1
    labels: list[int | None] | None = None


@dataclass(kw_only=True)
class LowLabelConfig:
    """The grid.

    Attributes:
        env: Environment, short name or id.
        arms: Arms by name, each a mapping of the fields of `Arm`. None of them switches the comparison off.
        labels: Numbers of labelled episodes, in the order they are run; null means all.
        looks: Looks the tasks are shown in; see `worldmodel manifest`.
        first_look: Numbers of labelled episodes at which the tasks are shown in the first look alone.
        first_seed: Numbers of labelled episodes at which every arm has its first training seed alone.
        episodes: Tasks per cell and look.
        pretrain: Overrides of `worldmodel pretrain` for every pretrained arm.
        train: Overrides of `worldmodel train` for every arm.
        evaluate: Overrides of `worldmodel evaluate` for every arm.
        variants: Recipes by name, overrides of `worldmodel train`; every arm takes the one that is best for it on the
            validation tasks. None of them leaves `train` as it is.
        validation_episodes: Validation tasks per arm and variant.
        validation_labels: Labelled episodes of the trainings that are compared on them.
        candidate: Arm that is compared with all others.
        only: Arms whose cells this call makes, so that several calls with run folders of their own and one folder of
            `cells` share the work; null makes those of all arms. Tables and plot hold every finished cell anyhow.
        max_minutes: No new cell is begun after this many minutes; null runs all.
        cells: Folder of finished cells; None means `cells` in the run folder.
        keep_features: Keep the encoded frames for other cells of the same encoder, instead of encoding them again:
            about 2 GB and 4 minutes for each encoder of 2,500 episodes.
    """

    env: str = "push"
    arms: dict[str, Any] = field(default_factory=dict)
    labels: tuple[int | None, ...] = (200, None, 50)
    looks: tuple[str, ...] = LOOKS
    first_look: tuple[int | None, ...] = ()
    first_seed: tuple[int | None, ...] = ()
    episodes: int = 200
    pretrain: list[str] = field(default_factory=list)
    train: list[str] = field(default_factory=list)
    evaluate: list[str] = field(default_factory=list)
    variants: dict[str, Any] = field(default_factory=dict)
    validation_episodes: int = 60
    validation_labels: int = 200
    candidate: str = "ema_repaired"
    only: tuple[str, ...] | None = None
    max_minutes: float | None = None
    cells: str | None = None
    keep_features: bool = False

    def __post_init__(self) -> None:
        if not self.arms:
            return
        if self.candidate not in self.arms:
            raise ConfigError(f"low_label.candidate={self.candidate!r} is none of the arms {', '.join(self.arms)}")
        if unknown := sorted(set(self.only or ()) - set(self.arms)):
            raise ConfigError(f"low_label.only must be among {', '.join(self.arms)}, got {', '.join(unknown)}")
        for name in ("labels", "looks"):
            if not getattr(self, name):
                raise ConfigError(f"low_label.{name} is empty: there is nothing to compare")
        if unknown := sorted(set(self.looks) - set(LOOKS)):
            raise ConfigError(f"low_label.looks must be among {', '.join(LOOKS)}, got {', '.join(unknown)}")
        for name in ("episodes", "validation_episodes", "validation_labels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"low_label.{name} must be >= 1, got {getattr(self, name)}")
        for name, arm in self.parsed().items():
            if arm.clone and arm.student is not None:
                raise ConfigError(f"arm {name}: a clone has no world model whose encoder a student could replace")
            source = self.parsed().get(arm.like) if arm.like is not None else None
            if arm.like is not None and (source is None or source.pretrain is None or source.seeds < arm.seeds):
                raise ConfigError(f"arm {name}: like={arm.like} is no pretrained arm of at least {arm.seeds} seeds")

    def parsed(self) -> dict[str, Arm]:
        """The arms as records.

        Raises:
            ConfigError: An arm has a field that `Arm` does not know, or no seed.
        """
        arms = {}
        for name, values in self.arms.items():
            try:
                arms[name] = values if isinstance(values, Arm) else Arm(**values)
            except TypeError as error:
                fields = ", ".join(Arm.__dataclass_fields__)
                raise ConfigError(
                    f"arm {name} must be a mapping with some of the keys {fields}, got {values}"
                ) from error
            if arms[name].seeds < 1:
                raise ConfigError(f"arm {name}: seeds must be >= 1, got {arms[name].seeds}")
        return arms
