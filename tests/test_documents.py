"""Links, paths and make targets that the documents name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), *ROOT.glob(".github/*.md")]
FOLDERS = ("anchoredit_model", "benchmark", "docs", "nodes", "scripts", "studio", "tests", "train", "workflows")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_names_exists(document):
    text = document.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not (document.parent / link).exists()]
    for path in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`", text):
        target = ROOT / path
        if not target.exists() and not target.with_suffix(".py").exists():
            missing.append(path)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    # words and spaces in turn, so that a text without a backtick behind them is not tried in every other division
    targets = [name for call in re.findall(r"\bmake ([a-z-]+(?: [a-z-]+)*) ?`", text) for name in call.split()]
    missing += [f"make {name}" for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)]
    assert not missing, missing
