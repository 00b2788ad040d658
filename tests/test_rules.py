"""The rules of the tree, read from the imports themselves: who may import whom, no circles, no crowded folder.

Every module of the packages is parsed, none is imported. Imports inside functions count for the rules between
packages; for circles only those at the top level of a module, those for type checkers included.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from glob import glob
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_MODULES = 14  # in one folder, __init__ and __main__ not counted

# What a package may import of the others, as prefixes.
MAY_IMPORT = {
    "anchoredit_model": [],
    "studio": [f"anchoredit_model.{name}" for name in ("images", "drift", "errors", "atomic_write")],
    "train": ["anchoredit_model", "studio"],
    "benchmark": ["anchoredit_model", "studio"],
    "nodes": ["anchoredit_model"],
}
IN_COMFYUI = ("anchoredit_model", "nodes")
# Top-level folders that the node manager's archive holds; all others are in .comfyignore.
SHIPPED = {*IN_COMFYUI, "locales", "web", "workflows"}
# Top-level modules of ComfyUI. All but its public interface, comfy_api, are for nodes/host alone.
HOST = {
    *("app", "comfy", "comfy_config", "comfy_execution", "comfy_extras", "comfyui_version", "execution"),
    *("folder_paths", "latent_preview", "main", "nodes", "protocol", "server"),
}
# Modules of the benchmark that ComfyUI's interpreter runs, to measure ComfyUI's own code beside ours.
RUNS_IN_A_HOST = ("patch",)
# What a module that runs in ComfyUI may import on its own import: the rest would be a new dependency there.
IN_EVERY_COMFYUI = {"numpy", "PIL", "safetensors", "torch"}


class Import(NamedTuple):
    """One name that a module imports, by its path from the root of the repository.

    `relative` is whether it is written with dots, `deferred` whether it runs when a function is called, `optional`
    whether the module runs without it: it is tried, or it is for type checkers only.
    """

    line: int
    name: str
    relative: bool
    deferred: bool
    optional: bool


def modules(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py") if "__pycache__" not in path.parts)


def folders(package: str) -> list[Path]:
    return sorted({path.parent for path in modules(package)})


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@cache
def imports(path: Path) -> list[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return list(_imports(tree, path, deferred=False, optional=False))


def _imports(node: ast.AST, path: Path, deferred: bool, optional: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(child.lineno, alias.name, False, deferred, optional)
        elif isinstance(child, ast.ImportFrom):
            parts = path.relative_to(ROOT).parts
            base = [*parts[: len(parts) - child.level]] if child.level else []
            source = ".".join([*base, *([child.module] if child.module else [])])
            for alias in child.names:
                name = f"{source}.{alias.name}" if is_module(f"{source}.{alias.name}") else source
                yield Import(child.lineno, name, child.level > 0, deferred, optional)
        else:
            later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            tried = isinstance(child, ast.Try) and bool(child.handlers)
            for_types = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
            yield from _imports(child, path, deferred or later, optional or tried or for_types)


def under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def top(found: Import) -> str:
    return found.name.split(".")[0]


def at(path: Path, found: Import) -> str:
    return f"{path.relative_to(ROOT).as_posix()}:{found.line} imports {found.name}"


def build_settings() -> dict:
    toml = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def of_ours(found: Import) -> bool:
    """An absolute import of `nodes` is ComfyUI's own nodes.py, see test_only_nodes_know_comfyui."""
    return found.relative or any(under(found.name, name) for name in {*MAY_IMPORT, "scripts", "tests"} - {"nodes"})


def test_every_package_has_its_rule():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(MAY_IMPORT)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_it_may(package):
    allowed = [package, *MAY_IMPORT[package]]
    wrong = []
    for path in modules(package):
        for found in filter(of_ours, imports(path)):
            if not any(under(found.name, name) for name in allowed):
                wrong.append(at(path, found))
    assert not wrong, "\n".join(wrong)


def test_the_entry_file_imports_only_the_nodes():
    found = [found for found in imports(ROOT / "__init__.py") if top(found) not in sys.stdlib_module_names]
    assert [(name.name, name.relative) for name in found] == [("nodes", True)]


@pytest.mark.parametrize("package", IN_COMFYUI)
def test_what_runs_in_comfyui_imports_its_own_by_dots(package):
    """The host loads the pack by path, so `import anchoredit_model` would find another copy or none."""
    wrong = [
        at(path, found) for path in modules(package) for found in imports(path) if of_ours(found) and not found.relative
    ]
    assert not wrong, "\n".join(wrong)


def test_only_nodes_know_comfyui_and_only_their_host_folder_its_internals():
    wrong = []
    for package in MAY_IMPORT:
        for path in modules(package):
            if package == "nodes":
                forbidden = set() if ROOT / "nodes" / "host" in path.parents else HOST
            else:
                forbidden = {*HOST, "comfy_api"}
            for found in imports(path):
                allowed = found.deferred and package == "benchmark" and path.stem in RUNS_IN_A_HOST
                if top(found) in forbidden and not found.relative and not allowed:
                    wrong.append(at(path, found))
    assert not wrong, "\n".join(wrong)


def test_the_pack_needs_nothing_that_comfyui_lacks():
    known = sys.stdlib_module_names | IN_EVERY_COMFYUI | HOST | {"comfy_api"}
    wrong = [
        at(path, found)
        for package in IN_COMFYUI
        for path in modules(package)
        for found in imports(path)
        if not (of_ours(found) or found.deferred or found.optional or top(found) in known)
    ]
    assert not wrong, "\n".join(wrong)


def test_there_is_no_import_circle():
    names = {module_name(path): path for package in MAY_IMPORT for path in modules(package)}
    graph = {
        name: {found.name for found in imports(path) if found.name in names and not found.deferred} - {name}
        for name, path in names.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        pytest.fail(" <- ".join(circle.args[1]))


def test_no_folder_is_crowded():
    counts = {
        folder.relative_to(ROOT).as_posix(): sum(not path.stem.startswith("__") for path in folder.glob("*.py"))
        for package in (*MAY_IMPORT, "scripts")
        for folder in folders(package)
    }
    assert not {folder: count for folder, count in counts.items() if count > MAX_MODULES}


def test_an_install_has_every_package_and_its_data():
    found, data = build_settings()["packages"]["find"], build_settings()["package-data"]
    installed = {package for package in MAY_IMPORT if any(fnmatch(package, name) for name in found["include"])}
    assert installed == set(MAY_IMPORT) - {"nodes"}  # nodes run in ComfyUI alone
    for package in sorted(installed):
        # "namespaces = false" leaves out folders without this file.
        bare = [folder for folder in folders(package) if not (folder / "__init__.py").is_file()]
        assert not bare, bare
        here = ROOT / package
        files = {path for path in here.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        known = {
            here / name for pattern in data.get(package, []) for name in glob(pattern, root_dir=here, recursive=True)
        }
        left_out = {path for path in files - known if path.suffix not in (".py", ".md")}
        assert not left_out, left_out


def test_the_archive_leaves_out_what_does_not_run_in_comfyui():
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    left_out = {line.strip("/") for line in lines if line.startswith("/") and line.endswith("/")}
    packages = {path.parent.name for path in ROOT.glob("*/*.py")} | {path.parent.name for path in ROOT.glob("*/*.json")}
    assert packages - SHIPPED <= left_out and not left_out & SHIPPED
