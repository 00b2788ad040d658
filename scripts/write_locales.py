"""Write what follows from the nodes' own texts: `make locales`.

locales/en/nodeDefs.json     all of it, from what a running host knows of the nodes
web/docs/<id>.md             the tables at the end; the text above them is written by hand
web/docs/<id>/zh.md          the same, from locales/zh/nodeDefs.json, which is translated by hand
"""

from __future__ import annotations

import json
from pathlib import Path

from running_host import running_host

PACK = Path(__file__).resolve().parents[1]
DOCS = PACK / "web" / "docs"
HEADINGS = {"en": ("Inputs", "Outputs"), "zh": ("\u8f93\u5165", "\u8f93\u51fa")}


def english(info: dict) -> dict:
    """Return the texts of our nodes from /object_info, in the form of the browser's translations."""
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
        "outputs": {str(index): entry for index, entry in enumerate(outputs)},
    }


def translation(language: str) -> dict:
    """Return the texts of the nodes in a language."""
    return json.loads((PACK / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def page_path(node: str, language: str) -> Path:
    """Return the path of a node's help page, where the host looks for it."""
    return DOCS / f"{node}.md" if language == "en" else DOCS / node / f"{language}.md"


def prose(page: str, language: str) -> str:
    """Return the part of a help page that is written by hand."""
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
    """Write the English texts, and the tables of all pages."""
    with running_host() as host:
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
