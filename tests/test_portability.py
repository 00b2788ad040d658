"""What differs on Windows, checked on any system: file names, encodings, line ends."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("anchoredit_model", "studio", "train", "benchmark", "nodes", "scripts")
IN_COMFYUI = ("anchoredit_model", "nodes")
BOM = b"\xef\xbb\xbf"  # which editors on Windows put before UTF-8


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


# ---------------------------------------------------------------------------------------------------------- encodings


def uses_the_systems_encoding(call: ast.Call) -> bool:
    """Say whether a call opens, reads or writes text without naming an encoding."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = function.value if isinstance(function, ast.Attribute) else None
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in keywords:
        return False
    if name in ("read_text", "write_text"):
        return len(call.args) < (1 if name == "read_text" else 2) and owner is not None
    if name in ("run", "Popen", "check_output"):
        return bool({"text", "universal_newlines"} & set(keywords))
    if name not in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile"):
        return False
    if name == "open" and isinstance(owner, ast.Name) and (owner.id[0].isupper() or owner.id in ("os", "tarfile")):
        return False  # Image.open and others that are about bytes
    first = 1 if owner is None or name == "fdopen" else 0  # of a path, the mode is the first argument
    default = "r" if "open" in name else "w+b"
    mode = keywords.get("mode", call.args[first] if len(call.args) > first else ast.Constant(default))
    return not (isinstance(mode, ast.Constant) and "b" in str(mode.value))


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("open(p)", True),
        ("open(p, 'w')", True),
        ("open(p, 'rb')", False),
        ("open(p, mode=kind)", True),
        ("p.open()", True),
        ("p.open('wb')", False),
        ("p.open('a', encoding='utf-8')", False),
        ("p.read_text()", True),
        ("p.read_text('utf-8')", False),
        ("p.write_text(t)", True),
        ("p.write_text(t, encoding='utf-8')", False),
        ("Image.open(p)", False),
        ("os.fdopen(f, 'w')", True),
        ("NamedTemporaryFile()", False),
        ("subprocess.run(c, text=True)", True),
    ],
)
def test_the_check_of_encodings_knows_every_way_to_open_a_file(text, wrong):
    assert uses_the_systems_encoding(ast.parse(text, mode="eval").body) is wrong


def test_text_files_are_read_and_written_in_a_named_encoding():
    wrong = [
        f"{path.relative_to(ROOT).as_posix()}:{node.lineno}"
        for path in [ROOT / "__init__.py", *sources(*PACKAGES)]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and uses_the_systems_encoding(node)
    ]
    assert not wrong, wrong


def test_sources_that_run_in_comfyui_can_be_read_as_cp1252():
    """ComfyUI's own linter reads them so. Other letters are written as escapes."""
    for path in [ROOT / "__init__.py", *sources(*IN_COMFYUI)]:
        path.read_text(encoding="utf-8").encode("cp1252")
        path.read_bytes().decode("cp1252")


UNDER_A_BARE_LOCALE = """
import locale, sys
from pathlib import Path
from studio.instructions import _phrases
from train.config_io import load_config
from train.data.convert import convert_folders, convert_table
from train.data.session import Problems

assert "utf" not in locale.getpreferredencoding(False).lower()
_phrases()
folder, problems = Path(sys.argv[1]), Problems()
(listed,) = convert_folders(folder / "lists", "zh", problems)
(written,) = convert_folders(folder / "texts", "zh", problems)
(tabled,) = convert_table(folder / "table.csv", folder / "lists" / "one", "zh", problems)
(lines,) = convert_table(folder / "table.jsonl", folder / "lists" / "one", "zh", problems)
texts = [list(session.instructions) for session in (listed, written, tabled, lines)]
assert texts == [[{"zh": "\\u53d8\\u7ea2"}]] * 4, texts
assert load_config(str(folder / "wan.yaml")).parts.vae == "\\u53d8\\u7ea2"
"""


def as_windows_saves(text: str) -> bytes:
    return BOM + text.replace("\n", "\r\n").encode("utf-8")


