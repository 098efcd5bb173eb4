"""The docs: generated blocks are current; links, paths, commands, tests and Python examples that they name exist."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import docs
from lib.docs import portability, results, settings
from lib.setup.source import ROOT

PAGES = [*docs.pages(), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "patches" / "README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Folders of the repository; what is built or measured may be missing.
TOP = ("native", "restkv_local", "tools", "tests", "patches", "docs", ".ci")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose_of(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", text_of(page))


def spans(page: Path) -> list[str]:
    """Inline code of a page."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose_of(page).replace('`"""`', ""))]


def commands(page: Path) -> Iterator[str]:
    """Command lines in inline code and in sh and text blocks, without variables and prompts."""
    yield from spans(page)
    for kind, body in FENCE.findall(text_of(page)):
        lines = body.replace("\\\n", " ").splitlines()
        yield from [line for line in lines if kind == "sh"]
        yield from [line[2:] for line in lines if kind == "text" and line.startswith("$ ")]


def check_docs(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "docs.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


# ---- generated blocks ---------------------------------------------------------------------------


def test_blocks_are_current() -> None:
    done = check_docs("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_block_is_used() -> None:
    used = set(re.findall(r"<!-- generated: ([^>]+?) -->", "".join(map(text_of, docs.pages()))))
    assert used == set(docs.BLOCKS)


def test_a_stale_block_is_named_and_written() -> None:
    before = "a\n<!-- generated: methods -->\nold\n<!-- end -->\nb\n"
    after, stale = docs.render(before, "page")
    assert stale == ["methods"] and after == before.replace("old\n", f"{settings.methods()}\n")
    assert docs.render(after, "page") == (after, [])


@pytest.mark.parametrize(
    "text", ["<!-- generated: methods -->\n", "<!-- generated: nothing -->\n<!-- end -->", "<!-- end -->"]
)
def test_bad_marks_are_refused(text: str) -> None:
    with pytest.raises(docs.DocsError):
        docs.render(text, "page")


def test_help_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = set()
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        texts.add(docs.BLOCKS["restkv-chat"]() + docs.BLOCKS["restkv-bench"]())
    assert len(texts) == 1
    assert max(map(len, texts.pop().splitlines())) <= 80


def test_method_table_is_that_of_the_library() -> None:
    from restkv_local import native
    from restkv_local.config import METHODS
    from restkv_local.plan.methods import TRAITS

    rows = settings.native_methods()
    assert [(row.name, row.summary) for row in rows] == native.methods()
    assert {row.name for row in rows} | {"full"} == set(METHODS)
    assert [row.name for row in rows if row.queries] == ["restkv", "snapkv", "tova", "h2o"]
    assert [row.name for row in rows] == list(TRAITS)
    for row in rows:
        own = TRAITS[row.name]
        assert (row.queries, row.pools) == (own.queries != "none", own.pools)


def test_bounds_are_those_that_are_checked() -> None:
    from restkv_local.config import EvictConfig
    from restkv_local.errors import ConfigError

    rows = {line.split("`")[1]: line for line in settings.settings().splitlines()[2:]}
    assert "from 2 to 1024, even" in rows["window"] and "from 1 to 1023, odd" in rows["kernel"]
    for name, low, high in re.findall(r"\| `(\w+)` \| `.+?` \| from ([\d.]+) to ([\d.]+)", "\n".join(rows.values())):
        kind = float if "." in low else int
        if name not in ("kernel", "window"):
            assert EvictConfig().with_(**{name: kind(low)})
        for wrong in (kind(low) - 1, kind(high) + 1):
            with pytest.raises(ConfigError):
                EvictConfig().with_(**{name: wrong})


def test_results_become_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    assert "Not measured yet" in results.speed()
    row: dict[str, Any] = {"context": 4096, "budget": 512, "capacity": 2048, "kv_bytes": 2048 * 1000}
    row["notes"] = ["a note"]
    ratios = ("prefill_ratio", "decode_ratio")
    for name in ("decode_ms", "stock_decode_ms", "prefill_tokens_per_s", "evict_share", *ratios):
        row |= {name: 2.0, f"{name}_min": 1.0, f"{name}_max": 3.0}
    row |= {"stock_prefill_tokens_per_s": None, "peak_rss_bytes": 5 * 10**8}
    settings = '"settings": {"contexts": [4096], "budget": 512, "pairs": 3, "kv_type": "f16", "model": "m.gguf"}'
    device = '"device": {"cpu": "a processor", "cores": 2}, "date": "2026-01-02T03:04:05"'
    (tmp_path / "speed.json").write_text(f'{{"rows": [{json.dumps(row)}], {settings}, {device}}}')
    table = results.speed()
    assert "| 4,096 | 2.0 ms | 2.0 ms | 2.0x (1.0 to 3.0) | 2 tok/s | - | 2.0x (1.0 to 3.0) | 200.0% | - |" in table
    assert "- 4,096: a note" in table
    assert "2 cores of a processor, m.gguf, 2026-01-02." in table
    assert "`restkv-bench speed --contexts 4096 --budget 512 --json benchmarks/speed.json`" in table


