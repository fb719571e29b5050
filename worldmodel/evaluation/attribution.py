"""Why did an episode fail? One verdict per failure, from counterfactual replays of its task.

Each replay changes one thing, from the cheapest excuse to the last: more search, then true dynamics, then the true
cost. The first that succeeds names the culprit. Replays of an outcome that depends on luck can succeed by luck, so
every failure is also run once more as it was, with another random stream, and the share of those that then succeed is
reported beside the verdicts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.errors import ConfigError
from worldmodel.evaluation.baselines import OracleAgents
from worldmodel.evaluation.episodes import AgentFactory
from worldmodel.evaluation.evaluate import ModelAgents
from worldmodel.evaluation.evidence import Evidence, collect_evidence
from worldmodel.evaluation.manifest import Manifest
from worldmodel.evaluation.model_baselines import LatentOracleAgents
from worldmodel.evaluation.runlog import RunLog, describe
from worldmodel.evaluation.runs import Schedule, identity_of, run_manifest
from worldmodel.evaluation.stats import wilson_interval
from worldmodel.planners.base import Planner
from worldmodel.planners.cem import CEM
from worldmodel.planners.wider import enlarged

OPTIMISER, MODEL, COST, UNREACHABLE = "optimiser gap", "model error", "cost error", "unreachable within budget"
VERDICTS = {
    OPTIMISER: "succeeds with a larger search",
    MODEL: "succeeds with the true dynamics under the same cost",
    COST: "succeeds with the true dynamics and the true cost",
    UNREACHABLE: "none of these succeeds",
}
"""What each verdict means, in the order in which they are tried."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A run whose failures are explained.

    Attributes:
        manifest: Its tasks.
        factory: Its agent.
        seed: Its seed.
        failures: Episodes that did not hold success at the end.
        num_episodes: Episodes it ran.
    """

    manifest: Manifest
    factory: ModelAgents
    seed: int
    failures: tuple[int, ...]
    num_episodes: int

    def sampled(self, count: int, seed: int) -> Subject:
        """With at most `count` of the failures, drawn without replacement.

        Raises:
            ConfigError: `count` is not positive.
        """
        if count < 1:
            raise ConfigError(f"max_failures must be >= 1, got {count}")
        if len(self.failures) <= count:
            return self
        drawn = np.random.default_rng(seed).choice(len(self.failures), size=count, replace=False)
        return replace(self, failures=tuple(self.failures[index] for index in sorted(drawn)))


@dataclass(frozen=True, kw_only=True)
class Counterfactuals:
    """What the replays are allowed.

    Attributes:
        factor: How many times the run's own search is enlarged; the shipped default is taken where that is more.
        latent_oracle: Search on the true dynamics under the model's cost.
        latent_replan_every: Model steps it carries out between plans.
        oracle: Search on the true dynamics under the true cost.
    """

    factor: int
    latent_oracle: Planner
    latent_replan_every: int
    oracle: Planner

    def larger_search(self, factory: ModelAgents) -> Planner:
        """The run's search, enlarged, or the shipped default if that asks for more model calls.

        Raises:
            ConfigError: The run's search cannot be enlarged.
        """
        block = factory.world_model().spec.action_block
        larger, default = enlarged(factory.planner, self.factor), CEM(action_repeat=block)
        return larger if (larger.num_calls or 0) >= default.num_calls else default

    def agents(self, manifest: Manifest, factory: ModelAgents) -> dict[str, AgentFactory]:
        """The agent of each replay, by the verdict its success gives.

        Raises:
            ConfigError: As for `larger_search`.
        """
        return {
            OPTIMISER: replace(
                factory,
                planner=self.larger_search(factory),
                time_budget_s=None if factory.time_budget_s is None else self.factor * factory.time_budget_s,
            ),
            MODEL: LatentOracleAgents(
                env=manifest.env_id, model=factory, planner=self.latent_oracle, replan_every=self.latent_replan_every
            ),
            COST: OracleAgents(
                env=manifest.env_id, planner=self.oracle, action_block=factory.world_model().spec.action_block
            ),
        }


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Why one episode failed.

    Attributes:
        episode: Index of the task in its manifest.
        verdict: One of `VERDICTS`.
        again: Whether the run as it was succeeds with another random stream.
        evidence: What the episode itself shows.
    """

    episode: int
    verdict: str
    again: bool
    evidence: Evidence


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Verdicts on the failures of one run.

    Attributes:
        verdicts: One per failure, in the order of the manifest.
        num_failures: Failures of the run, of which the verdicts may be a sample.
        num_episodes: Episodes of the run.
        seed: Of the sample.
        searches: Settings of the replays.
    """

    verdicts: tuple[Verdict, ...]
    num_failures: int
    num_episodes: int
    seed: int
    searches: Mapping[str, Any]

    def counts(self) -> dict[str, int]:
        """Failures per verdict."""
        return {name: sum(entry.verdict == name for entry in self.verdicts) for name in VERDICTS}

    @property
    def num_again(self) -> int:
        """Failures that succeed when they are merely run again."""
        return sum(entry.again for entry in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready form; every share has its 95 % Wilson interval."""
        trials = len(self.verdicts)

        def share(count: int) -> dict[str, Any]:
            if not trials:
                return {"count": 0, "share": None, "interval": None}
            return {"count": count, "share": count / trials, "interval": list(wilson_interval(count, trials))}

        return {
            "episodes": self.num_episodes,
            "failures": self.num_failures,
            "explained": trials,
            "sample_seed": self.seed if trials < self.num_failures else None,
            "verdicts": {name: share(count) for name, count in self.counts().items()},
            "succeeds_when_run_again": share(self.num_again),
            "searches": dict(self.searches),
            "failures_table": [asdict(entry) for entry in self.verdicts],
        }


