"""Write, convert and validate training data: WebDataset shards of edit sessions (train/data/shards.py).

    python -m train data write --out runs/shards --sessions 4096 --turns 6 --size 128x128 --seed 1
    python -m train data convert photos/sessions --out runs/shards
    python -m train data convert edits.csv --images photos --out runs/shards
    python -m train data validate runs/shards

The layouts of folders and tables to convert are in train/data/convert.py.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anchoredit_model.errors import AnchorEditError

from .convert import convert_folders, convert_table
from .procedural import ProceduralConfig, studio_parts
from .session import Problems, languages_of
from .shards import ShardPart, StoredSession, shard_parts, store, write_shards


def add_commands(commands: Any) -> None:
    """Add the commands to the sub-parsers of an argparse parser; their help is the docstring that they run."""

    def add(name: str, handler) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=handler.__doc__, description=handler.__doc__)
        command.set_defaults(handler=handler)
        return command

    command = add("write", write)
    command.add_argument("--sessions", type=_positive, default=1024, help="how many (default: 1024)")
    command.add_argument("--turns", type=_positive, default=6, help="edits of a session (default: 6)")
    command.add_argument("--size", type=_size, default=(128, 128), help="WIDTHxHEIGHT in pixels (default: 128x128)")
    command.add_argument("--seed", type=int, default=1, help="of the sessions (default: 1)")
    command.add_argument("--star", action="store_true", help="every edit starts from the source: for stage 1")
    command.add_argument("--compile", action="store_true", help="render with compiled loops: for thousands of sessions")
    command.add_argument("--device", default="cpu", help="device to render on (default: cpu)")
    _add_output(command)
    command = add("convert", convert)
    command.add_argument("source", type=Path, help="a folder with a folder per session, or a .csv or .jsonl table")
    command.add_argument("--images", type=Path, help="folder that a table's paths are relative to (default: its own)")
    command.add_argument("--language", default="en", help="of instructions without a language (default: en)")
    _add_output(command)
    command = add("validate", validate)
    command.add_argument("shards", type=Path, nargs="+", help=".tar files or folders of them")


def write(options: argparse.Namespace) -> int:
    """Write sessions of the studio as shards."""
    width, height = options.size
    settings = ProceduralConfig(options.turns, height, width, options.seed, options.star)
    problems = Problems()
    parts = studio_parts(settings, options.sessions, device=options.device, compiled=options.compile)
    rendered = (session for part in parts for session in part.sessions(problems))
    _write((store(replace(session, star=options.star)) for session in rendered), options, problems)
    return 0


def convert(options: argparse.Namespace) -> int:
    """Convert a folder of session folders, or a table as of MagicBrush, to shards."""
    source, problems = options.source, Problems()
    if source.is_dir():
        sessions = convert_folders(source, options.language, problems)
    elif source.is_file():
        sessions = convert_table(source, options.images or source.parent, options.language, problems)
    else:
        raise AnchorEditError(f"'{source}' does not exist", "Give a folder of session folders, or a table")
    if not _write(sessions, options, problems):
        raise AnchorEditError(f"'{source}' has no usable session", "See the problems above")
    return 0


def validate(options: argparse.Namespace) -> int:
    """Print one line for each problem in shards, and exit with 1 if there are any."""
    problems = Problems()
    summary = summarise(shard_parts(*options.shards), problems)
    lines = [*map(str, problems.found), f"{len(problems.found)} problems"] if problems.found else summary
    print(*lines, sep="\n")
    return 1 if problems.found else 0


def summarise(parts: Sequence[ShardPart], problems: Problems) -> list[str]:
    """Read all shards, add what is wrong to `problems` and return lines that describe the sessions."""
    turns: Counter[int] = Counter()
    sizes: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    layouts: Counter[str] = Counter()
    first_shard: dict[str, str] = {}
    for part in parts:
        count = 0
        known = len(problems.found)
        for session in part.sessions(problems):
            count += 1
            height, width = session.images.shape[-2:]
            turns[session.turns] += 1
            sizes[f"{width}x{height}"] += 1
            languages.update(languages_of(session.instructions))
            layouts["stars" if session.star else "chains"] += 1
            earlier = first_shard.setdefault(session.key, part.path.name)
            if earlier != part.path.name:
                problems.add(part.path.name, session.key, "duplicate key", f"{earlier} has it as well")
        if not count and len(problems.found) == known:
            problems.add(part.path.name, "", "empty shard", "no session")
    return [
        f"{sum(turns.values())} sessions in {len(parts)} shards, {sum(n * count for n, count in turns.items())} turns",
        *(
            f"{title}: {', '.join(f'{count} x {value}' for value, count in sorted(counts.items()))}"
            for title, counts in (("turns", turns), ("sizes", sizes), ("languages", languages), ("layouts", layouts))
        ),
    ]


def _write(sessions: Iterable[StoredSession], options: argparse.Namespace, problems: Problems) -> list[Path]:
    """Write shards and print their paths, and the problems on stderr."""
    paths = write_shards(sessions, options.out, options.name, options.per_shard)
    for problem in problems.found:
        print(f"left out: {problem}", file=sys.stderr)
    for path in paths:
        print(path)
    return paths


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, required=True, help="folder for the shards")
    command.add_argument("--name", default="shard", help="name of the shards before their number (default: shard)")
    command.add_argument("--per-shard", type=_positive, default=256, help="sessions per shard (default: 256)")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got '{text}'")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    if not (match := re.fullmatch(r"(\d+)x(\d+)", text)):
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT, got '{text}'")
    return int(match[1]), int(match[2])
