"""Ridge probes against the closed form, and honest about episodes they were fitted on."""

from __future__ import annotations

import numpy as np
import pytest

from worldmodel.errors import ConfigError, DataError
from worldmodel.learning.probes import fit_ridge, probe


def data(rows: int = 400, columns: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, columns)) * rng.uniform(0.1, 10, columns) + rng.normal(size=columns)
    weight = rng.normal(size=(columns, 2)) / features.std(axis=0)[:, None]
    targets = features @ weight + 3 + rng.normal(size=(rows, 2)) * [0.01, 0.5]
    return features, targets, np.arange(rows) // 10


def test_both_forms_solve_the_same_problem() -> None:
    features, targets, _ = data()
    wide = np.concatenate([features, np.random.default_rng(1).normal(size=(400, 900))], axis=1)
    for x in (features, wide):
        standard = (x - x.mean(0)) / x.std(0)
        gram = standard.T @ standard + 0.1 * len(x) * np.eye(x.shape[1])
        expected = standard @ np.linalg.solve(gram, standard.T @ (targets - targets.mean(0))) + targets.mean(0)
        assert np.allclose(fit_ridge(x, targets, penalty=0.1).predict(x), expected, atol=1e-6)


def test_linear_variables_are_found_and_reported_one_by_one() -> None:
    features, targets, episodes = data()
    report = probe(features.reshape(400, 3, 4), targets, episodes, ("easy", "noisy"))
    assert report.rmse[0] < 0.05
    assert report.rmse[1] == pytest.approx(0.5, rel=0.2)
    assert report.r2[0] > 0.99 > report.r2[1]
    assert report.to_dict().keys() == {"easy_rmse", "noisy_rmse", "easy_r2", "noisy_r2"}
    assert report.num_train + report.num_test == 400


def test_memorised_episodes_earn_nothing() -> None:
    """Features that only name the episode fit the training side perfectly and must fail on the other."""
    episodes = np.arange(400) // 10
    features = np.eye(40)[episodes]
    targets = np.random.default_rng(0).normal(size=(40, 1))[episodes]
    report = probe(features, targets, episodes, ("value",))
    assert report.r2[0] < 0.1


def test_constant_columns_and_variables_do_no_harm() -> None:
    features, targets, episodes = data()
    features[:, 0] = 7.0
    targets[:, 1] = 2.0
    report = probe(features, targets, episodes, ("a", "constant"))
    assert np.isnan(report.r2[1])
    assert report.rmse[1] < 1e-6


def test_the_penalty_is_chosen_by_held_out_episodes() -> None:
    rng = np.random.default_rng(0)
    features, episodes = rng.normal(size=(60, 200)), np.arange(60) // 3
    targets = rng.normal(size=(60, 40))  # nothing to find: the largest penalty is right
    names = [f"noise{index}" for index in range(40)]
    assert probe(features, targets, episodes, names, penalties=(1e-6, 10.0)).penalty == 10.0


def test_frames_are_limited_and_the_seed_decides() -> None:
    features, targets, episodes = data()
    report = probe(features, targets, episodes, ("a", "b"), max_frames=50)
    assert (report.num_train, report.num_test) == (50, 50)
    again = probe(features, targets, episodes, ("a", "b"), max_frames=50)
    assert np.array_equal(report.rmse, again.rmse)


def test_bad_input_is_named() -> None:
    features, targets, episodes = data()
    with pytest.raises(ConfigError, match="names"):
        probe(features, targets, episodes, ("a",))
    with pytest.raises(ConfigError, match="test_fraction"):
        probe(features, targets, episodes, ("a", "b"), test_fraction=0.0)
    with pytest.raises(DataError, match="episodes"):
        probe(features, targets, np.zeros(400), ("a", "b"))
    with pytest.raises(DataError, match="rows"):
        probe(features, targets, episodes[:-1], ("a", "b"))
    features[3, 3] = np.nan
    with pytest.raises(DataError, match="NaN"):
        probe(features, targets, episodes, ("a", "b"))
    with pytest.raises(ConfigError, match="penalty"):
        fit_ridge(features, targets, penalty=0.0)
