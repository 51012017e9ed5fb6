"""The documentation's lines run as they are printed, page after page, and its generated pages say all there is."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import nbformat
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import allheads as ah
from allheads.models.sources import find_source
from allheads.store import load

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def hooks():
    """The modules that make pages."""
    sys.path.insert(0, str(DOCS / "hooks"))
    yield {
        name: importlib.import_module(name)
        for name in ("refusals", "reference", "commands", "doctests", "notebook_pages")
    }
    sys.path.remove(str(DOCS / "hooks"))


def _pages() -> list[Path]:
    """Every page with lines to run: the guide first, in its order, whose names the others go on with."""
    listed = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    there = [DOCS / name for name in listed if (DOCS / name).is_file()]
    assert set(there) == set(DOCS.rglob("*.md"))
    return [page for page in there if _BLOCK.search(page.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A random network with SmolLM2's layers, heads, neurons and tokenizer, so with its labels, a sixteenth as wide."""
    folder = tmp_path_factory.mktemp("stand-in")
    sizes = {"num_hidden_layers": 30, "hidden_size": 36, "intermediate_size": 1536, "vocab_size": 49152}
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in Path(find_source("smollm2-135m").where).glob("*token*"):
        shutil.copy(file, folder)
    return ah.load(folder)


def test_the_lines_of_every_page_run_in_order(stand_in, tmp_path, monkeypatch, capsys):
    """The guide goes on from the names of the README's ten lines, which `tests/test_readme.py` runs with SmolLM2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "load", partial(_opened, stand_in, ah.load))
    readme = _BLOCK.search((ROOT / "README.md").read_text(encoding="utf-8"))[1]
    assert "twin = ah.convert(source)" in readme
    names: dict[str, object] = {"ah": ah, "source": stand_in, "twin": ah.convert(stand_in)}
    exec(next(line for line in readme.splitlines() if line.startswith("prompt, pair = ")), names)
    for page in _pages():
        for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
            exec(compile(block, str(page.relative_to(ROOT)), "exec"), names)
    assert re.search(r"^True \d", capsys.readouterr().out, re.MULTILINE)  # what ah.verify says in the guide
    assert (tmp_path / "found.csv").is_file()


def _opened(stand_in, opened, *name, **options):
    return stand_in if name in ((), ("smollm2-135m",)) else opened(*name, **options)


def test_errors_by_symptom_has_every_refusal(hooks):
    """Counted by another way than the page's own."""
    raised = 0
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            raised += isinstance(node, ast.Call) and getattr(node.func, "id", "") == "AllHeadsError"
    found = hooks["refusals"].refusals()
    # The same words in one module are one row; a handful of errors are made again from another's parts.
    assert 0.95 * raised < len([one for one in found if one.got != "what the library below says"]) <= raised
    page = hooks["refusals"].page()
    assert "| Expected a rule out of … | … | The default is …. |" in page
    assert page.count("| --- |") >= len(hooks["refusals"].ROOMS)
    rooms = {hooks["refusals"]._room(one.module) for one in found}
    assert rooms <= set(hooks["refusals"].ROOMS)


def test_every_public_name_has_an_entry(hooks):
    pages = hooks["reference"].pages()
    for space in ("allheads", *hooks["reference"].NAMESPACES):
        listed = re.findall(r"^::: (\S+)$", pages[f"reference/{space}.md"], re.MULTILINE)
        namespace = ah if space == "allheads" else getattr(ah, space)
        public = [
            name for name in namespace.__all__ if space != "allheads" or name not in hooks["reference"].NAMESPACES
        ]
        assert [name.rsplit(".", 1)[1] for name in listed] == public
        for name in listed:
            module, _, attribute = name.rpartition(".")
            assert getattr(importlib.import_module(module), attribute) is getattr(namespace, attribute)


def test_examples_stand_between_fences(hooks):
    fenced = hooks["doctests"].fenced
    assert (
        fenced("A.\n\n    >>> f(1)  # doctest: +SKIP\n    2\n\nB.")
        == "A.\n\n    ```pycon\n    >>> f(1)\n    2\n    ```\n\nB."
    )