def explain(
    subject: Subject,
    counterfactuals: Counterfactuals,
    *,
    max_failures: int = 20,
    sample_seed: int = 0,
    workers: int = 1,
    run_dir: str | Path | None = None,
    note: Callable[[str], None] = lambda _: None,
    progress: bool = True,
) -> Explanation:
    """Give every failure of a run its verdict.

    Interrupting is safe when `run_dir` is given: the same call continues after the last finished block.

    Args:
        subject: The run.
        counterfactuals: What the replays are allowed.
        max_failures: Failures looked at; more are sampled.
        sample_seed: Of that sample.
        workers: Processes, one thread each; verdicts do not depend on it.
        run_dir: Folder that records finished replays; None keeps nothing.
        note: Told in one line what is tried next.
        progress: Show bars on stderr when that is a terminal.

    Raises:
        ConfigError: A value is out of range, or the run's search cannot be enlarged.
        CheckpointError: The run's checkpoint is gone or has changed.
    """
    chosen = subject.sampled(max_failures, sample_seed)
    manifest, factory = chosen.manifest, chosen.factory
    agents = counterfactuals.agents(manifest, factory)

    def solved(name: str, agent: AgentFactory, tasks: Sequence[int], seed: int) -> set[int]:
        schedule = Schedule(episodes=max(len(tasks), 1), workers=workers, seed=seed)
        log = None
        if run_dir is not None:
            log = RunLog(Path(run_dir) / name.replace(" ", "_"), identity_of(manifest, agent, schedule))
        runs = run_manifest(manifest, agent, schedule, log=log, only=tasks, label=name, progress=progress)
        return {run.result.episode for run in runs if run.result.held}

    found: dict[int, str] = {}
    for name, agent in agents.items():
        left = [episode for episode in chosen.failures if episode not in found]
        note(f"{len(left)} failures: which of them {VERDICTS[name].replace('succeeds', 'succeed', 1)}?")
        found |= dict.fromkeys(solved(name, agent, left, chosen.seed), name)
    note(f"{len(chosen.failures)} failures: which of them succeed when they are merely run again?")
    again = solved("again", factory, chosen.failures, chosen.seed + 1)
    evidence = collect_evidence(manifest, factory, chosen.failures, seed=chosen.seed, workers=workers)
    verdicts = [
        Verdict(episode=i, verdict=found.get(i, UNREACHABLE), again=i in again, evidence=evidence[i])
        for i in chosen.failures
    ]
    return Explanation(
        verdicts=tuple(verdicts),
        num_failures=len(subject.failures),
        num_episodes=subject.num_episodes,
        seed=sample_seed,
        searches={name: describe(agent.identity()) for name, agent in agents.items()},
    )
