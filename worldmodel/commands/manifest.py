"""`worldmodel manifest`: freeze held-out tasks, with floors and ceiling."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from worldmodel.commands.run import Outcome, Run, RunSettings
from worldmodel.envs import resolve_env_id
from worldmodel.evaluation.baselines import ManifestConfig, baseline_table, check_lines, make_manifest, manifest_path
from worldmodel.evaluation.manifest_checks import strata_of
from worldmodel.evaluation.stats import success_interval, success_rate


@dataclass(kw_only=True)
class Settings(RunSettings, ManifestConfig):
    """`ManifestConfig`; the run folder is the one it continues from."""

    run_dir: str | None = None  # type: ignore[assignment]  # None here means a folder named by the time


def run(settings: Settings, run: Run) -> Outcome:
    """Draw the tasks, run the baselines, write the file."""
    config = replace(settings, run_dir=str(run.folder))
    out = manifest_path(config, resolve_env_id(config.env))
    run.note(f"Drawing {config.episodes} tasks of {config.env} and running random, no-op and oracle agents on them")
    run.kept = f"finished baseline episodes are in {run.folder}; continue with run_dir={run.folder}"
    manifest = make_manifest(config, progress=run.progress)
    rows = {name: [row.held for row in baseline.rows] for name, baseline in manifest.baselines.items()}
    record = {
        "path": str(out),
        "manifest_hash": manifest.hash,
        "episodes": len(manifest),
        "baselines": {
            name: {"success_rate": success_rate(held), "success_interval": list(success_interval(held))}
            for name, held in rows.items()
        },
        "checks": {name: value for name, value in manifest.checks.items() if name != "start_distance_m"},
        "strata": [asdict(stratum) for stratum in strata_of(manifest.checks["start_distance_m"])],
    }
    return Outcome(record=record, report=(baseline_table(manifest), *check_lines(manifest), f"manifest: {out}"))
