#!/usr/bin/env python3
"""The patch series on llama.cpp: check it out as commits, apply it, verify it, write it back.

python3 tools/patches.py checkout     a git work tree with one commit per patch
python3 tools/patches.py refresh      writes patches/*.patch from those commits
python3 tools/patches.py prepare      the patched tree that the build uses (made once, cached)
python3 tools/patches.py fetch        the pinned source archive (downloaded once, cached)
python3 tools/patches.py apply TREE   applies the series to an unpacked llama.cpp
python3 tools/patches.py verify TREE  says whether a tree holds exactly this series
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from lib.setup import source
from lib.setup.patch import added_lines
from lib.setup.source import PATCHES, SourceError

_BASE = "upstream"


def work_dir() -> Path:
    """Where `checkout` puts the work tree when no folder is given."""
    return source.cache_dir() / "work" / "llama.cpp"


def git(tree: Path, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run git on the work tree, and on no checkout around it; the user's hooks and signing stay out of it."""
    if shutil.which("git") is None:
        raise SourceError("git is missing; install it with your package manager (building does not need it)")
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    env |= {"GIT_CEILING_DIRECTORIES": str(tree.parent), "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}
    settings = ["-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null", "-c", "core.autocrlf=false"]
    done = subprocess.run(["git", *settings, *args], cwd=tree, env=env, capture_output=True, text=True)
    if check and done.returncode:
        raise SourceError(f"git {args[0]} failed in {tree}: {(done.stderr or done.stdout).strip()}")
    return done


def checkout(tree: Path, patches: Path = PATCHES, *, force: bool = False) -> None:
    """Unpack the pinned source into tree as a git repository: tag `upstream`, then one commit per patch."""
    if tree.exists() and not force:
        raise SourceError(f"{tree} exists; work there, or start over with `checkout --force` (drops your commits)")
    pin = source.upstream(patches)
    shutil.rmtree(tree, ignore_errors=True)
    source.unpack(source.fetch(patches), tree, pin["folder"])
    git(tree, "init", "-q")
    if git(tree, "config", "user.email", check=False).returncode:
        git(tree, "config", "user.name", "restkv-local")
        git(tree, "config", "user.email", "restkv-local@localhost")
    git(tree, "add", "-A", "-f")
    git(tree, "commit", "-q", "-m", f"llama.cpp {pin['commit']} of {pin['package']} {pin['version']}")
    git(tree, "tag", _BASE)
    paths = source.series(patches)
    done = git(tree, "am", "-q", "-3", *map(str, paths), check=False) if paths else None
    if done is not None and done.returncode:
        raise SourceError(
            f"{done.stdout.strip()}\nA patch does not apply. The commits before it are in {tree}. Next:\n"
            f"  cd {tree}\n"
            "  git status                      # shows the conflict; edit the files\n"
            "  git add -A && git am --continue # then the next patch; again until done\n"
            f"  python3 {source.ROOT / 'tools' / 'patches.py'} refresh {tree}"
        )
    print(f"{tree}: {len(paths)} patches as commits on the tag '{_BASE}'")
    print(f"change them with `git commit --amend` or `git rebase -i {_BASE}`, then: python3 tools/patches.py refresh")


def refresh(tree: Path, patches: Path = PATCHES) -> None:
    """Write the commits after the tag back as patches; nothing is written unless the result applies."""
    if not (tree / ".git").exists():
        raise SourceError(f"{tree} is not a work tree; make one with `python3 tools/patches.py checkout`")
    if (tree / ".git" / "rebase-apply").exists():
        raise SourceError(f"a patch is half applied in {tree}; finish it with `git am --continue` there, or --abort")
    if git(tree, "status", "--porcelain").stdout:
        raise SourceError(f"{tree} has changes that are in no commit; commit or drop them first")
    out = tree / ".git" / "restkv-series"
    shutil.rmtree(out, ignore_errors=True)
    options = ["--zero-commit", "--no-numbered", "--no-signature", "--abbrev=7"]
    git(tree, "format-patch", "-q", *options, "-o", str(out), f"{_BASE}..HEAD")
    shutil.copy(patches / "UPSTREAM", out / "UPSTREAM")
    new = source.series(out)
    check = tree.parent / f"{tree.name}.check"
    shutil.rmtree(check, ignore_errors=True)
    try:
        source.unpack(source.fetch(patches), check, source.upstream(patches)["folder"])
        source.apply(check, out)
    finally:
        shutil.rmtree(check, ignore_errors=True)
    for path in source.series(patches):
        path.unlink()
    for path in new:
        shutil.copy(path, patches / path.name)
        print(f"patches/{path.name}: {added_lines(path.read_text(encoding='utf-8'), path.name)} lines added")


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 1 when the source or the series is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name in ("checkout", "refresh"):
        command = commands.add_parser(name)
        command.add_argument("tree", nargs="?", type=Path, default=work_dir())
        if name == "checkout":
            command.add_argument("--force", action="store_true", help="drop the work tree that is there")
    commands.add_parser("fetch")
    commands.add_parser("prepare")
    for name in ("apply", "verify"):
        commands.add_parser(name).add_argument("tree", type=Path)
    args = parser.parse_args(argv)
    try:
        if args.command == "checkout":
            checkout(args.tree.resolve(), force=args.force)
        elif args.command == "refresh":
            refresh(args.tree.resolve())
        elif args.command == "fetch":
            print(source.fetch())
        elif args.command == "prepare":
            print(source.prepare())
        elif args.command == "apply":
            print("applied" if source.apply(args.tree) else "applied already")
        else:
            source.verify(args.tree)
            print("verified")
    except SourceError as err:
        print(f"patches.py: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
