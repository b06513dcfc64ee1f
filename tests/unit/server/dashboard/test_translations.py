"""Every text of the pages is marked, translated, and asks for the same values in every language."""

from __future__ import annotations

import re
from collections.abc import Iterator
from configparser import ConfigParser
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
from babel.messages.extract import DEFAULT_KEYWORDS, extract_from_dir
from babel.messages.pofile import read_po
from jinja2 import nodes

from server.dashboard.language import translations
from server.dashboard.rendering import environment

ROOT = Path(__file__).parents[4]
TEMPLATES = ROOT / "server" / "dashboard" / "templates"
STATIC = ROOT / "server" / "dashboard" / "static"
CATALOGUE = ROOT / "server" / "dashboard" / "locale" / "zh_Hant" / "LC_MESSAGES" / "dashboard.po"
SPOKEN = frozenset(
    {"aria-label", "title", "alt", "placeholder", "aria-description", "data-begin", "data-live", "data-lost"}
)
SAME_EVERYWHERE = re.compile(
    r"POPMI|SHA-256|SHA256|API|CSV|JSON|ONNX|[\w\ufffc-]+\.(?:csv|jsonl|json|html|md|zip|toml)|LEE|AUROC|AUPRC|ECE|UTC|TOML"
    r"|\b(?:ms|s|px|[LFQUS])\b"
)
"""Names, files, units and the letters of outcomes are the same in every language."""
PLACEHOLDER = re.compile(r"%\((\w+)\)[a-z]|%%|%[a-z]")


@cache
def marked() -> dict[str, str]:
    """Return every marked text and where it stands."""
    config = ConfigParser()
    config.read_string(re.sub(r"(?m)^\[(\w+): (.+)\]$", r"[\1: \2]", (ROOT / "babel.cfg").read_text()))
    methods, options = [], {}
    for section in config.sections():
        method, _, pattern = section.partition(": ")
        methods.append((pattern, method))
        options[pattern] = dict(config[section])
    found = {}
    for file, line, message, _, _ in extract_from_dir(
        ROOT, methods, options, keywords=DEFAULT_KEYWORDS, directory_filter=lambda path: "/." not in path
    ):
        for text in (message,) if isinstance(message, str) else message:
            found[text] = f"{file}:{line}"
    return found


def placeholders(text: str) -> list[str]:
    return sorted(PLACEHOLDER.findall(text))


def test_every_text_is_translated() -> None:
    with CATALOGUE.open("rb") as file:
        catalogue = read_po(file, locale="zh_Hant")
    missing = []
    for text, where in marked().items():
        ids = {item for message in catalogue for item in ([message.id] if isinstance(message.id, str) else message.id)}
        if text not in ids:
            missing.append(f"{where}: {text}")
    empty = [message.id for message in catalogue if message.id and not all(_strings(message.string))]
    fuzzy = [message.id for message in catalogue if message.id and message.fuzzy]
    assert missing == [], "run `make messages`, then translate what is new"
    assert empty == []
    assert fuzzy == []


def test_a_translation_asks_for_the_same_values() -> None:
    with CATALOGUE.open("rb") as file:
        catalogue = read_po(file, locale="zh_Hant")
    for message in catalogue:
        if not message.id:
            continue
        asked = message.id if isinstance(message.id, str) else message.id[-1]
        for text in _strings(message.string):
            assert placeholders(text) == placeholders(asked), asked


def test_the_catalogue_holds_nothing_that_no_page_says() -> None:
    with CATALOGUE.open("rb") as file:
        catalogue = read_po(file, locale="zh_Hant")
    known = marked()
    left = [message.id for message in catalogue if message.id and _first(message.id) not in known]
    assert left == []
    assert not catalogue.obsolete


def test_a_translated_page_says_the_translation() -> None:
    assert translations("zh-Hant").gettext("Sites") == "站點"
    assert translations("en").gettext("Sites") == "Sites"


@pytest.mark.parametrize("template", sorted(path.name for path in TEMPLATES.glob("*.html")))
def test_no_template_holds_a_text_that_is_not_marked(template: str) -> None:
    tree = environment().parse((TEMPLATES / template).read_text(encoding="utf-8"))
    finder = _BareText()
    finder.feed("".join(_source(tree)))
    assert finder.found == []


@pytest.mark.parametrize("template", sorted(path.name for path in TEMPLATES.glob("*.html")))
def test_only_texts_of_our_own_are_taken_for_html(template: str) -> None:
    """What ``_()`` gives counts as safe: a name or a reason from elsewhere must go through the filter ``say``."""
    tree = environment().parse((TEMPLATES / template).read_text(encoding="utf-8"))
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name in ("_", "gettext", "ngettext"):
            texts = call.args[:2] if call.node.name == "ngettext" else call.args[:1]
            assert all(isinstance(item, nodes.Const) for item in texts), f"{template}:{call.lineno}"


@pytest.mark.parametrize("script", sorted(path.name for path in STATIC.glob("*.js") if ".min." not in path.name))
def test_no_script_says_a_text_of_its_own(script: str) -> None:
    source = re.sub(r"//[^\n]*", "", (STATIC / script).read_text(encoding="utf-8"))
    said = [text for text in re.findall(r"[\"'`]([A-Za-z][^\"'`\n]*)[\"'`]", source) if re.search(r"[a-z] [a-z]", text)]
    # Selectors, fonts and settings of the drawing are no texts.
    assert [text for text in said if not re.search(r"[\[\]#.>:$;]|sans-serif|use strict", text)] == []


class _BareText(HTMLParser):
    """Gathers words that a reader sees and that stand in the template itself."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("code", "style", "script", "title"):
            self._inside.append(tag)
        self.found += [f"{name}={value}" for name, value in attrs if name in SPOKEN and _says(value or "")]

    def handle_endtag(self, tag: str) -> None:
        if tag in self._inside:
            self._inside.remove(tag)

    def handle_data(self, data: str) -> None:
        if _says(data) and not set(self._inside) & {"code", "style", "script"}:
            self.found.append(data.strip())


def _says(text: str) -> bool:
    if re.fullmatch(r'(?:\s*[\w-]+="[^"]*")+\s*', text):
        return False  # attributes that an expression adds to a tag
    return bool(re.search(r"[A-Za-z]", SAME_EVERYWHERE.sub("", text)))


def _source(node: nodes.Node) -> Iterator[str]:
    """Yield a template's own text, a sign for what comes from elsewhere, and words that stand in an expression."""
    if isinstance(node, nodes.TemplateData):
        yield node.data
    elif isinstance(node, nodes.Output):
        for item in node.nodes:
            yield from _source(item) if isinstance(item, nodes.TemplateData) else _expression(item)
    else:
        for child in node.iter_child_nodes():
            yield from _source(child)


def _expression(node: nodes.Node) -> Iterator[str]:
    if isinstance(node, nodes.Const) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, nodes.CondExpr):
        for part in (node.expr1, node.expr2):
            yield from _expression(part) if part is not None else ()
    elif isinstance(node, nodes.Or):
        yield from _expression(node.right)
    else:
        yield "\N{OBJECT REPLACEMENT CHARACTER}"


def _strings(text: str | tuple[str, ...] | list[str]) -> list[str]:
    return [text] if isinstance(text, str) else list(text)


def _first(text: str | tuple[str, ...] | list[str]) -> str:
    return _strings(text)[0]
