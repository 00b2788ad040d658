"""The pack's entry file, as ComfyUI loads it: by path, under a name of the host's choosing."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ENTRY = Path(__file__).resolve().parent.parent / "__init__.py"


def test_without_comfyui_there_are_no_nodes():
    spec = importlib.util.spec_from_file_location("a_pack", ENTRY, submodule_search_locations=[str(ENTRY.parent)])
    pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    assert pack.__all__ == []
    assert len(ENTRY.read_text(encoding="utf-8").splitlines()) < 40


@pytest.mark.parametrize("language, page", [("en", "{}.md"), ("zh", "{}/zh.md")])
def test_every_node_has_words_and_help_in_both_languages(language, page):
    ids = set()
    for path in (ENTRY.parent / "nodes").rglob("*.py"):
        ids |= set(re.findall(r'node_id="(\w+)"', path.read_text(encoding="utf-8")))
    words = json.loads((ENTRY.parent / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert ids == set(words)
    for node, entry in words.items():
        text = (ENTRY.parent / "web" / "docs" / page.format(node)).read_text(encoding="utf-8")
        for said in entry["inputs"].values():
            assert said.get("tooltip", "") in text, f"{node}: {said['name']}"


def test_what_a_host_lacks_is_said_once_and_in_one_line(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("needs", ENTRY.parent / "nodes" / "host" / "requirements.py")
    needs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(needs)
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.3.1"\n')
    monkeypatch.syspath_prepend(tmp_path)
    needs.check_host(["json.decoder.JSONDecoder.decode", "os.path", "math"])
    with pytest.raises(ImportError) as caught:
        needs.check_host(["json.JSONDecoder.sing", "no_such_host.part", "math.pi", "os.nothing.at.all"])
    assert str(caught.value) == (
        "AnchorEdit runs on ComfyUI 0.3.64 or newer; this one (0.3.1) lacks json.JSONDecoder.sing, no_such_host.part, "
        "os.nothing.at.all: update ComfyUI, and AnchorEdit as well if ComfyUI is new"
    )
