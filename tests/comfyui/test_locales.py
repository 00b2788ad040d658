"""Names, tooltips and help of every node, in both languages, as a real host serves them."""

import json
import re
import urllib.request

import pytest
from write_locales import HEADINGS, PACK, english, page_path, prose, translation, whole_page

CHINESE = re.compile("[\u4e00-\u9fff]")
NODES = sorted(translation("en"))


def structure(entry):
    """The same without its texts."""
    return {key: structure(value) for key, value in entry.items()} if isinstance(entry, dict) else None


def texts(entry, path=()):
    """(path, text) of everything said."""
    for key, value in entry.items():
        yield from texts(value, (*path, key)) if isinstance(value, dict) else [((*path, key), value)]


def served(host, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{host.port}{path}", timeout=60) as answer:
        return answer.read().decode()


def test_english_is_what_the_nodes_say(host):
    """If this fails: make locales, and translate what is new."""
    assert translation("en") == english(host.get("/object_info"))


def test_chinese_says_the_same_things():
    for file in ("nodeDefs.json", "main.json"):
        one, other = (json.loads((PACK / "locales" / name / file).read_text(encoding="utf-8")) for name in HEADINGS)
        assert structure(one) == structure(other)
        for (path, english_text), (_, text) in zip(texts(one), texts(other)):
            same_name = path[-1] == "name" and text.lower() == english_text.lower()  # CLIP, VAE
            assert CHINESE.search(text) or same_name, f"{path}: {text}"
            assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", english_text)), path


@pytest.mark.parametrize("language", HEADINGS)
def test_every_node_has_a_help_page_that_the_host_serves(host, language):
    for node, entry in translation(language).items():
        path = page_path(node, language)
        page = path.read_text(encoding="utf-8")
        written = prose(page, language)
        assert len(written) > 60 and bool(CHINESE.search(written)) == (language == "zh"), node
        assert page == whole_page(written, entry, language), f"make locales ({path.name})"
        assert served(host, f"/extensions/anchoredit/{path.relative_to(PACK / 'web').as_posix()}") == page


def test_the_host_hands_out_both_languages(host):
    all_words = host.get("/i18n")
    for language in HEADINGS:
        assert all_words[language]["nodeDefs"].items() >= translation(language).items()
        assert all_words[language]["anchoredit"]["nextTurn"]
