"""The encoders that a frozen evaluation compares: where each comes from, and what its outcome depends on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from worldmodel.commands import pretrain
from worldmodel.commands.run import Run
from worldmodel.config import load
from worldmodel.errors import CheckpointError, ConfigError
from worldmodel.learning.probe_training import ProbeFitConfig
from worldmodel.models.checkpoint import load_encoder, read_card, resolve_checkpoint
from worldmodel.models.encoders import Encoder
from worldmodel.models.frozen_encoders import EncoderConfig, TimmEncoderConfig, build_encoder
from worldmodel.models.module_configs import read_config

_NAME = re.compile(r"[A-Za-z0-9_.]+")


@dataclass(frozen=True, kw_only=True)
class ProbeArm:
    """One way to get an encoder.

    Attributes:
        encoder: Checkpoint folder, or name of a shipped one; `{seed}` in it is replaced by the number of the seed.
        pretrain: Overrides of `worldmodel pretrain`, which is run first; not where `encoder` is given.
        like: Arm whose encoder this one takes.
        fresh: Of that encoder, take the architecture alone: random weights, others in every split.
        timm: Name of a timm model; image by image.
        weights: File of its weights (safetensors); without one they are those timm has downloaded before, or random
            with `fresh`.
        input_size: Side to which its frames are resized; null keeps theirs.
        finetune: Train the encoder along with the probe.
        still: Show only the last frame, repeated: what a picture without motion gives away.
        seeds: Pretrained encoders, numbered from 0; split s reads number s modulo seeds.
        lr: Learning rates tried for this arm in place of `fit.lr`; an encoder that is trained needs smaller ones.
        step: With `like`: that encoder as it was after so many steps of its pretraining here, instead of at its end.
    """

    encoder: str | None = None
    pretrain: list[str] | None = None
    like: str | None = None
    fresh: bool = False
    timm: str | None = None
    weights: str | None = None
    input_size: int | None = None
    finetune: bool = False
    still: bool = False
    seeds: int = 1
    lr: list[float] | None = None
    step: int | None = None

    def fit(self, common: ProbeFitConfig) -> ProbeFitConfig:
        """Optimisation of its probes."""
        return common if self.lr is None else replace(common, lr=tuple(self.lr))


def parse_arms(entries: Mapping[str, Any], candidate: str) -> dict[str, ProbeArm]:
    """Arms by name.

    Raises:
        ConfigError: There is none, an arm has an unknown field, no source or two, or the candidate is none of them.
    """
    arms: dict[str, ProbeArm] = {}
    for name, values in entries.items():
        if values is None:  # arms.NAME=null takes an arm of the preset out
            continue
        if not _NAME.fullmatch(name):
            raise ConfigError(f"the name of an arm must be letters, digits, _ and ., got {name!r}")
        try:
            arms[name] = values if isinstance(values, ProbeArm) else ProbeArm(**values)
        except TypeError as error:
            fields = ", ".join(ProbeArm.__dataclass_fields__)
            raise ConfigError(f"arm {name} must be a mapping with some of the keys {fields}, got {values}") from error
    if not arms:
        raise ConfigError("there is no arm to compare; give arms.NAME.encoder=FOLDER")
    if candidate not in arms:
        raise ConfigError(f"candidate={candidate!r} is none of the arms {', '.join(arms)}")
    for name, arm in arms.items():
        _check(name, arm, arms)
    return arms


def _check(name: str, arm: ProbeArm, arms: Mapping[str, ProbeArm]) -> None:
    sources = [key for key in ("encoder", "like", "timm") if getattr(arm, key) is not None]
    if not sources and arm.pretrain is not None:
        sources = ["pretrain"]
    if len(sources) != 1:
        told = " and ".join(sources) or "none of them"
        raise ConfigError(f"arm {name} needs one of encoder, pretrain, like or timm, got {told}")
    if arm.like is not None and (arm.like not in arms or arms[arm.like].like is not None):
        raise ConfigError(f"arm {name}: like={arm.like} is no arm with an encoder of its own; arms: {', '.join(arms)}")
    if arm.fresh and arm.like is None and arm.timm is None:
        raise ConfigError(f"arm {name}: fresh=true needs like=ARM or timm=NAME, whose architecture it takes")
    if arm.lr is not None:
        arm.fit(ProbeFitConfig())
    if arm.step is not None and (arm.like is None or arm.fresh or arms[arm.like].pretrain is None):
        raise ConfigError(f"arm {name}: step={arm.step} needs like=ARM, an arm that is pretrained here")
    if arm.seeds < 1:
        raise ConfigError(f"arm {name}: seeds must be >= 1, got {arm.seeds}")


class ArmEncoders:
    """Makes, finds and identifies the encoders of the arms.

    Args:
        arms: As from `parse_arms`.
        overrides: Of `worldmodel pretrain` for every arm that is pretrained here.
        data: Episode file they are pretrained on.
        folder: Where encoders pretrained here are kept.
    """

    def __init__(self, arms: Mapping[str, ProbeArm], overrides: list[str], data: str, folder: Path) -> None:
        self._arms, self._overrides, self._data, self._folder = arms, overrides, data, folder

    def seed(self, name: str, split: int) -> int:
        """Number of the encoder that a split reads."""
        arm = self._arms[name]
        return split if arm.fresh else split % self._arms[arm.like or name].seeds

    def build(self, name: str, split: int) -> Encoder:
        """The encoder of an arm, pretrained before (`ensure`), in evaluation mode and without gradients.

        Raises:
            CheckpointError: Missing or corrupt.
            ConfigError: timm does not know the model, or has no weights of it.
        """
        arm, seed = self._arms[name], self.seed(name, split)
        if arm.fresh or self._arms[arm.like or name].timm is not None:
            encoder = build_encoder(self.config(name), seed=seed)
        else:
            encoder = load_encoder(self._path(name, seed) if arm.step is None else self._snapshot(name, seed))
        return encoder.requires_grad_(False).eval()

    def config(self, name: str) -> EncoderConfig:
        """Architecture of an arm; nothing is trained or built for it.

        Raises:
            CheckpointError: The checkpoint is missing or corrupt.
            ConfigError: The overrides of the pretraining do not fit.
        """
        arm = self._arms[name]
        source = self._arms[arm.like or name]
        if source.timm is not None:
            fetched = source.weights is None and not arm.fresh
            weights = None if arm.fresh else source.weights
            return TimmEncoderConfig(
                name=source.timm,
                pretrained=fetched,
                weights=weights,
                image_size=self._image_size(),
                input_size=source.input_size,
            )
        if source.encoder is None:
            settings = self._settings(arm.like or name, 0)
            found: EncoderConfig = settings.encoder
            return found
        config: EncoderConfig = read_config(read_card(resolve_checkpoint(self._path(name, 0))), "encoder")
        return config

    def ensure(self, name: str, split: int, run: Run) -> None:
        """Pretrain the encoder of an arm unless it is there; an interrupted pretraining continues."""
        arm = self._arms[name]
        owner = arm.like or name
        if arm.fresh or not self._is_pretrained_here(owner):
            return
        out = self._own_folder(owner, self.seed(name, split))
        if out.is_dir():
            return
        run.note(f"pretraining {out.name}")
        partial = out.with_name(f"{out.name}.partial")
        place = self._folder.parent / "pretrain" / out.name
        place.mkdir(parents=True, exist_ok=True)
        settings = replace(self._settings(owner, self.seed(name, split)), out=str(partial))
        if self._steps_of(owner):
            settings.snapshots = True
        pretrain.run(settings, replace(run, folder=place))
        partial.replace(out)

    def identity(self, name: str, split: int) -> dict[str, Any]:
        """Everything about its encoder that an outcome of the arm depends on, JSON-ready.

        Raises:
            CheckpointError: A given checkpoint is missing or corrupt.
        """
        arm = self._arms[name]
        owner = arm.like or name
        source, seed = self._arms[owner], self.seed(name, split)
        facts: dict[str, Any] = {"fresh": arm.fresh, "finetune": arm.finetune, "still": arm.still, "seed": seed}
        if arm.step is not None:
            facts["step"] = arm.step
        if source.timm is not None:
            return {**facts, "timm": source.timm, "weights": source.weights, "input_size": source.input_size}
        if source.encoder is None:
            return {**facts, "pretrain": [*self._overrides, *(source.pretrain or [])]}
        card = read_card(resolve_checkpoint(self._path(name, seed)))
        if arm.fresh:
            return {**facts, "architecture": card["configs"]["encoder"]}
        return {**facts, "weights": sorted(entry["sha256"] for entry in card["files"].values())}

    def check(self) -> None:
        """Find every checkpoint that must be there already, and compose every pretraining.

        Raises:
            CheckpointError: A checkpoint is missing or corrupt.
            ConfigError: An override of a pretraining is wrong.
        """
        for name, arm in self._arms.items():
            owner = arm.like or name
            for seed in range(self._arms[owner].seeds):
                if self._is_pretrained_here(owner):
                    self._check_steps(owner, self._settings(owner, seed))
                elif self._arms[owner].encoder is not None:
                    read_card(resolve_checkpoint(self._path(owner, seed)))

    def settings(self, name: str, seed: int = 0) -> pretrain.Settings:
        """What an arm that is pretrained here is pretrained with.

        Raises:
            ConfigError: It is not pretrained here, or an override is wrong.
        """
        owner = self._arms[name].like or name
        if not self._is_pretrained_here(owner):
            raise ConfigError(f"arm {name} is not pretrained here: give arms.{owner}.pretrain=[...]")
        return self._settings(owner, seed)

    def pretrainings(self) -> list[str]:
        """Names of the encoders that are pretrained here and not there yet."""
        wanted = {
            self._own_folder(owner, seed)
            for name, arm in self._arms.items()
            if not arm.fresh and self._is_pretrained_here(owner := arm.like or name)
            for seed in range(self._arms[owner].seeds)
        }
        return sorted(path.name for path in wanted if not path.is_dir())

    def _is_pretrained_here(self, owner: str) -> bool:
        source = self._arms[owner]
        return source.encoder is None and source.timm is None

    def _own_folder(self, owner: str, seed: int) -> Path:
        return self._folder / f"{owner}-s{seed}"

    def _steps_of(self, owner: str) -> list[int]:
        """Steps of a pretraining of which another arm wants the encoder."""
        return sorted({arm.step for arm in self._arms.values() if arm.like == owner and arm.step is not None})

    def _check_steps(self, owner: str, settings: pretrain.Settings) -> None:
        spacing = pretrain.check_spacing(settings)
        for step in self._steps_of(owner):
            if not 0 < step <= settings.fit.steps or (step % spacing and step < settings.fit.steps):
                raise ConfigError(
                    f"{owner} keeps its encoder every {spacing} of {settings.fit.steps} steps, not at step {step}; "
                    "choose other steps, or set fit.eval_every in `pretrain`"
                )

    def _snapshot(self, name: str, seed: int) -> Path:
        arm = self._arms[name]
        pretrained = f"{arm.like}-s{seed}"
        path = self._folder.parent / "pretrain" / pretrained / "snapshots" / f"{arm.step:07d}"
        if not path.is_dir():
            raise CheckpointError(
                f"{path} is missing: {pretrained} was pretrained without keeping snapshots; "
                f"remove {self._folder / pretrained} and the folder of its run to pretrain it again"
            )
        return path

    def _path(self, name: str, seed: int) -> Path:
        owner = self._arms[name].like or name
        source = self._arms[owner]
        if source.encoder is None:
            path = self._own_folder(owner, seed)
            if not path.is_dir():
                raise CheckpointError(f"{path} has not been pretrained yet")
            return path
        number = seed % source.seeds  # a fresh arm numbers its own weights, not its model's
        return Path(source.encoder.replace("{seed}", str(number)))

    def _settings(self, owner: str, seed: int) -> pretrain.Settings:
        overrides = [*self._overrides, *(self._arms[owner].pretrain or []), f"fit.seed={seed}"]
        settings: pretrain.Settings = load("pretrain", [*overrides, f"data={self._data}"]).settings
        return settings

    def _image_size(self) -> int:
        """Side of the frames an image backbone is given: that of the other encoders."""
        for name, arm in self._arms.items():
            if arm.timm is None and arm.like is None:
                return self.config(name).image_size
        return TimmEncoderConfig.image_size
