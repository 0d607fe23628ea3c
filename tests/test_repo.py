"""The front door, and documents that keep their word: links lead somewhere, options and imports exist."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import asterism
from asterism.cli.app import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


@pytest.mark.parametrize("name", asterism.__all__)
def test_every_name_of_the_front_door_opens(name):
    assert name in dir(asterism)
    assert callable(getattr(asterism, name))


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(AttributeError, match=r"the front door offers .*Library"):
        asterism.Libary  # noqa: B018


def test_layers_that_share_a_verbs_name_can_be_entered_and_called(monkeypatch):
    import asterism.compose.build as build

    monkeypatch.setattr(build, "compose", lambda *args, **values: (args, values))
    assert asterism.compose("library", "mixture", layers=4) == (("library", "mixture"), {"layers": 4})
    assert asterism.compose.build is build


def test_import_loads_nothing_heavy():
    heavy = "{'torch', 'transformers', 'numpy', 'pydantic', 'typer'} & set(sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys, asterism; print(sorted({heavy}))"], capture_output=True, text=True, timeout=60
    )
    assert ran.stdout.strip() == "[]", ran.stdout + ran.stderr


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_in_the_documents_parses_and_imports_what_exists(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("asterism"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def test_commands_and_options_in_the_documents_exist():
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    known = dict(re.findall(r"## asterism ([\w-]+(?: [\w-]+)?)\n\n```text\n(.*?)```", page, flags=re.DOTALL))
    assert {command.split()[0] for command in known} == set(COMMANDS)
    met = 0
    for page in PAGES:
        text = page.read_text("utf-8").replace("\\\n", " ")
        for command, rest in re.findall(r"asterism ([a-z-]+)((?: [^\n`|#&]+)?)", text):
            inside = f"{command} {rest.split()[0]}" if rest.split() else ""
            command = inside if inside in known else command
            if command in known:
                for option in re.findall(r"--[a-z-]+", rest):
                    met += 1
                    assert option in known[command], f"{page.name}: asterism {command} has no {option}"
    assert met > 20


def test_every_command_has_a_guide_page():
    guides = {path.stem for path in (ROOT / "docs" / "guide").glob("*.md")}
    assert {"demo", "train", "index", "calibrate", "compat", "route", "diagnose", "explain", "compose", "generate", "evaluate"} <= guides
