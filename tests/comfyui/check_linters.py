"""Run ComfyUI's own linters over the workflows and the code: `make check-comfyui`.

comfy-lint           the workflows in the API's format against the host's nodes
comfy-import-guard   the host's symbols that the code uses against the host's own source
comfy-test           its SYNTAX level, for the code that runs in a host

Not named test_*: they ask for packages (extra `comfyui`) that the tests on a host do without.
"""

import json
import shutil
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from comfyui_graphs import api_graph
from comfyui_server import PACK
from write_workflows import LARGE, SHEETS, TEXT_ENCODER, TRANSFORMER, VAE, WORKFLOWS

# Ours alone: never run in a host, where the weights are in the artist's MODEL.
ROOMS = ("transformer.py", "studio", "train", "benchmark", "scripts", "tests", "docs")
NOT_IN_A_HOST = (*ROOMS, ".*", "runs", "demo", "build", "dist", "__pycache__")


def test_comfy_lint_finds_nothing_in_the_workflows(host, tmp_path):
    models = {"diffusion_models": (TRANSFORMER, LARGE), "text_encoders": (TEXT_ENCODER,), "vae": (VAE,)}
    for folder, name in ((folder, name) for folder, names in models.items() for name in names):
        (host.folder / "models" / folder).mkdir(exist_ok=True)
        (host.folder / "models" / folder / name).touch()  # so that the host knows the names
    info = host.get("/object_info")
    (tmp_path / "object_info.json").write_text(json.dumps(info), encoding="utf-8")
    for name in SHEETS:
        workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
        (tmp_path / f"{name}.json").write_text(json.dumps(api_graph(workflow, info)), encoding="utf-8")
    files = [f"{name}.json" for name in SHEETS]
    run("comfy-lint", *files, "--schema-cache", "object_info.json", "--strict", folder=tmp_path)


def test_comfy_import_guard_finds_nothing(host, tmp_path):
    """It reads a host's source from a git repository of its own: one commit of this host."""
    source = tmp_path / "cache" / "ComfyUI"
    skipped = shutil.ignore_patterns("models", "custom_nodes", "input", "output", ".git", "__pycache__")
    shutil.copytree(host.comfyui, source, ignore=skipped)
    git = ["git", "-c", "user.name=tests", "-c", "user.email=tests"]
    for command in ("init --quiet", "add --force .", "commit --quiet --message host", "tag host"):
        subprocess.run([*git, *command.split()], cwd=source, check=True)
    options = ["--comfy-dir", str(host.folder), "--target", "host", "--pack", "anchoredit", "--no-update", "--strict"]
    run("comfy-import-guard", "--offline", "--cache-dir", str(source.parent), "check", *options)


def test_comfy_test_finds_nothing_in_what_runs_in_a_host(tmp_path):
    copy = tmp_path / "anchoredit"
    shutil.copytree(PACK, copy, ignore=shutil.ignore_patterns(*NOT_IN_A_HOST))
    run("comfy-test", "lint", str(copy))


def run(tool: str, *arguments: str, folder=None) -> None:
    """Runs a tool as its command would; it must end with 0."""
    (entry,) = entry_points(group="console_scripts", name=tool)
    call = f"import sys; from {entry.module} import {entry.attr} as main; sys.argv[0] = {tool!r}; sys.exit(main())"
    ended = subprocess.run([sys.executable, "-c", call, *arguments], cwd=folder, capture_output=True, text=True)
    print(ended.stdout, ended.stderr)
    if ended.returncode:
        pytest.fail(f"{tool} ended with {ended.returncode}:\n{ended.stdout}\n{ended.stderr}")