def test_memory_becomes_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    assert "`restkv-bench memory --json benchmarks/memory.json`" in results.memory()
    row: dict[str, Any] = {"context": 4096, "prompt_tokens": 4000, "capacity": 2048, "kv_bytes": 2048 * 1000}
    row |= {"peak_rss_bytes": 5 * 10**8, "evictions": 7, "prefill_seconds": 20.0, "evict_seconds": 0.5}
    settings = {"contexts": [4096], "budget": 512, "kv_type": "f16", "model": "m.gguf"}
    (tmp_path / "memory.json").write_text(json.dumps({"rows": [row], "settings": settings}))
    table = results.memory()
    assert "| 4,096 | 4,000 tokens | 2.0 MB | 4.0 MB | 500.0 MB | 7 | 20 s | 2.5% |" in table
    assert "`restkv-bench memory --contexts 4096 --budget 512 --json benchmarks/memory.json`" in table


def test_portability_claims_what_was_seen_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    file = tmp_path / "portability.json"
    seen = {"date": "2026-01-02", "on": "a card", "what": "all tests."}
    file.write_text(json.dumps({"backends": [{"backend": "CUDA", "compiled": None, "hardware": seen}]}))
    table = portability.portability()
    assert "| CUDA | not seen | not seen | 2026-01-02, a card |" in table
    assert "- CUDA, ran on hardware: all tests." in table and "compiles:" not in table
    for wrong in ({**seen, "date": "soon"}, {**seen, "on": ""}, {"date": "2026-01-02"}):
        file.write_text(json.dumps({"backends": [{"backend": "CUDA", "hardware": wrong}]}))
        with pytest.raises(settings.SettingsError, match="CUDA, hardware: a sighting has date, on, what"):
            portability.portability()
    file.write_text(json.dumps({"backends": [{"backend": "CUDA", "works": seen}]}))
    with pytest.raises(settings.SettingsError, match="unknown works"):
        portability.portability()


def test_needle_becomes_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    assert f"`{results.COMMANDS['needle']}`" in results.needle()
    row: dict[str, Any] = {"method": "restkv", "prefill": "guided", "budget": 512, "evictions": 8, "mean": -2.5}
    row |= {"allocation": "ada", "reserve": 768}
    row |= {"log_probs": [-2.0, -3.0], "difference": -0.25, "difference_min": -0.5, "difference_max": 0.0}
    full = row | {"method": "full", "difference": None, "difference_min": None, "difference_max": None}
    full |= {"allocation": None, "prefill": None}
    settings: dict[str, Any] = {"context": 6144, "depths": 2, "budgets": [256, 512], "prefills": ["stream", "guided"]}
    settings |= {"unverified": False, "reserves": [None, 2048], "allocations": ["ada"]}
    (tmp_path / "needle.json").write_text(json.dumps({"rows": [full, row], "settings": settings}))
    table = results.needle()
    assert "| full | - | - | - | -2.50 | -3.00 | - | - |" in table
    assert "| restkv:allocation=ada | guided | 512 | 768 | -2.50 | -3.00 | -0.25 | -0.50 to +0.00 |" in table
    chosen = "--budget 256 --budget 512 --reserve 2048 --depths 2 --allocations ada"
    command = f"restkv-bench needle {chosen} --json benchmarks/needle.json"
    assert f"`{command}`" in table


# ---- what the docs name -------------------------------------------------------------------------


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", prose_of(page))]
    missing = [link for link in links if "://" not in link and link and not (page.parent / link).exists()]
    assert not missing


@each_page
def test_paths_exist(page: Path) -> None:
    words = {word.strip("`'\",:;()") for span in spans(page) for word in span.split()}
    paths = [word for word in words if word.split("/")[0] in TOP and "/" in word and not re.search(r"[<>$]", word)]
    missing = [path for path in paths if not (list(ROOT.glob(path)) if "*" in path else (ROOT / path).exists())]
    assert not missing


@each_page
def test_named_tests_exist(page: Path) -> None:
    named = {span for span in spans(page) if re.fullmatch(r"test_\w+", span)}
    sources = "".join(text_of(path) for path in (ROOT / "tests").rglob("test_*.py"))
    known = set(re.findall(r"^def (test_\w+)", sources, re.MULTILINE))
    assert named <= known