def test_the_command_lines_page_has_every_command(hooks):
    page = hooks["commands"].page()
    assert page.count("Usage: allheads") == page.count("## allheads") >= 16
    assert "## allheads lab training" in page


def test_notebooks_are_numbered_through_and_open_and_close_alike():
    block = r"- \*\*You will learn\*\* .*\n- \*\*Time\*\* .*\n- \*\*Size\*\* .*\n- \*\*Stands on\*\* .*"
    code = r"```python\n(?s:.+)\n```"
    answer = rf"## Exercise\n\n(.+\n)+\n<details>\n<summary>Answer</summary>\n\n{code}\n\n(.+\n)+\n</details>"
    paths = sorted(ROOT.glob("notebooks/*.ipynb"))
    for number, path in enumerate(paths, 1):
        cells = nbformat.read(path, as_version=4).cells
        assert path.name.startswith(f"{number:02}_")
        assert re.match(rf"# {number}\. .+\n\n(.+\n)+\n{block}(\n\n|$)", cells[0].source), path.name
        assert re.fullmatch(answer, cells[-1].source), path.name
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), path.name


def test_a_notebooks_page_shows_what_the_executed_copy_does(hooks, tmp_path):
    path = ROOT / "notebooks" / "01_the_twin.ipynb"
    copy = nbformat.read(path, as_version=4)
    first, second = [cell for cell in copy.cells if cell.cell_type == "code"][:2]
    frame = '<iframe srcdoc="&lt;p title=&quot;a&quot;&gt;" title="A view" style="height:9px"></iframe>'
    table = '<style scoped>\n    a {}\n</style>\n<table border="1" class="dataframe"><tr><td>0.5</td></tr></table>'
    picture = '<svg xmlns="http://www.w3.org/2000/svg" style=""></svg>'
    kinds = ({"text/html": frame}, {"text/html": table}, {"image/svg+xml": picture})
    first.outputs = [nbformat.v4.new_output("display_data", data=data) for data in kinds]
    said = (("stdout", "to stdout,\n"), ("stderr", "to stderr"), ("stdout", "in two lines"))
    second.outputs = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in said]
    nbformat.write(copy, tmp_path / path.name)
    made = hooks["notebook_pages"].files(tmp_path)
    page, beside = made["notebooks/01_the_twin.md"], "notebooks/01_the_twin_files/"
    assert page.startswith("# 1. The twin\n") and "](02_look_at_heads.md)" in page
    (view,) = [name for name in made if name.startswith(beside) and name.endswith(".html")]
    assert made[view] == '<p title="a">' and f'src="{view.removeprefix("notebooks/")}" loading="lazy"' in page
    (drawn,) = [name for name in made if name.startswith(beside) and name.endswith(".svg")]
    assert b"background: white" in made[drawn] and f"]({drawn.removeprefix('notebooks/')})" in page
    assert "<table data-output><tr><td>0.5</td></tr></table>" in page and "scoped" not in page
    assert "    to stdout,\n    in two lines" in page and "to stderr" not in page
    # Without a copy, or with one of other code, a page has no outputs.
    second.source += "\nprint()"
    nbformat.write(copy, tmp_path / path.name)
    for stale in (tmp_path, tmp_path / "none"):
        made = hooks["notebook_pages"].files(stale)
        assert (
            "to stdout" not in made["notebooks/01_the_twin.md"]
            and "without outputs" in made["notebooks/01_the_twin.md"]
        )
        assert len(made) == len(list(ROOT.glob("notebooks/*.ipynb")))


def test_the_site_builds_without_a_warning(tmp_path, monkeypatch):
    """Every link and anchor leads somewhere, every reference resolves, and the network is not asked."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    index = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "attention-only twin" in index
    reference = (tmp_path / "site" / "reference" / "allheads.html").read_text(encoding="utf-8")
    assert "ah.attribute_pattern" in reference and "+SKIP" not in reference
