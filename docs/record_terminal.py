"""Pictures of the program on a real terminal, for the README: `python docs/record_terminal.py`.

Runs `plan`, `evaluate`, `pretrain` and `train` in pseudo-terminals at a small size, follows what they write as a
terminal would (colours, cursor, erased lines), and draws the screen while the work goes on and at the end. The picture
is docs/images/terminal.png; data and runs go into outputs/terminal, where a second call finds the recording.
"""

from __future__ import annotations

import argparse
import codecs
import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from rich.color import Color

COLUMNS, ROWS = 100, 40
FOLDER = Path("outputs/terminal")
DATA = FOLDER / "reach.h5"
_SMALL = "encoder.embed_dim=96 encoder.depth=4 encoder.num_heads=3 encoder.num_frames=4 batch_size=8"
COMMANDS = {
    "plan": f"plan planner=cem_fast run_dir={FOLDER}/plan",
    "evaluate": f"evaluate env=reach episodes=10 planner=cem_fast batch=1 run_dir={FOLDER}/evaluate",
    "pretrain": f"pretrain data={DATA} {_SMALL} fit.steps=60 fit.log_every=5 run_dir={FOLDER}/vjepa",
    "train": f"train data={DATA} steps=300 eval_every=100 temporal_distance.steps=200 cache_dir={FOLDER}/features "
    f"run_dir={FOLDER}/model",
}
_INK, _PAPER, _PROMPT, _HALF = (222, 222, 222), (24, 26, 31), (126, 200, 140), (220, 190, 90)
_CONTROL = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|(\r|\n|\x08)|\x1b[()][A-Z0-9]")
_UNFINISHED = re.compile(r"(\x1b(\[[?\d;]*)?)?$")
_SIZE = 15


@dataclass
class Screen:
    """What a terminal shows: lines of (character, colour), and the cursor.

    Attributes:
        lines: Everything written so far, nothing scrolls away.
        row: Line of the cursor.
        column: Column of the cursor.
        colour: Of the next character.
        rest: Beginning of a control sequence whose end has not come yet.
    """

    lines: list[list[tuple[str, tuple[int, ...]]]] = field(default_factory=lambda: [[]])
    row: int = 0
    column: int = 0
    colour: tuple[int, ...] = _INK
    rest: str = ""

    def write(self, text: str) -> None:
        """Follow a piece of output."""
        text = self.rest + text
        self.rest = _UNFINISHED.search(text)[0]  # type: ignore[index]  # it finds at least nothing
        text = text.removesuffix(self.rest) if self.rest else text
        place = 0
        for match in _CONTROL.finditer(text):
            self._put(text[place : match.start()])
            place = match.end()
            if match[3]:
                self._move(match[3])
            elif match[2]:
                self._control(match[2], match[1])
        self._put(text[place:])

    def text(self) -> list[str]:
        """The lines without their colours."""
        return ["".join(character for character, _ in line).rstrip() for line in self.lines]

    def _put(self, text: str) -> None:
        for character in text:
            if self.column == COLUMNS:
                self._move("\n")
                self.column = 0
            line = self.lines[self.row]
            line += [(" ", _INK)] * (self.column + 1 - len(line))
            line[self.column] = (character, self.colour)
            self.column += 1

    def _move(self, character: str) -> None:
        if character == "\n":
            self.row += 1
            self.lines += [[] for _ in range(self.row + 1 - len(self.lines))]
        self.column = 0 if character == "\r" else max(0, self.column - (character == "\x08"))

    def _control(self, letter: str, numbers: str) -> None:
        count = int(numbers) if numbers.isdecimal() else 1
        if letter == "A":
            self.row = max(0, self.row - count)
        elif letter == "K":
            self.lines[self.row] = [] if numbers == "2" else self.lines[self.row][: self.column]
        elif letter == "m":
            self._style([int(part or 0) for part in numbers.split(";")])

    def _style(self, codes: list[int]) -> None:
        """Take the colour of a list of codes: 30 to 37 and 90 to 97, 38;5;n, and 0 or 39 for none."""
        rest = iter(codes)
        for code in rest:
            number = None
            if code == 38 and next(rest, 0) == 5:
                number = next(rest, 7)
            elif code // 10 in (3, 9) and code % 10 < 8:
                number = code % 10 + (8 if code >= 90 else 0)
            if number is not None:
                self.colour = _readable(tuple(Color.from_ansi(number).get_truecolor()))
            elif code in (0, 39):
                self.colour = _INK


