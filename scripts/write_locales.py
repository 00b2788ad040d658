"""Writes what follows from the nodes' own texts: `make locales`.

locales/en/nodeDefs.json     all of it, by what a running host knows of the nodes
web/docs/<id>.md             the tables at the end; what stands above the first of them is written by hand
web/docs/<id>/zh.md          the same by locales/zh/nodeDefs.json, which is a translation by hand
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

PACK = Path(__file__).resolve().parents[1]
DOCS = PACK / "web" / "docs"
HEADINGS = {"en": ("Inputs", "Outputs"), "zh": ("\u8f93\u5165", "\u8f93\u51fa")}


def english(info: dict) -> dict:
    """/object_info -> the texts of our nodes, as the browser reads translations."""
    ours = {name: info[name] for name in sorted(info) if info[name]["python_module"] == "custom_nodes.anchoredit"}
    return {name: _texts(node) for name, node in ours.items()}


def _texts(node: dict) -> dict:
    inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
    said = {name: {"name": name, "tooltip": options["tooltip"]} for name, (_, options) in inputs.items()}
    if any(options.get("control_after_generate") for _, options in inputs.values()):
        said["control_after_generate"] = {"name": "control after generate"}  # the browser's own
    tips = node.get("output_tooltips") or [None] * len(node["output_name"])
    outputs = [{"name": name} | ({"tooltip": tip} if tip else {}) for name, tip in zip(node["output_name"], tips)]
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": said,
        "outputs": {str(place): entry for place, entry in enumerate(outputs)},
    }


def translation(language: str) -> dict:
    return json.loads((PACK / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def page_path(node: str, language: str) -> Path:
    return DOCS / f"{node}.md" if language == "en" else DOCS / node / f"{language}.md"


def prose(page: str, language: str) -> str:
    """Return what is written by hand of a help page."""
    return page.partition(f"\n## {HEADINGS[language][0]}\n")[0].partition(f"\n## {HEADINGS[language][1]}\n")[0].strip()


def whole_page(written: str, texts: dict, language: str) -> str:
    """Return a help page: what is written by hand, then a table of inputs and one of outputs."""
    page = written + "\n"
    for heading, entries in zip(HEADINGS[language], (texts["inputs"], texts["outputs"])):
        entries = {key: entry for key, entry in entries.items() if key != "control_after_generate"}
        rows = [f"| **{entry['name']}** | {entry.get('tooltip', '')} |\n" for entry in entries.values()]
        if rows:
            page += f"\n## {heading}\n\n| | |\n|---|---|\n{''.join(rows)}"
    return page


def main() -> None:
    sys.path.insert(0, str(PACK / "tests" / "comfyui"))
    from comfyui_server import server

    with tempfile.TemporaryDirectory() as folder:
        host = server(Path(folder))
        if host is None:
            raise SystemExit("no ComfyUI: set COMFYUI_PATH (and COMFYUI_PYTHON)")
        with host:
            texts = english(host.get("/object_info"))
    path = PACK / "locales" / "en" / "nodeDefs.json"
    path.write_text(json.dumps(texts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for language in HEADINGS:
        for node, entry in translation(language).items():
            path = page_path(node, language)
            written = prose(path.read_text(encoding="utf-8"), language)
            path.write_text(whole_page(written, entry, language), encoding="utf-8")


if __name__ == "__main__":
    main()
