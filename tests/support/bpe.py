"""A byte-level BPE tokenizer for models of the tests: every text is tokens, and some pairs merge."""

from __future__ import annotations

import gguf

_MERGES = ("a a", "aa aa", "- -", "-- --", "Ġ Ġ", "ĠĠ ĠĠ", "A A", "h e")
END = "<|end|>"


def _alphabet() -> list[str]:
    """GPT-2's characters for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def add_bpe_tokenizer(writer: gguf.GGUFWriter, n_vocab: int, pre: str) -> None:
    """Put it into a file. pre: the name of the patterns that cut a text into words."""
    tokens = _alphabet() + [pair.replace(" ", "") for pair in _MERGES] + [END]
    types = [gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL]
    unused = [f"<unused{i}>" for i in range(n_vocab - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens + unused)
    writer.add_token_types(types + [gguf.TokenType.UNUSED] * len(unused))
    writer.add_token_merges(list(_MERGES))
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)
