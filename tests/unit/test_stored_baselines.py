"""Baselines beside a checkpoint: kept by weights and tasks, refused when damaged."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from worldmodel.errors import ConfigError, DataError
from worldmodel.evaluation.episodes import EpisodeResult
from worldmodel.evaluation.manifest import Baseline, Manifest, build_manifest
from worldmodel.evaluation.model_baselines import ModelBaselinesConfig
from worldmodel.evaluation.stored_baselines import (
    check_storable,
    load_model_baselines,
    save_model_baselines,
    stored_path,
)
from worldmodel.testing import PointMassEnv


def baseline(*episodes: int) -> Baseline:
    """Outcomes of some episodes."""
    rows = tuple(
        EpisodeResult(
            episode=episode,
            held=episode % 2 == 0,
            ever=True,
            steps_to_success=3,
            start_distance_m=0.3,
            final_distance_m=0.01,
            min_distance_m=0.01,
            steps=20,
            replans=0,
        )
        for episode in episodes
    )
    return Baseline(rows=rows, budget={"steps": 7})


@pytest.fixture(name="manifest", scope="module")
def _manifest() -> Manifest:
    return build_manifest(PointMassEnv(render=False), episodes=4)


def test_they_are_kept_one_by_one_and_belong_to_weights_and_tasks(tmp_path: Path, manifest: Manifest) -> None:
    assert load_model_baselines(tmp_path, "aa", manifest) == {}
    save_model_baselines(tmp_path, "aa", manifest, {"idm": baseline(0, 1)})
    path = save_model_baselines(tmp_path, "aa", manifest, {"bc": baseline(0, 1, 2)})
    found = load_model_baselines(tmp_path, "aa", manifest)
    assert found == {"bc": baseline(0, 1, 2), "idm": baseline(0, 1)}
    assert load_model_baselines(tmp_path, "bb", manifest) == {}, "other weights"
    longer = build_manifest(PointMassEnv(render=False), episodes=5)
    assert load_model_baselines(tmp_path, "aa", longer) == {}, "other tasks"
    before = path.read_bytes()
    save_model_baselines(tmp_path, "aa", manifest, {"bc": baseline(0, 1, 2)})
    assert path.read_bytes() == before
    save_model_baselines(tmp_path, "bb", manifest, {"bc": baseline(0)})
    assert list(load_model_baselines(tmp_path, "bb", manifest)) == ["bc"], "nothing of the old weights is left"


def test_damage_is_told(tmp_path: Path, manifest: Manifest) -> None:
    path = save_model_baselines(tmp_path, "aa", manifest, {"bc": baseline(0, 1)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="delete it and run"):
        load_model_baselines(tmp_path, "aa", manifest)
    record = json.loads(gzip.decompress(whole))
    for change, message in (({"format": 9}, "format 9"), ({"baselines": {"bc": {}}}, "is corrupt")):
        path.write_bytes(gzip.compress(json.dumps({**record, **change}).encode()))
        with pytest.raises(DataError, match=message):
            load_model_baselines(tmp_path, "aa", manifest)
    path.unlink()
    save_model_baselines(tmp_path, "aa", manifest, {"bc": baseline(1, 0)})
    with pytest.raises(DataError, match="not the first tasks"):
        load_model_baselines(tmp_path, "aa", manifest)
    assert stored_path(tmp_path, manifest).parent == tmp_path / "baselines"


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="bc and idm learn from episodes"):
        ModelBaselinesConfig()
    with pytest.raises(ConfigError, match="got ibc"):
        ModelBaselinesConfig(names=("ibc",))
    with pytest.raises(ConfigError, match="names is empty"):
        ModelBaselinesConfig(names=())


def test_a_checkpoint_that_nothing_can_be_written_beside_is_refused_at_once(tmp_path: Path, manifest: Manifest) -> None:
    check_storable(tmp_path, manifest)
    assert list((tmp_path / "baselines").iterdir()) == []
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "baselines").write_text("a file, not a folder")
    with pytest.raises(ConfigError, match=r"cannot be written .*give checkpoint=COPY"):
        check_storable(blocked, manifest)
