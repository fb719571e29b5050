"""`worldmodel inspect`: what is in an episode file."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rich.table import Table

from worldmodel.analysis.inspect_data import DataSummary, contact_sheet, inspect
from worldmodel.commands.run import Outcome, Run, RunSettings


@dataclass(kw_only=True)
class Settings(RunSettings):
    """What to look at.

    Attributes:
        data: Episode file.
        out: Contact sheet to write (.png); None means contact_sheet.png in the run folder.
    """

    data: str
    out: str | None = None


def run(settings: Settings, run: Run) -> Outcome:
    """Summarise the file and draw its contact sheet."""
    summary = inspect(settings.data)
    sheet = settings.out if settings.out is not None else str(run.folder / "contact_sheet.png")
    contact_sheet(settings.data, sheet)
    warnings = [f"warning: {text}" for text in summary.warnings] or ["no warnings"]
    return Outcome(
        record={**asdict(summary), "contact_sheet": sheet},
        report=(_facts(summary), _statistics(summary), *warnings, f"contact sheet: {sheet}"),
    )


def _facts(summary: DataSummary) -> Table:
    table = Table(title=summary.path, show_header=False)
    table.add_column("what")
    table.add_column("value", overflow="fold")
    table.add_row("size", f"{summary.size_bytes / 2**20:.1f} MiB")
    table.add_row("content hash", summary.content_hash[:12])
    shortest, longest = summary.episode_len
    table.add_row("episodes", f"{summary.episodes} of {shortest} to {longest} frames")
    table.add_row("frames", f"{summary.frames} ({summary.minutes:.1f} minutes)")
    table.add_row("by environment", _counts(summary.episodes_per_env))
    table.add_row("by policy", _counts(summary.episodes_per_policy))
    for name, shape in summary.shapes.items():
        table.add_row(name, shape)
    table.add_row("brightness", f"{summary.pixel_mean:.0f} +- {summary.pixel_std:.0f}")
    table.add_row("contact rate", f"{summary.contact_rate:.1%}")
    for name, rate in summary.success_rate.items():
        table.add_row(f"success, {name}", f"{rate:.1%}")
    for name, share in summary.coverage.items():
        table.add_row(f"coverage, {name}", f"{share:.0%}")
    return table


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _statistics(summary: DataSummary) -> Table:
    table = Table(title="statistics over all frames")
    for name in ("array", "entry", "mean", "std", "min", "max"):
        table.add_column(name, justify="left" if name in ("array", "entry") else "right")
    for entry in summary.stats:
        numbers = (entry.mean, entry.std, entry.low, entry.high)
        table.add_row(entry.array, entry.name, *(f"{value:.3f}" for value in numbers))
    return table
