"""The `worldmodel` program: parse, run one command, report.

`main` returns the exit status and is safe to call in-process. Whatever a user can get wrong ends as one line on stderr
and status 2; a traceback means a bug. With `--json` stdout holds one object (with `-m` one list) and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from worldmodel.commands import COMMANDS, spoken
from worldmodel.errors import ConfigError, WorldModelError

if TYPE_CHECKING:
    from worldmodel.commands.run import Outcome, Run
    from worldmodel.config import RunConfig

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130
FLAGS = ("--help", "--json", "--dry-run", "--multirun", "--version")
_SHORT = {"-h": "--help", "-m": "--multirun"}
_RECORD_FILE, _SUMMARY_FILE = "outcome.json", "summary.json"
_OVERRIDE = re.compile(r"[+~]*(hydra/)?[\w.@]+=|~[\w.@]+$")
"""Beginning of a Hydra override; a path with an equals sign has a slash before it."""


@dataclass(kw_only=True)
class Request:
    """A parsed command line.

    Attributes:
        command: Name of the command, or None for the general help.
        overrides: Hydra overrides; words without a key are among them, under the setting they are for.
        flags: Those of `FLAGS` that were given.
    """

    command: str | None
    overrides: list[str] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)


def main(argv: Sequence[str]) -> int:
    """Run the program.

    Args:
        argv: Arguments without the program name.

    Returns:
        0 for success, 2 for anything the user can correct, 130 when interrupted.
    """
    state = _State()
    try:
        return _dispatch(parse(argv), state)
    except WorldModelError as error:
        _complain(_one_line(str(error)))
        return EXIT_ERROR
    except BrokenPipeError:  # the reader of a pipe went away: nothing to say and nobody to say it to
        return EXIT_ERROR
    except OSError as error:
        if error.filename is None:
            raise
        _complain(f"{error.strerror}: {error.filename}")
        return EXIT_ERROR
    except KeyboardInterrupt:
        kept = state.run.kept if state.run is not None else ""
        _complain(f"interrupted; {kept or 'nothing was started'}")
        return EXIT_INTERRUPTED


def parse(argv: Sequence[str]) -> Request:
    """Split arguments into command, flags and overrides.

    Raises:
        ConfigError: Unknown command or flag; the message lists the valid ones and the nearest. Or more words than the
            command takes.
    """
    request = Request(command=None)
    words: list[str] = []
    bare: list[str] = []
    for argument in argv:
        name = _SHORT.get(argument, argument)
        if name.startswith("-"):
            if name not in FLAGS:
                raise _unknown("option", argument, [*FLAGS, *_SHORT])
            request.flags.add(name)
        elif request.command is None:
            words.append(name)
            if "_".join(words) in COMMANDS:
                request.command = "_".join(words)
            elif not any(command.startswith("_".join([*words, ""])) for command in COMMANDS):
                raise _unknown("command", " ".join(words), [spoken(command) for command in COMMANDS])
        elif COMMANDS[request.command].positional is not None and not _OVERRIDE.match(argument):
            bare.append(argument)
        else:
            request.overrides.append(argument)
    if bare and request.command is not None:
        request.overrides.append(_positional_override(request.command, bare))
    if words and request.command is None and "--help" not in request.flags:
        valid = [spoken(command) for command in COMMANDS if command.startswith(f"{words[0]}_")]
        raise ConfigError(f"{words[0]!r} is the beginning of a command; valid: {', '.join(valid)}")
    return request


def _positional_override(command: str, words: Sequence[str]) -> str:
    """Words without a key as the override of the setting that they are for, in Hydra's quotes."""
    entry = COMMANDS[command]
    # A quote is escaped, and backslashes are doubled only where they precede one: Hydra's grammar.
    quoted = ["'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), word) + "'" for word in words]
    if entry.takes_many:
        return f"{entry.positional}=[{','.join(quoted)}]"
    if len(words) > 1:
        raise ConfigError(f"{spoken(command)} takes one {_word(command)}, got {len(words)}: {', '.join(words)}")
    return f"{entry.positional}={quoted[0]}"


def _word(command: str) -> str:
    """What the help calls a word without a key."""
    entry = COMMANDS[command]
    name = (entry.positional or "").upper()
    return name.removesuffix("S") if entry.takes_many else name


class _State:
    """What an interruption has to know."""

    run: Run | None = None


def _dispatch(request: Request, state: _State) -> int:
    if "--version" in request.flags:
        from worldmodel import __version__

        _out().print(f"worldmodel {__version__}", highlight=False)
        return 0
    if request.command is None or "--help" in request.flags:
        _out().print(help_text(request.command), highlight=False, markup=False, soft_wrap=True)
        return 0
    if "--multirun" in request.flags:
        return _multirun(request, state)
    from worldmodel.config import load

    config = load(request.command, request.overrides)
    if "--dry-run" in request.flags:
        return _dry_run(config, request)
    from worldmodel.commands.run import default_folder

    folder = Path(config.settings.run_dir or default_folder(request.command))
    outcome = _run(config, folder, request, state)
    _present(outcome, request)
    return outcome.status


def _run(config: RunConfig, folder: Path, request: Request, state: _State) -> Outcome:
    """Run one configured command in its folder."""
    from worldmodel.commands.run import Run, open_folder
    from worldmodel.hardware import describe_device, package_versions

    has_json = "--json" in request.flags
    facts = {
        "overrides": request.overrides,
        "seed": getattr(config.settings, "seed", None),
        "device": describe_device(),
        "versions": package_versions(),
    }
    open_folder(folder, config.command, config.to_yaml(), facts)
    console = Console(stderr=True) if has_json else _out()
    state.run = Run(folder=folder, console=console, kept=f"the run folder is {folder}")
    command = import_module(f"worldmodel.commands.{config.command}")
    with contextlib.redirect_stdout(sys.stderr) if has_json else contextlib.nullcontext():
        outcome: Outcome = command.run(config.settings, state.run)
    return outcome


def _dry_run(config: RunConfig, request: Request) -> int:
    """Show the resolved configuration and, of a command that can tell, what it amounts to; nothing is written."""
    plan = getattr(import_module(f"worldmodel.commands.{config.command}"), "plan", None)
    facts: dict[str, Any] = {} if plan is None else plan(config.settings)
    if "--json" in request.flags:
        _write_json({**config.resolved, "plan": facts} if facts else config.resolved)
    else:
        _out().print(f"# worldmodel {spoken(config.command)} would run with\n{config.to_yaml()}", end="", **_PLAIN)
        for name, value in facts.items():
            _out().print(f"# {name.replace('_', ' ')}: {value}", **_PLAIN)
    return 0


def _multirun(request: Request, state: _State) -> int:
    """One run per combination of the listed values; their records end up in one list."""
    from worldmodel.commands.run import default_folder
    from worldmodel.config import combinations, sweep

    assert request.command is not None
    own = [line for line in request.overrides if not line.startswith("run_dir=")]
    given = [line.removeprefix("run_dir=") for line in request.overrides if line.startswith("run_dir=")]
    folder = Path(given[-1]) if given else default_folder(f"{request.command}-multirun")
    configs = combinations(request.command, own)
    if "--dry-run" in request.flags:
        for config in [] if "--json" in request.flags else configs:
            _dry_run(config, request)
        if "--json" in request.flags:
            _write_json([config.resolved for config in configs])
        return 0
    statuses = []

    def job(config: RunConfig, job_folder: Path) -> None:
        outcome = _run(config, job_folder, request, state)
        (job_folder / _RECORD_FILE).write_text(json.dumps(outcome.record), encoding="utf-8")
        statuses.append(outcome.status)
        if "--json" not in request.flags:
            _present(outcome, request)

    sweep(request.command, own, job, folder)
    files = [folder / str(number) / _RECORD_FILE for number in range(len(configs))]
    records = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    if "--json" in request.flags:
        _write_json(records)
    _summarise(records, folder, request)
    return max(statuses, default=0)


def _summarise(records: Sequence[dict[str, Any]], folder: Path, request: Request) -> None:
    """What a command says about all jobs of a multirun together, if it says anything: into the folder, and shown."""
    command = import_module(f"worldmodel.commands.{request.command}")
    if len(records) < 2 or not hasattr(command, "summary"):
        return
    outcome: Outcome = command.summary(records)
    (folder / _SUMMARY_FILE).write_text(json.dumps(outcome.record, indent=2) + "\n", encoding="utf-8")
    if "--json" not in request.flags:
        _present(outcome, request)


def _present(outcome: Outcome, request: Request) -> None:
    if "--json" in request.flags:
        _write_json(outcome.record)
        return
    console = _out()
    for part in outcome.report:
        console.print(part, **(_PLAIN if isinstance(part, str) else {}))


def help_text(command: str | None = None) -> str:
    """Help of the program or of one command; each fits one screen."""
    if command is None:
        names = "\n".join(f"  {spoken(name):<16}{entry.summary}" for name, entry in COMMANDS.items())
        return (
            "worldmodel: plan robot manipulation in V-JEPA representations\n"
            "usage: worldmodel COMMAND [key=value ...] [flags]      keys and examples: worldmodel COMMAND --help\n\n"
            f"{names}\n\n{_FLAG_HELP}\n\n"
            "start with:\n  worldmodel plan                     watch the shipped model push a block\n"
            "  worldmodel evaluate episodes=10     measure it"
        )
    entry = COMMANDS[command]
    keys = "\n".join(f"  {key:<22}{text}" for key, text in entry.keys)
    examples = "\n".join(f"  {line}" for line in entry.examples)
    name = spoken(command)
    words = (
        "" if entry.positional is None else f"{_word(command)} {f'{_word(command)} ... ' if entry.takes_many else ''}"
    )
    return (
        f"worldmodel {name}: {entry.summary}\n\nusage: worldmodel {name} {words}[key=value ...] [flags]\n\n"
        + (f"{keys}\n\n" if keys else "")
        + f"{_FLAG_HELP}\n\nexamples:\n{examples}\n\nall settings: worldmodel {name} --dry-run"
    )


_FLAG_HELP = """flags:
  --json       one JSON object on stdout and nothing else
  --dry-run    show every setting, do nothing
  -m           run once per combination of key=a,b values (Hydra multirun)
  run_dir=DIR  folder of the run (default: outputs/COMMAND/TIME)"""

_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}


def _write_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
    sys.stdout.flush()


def _out() -> Console:
    return Console(file=sys.stdout)


def _complain(line: str) -> None:
    sys.stderr.write(f"worldmodel: {line}\n")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _unknown(kind: str, name: str, valid: Sequence[str]) -> ConfigError:
    import difflib

    near = difflib.get_close_matches(name, valid, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"unknown {kind} {name!r}; valid: {', '.join(valid)}{hint}")
