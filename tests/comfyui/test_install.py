"""Installed as an artist would: nothing in the environment changes, and the import is quiet and brings nothing."""

import json
import re
import subprocess
import sys

import pytest
from comfyui_server import PACK

OWN = "pack_under_test"
MARK = "now the pack"
# The host as it is when it loads packs, then the pack: what it prints comes after the mark.
IMPORT = f"""
import asyncio, importlib.util, json, sys, time
pack, report = sys.argv.pop(), sys.argv.pop()
import comfy.options
comfy.options.enable_args_parsing()
import utils.extra_config, server, nodes  # in the host's order: its own folder comes before comfy's utils.py
asyncio.run(nodes.init_builtin_extra_nodes())
print("{MARK}", flush=True)
print("{MARK}", file=sys.stderr, flush=True)
before, began = set(sys.modules), time.perf_counter()
spec = importlib.util.spec_from_file_location("{OWN}", pack)
sys.modules["{OWN}"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
asyncio.run(asyncio.run(module.comfy_entrypoint()).get_node_list())
seconds = time.perf_counter() - began
with open(report, "w") as file:
    json.dump([seconds, sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})], file)
"""


@pytest.fixture(scope="module")
def imported(host, tmp_path_factory):
    """What an import of the pack in a host has printed, and the names of the packages that it has imported."""
    report = tmp_path_factory.mktemp("import") / "report.json"
    command = [*host.command[:1], "-c", IMPORT, "--cpu", "--base-directory", str(host.folder)]
    ended = subprocess.run(
        [*command, str(report), str(PACK / "__init__.py")], cwd=host.comfyui, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    seconds, packages = json.loads(report.read_text())
    print(f"the pack is imported in {seconds:.2f} s")
    return ended.stdout.partition(MARK)[2].strip() + ended.stderr.partition(MARK)[2].strip(), packages


def test_the_import_prints_nothing(imported):
    assert imported[0] == ""


def test_the_import_brings_no_package_that_the_host_has_not_imported(imported):
    """Neither diffusers nor transformers above all: slow to import, and broken in many an artist's environment."""
    assert set(imported[1]) - sys.stdlib_module_names == {OWN}


def test_requirements_install_nothing_in_the_hosts_environment(host):
    command = [*host.command[:1], "-m", "pip", "install", "--dry-run", "--no-index", "--quiet", "--report", "-"]
    ended = subprocess.run([*command, "-r", str(PACK / "requirements.txt")], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["install"] == []


def test_requirements_are_the_hosts_own_without_a_bound(host):
    lines = [line.partition("#")[0].strip() for line in (PACK / "requirements.txt").read_text().splitlines()]
    asked = {line.lower() for line in lines if line}
    text = (host.comfyui / "requirements.txt").read_text().lower()
    assert asked <= set(re.findall(r"^[\w.-]+", text, re.MULTILINE))
