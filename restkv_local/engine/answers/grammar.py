"""Grammars and schemas of an answer, checked before llama.cpp sees them."""

from __future__ import annotations

import json
from typing import Any

from ...errors import ConfigError
from ...native import quiet
from ...native.binding import c
from .gbnf import Grammar, growing

_TOKEN_MAX = 512  # characters of a token's text in a grammar


def check_grammar(grammar: Any, model: Any) -> None:
    """Raise ConfigError for a grammar (llama_cpp.LlamaGrammar) that llama.cpp cannot use with this model."""
    text, root = getattr(grammar, "_grammar", None), getattr(grammar, "_root", "root")
    if not isinstance(text, str):
        raise ConfigError("a grammar is made with llama_cpp.LlamaGrammar.from_string(text)")
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"the grammar holds half of a surrogate pair at character {error.start}") from None

    def one_token(name: str) -> bool:
        return len(name) <= _TOKEN_MAX and len(model.tokenize(name.encode(), add_bos=False, special=True)) == 1

    read = Grammar(text, model.n_vocab(), one_token)
    read.check(root)
    with quiet.capture() as log:
        sampler = c.llama_sampler_init_grammar(model.vocab, encoded, root.encode())
    if sampler:
        c.llama_sampler_free(sampler)
        return
    name = read.left_recursive()
    if name is not None:
        raise growing(name)
    raise ConfigError(f"llama.cpp refuses the grammar: {'; '.join(log) or 'it gives no reason'}")


def check_schema(schema: Any, model: Any, what: str) -> None:
    """Raise ConfigError for a JSON schema that cannot be made a grammar; llama_cpp would take any JSON in its place."""
    from llama_cpp.llama_grammar import LlamaGrammar

    try:
        grammar = LlamaGrammar.from_json_schema(json.dumps(schema), verbose=False)
    except RecursionError:
        raise ConfigError(f"{what} is nested too deep to be made a grammar") from None
    except Exception as error:  # of a converter that checks nothing
        raise ConfigError(f"{what} cannot be made a grammar: {type(error).__name__}: {error}") from None
    try:
        check_grammar(grammar, model)
    except ConfigError as error:
        raise ConfigError(f"{what} cannot be made a grammar: {error}") from None


def check_schemas(options: dict[str, Any], model: Any) -> None:
    """Check those that a chat completion would turn into grammars; see check_schema."""
    wanted = options.get("response_format") or {}
    if wanted.get("type") == "json_object" and "schema" in wanted:
        check_schema(wanted["schema"], model, "the schema in response_format")
    tools = [tool.get("function", {}) for tool in options.get("tools") or []] + list(options.get("functions") or [])
    choice = options.get("tool_choice") or options.get("function_call")
    if isinstance(choice, dict):
        name = (choice.get("function") or choice).get("name")
        for tool in tools:
            if tool.get("name") == name and "parameters" in tool:
                check_schema(tool["parameters"], model, f"the parameters of '{name}'")
