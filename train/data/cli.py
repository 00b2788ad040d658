"""Makes and checks training data, WebDataset shards of edit sessions (see train/data/shards.py).

    python -m train data write --out runs/shards --sessions 4096 --turns 6 --size 128x128 --seed 1
    python -m train data convert photos/sessions --out runs/shards
    python -m train data convert edits.csv --images photos --out runs/shards
    python -m train data validate runs/shards

`write` draws sessions of the studio; `convert` takes a folder with a folder per session, or a .csv or .jsonl table
in the manner of MagicBrush; `validate` says in one line each what is wrong, and exits with 1 if anything is.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from anchoredit_model.errors import AnchorEditError

from .convert import convert_folders, convert_table
from .procedural import ProceduralConfig, studio_parts
from .session import Problems, languages_of
from .shards import ShardPart, shard_parts, store, write_shards


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m train data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{write,convert,validate}")
    command = commands.add_parser("write", help="sessions of the studio as shards")
    command.add_argument("--sessions", type=_positive, default=1024)
    command.add_argument("--turns", type=_positive, default=6)
    command.add_argument("--size", type=_size, default=(128, 128), help="WIDTHxHEIGHT in pixels, 128x128")
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--star", action="store_true", help="every edit starts from the source: for stage 1")
    command.add_argument("--compile", action="store_true", help="draw with compiled loops: worth it for thousands")
    command.add_argument("--device", default="cpu", help="to draw on")
    _add_output(command)
    command = commands.add_parser("convert", help="a folder of session folders, or a table, as shards")
    command.add_argument("source", type=Path)
    command.add_argument("--images", type=Path, help="folder that a table's paths start from; default: the table's")
    command.add_argument("--language", default="en", help="of instructions that do not say theirs")
    _add_output(command)
    command = commands.add_parser("validate", help="what is wrong with shards")
    command.add_argument("shards", type=Path, nargs="+", help=".tar files or folders of them")
    options = parser.parse_args(argv)
    {"write": _write, "convert": _convert, "validate": _validate}[options.command](options)


def validate(parts: list[ShardPart], problems: Problems) -> list[str]:
    """Read everything. What is wrong goes into `problems`; returns lines on what is there."""
    turns, sizes, languages, layouts = Counter(), Counter(), Counter(), Counter()
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


def _write(options: argparse.Namespace) -> None:
    width, height = options.size
    settings = ProceduralConfig(options.turns, height, width, options.seed, options.star)
    problems = Problems()
    parts = studio_parts(settings, options.sessions, device=options.device, compiled=options.compile)
    drawn = (session for part in parts for session in part.sessions(problems))
    sessions = (store(replace(session, star=options.star)) for session in drawn)
    _report(write_shards(sessions, options.out, options.name, options.per_shard), problems)


def _convert(options: argparse.Namespace) -> None:
    source, problems = options.source, Problems()
    if source.is_dir():
        sessions = convert_folders(source, options.language, problems)
    elif source.is_file():
        sessions = convert_table(source, options.images or source.parent, options.language, problems)
    else:
        raise AnchorEditError(f"'{source}' does not exist", "Give a folder of session folders, or a table")
    paths = write_shards(sessions, options.out, options.name, options.per_shard)
    _report(paths, problems)
    if not paths:
        raise AnchorEditError(f"'{source}' has no usable session", "See above for what is wrong")


def _validate(options: argparse.Namespace) -> None:
    problems = Problems()
    summary = validate(shard_parts(*options.shards), problems)
    for problem in problems.found:
        print(problem)
    if problems.found:
        print(f"{len(problems.found)} problems")
        sys.exit(1)
    print("\n".join(summary))


def _report(paths: list[Path], problems: Problems) -> None:
    for problem in problems.found:
        print(f"left out: {problem}", file=sys.stderr)
    for path in paths:
        print(path)


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, required=True, help="folder for the shards")
    command.add_argument("--name", default="shard", help="what shards are called before their number")
    command.add_argument("--per-shard", type=_positive, default=256, help="sessions in one shard")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is no number: give 1 or more")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    if not (match := re.fullmatch(r"(\d+)x(\d+)", text)):
        raise argparse.ArgumentTypeError(f"'{text}' is no size: write WIDTHxHEIGHT")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    main()