@pytest.mark.slow
def test_files_that_people_write_are_read_alike_everywhere(tmp_path):
    """With CRLF and a byte-order mark, and under a locale that knows no Chinese, as cp1252 does not."""
    red = "\u53d8\u7ea2"
    for kind in ("lists", "texts"):
        folder = tmp_path / kind / "one"
        folder.mkdir(parents=True)
        for name in ("source.png", "turn1.png"):
            Image.new("RGB", (16, 16)).save(folder / name)
    row = {"session": "one", "turn": 1, "source": "source.png", "target": "turn1.png", "instruction": red}
    for name, text in {
        "lists/one/instructions.json": json.dumps([{"zh": red}], ensure_ascii=False, indent=1),
        "texts/one/instructions.txt": f"{red}\n",
        "table.csv": f"{','.join(row)}\n{','.join(map(str, row.values()))}\n",
        "table.jsonl": json.dumps(row, ensure_ascii=False) + "\n",
        "wan.yaml": f"parts:\n  vae: {red}\n",
    }.items():
        (tmp_path / name).write_bytes(as_windows_saves(text))
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-X", "warn_default_encoding", "-c", UNDER_A_BARE_LOCALE, str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, **locale}, cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    ours = [line for line in done.stderr.decode(errors="replace").splitlines() if "EncodingWarning" in line]
    assert not [line for line in ours if line.startswith(str(ROOT)) and "site-packages" not in line]


@pytest.mark.slow
def test_what_a_command_prints_never_stops_it(tmp_path):
    """On Windows the standard output is cp1252 where it goes to a file or a pipe."""
    folder = tmp_path / "sessions" / "one"
    folder.mkdir(parents=True)
    for name in ("source.png", "turn1.png"):
        Image.new("RGB", (16, 16)).save(folder / name)
    (folder / "instructions.txt").write_text("red", encoding="utf-8")
    out = tmp_path / "\u53d8\u7ea2"
    command = [sys.executable, "-m", "train", "data", "convert", str(folder.parent), "--out", str(out)]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True)
    assert done.returncode == 0 and b"\\u53d8\\u7ea2" in done.stdout, done.stderr.decode(errors="replace")


# --------------------------------------------------------------------------------------------------------- file names


@pytest.fixture(scope="module")
def paths() -> ModuleType:
    """nodes/host/paths.py without a host: its package and those above it are empty."""
    names = ("a_pack", "a_pack.nodes", "a_pack.nodes.host")
    for name in names:
        package = ModuleType(name)
        package.__path__ = [str(ROOT.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    yield importlib.import_module("a_pack.nodes.host.paths")
    for name in [name for name in sys.modules if name.startswith("a_pack")]:
        del sys.modules[name]


GOOD = [
    "edit",
    "my edits/first",
    "my edits\\first",
    ".hidden",
    "a.b",
    "v1.0/x",
    "\u53d8\u7ea2",
    "console",
    "nul1",
    "%year%/x",
]
OUTSIDE = [
    *("/etc/x", "\\x", "\\\\server\\share\\x", "//server/share/x", "C:\\x", "C:/x", "C:x", "c:", "a:stream"),
    *("../x", "..\\x", "a/../../x", "a\\..\\..\\x", "..", "\\\\?\\C:\\x", "\\\\.\\COM1"),
]
EMPTY = ["", ".", "./", "a\0b"]
NOT_ON_WINDOWS = [
    *("CON", "con", "nul.txt", "folder/COM1", "aux/x", "LPT9.safetensors", "PRN .x", "CONIN$", "com0\\x"),
    *("x.", "x ", "folder./x", "folder /x", "x. .", "ab:stream", "what?", "a*", 'a"b', "a<b>", "a|b", "a\nb"),
]


@pytest.mark.parametrize("name", GOOD)
def test_names_that_every_system_can_store_are_taken(paths, name):
    paths.check_relative(name, "name")
    paths.check_new(name, "name")


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_on_any_system_are_refused(paths, name):
    for check in (paths.check_relative, paths.check_new):
        with pytest.raises(Exception, match="leads out") as caught:
            check(name, "name")
        assert type(caught.value).__name__ == "AnchorEditError"


@pytest.mark.parametrize("name", EMPTY)
def test_what_names_no_file_is_refused(paths, name):
    with pytest.raises(Exception, match="must be a file name"):
        paths.check_relative(name, "name")


@pytest.mark.parametrize("name", NOT_ON_WINDOWS)
def test_names_that_windows_cannot_store_are_refused_for_new_files(paths, name):
    with pytest.raises(Exception, match="must not"):
        paths.check_new(name, "name")


def test_every_file_of_ours_can_be_stored_on_windows(paths):
    """No reserved name, none that differs from another by case alone, and none too long below a folder of the host."""
    folders = (*PACKAGES, "docs", "locales", "tests", "web", "workflows")
    files = [path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*")]
    for name in files:
        paths.check_new(name, name)
        assert len(name) <= 120, name
    assert not [name for name, count in Counter(map(str.lower, files)).items() if count > 1]
