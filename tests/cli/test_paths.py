"""Folders, paths and names of files: users without a home, names that are no UTF-8, names that begin with a tilde."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli_fake import FakeEngine
from restkv_local import paths
from restkv_local.cli.chat.main import main
from restkv_local.engine.documents import DocumentError, read_document
from restkv_local.errors import ModelError
from restkv_local.models.files import resolve

ROOT = Path(paths.__file__).resolve().parents[1]
# Latin-1, as Python shows it in arguments and file names.
NAME = os.fsdecode(b"caf\xe9")

latin = pytest.mark.skipif(sys.platform != "linux", reason="file names must be UTF-8 here")


def _chat(*arguments: str) -> Result:
    FakeEngine.instances.clear()
    return CliRunner().invoke(main, list(arguments), obj={"engine": FakeEngine})


def _homeless(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program whose user has no HOME and no entry in the list of users."""
    program = "import os, pwd\ndef unknown(*of): raise KeyError(of)\npwd.getpwuid = pwd.getpwnam = unknown\n" + code
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "RESTKV_CACHE"))}
    environment.pop("HOME", None)
    environment |= {"PYTHONPATH": os.pathsep.join((str(ROOT), str(Path(__file__).parents[1] / "support")))}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )


# ---- no home ----


def test_no_home_no_folders() -> None:
    done = _homeless("from restkv_local import paths\nprint(paths.cache_folder('wo'), paths.state_folder())")
    assert (done.stdout, done.stderr) == ("None None\n", "")


def test_no_home_and_no_history(tmp_path: Path) -> None:
    code = "from restkv_local.cli.chat.prompt import _history\nprint(type(_history(print)).__name__)"
    assert _homeless(code).stdout == "there is no folder for a history file; the history ends with the program\n" + (
        "InMemoryHistory\n"
    )


def test_an_older_platformdirs_names_the_tilde_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RESTKV_CACHE", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *a, **b: "~/.cache/restkv-local")
    assert paths.cache_folder("wo") is None and list(tmp_path.iterdir()) == []


def test_no_home_and_a_build(tmp_path: Path) -> None:
    """Sources and builds do need a folder; one can be named."""
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[2] / "tools")!r})
from lib.setup import source
os.environ.pop("RESTKV_CACHE", None)
if len(sys.argv) > 1:
    os.environ["RESTKV_CACHE"] = sys.argv[1]
print(source.cache_dir())
"""
    done = _homeless(code)
    assert (done.returncode, done.stdout) == (1, "") and "set RESTKV_CACHE to a folder" in done.stderr
    assert done.stderr.count("\n") == 1
    assert _homeless(code, str(tmp_path)).stdout == f"{tmp_path}\n"


@pytest.mark.usefixtures("native")
def test_no_home_and_a_real_answer() -> None:
    code = "from restkv_local.cli.chat.main import main\nmain()"
    done = _homeless(code, "--ask", "Hello", "--max-tokens", "2", "--context", "1024")
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_compiled_loops_without_a_place_to_keep_them(tmp_path: Path) -> None:
    """numba refuses to cache where neither the package's folder nor one of the user can be written."""
    code = """
import numba.core.caching as caching
caching.CacheImpl._locator_classes = []
from restkv_local.reference.compiled import compiled
print(compiled()(lambda x: x + 1)(1))
"""
    done = _homeless(code)
    assert (done.stdout, done.stderr) == ("2\n", "")


# ---- names that are no UTF-8 ----


@latin
def test_a_document_and_a_model_whose_names_are_no_utf8(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("text")
    result = _chat("--file", str(tmp_path / NAME), "--model", str(tmp_path / NAME), "--ask", "q")
    assert result.exit_code == 0, result.output
    content = FakeEngine.instances[0].requests[0]["messages"][0]["content"]
    assert content == "Document: caf\ufffd\n\ntext\n\nq" and content.encode()


@latin
@pytest.mark.parametrize("option", ["--ask", "--system"])
def test_texts_that_are_no_utf8_are_refused_by_name(option: str) -> None:
    arguments = {"--ask": "q", option: "é" + NAME}
    result = _chat(*[word for pair in arguments.items() for word in pair])
    assert result.exit_code == 2 and not FakeEngine.instances
    assert f"'{option}': it is" in result.stderr and "not UTF-8 text (byte 5)" in result.stderr


@latin
@pytest.mark.usefixtures("native")
def test_real_model_whose_name_is_no_utf8(tmp_path: Path, smollm2: Path) -> None:
    from restkv_local import Engine

    folder = tmp_path / NAME
    folder.mkdir()
    os.link(smollm2, folder / NAME) if folder.stat().st_dev == smollm2.stat().st_dev else shutil.copy(
        smollm2, folder / NAME
    )
    engine = Engine(folder / NAME, n_ctx=512)
    try:
        assert engine.report().model == "caf\ufffd"
        assert json.dumps(engine.report().model, ensure_ascii=False).encode()
    finally:
        engine.close()


@latin
def test_figures_are_written_when_a_name_in_them_is_no_utf8(tmp_path: Path) -> None:
    from restkv_local.cli.options import write_json

    write_json(tmp_path / "figures.json", {"model": NAME})
    assert json.loads((tmp_path / "figures.json").read_text(encoding="utf-8")) == {"model": NAME}


# ---- tildes ----


def test_a_name_that_begins_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mine.txt").write_text("at home")
    (tmp_path / "~backup.txt").write_text("a backup")
    (tmp_path / "~root").write_text("no user")
    assert read_document("~backup.txt").text == "a backup"
    assert read_document("~root").text == "no user"
    assert read_document("~/mine.txt").text == "at home"
    with pytest.raises(DocumentError, match="'~nobody-of-that-name.txt' does not exist"):
        read_document("~nobody-of-that-name.txt")
    with pytest.raises(ModelError, match="there is no file ~nobody-of-that-name.gguf"):
        resolve("~nobody-of-that-name.gguf")


@pytest.mark.parametrize("name", ["x" * 5000, "bad\0name"])
def test_impossible_names(name: str) -> None:
    with pytest.raises(DocumentError, match="cannot be read"):
        read_document(name)
    with pytest.raises(ModelError, match="cannot be read"):
        resolve(name)


@pytest.mark.parametrize("own", [None, "caches", "~/caches"])
def test_the_tools_and_the_package_have_one_cache_folder(
    own: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lib.setup.source import cache_dir

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("RESTKV_CACHE", raising=False)
    if own is not None:
        monkeypatch.setenv("RESTKV_CACHE", own)
    found = paths.cache_folder("wo")
    assert found is not None and found == cache_dir() / "wo" and found.is_dir()


def test_large_files_go_to_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/tmp lies in memory on many systems; who names a folder gets that one."""
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(paths, "_ON_DISK", str(tmp_path))
    assert paths.work_folder() == tmp_path
    monkeypatch.setattr(paths, "_ON_DISK", str(tmp_path / "missing"))
    assert paths.work_folder() == Path(tempfile.gettempdir())
    monkeypatch.setattr(paths, "_ON_DISK", str(tmp_path))
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    assert paths.work_folder() == Path(tempfile.gettempdir())
