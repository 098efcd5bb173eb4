#!/usr/bin/env python3
"""Seconds to read a text, to save it as a session, and to open that in a new engine; the next tokens must be the same.

    python3 tools/session_times.py [--model PATH] [--tokens N] [--budget N] [--archive ram|file]

Run it inside the environment, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any


def main() -> None:
    """Print one line for each step; exit with 1 where the tokens differ."""
    from restkv_local import Engine, EvictConfig
    from restkv_local.bench.prose import prose_tokens

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None, help="a GGUF file; the embedded model when not given")
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--archive", choices=("none", "ram", "file"), default="file")
    given = parser.parse_args()
    evict = EvictConfig(budget=given.budget, archive=given.archive)

    def made() -> Any:
        return Engine(given.model, n_ctx=given.tokens + 256, evict=evict)

    def following(engine: Any) -> list[int]:
        prompt = [*engine.input_ids[: engine.n_tokens].tolist(), *question]
        return list(islice(engine.generate(prompt, temp=0.0), 32))

    with tempfile.TemporaryDirectory() as folder, contextlib.closing(made()) as first:
        path = Path(folder) / "text.session"
        question = first.tokenize(b" What was that about?", add_bos=False)
        tokens = prose_tokens(given.tokens, first.tokenize)
        start = time.perf_counter()
        first.eval(tokens)
        print(f"read    {len(tokens):,} tokens in {time.perf_counter() - start:.2f} s")
        saved = first.save_session(path)
        print(f"saved   {saved.bytes / 1e6:.1f} MB in {saved.seconds:.2f} s")
        with contextlib.closing(made()) as second:
            opened = second.load_session(path)
            print(f"opened  {opened.tokens:,} positions, {opened.rows:,} in the archive, in {opened.seconds:.2f} s")
            same = following(first) == following(second)
    print("the next 32 tokens are the same" if same else "the next tokens DIFFER")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
