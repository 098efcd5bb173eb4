"""Chat messages on their way to a prompt: parts of text, the model's own template, and models that have none."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

from llama_cpp import llama_chat_format

from ...errors import ConfigError

# The chat format of a model without a template, and one that gets answers from a model which only goes on with a text.
RAW = "raw"
QA = "qa"
_TEMPLATE = "tokenizer.chat_template"
NO_TEMPLATE = (
    "this model has no chat template (a base model?), so messages are passed on as plain text; "
    "chat_format='qa' writes them as questions and answers"
)


class Template:
    """A template of a model's file, in place of Jinja2ChatFormatter: what Jinja says about it comes with a chat, and
    as a ConfigError. Plain completions need no template."""

    def __init__(self, **arguments: Any) -> None:
        self._refusal: str | None = None
        try:
            self._formatter = llama_chat_format.Jinja2ChatFormatter(**arguments)
        except Exception as error:  # Jinja's own, and those of Python that it lets through
            self._refusal = _sentence(error)

    def __call__(self, **arguments: Any) -> Any:
        if self._refusal is not None:
            raise ConfigError(
                f"the chat template of this model cannot be read: {self._refusal}; "
                f"set chat_format, or use plain completion"
            )
        try:
            return self._formatter(**arguments)
        except Exception as error:
            raise ConfigError(f"the chat template of this model refuses these messages: {_sentence(error)}") from None

    def to_chat_handler(self) -> Any:
        """As Jinja2ChatFormatter's."""
        return llama_chat_format.chat_formatter_to_chat_completion_handler(self)


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def formats() -> types.SimpleNamespace:
    """llama_cpp.llama_chat_format with `Template` in it, for the constructor of an engine."""
    return types.SimpleNamespace(**{**vars(llama_chat_format), "Jinja2ChatFormatter": Template})


def _raw(messages: Sequence[Any], **_options: Any) -> Any:
    text = "\n".join(message.get("content") or "" for message in messages)
    return llama_chat_format.ChatFormatterResponse(prompt=text)


def _qa(messages: Sequence[Any], **_options: Any) -> Any:
    """Of a user's message the last paragraph is the question, what stands before it is text. An answer is a line."""
    parts = []
    for message in messages:
        content = (message.get("content") or "").strip()
        if message.get("role") == "assistant":
            parts.append(f" {content}\n\n")
        elif message.get("role") == "user":
            text, _, question = content.rpartition("\n\n")
            parts.append(f"{text}\n\nQuestion: {question}\nAnswer:" if text else f"Question: {question}\nAnswer:")
        elif content:
            parts.append(f"{content}\n\n")
    return llama_chat_format.ChatFormatterResponse(prompt="".join(parts), stop="\n")


def add_formats(engine: Any, chosen: str | None) -> str | None:
    """Let an engine know the formats RAW and QA; RAW is used when its model has no template and none was chosen.

    Returns a sentence about that, or None.
    """
    for name, formatter in ((RAW, _raw), (QA, _qa)):
        engine._chat_handlers[name] = llama_chat_format.chat_formatter_to_chat_completion_handler(formatter)
    if chosen is not None or engine.chat_handler is not None or _TEMPLATE in engine.metadata:
        return None
    engine.chat_format = RAW
    return NO_TEMPLATE


def handler(engine: Any) -> Any:
    """What turns messages into a completion. Raises ConfigError for a format that nobody knows."""
    found = engine.chat_handler or engine._chat_handlers.get(engine.chat_format)
    if found is not None:
        return found
    try:
        return llama_chat_format.get_chat_completion_handler(engine.chat_format)
    except llama_chat_format.LlamaChatCompletionHandlerNotFoundException:
        raise ConfigError(f"chat_format '{engine.chat_format}' is not known to llama-cpp-python") from None


def plain(messages: Sequence[Any]) -> list[Any]:
    """Messages whose content is text: a list of text parts becomes its lines. Raises ConfigError for other parts."""
    found: list[Any] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, (list, tuple)):
            message = {**message, "content": "\n".join(_part(part) for part in content)}
        found.append(message)
    return found


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind != "text" or not isinstance(part.get("text"), str):
        raise ConfigError(f"a message holds a part of type '{kind}'; without a chat_handler this model takes text")
    return str(part["text"])
