"""Texts as tokens: long runs, ids outside the vocabulary, a tokenizer of one's own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from engines import load
from models import write_random
from restkv_local.errors import ConfigError, LibraryError, RestkvError

try:
    from restkv_local import Engine
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)

RUNS = [
    "a" * 30_000, "-" * 30_000, " " * 30_000, "A" * 30_000, "\n" * 30_000, "中" * 30_000, "-\n/" * 20_000,
    "a" * 300_000,
]  # fmt: skip
TOKENIZE = """
import json, sys, threading
from restkv_local import Engine, EvictConfig

engine = Engine(sys.argv[1], n_threads=1, n_ctx=512, evict=EvictConfig(budget=64, reserve=64, prefill="guided"))
texts = json.load(sys.stdin)

def tokens():
    for text in texts:
        found = engine.tokenize(text.encode())
        assert found == engine.tokenizer().encode(text) == engine._model.tokenize(text.encode(), True, True)
        assert engine.detokenize(found).decode() == text
        print(len(found))

tokens()
thread = threading.Thread(target=tokens)
thread.start()
thread.join()
engine.guide = texts[0]
engine.create_completion("ab" * 100, max_tokens=1)
for call in (engine.create_completion, lambda text: engine.create_chat_completion([{"role": "user", "content": text}])):
    try:
        call(texts[0])
    except ValueError as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize("pre", ["gpt-4o", "deepseek-v3", "tekken", "exaone-moe"])
def test_long_runs_are_tokenized_as_they_are(folder: Path, pre: str) -> None:
    """In a process of its own, whose end would be a finding and not the end of the tests."""
    path = write_random(folder / f"{pre}.gguf", "llama", pre=pre)
    done = subprocess.run(
        [sys.executable, "-c", TOKENIZE, str(path)], input=json.dumps(RUNS), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    counts = done.stdout.split()
    assert counts[: len(RUNS)] == counts[len(RUNS) : -2] and counts[-2:] == ["ContextOverflow"] * 2
    # Four letters, dashes or spaces are one token of this vocabulary.
    assert counts[:3] == ["7500"] * 3


def test_a_run_has_the_tokens_of_a_short_one_many_times(bpe: Engine) -> None:
    short = bpe.tokenize(b"a" * 400)
    assert bpe.tokenize(b"a" * 40_000) == short * 100


def test_no_address_space_is_said(bpe: Engine) -> None:
    from restkv_local.engine.stack import call_on_stack

    with pytest.raises(RestkvError, match="MiB"):
        call_on_stack(lambda: 1, 1 << 60)
    assert call_on_stack(lambda: 1, 1 << 24) == 1 and threading.stack_size() == 0
    with pytest.raises(KeyError):
        call_on_stack(lambda: {}[1], 1 << 24)


@pytest.mark.parametrize("token", [-1, 320, 2**31 - 1, 2**40])
def test_tokens_outside_the_vocabulary(spm: Engine, token: int) -> None:
    with pytest.raises(ConfigError, match="give ids from 0 to 319"):
        spm.detokenize([1, token])


def test_pieces_of_any_length(folder: Path) -> None:
    long = "-" * 100
    path = write_random(folder / "long.gguf", "llama")
    engine = load(path)
    assert engine.detokenize(engine.tokenize(long.encode(), add_bos=False)).decode().strip() == long
    assert engine._model.token_to_piece(259 + 1) == engine._model.detokenize([260])
    engine.close()


def test_a_tokenizer_of_ones_own(folder: Path) -> None:
    from llama_cpp.llama_tokenizer import BaseLlamaTokenizer

    class Bytes(BaseLlamaTokenizer):
        def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
            return [3 + byte for byte in text]

        def detokenize(self, tokens: Any, prev_tokens: Any = None, special: bool = False) -> bytes:
            return bytes(token - 3 for token in tokens if 3 <= token < 259).decode("utf-8", "replace").encode()

    engine = load(write_random(folder / "own.gguf", "llama"), tokenizer=Bytes())
    assert engine.tokenize(b"ab") == [100, 101]
    settings = {"max_tokens": 20, "temperature": 5.0, "top_k": 0, "seed": 3}
    whole = engine.create_completion("ab", **settings)["choices"][0]["text"]
    stream = engine.create_completion("ab", stream=True, **settings)
    assert "".join(chunk["choices"][0]["text"] for chunk in stream) == whole
    engine.close()
