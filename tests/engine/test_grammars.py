"""What may be said: grammars, schemas, biases and processors that stock llama_cpp gets wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from restkv_local.errors import ConfigError, LibraryError, RestkvError

try:
    from llama_cpp import LlamaGrammar, LogitsProcessorList

    from restkv_local import Engine
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)

BAD_GRAMMARS = ["", 'root ::= root "a" | "b"', "root ::= a", 'root ::= "a', 'rot ::= "a"', "root ::= " + "(" * 10**6]


def grammar(text: str) -> Any:
    return LlamaGrammar.from_string(text, verbose=False)


@pytest.mark.parametrize("text", BAD_GRAMMARS, ids=range(6))
def test_bad_grammars_are_refused_before_anything_is_lost(spm: Engine, text: str) -> None:
    prompt = spm.tokenize(b"abcd")
    next(spm.generate(prompt))
    before = spm.n_tokens
    assert before == len(prompt)
    for call in (
        lambda: spm.create_completion("x", grammar=grammar(text)),
        lambda: spm.create_completion("x", grammar=grammar(text), stream=True),
        lambda: spm.create_chat_completion([{"role": "user", "content": "x"}], grammar=grammar(text)),
        lambda: next(spm.generate([9], grammar=grammar(text))),
        lambda: spm.sample(grammar=grammar(text)),
    ):
        with pytest.raises(ConfigError, match="grammar"):
            call()
        assert spm.n_tokens == before


def test_an_empty_root_gives_an_empty_answer(spm: Engine) -> None:
    choice = spm.create_completion("x", grammar=grammar("root ::= "))["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")


def test_schemas_are_not_replaced_by_any_json(spm: Engine) -> None:
    messages = [{"role": "user", "content": "x"}]
    bad = {"$ref": "#/nowhere"}
    tool = {"type": "function", "function": {"name": "f", "parameters": bad}}
    with pytest.raises(ConfigError, match="the schema in response_format"):
        spm.create_chat_completion(messages, response_format={"type": "json_object", "schema": bad})
    with pytest.raises(ConfigError, match="the parameters of 'f'"):
        spm.create_chat_completion(messages, tools=[tool], tool_choice={"type": "function", "function": {"name": "f"}})


def test_a_grammar_that_no_token_fits(spm: Engine) -> None:
    with pytest.raises(RestkvError, match="leaves no token"):
        spm.create_completion("x", grammar=grammar("root ::= <[2]> [a]"), logit_bias={2: float("-inf")})
    assert spm.create_completion("x", grammar=grammar('root ::= "ab"'))["choices"][0]["text"] == "ab"


def force(token: int) -> Callable[[Any, Any], Any]:
    def processor(_ids: Any, logits: Any) -> Any:
        changed = np.full_like(logits, -np.inf)
        changed[token] = 0.0
        return changed

    return processor


def test_a_bias_and_a_processor_both_count(spm: Engine) -> None:
    a, b = 3 + ord("a"), 3 + ord("b")

    def allow(_ids: Any, logits: Any) -> Any:
        changed = np.full_like(logits, -np.inf)
        changed[[a, b]] = 0.0
        return changed

    for given in (LogitsProcessorList([allow]), [allow], allow):
        settings = {"max_tokens": 6, "temperature": 1.0, "logits_processor": given}
        assert spm.create_completion("x", logit_bias={b: 100.0}, **settings)["choices"][0]["text"] == "bbbbbb"
        assert spm.create_completion("x", logit_bias={str(a): 100}, **settings)["choices"][0]["text"] == "aaaaaa"
    kept = LogitsProcessorList([allow])
    spm.create_completion("x", logit_bias={b: 100.0}, logits_processor=kept, max_tokens=1)
    assert kept == [allow], "the caller's list stays as it was"
    for wrong in ({320: 1.0}, {-1: 1.0}, {"x": 1.0}):
        with pytest.raises(ConfigError, match="logit_bias"):
            spm.create_completion("x", logit_bias=wrong)


def test_what_a_processor_raises_arrives(spm: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    def broken(_ids: Any, _logits: Any) -> Any:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        spm.create_completion("x", logits_processor=LogitsProcessorList([force(100), broken]))
    with pytest.raises(ConfigError, match="logits_processor returned"):
        spm.create_completion("x", logits_processor=[lambda ids, logits: logits[:5]])
    with pytest.raises(RestkvError, match="leaves no token"):
        spm.create_completion("x", logits_processor=[lambda ids, logits: np.full_like(logits, -np.inf)])
    assert capfd.readouterr() == ("", "")