def parse(words: list[str]) -> None:
    """Check one command line with the parser of its program."""
    from restkv_local.cli.bench import main as bench
    from restkv_local.cli.chat import main as chat
    from restkv_local.cli.eval import main as evaluation

    if words[:2] == ["python3", "tools/chat.py"]:
        words = ["restkv-chat", *words[2:]]
    if words[:2] == ["restkv-chat", "doctor"]:
        chat.main.commands["doctor"].make_context("doctor", words[2:])
    elif words[0] == "restkv-chat":
        chat.main.make_context("restkv-chat", words[1:])
    elif words[0] in ("restkv-bench", "restkv-eval"):
        program = bench.main if words[0] == "restkv-bench" else evaluation.main
        command = program.commands[words[1]]
        # A page names folders that a reader has and this checkout has not.
        values = [word for word in words[2:] if not (command.name == "report" and word.split("/")[0] == "results")]
        command.make_context(words[1], [*values, "."] if command.name == "report" else values)
    elif words[0] == "python3" and words[1:2] != ["-m"]:
        assert (ROOT / words[1]).is_file()


@each_page
def test_commands_are_known(page: Path) -> None:
    programs = ("restkv-chat", "restkv-bench", "restkv-eval", "python3")
    for command in commands(page):
        try:
            words = shlex.split(command, comments=True)
        except ValueError:
            continue  # a word of code, no command
        if len(words) > 1 and words[0] in programs:
            try:
                parse(words)
            except (click.ClickException, KeyError) as error:
                pytest.fail(f"{command}: {error}")


def test_lone_options_are_known() -> None:
    from restkv_local.cli.bench import main as bench
    from restkv_local.cli.chat import main as chat
    from restkv_local.cli.eval import main as evaluation

    groups = (chat.main, bench.main, evaluation.main)
    programs = [*groups, *(command for group in groups for command in group.commands.values())]
    known = {name for command in programs for option in command.params
             for name in (*option.opts, "--help")}  # fmt: skip
    named = {(page.name, span.split()[0]) for page in docs.pages() for span in spans(page) if span.startswith("--")}
    assert named and {option for _, option in named} <= known, named


def test_commands_checker_catches() -> None:
    with pytest.raises(click.NoSuchOption):
        parse(["restkv-chat", "--bugdet", "1"])
    with pytest.raises(KeyError):
        parse(["restkv-bench", "sped"])


@each_page
def test_python_examples_use_what_exists(page: Path) -> None:
    for kind, body in FENCE.findall(text_of(page)):
        if kind != "python":
            continue
        tree = ast.parse(body)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("restkv_local"):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names)
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id in ("Engine", "EvictConfig"):
                known = inspect.signature(getattr(importlib.import_module("restkv_local"), node.func.id)).parameters
                assert {keyword.arg for keyword in node.keywords} <= set(known)


def test_arguments_of_engine_are_all_told() -> None:
    from restkv_local import Engine, EvictConfig, Report

    page = text_of(ROOT / "docs" / "engine.md")
    names = [name for name in inspect.signature(Engine).parameters if name not in ("llama", "self")]
    names += list(Report.__dataclass_fields__)
    assert not [name for name in names if f"`{name}`" not in page]
    errors = [name for name in dir(importlib.import_module("restkv_local.errors")) if name.endswith("Error")]
    assert not [name for name in [*errors, "Cancelled", "ContextOverflow"] if f"`{name}`" not in page]
    settings = text_of(ROOT / "docs" / "methods.md")
    assert not [name for name in EvictConfig.__dataclass_fields__ if f"`{name}`" not in settings]


@pytest.mark.parametrize("page", ["README.md", "docs/engine.md"])
def test_python_examples_run(page: str, tmp_path: Path, smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """README's whole example on a short text; of engine.md those that need no other model or long answer."""
    from restkv_local.bench.prose import prose

    (tmp_path / "book.txt").write_text(f"{prose(200)} The captain is Anna.", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESTKV_MODEL", str(smollm2))
    bodies = [body for kind, body in FENCE.findall(text_of(ROOT / page)) if kind == "python"]
    names: dict[str, Any] = {}
    for body in bodies:
        if page == "README.md" or "score_lean" in body:
            exec(compile(body, page, "exec"), names)
    if page == "README.md":
        assert names["answer"]["choices"][0]["message"]["content"]
        names["engine"].close()
    else:
        assert names["indices"].shape == (2, 128 - 32)