def _readable(colour: tuple[int, ...]) -> tuple[int, ...]:
    """The colour, mixed with white where it is too dark for this paper, as terminals' own palettes do."""
    share = max(0.0, 1 - max(colour) / 200)
    return tuple(round(value + share * (255 - value)) for value in colour)


def output(arguments: str) -> Iterator[str]:
    """Run the program in a pseudo-terminal of `COLUMNS` x `ROWS`, and yield what it writes, piece by piece.

    Raises:
        RuntimeError: It failed.
    """
    terminal, end = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "worldmodel", *shlex.split(arguments)],
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)},
        **dict.fromkeys(("stdin", "stdout", "stderr"), end),
    )
    os.close(end)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while True:
        try:
            yield decoder.decode(os.read(terminal, 65536))
        except OSError:  # the other end is closed: Linux says so with EIO
            break
    os.close(terminal)
    if process.wait():
        raise RuntimeError(f"`worldmodel {arguments}` ended with status {process.returncode}")


def record(arguments: str) -> tuple[Screen, list[str]]:
    """Final screen of a command, and the progress lines as they stood at about half of the work."""
    screen, seen = Screen(), []
    for piece in output(arguments):
        screen.write(piece)
        bars = [line for line in screen.text() if "━" in line]
        if bars and (not seen or bars != seen[-1]):
            seen.append(bars)
    return screen, seen[len(seen) // 2] if seen else []


def draw(shown: dict[str, tuple[Screen, list[str]]], path: Path) -> Path:
    """Draw the commands below each other: prompt, progress at half time (yellow), final screen."""
    rows: list[list[tuple[str, tuple[int, ...]]]] = []
    for arguments, (screen, half) in shown.items():
        line = f"$ worldmodel {arguments}"
        rows += [[(one, _PROMPT) for one in line[at : at + COLUMNS]] for at in range(0, len(line), COLUMNS)]
        rows += [[(character, _HALF) for character in line[:COLUMNS]] for line in half]
        rows += [line for line, text in zip(screen.lines, screen.text(), strict=True) if text]
        rows.append([])
    font = ImageFont.truetype(findfont("DejaVu Sans Mono"), _SIZE)
    wide, tall = round(font.getlength("M")), round(1.25 * _SIZE)
    picture = Image.new("RGB", (wide * COLUMNS + 2 * _SIZE, tall * len(rows) + 2 * _SIZE), _PAPER)
    canvas = ImageDraw.Draw(picture)
    for row, line in enumerate(rows):
        for column, (character, colour) in enumerate(line):
            canvas.text((_SIZE + wide * column, _SIZE + tall * row), character, fill=colour, font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(32).save(path, optimize=True)
    return path


def main() -> None:
    """Record the commands that are named, all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(COMMANDS)}")
    parser.add_argument("--out", type=Path, default=Path("docs/images/terminal.png"))
    given = parser.parse_args()
    names = given.names or list(COMMANDS)
    if not DATA.exists() and {"pretrain", "train"} & set(names):
        for _ in output(f"collect env=reach episodes=40 out={DATA} run_dir={FOLDER}/collect"):
            pass
    shown = {COMMANDS[name]: record(COMMANDS[name]) for name in names}
    sys.stdout.write(f"{draw(shown, given.out)}: {given.out.stat().st_size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main()
