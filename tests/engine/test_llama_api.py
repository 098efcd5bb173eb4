"""What is built on llama_cpp's Llama: chats, grammars, tools, log probabilities, stopping criteria."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from engines import logits
from restkv_local.errors import ConfigError, LibraryError

try:
    from restkv_local import Engine
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)


def test_chat_streaming_gives_the_same_text(small: Engine) -> None:
    messages = [{"role": "user", "content": "Say hello to the harbour."}]
    settings: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0}
    whole = small.create_chat_completion(messages, **settings)["choices"][0]["message"]["content"]
    chunks = small.create_chat_completion(messages, stream=True, **settings)
    parts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(parts) == whole != ""


def test_grammar_and_tools(small: Engine) -> None:
    from llama_cpp import LlamaGrammar

    grammar = LlamaGrammar.from_string('root ::= "yes" | "no"')
    said = small.create_completion("Is water wet? Answer:", grammar=grammar, max_tokens=8)["choices"][0]["text"]
    assert said in ("yes", "no")
    tool = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"enum": ["Lindau"]}}, "required": ["city"]},
        },
    }
    choice = {"type": "function", "function": {"name": "weather"}}
    message = small.create_chat_completion(
        [{"role": "user", "content": "Weather in Lindau?"}], tools=[tool], tool_choice=choice, max_tokens=64
    )["choices"][0]["message"]
    call = message["tool_calls"][0]["function"]
    assert call["name"] == "weather" and json.loads(call["arguments"]) == {"city": "Lindau"}


def test_logprobs_of_an_answer(small: Engine, tokens: list[int]) -> None:
    prompt = tokens[:300]
    result = small.create_completion(prompt, max_tokens=4, logprobs=3, temperature=0.0, seed=1)
    logprobs = result["choices"][0]["logprobs"]
    assert len(logprobs["token_logprobs"]) == 4
    small.reset()
    said: list[int] = []
    for token in small.generate(prompt, temp=0.0):
        row = logits(small).astype(np.float64)
        expected = row[token] - row.max() - np.log(np.exp(row - row.max()).sum())
        np.testing.assert_allclose(logprobs["token_logprobs"][len(said)], expected, atol=1e-4)
        assert max(logprobs["top_logprobs"][len(said)].values()) == logprobs["token_logprobs"][len(said)]
        said.append(token)
        if len(said) == 4:
            break
    with pytest.raises(ConfigError, match="echo"):
        small.create_completion("a", echo=True, logprobs=1)


def test_stopping_criteria_see_the_last_logits(small: Engine, tokens: list[int]) -> None:
    seen: list[int] = []

    def criterion(ids: Any, scores: Any) -> bool:
        seen.append(int(np.argmax(scores)))
        return len(seen) == 4

    from llama_cpp import StoppingCriteriaList

    said = list(small.generate(tokens[:50], temp=0.0, stopping_criteria=StoppingCriteriaList([criterion])))
    assert len(seen) == 4 and said == seen[:3]
