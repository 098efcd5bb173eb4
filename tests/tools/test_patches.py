"""The patch series: applies to the pinned source exactly, or stops the build."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import patches as tool
from lib.setup import source
from lib.setup.patch import PatchError, added_lines, apply_patch
from lib.setup.source import PATCHES, ROOT, SourceError

# The series holds hooks and call sites; whatever needs more lines belongs in native/.
LINES_MAX = 150

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is only needed to change the series")


@pytest.fixture(autouse=True)
def local_source(sdist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded here."""
    monkeypatch.setenv("RESTKV_SDIST", str(sdist))


@pytest.fixture(scope="module")
def stock(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pinned source, unpatched."""
    tree = tmp_path_factory.mktemp("stock") / "llama.cpp"
    source.unpack(sdist, tree, source.upstream()["folder"])
    return tree


@pytest.fixture
def toy(tmp_path: Path) -> tuple[Path, Path]:
    """A source of one file, and a series of one patch for it."""
    tree, series = tmp_path / "tree", tmp_path / "series"
    tree.mkdir()
    series.mkdir()
    (tree / "a.cpp").write_text("".join(f"line {i}\n" for i in range(1, 11)))
    shutil.copy(PATCHES / "UPSTREAM", series / "UPSTREAM")
    (series / "0001-hook.patch").write_text(
        "Subject: [PATCH] hook\n\ndiff --git a/a.cpp b/a.cpp\n--- a/a.cpp\n+++ b/a.cpp\n"
        "@@ -2,3 +2,4 @@\n line 2\n line 3\n+restkv_hook();\n line 4\n"
        "@@ -8,3 +9,3 @@ f()\n line 8\n-line 9\n+restkv_last();\n line 10\n"
    )
    return tree, series


def text_of(tree: Path) -> str:
    """The one file of the toy."""
    return (tree / "a.cpp").read_text()


def patched_files() -> list[str]:
    """The files that the series changes, as the tool sees them."""
    from lib.setup.patch import read_patch

    return sorted({file.path for path in source.series() for file in read_patch(path.read_text(), path.name)})


def test_series_applies_and_is_small(stock: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(stock, tree)
    assert source.apply(tree) is True
    assert source.apply(tree) is False, "a second run must recognise the series"
    source.verify(tree)
    lines = sum(added_lines(path.read_text(), path.name) for path in source.series())
    assert 0 < lines <= LINES_MAX
    for name in patched_files():
        assert "restkv" in (tree / name).read_text()


@needs_git
def test_same_result_as_git(stock: Path, tmp_path: Path) -> None:
    ours, gits = tmp_path / "ours", tmp_path / "gits"
    for tree in (ours, gits):
        for name in patched_files():
            if (stock / name).exists():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(stock / name, tree / name)
    source.apply(ours)
    env = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path)}
    for path in source.series():
        subprocess.run(["git", "apply", str(path)], cwd=gits, env=env, check=True)
    for name in patched_files():
        assert (ours / name).read_bytes() == (gits / name).read_bytes(), name


def test_toy_applies(toy: tuple[Path, Path]) -> None:
    tree, series = toy
    assert source.apply(tree, series)
    lines = text_of(tree).splitlines()
    assert lines[1:5] == ["line 2", "line 3", "restkv_hook();", "line 4"]
    assert lines[8:] == ["line 8", "restkv_last();", "line 10"]
    assert text_of(tree).endswith("\n")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("line 9", "line nine", "does not fit a.cpp at line 8"),
        ("@@ -2,3", "@@ -3,3", "does not fit a.cpp at line 3"),
        ("+++ b/a.cpp", "+++ b/b.cpp", "changes b.cpp, which the source does not have"),
        ("+++ b/a.cpp", "+++ b/../a.cpp", "names the file 'b/../a.cpp'"),
        ("@@ -2,3 +2,4 @@", "@@ -2,3 +2,5 @@", "inside the hunk"),
        ("@@ -2,3 +2,4 @@", "@@ two @@", "damaged hunk header"),
        ("--- a/a.cpp\n", "", "holds no change"),
    ],
)
def test_broken_patch_stops_and_writes_nothing(toy: tuple[Path, Path], old: str, new: str, words: str) -> None:
    tree, series = toy
    before = text_of(tree)
    path = series / "0001-hook.patch"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(SourceError) as caught:
        source.apply(tree, series)
    assert words in str(caught.value) and "patches.py checkout" in str(caught.value)
    assert text_of(tree) == before and not (tree / source.STAMP).exists()
    with pytest.raises(SourceError, match="is not patched"):
        source.verify(tree, series)


def test_broken_hunk_of_the_real_series_stops_the_build(stock: Path, tmp_path: Path) -> None:
    series = tmp_path / "series"
    shutil.copytree(PATCHES, series)
    last = source.series(series)[-1]
    lines = last.read_text().split("\n")
    context = next(i for i, line in enumerate(lines) if line.startswith("@@")) + 1
    lines[context] = lines[context][:1] + "not in llama.cpp"
    last.write_text("\n".join(lines))
    tree = tmp_path / "tree"
    shutil.copytree(stock, tree)
    with pytest.raises(SourceError, match=rf"{last.name} does not fit"):
        source.apply(tree, series)


def test_applies_inside_another_checkout(toy: tuple[Path, Path], tmp_path: Path) -> None:
    """`git apply` returns 0 there and changes nothing, unless GIT_CEILING_DIRECTORIES is set."""
    tree, series = toy
    if shutil.which("git"):
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".git").mkdir(exist_ok=True)
    assert source.apply(tree, series)
    assert "restkv_hook" in text_of(tree)


def test_empty_series_stops(toy: tuple[Path, Path]) -> None:
    tree, series = toy
    (series / "0001-hook.patch").unlink()
    with pytest.raises(SourceError, match="holds no patch"):
        source.apply(tree, series)


def test_verify_sees_every_change(toy: tuple[Path, Path]) -> None:
    tree, series = toy
    source.apply(tree, series)
    good = text_of(tree)
    (tree / "a.cpp").write_text(good.replace("line 1\n", "line one\n", 1))
    with pytest.raises(SourceError, match="was changed after the series"):
        source.verify(tree, series)
    (tree / "a.cpp").write_text(good)
    source.verify(tree, series)
    path = series / "0001-hook.patch"
    path.write_text(path.read_text().replace("restkv_hook", "restkv_other"))
    with pytest.raises(SourceError, match="another version of the series"):
        source.verify(tree, series)


def test_patched_file_without_a_call_of_ours_is_refused(toy: tuple[Path, Path]) -> None:
    tree, series = toy
    path = series / "0001-hook.patch"
    path.write_text(path.read_text().replace("restkv_", "other_"))
    with pytest.raises(SourceError, match="holds no call of ours"):
        source.apply(tree, series)


def test_new_file_and_two_hunks_of_nothing_old(tmp_path: Path) -> None:
    (tmp_path / "a.cpp").write_text("one\ntwo\n")
    text = (
        "--- /dev/null\n+++ b/new/b.cpp\n@@ -0,0 +1,2 @@\n+restkv\n+end\n"
        "--- a/a.cpp\n+++ b/a.cpp\n@@ -1,0 +2 @@\n+restkv\n"
    )
    assert apply_patch(text, "p", tmp_path) == ["new/b.cpp", "a.cpp"]
    assert (tmp_path / "new" / "b.cpp").read_text() == "restkv\nend\n"
    assert (tmp_path / "a.cpp").read_text() == "one\nrestkv\ntwo\n"
    with pytest.raises(PatchError, match="exists already"):
        apply_patch(text, "p", tmp_path)


def test_foreign_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.tar.gz").write_bytes(b"not the source")
    monkeypatch.setenv("RESTKV_SDIST", str(tmp_path / "other.tar.gz"))
    with pytest.raises(SourceError, match="is not the pinned source"):
        source.fetch()
    monkeypatch.setenv("RESTKV_SDIST", str(tmp_path / "none"))
    with pytest.raises(SourceError, match="which is not a file"):
        source.fetch()


def test_prepare_makes_the_tree_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTKV_CACHE", str(tmp_path))
    tree = source.prepare()
    assert tree.parent == tmp_path / "src" and [path.name for path in tree.parent.iterdir() if path.is_dir()] == [
        tree.name
    ]
    made = (tree / source.STAMP).stat().st_mtime_ns
    monkeypatch.setenv("RESTKV_SDIST", str(tmp_path / "not needed any more"))
    assert source.prepare() == tree and (tree / source.STAMP).stat().st_mtime_ns == made
    name = patched_files()[0]
    (tree / name).write_text("stock again")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "patches.py"), "prepare"], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"patches.py: {name} in ") and "was changed after the series" in done.stderr


@needs_git
def test_checkout_then_refresh_gives_the_same_series(tmp_path: Path) -> None:
    series = tmp_path / "series"
    shutil.copytree(PATCHES, series)
    tool.checkout(tmp_path / "work", series)
    with pytest.raises(SourceError, match="checkout --force"):
        tool.checkout(tmp_path / "work", series)
    tool.refresh(tmp_path / "work", series)
    for path in source.series():
        assert (series / path.name).read_bytes() == path.read_bytes(), f"write {path.name} with `patches.py refresh`"
    assert len(source.series(series)) == len(source.series())
    (tmp_path / "work" / "CMakeLists.txt").write_text("changed")
    with pytest.raises(SourceError, match="commit or drop them first"):
        tool.refresh(tmp_path / "work", series)


@needs_git
def test_conflict_says_what_to_do(tmp_path: Path) -> None:
    series = tmp_path / "series"
    shutil.copytree(PATCHES, series)
    first = source.series(series)[0]
    lines = first.read_text().split("\n")
    context = next(i for i, line in enumerate(lines) if line.startswith("@@")) + 1
    lines[context] = lines[context][:1] + "not in llama.cpp"
    first.write_text("\n".join(lines))
    with pytest.raises(SourceError) as caught:
        tool.checkout(tmp_path / "work", series)
    text = str(caught.value)
    assert "git am --continue" in text and "patches.py refresh" in text.replace("'", "")
    with pytest.raises(SourceError, match="half applied"):
        tool.refresh(tmp_path / "work", series)
