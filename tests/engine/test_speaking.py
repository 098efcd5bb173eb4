"""Answers of an engine: streams, prompts, seeds and templates that stock llama_cpp gets wrong."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from engines import load
from models import write_random
from restkv_local.errors import ConfigError, ContextOverflow, LibraryError, RestkvError

try:
    from restkv_local import Engine
    from restkv_local.engine.answers.chat_templates import NO_TEMPLATE, RAW
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)

WILD: dict[str, Any] = {"max_tokens": 12, "temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


# ---- streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("options", [{}, {"stop": ["a", "\n"]}, {"echo": True}, {"logprobs": 2}, {"max_tokens": None}])
def test_a_stream_says_what_a_whole_answer_says(spm: Engine, seed: int, options: dict[str, Any]) -> None:
    settings = {**WILD, "max_tokens": 12 + seed, "temperature": 3.0, "seed": seed, **options}
    whole = spm.create_completion("Wie heißt du? ₹", **settings)["choices"][0]
    chunks = [chunk["choices"][0] for chunk in spm.create_completion("Wie heißt du? ₹", stream=True, **settings)]
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    assert chunks[-1]["finish_reason"] == whole["finish_reason"]
    if "logprobs" in options:
        tokens = [token for chunk in chunks if chunk["logprobs"] for token in chunk["logprobs"]["tokens"]]
        assert tokens == whole["logprobs"]["tokens"] and len(tokens) <= 12 + seed


def test_an_answer_to_the_end_of_the_context(spm: Engine) -> None:
    """It may end inside a character, and is neither longer nor lost."""
    prompt = [5 + i % 300 for i in range(480)]
    for seed in range(8):
        for stream in (False, True):
            said = spm.create_completion(prompt, max_tokens=None, temperature=5.0, top_k=0, seed=seed, stream=stream)
            done = list(said)[-1] if stream else said
            assert done["choices"][0]["finish_reason"] in ("length", "stop")
            assert spm.n_tokens < 512
            assert stream or done["usage"]["completion_tokens"] <= 32


# ---- prompts -------------------------------------------------------------------------------------


def test_an_empty_prompt_begins_a_text_or_is_refused(spm: Engine, bpe: Engine) -> None:
    assert spm.create_completion("", max_tokens=2)["usage"]["prompt_tokens"] == 1
    bpe.create_completion("something", max_tokens=2)
    for call in (
        lambda: bpe.create_completion("", max_tokens=2),
        lambda: bpe.create_completion([], max_tokens=2),
        lambda: next(bpe.create_completion("", stream=True)),
        lambda: next(bpe.generate([])),
    ):
        with pytest.raises(ConfigError, match="prompt is empty"):
            call()
    bpe.reset()
    with pytest.raises(ConfigError, match="prompt is empty"):
        next(bpe.generate([], reset=False))
    with pytest.raises(RestkvError, match="nothing to go on from"):
        bpe.sample()


def test_an_empty_prompt_with_asserts_off(folder: Path, bpe: Engine) -> None:
    script = f"""
        from restkv_local import Engine, EvictConfig, ConfigError
        engine = Engine({bpe.model_path!r}, n_threads=1, n_ctx=512, evict=EvictConfig(budget=64, reserve=64))
        engine.create_completion("something", max_tokens=2)
        for call in (lambda: engine.create_completion(""), lambda: next(engine.generate([])), lambda: engine.sample()):
            try:
                print("answered", call())
            except Exception as error:
                print(type(error).__name__)
            engine.reset()
    """
    done = subprocess.run(
        [sys.executable, "-O", "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["ConfigError", "ConfigError", "RestkvError"]


def test_an_answer_goes_on_without_a_prompt(spm: Engine) -> None:
    tokens = spm.tokenize(b"abc")
    said = list(islice(spm.generate(tokens, temp=0.0), 4))
    spm.reset()
    spm.eval(tokens)
    assert list(islice(spm.generate([], temp=0.0, reset=False), 4)) == said


def test_echo_of_tokens(spm: Engine) -> None:
    tokens = spm.tokenize("né".encode())
    said = spm.create_completion(tokens, max_tokens=3, echo=True, seed=1)["choices"][0]["text"]
    assert said.removeprefix(" ").startswith("né")


def test_a_gap_needs_tokens_that_mark_it(spm: Engine) -> None:
    with pytest.raises(ConfigError, match="suffix"):
        spm.create_completion("a", suffix="b")


# ---- seeds ---------------------------------------------------------------------------------------


def said(engine: Engine, **options: Any) -> str:
    engine.reset()
    return str(engine.create_completion("abc", **WILD, **options)["choices"][0]["text"])


def test_without_a_seed_every_answer_is_another(spm: Engine) -> None:
    assert len({said(spm) for _ in range(6)}) > 1
    assert said(spm, seed=5) == said(spm, seed=5)
    assert len({said(spm) for _ in range(6)}) > 1, "the seed of one call is not that of the next"
    assert len({said(spm, seed=-1) for _ in range(6)}) > 1


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 2, 2**32 - 1])
def test_every_seed_repeats(spm: Engine, seed: int) -> None:
    assert len({said(spm, seed=seed) for _ in range(4)}) == 1


def test_without_a_seed_every_engine_is_another(folder: Path, spm: Engine) -> None:
    found = {}
    for seed in (None, 7, 2**32 - 1):
        found[seed] = []
        for _ in range(3):
            engine = load(Path(spm.model_path), **({} if seed is None else {"seed": seed}))
            found[seed].append((said(engine), said(engine)))
            engine.close()
    assert len(set(found[None])) > 1
    assert len(set(found[7])) == len(set(found[2**32 - 1])) == 1
    assert found[7][0][0] != found[7][0][1], "each next answer is another, the same in every run"


@pytest.mark.parametrize("seed", [-2, 2**32])
def test_seeds_out_of_range(spm: Engine, seed: int) -> None:
    with pytest.raises(ConfigError, match="seed"):
        spm.create_completion("x", seed=seed)
    with pytest.raises(ConfigError, match="seed"):
        spm.set_seed(seed)
    with pytest.raises(ConfigError, match="seed"):
        load(Path(spm.model_path), seed=seed)


# ---- chats ---------------------------------------------------------------------------------------


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def prompt_of(engine: Engine, messages: list[Any]) -> str:
    engine.reset()
    engine.create_chat_completion(messages, max_tokens=1, seed=1, logit_bias={engine.token_eos(): -100.0})
    return engine.detokenize(engine._input_ids.tolist(), special=True).decode()


def test_parts_of_text_are_lines(bpe: Engine) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert prompt_of(bpe, user(parts)) == prompt_of(bpe, user("one\ntwo")) == "user: one\ntwo\nassistant:"
    with pytest.raises(ConfigError, match="image_url"):
        bpe.create_chat_completion(user([{"type": "image_url", "image_url": {"url": "x"}}]))


def test_what_a_template_says_is_a_sentence(bpe: Engine) -> None:
    with pytest.raises(ConfigError, match="refuses these messages: No tools here!"):
        bpe.create_chat_completion([{"role": "tool", "content": "x"}])
    with pytest.raises(ConfigError, match="refuses these messages"):
        bpe.create_chat_completion([{"role": "user", "content": None}])


@pytest.mark.parametrize("template", ["{% if %}", "{{ messages | nonsense }}", "{% for %}{% endfor", "{% while 1 %}"])
def test_a_template_that_jinja_refuses_leaves_the_rest(folder: Path, template: str) -> None:
    engine = load(write_random(folder / "refused.gguf", "llama", template=template))
    assert engine.create_completion("x", max_tokens=2)["usage"]["completion_tokens"] >= 1
    with pytest.raises(ConfigError, match="the chat template of this model cannot be read"):
        engine.create_chat_completion(user("x"))
    engine.close()
    other = load(folder / "refused.gguf", chat_format="chatml")
    assert "<|im_start|>" in prompt_of(other, user("x"))
    other.close()


def test_a_model_without_a_template_gets_plain_text_and_says_so_once(folder: Path) -> None:
    notices: list[str] = []
    path = write_random(folder / "base.gguf", "llama")
    engine = load(path, on_notice=notices.append)
    assert prompt_of(engine, user("Once upon")) == "<s> Once upon"
    prompt_of(engine, user("Once again"))
    assert notices == [NO_TEMPLATE] and engine.report().notices == [NO_TEMPLATE] and engine.chat_format == RAW
    engine.close()
    chosen = load(path, chat_format="llama-2", on_notice=notices.append)
    assert "[INST]" in prompt_of(chosen, user("x")) and len(notices) == 1
    chosen.close()


def test_a_base_model_is_asked_as_a_text_that_goes_on(folder: Path) -> None:
    engine = load(write_random(folder / "asked.gguf", "llama"), chat_format="qa")
    talk = [
        {"role": "system", "content": "A story."},
        {"role": "user", "content": "Document: a.txt\n\nOnce.\n\nTwice.\n\nHow often? "},
        {"role": "assistant", "content": " Twice."},
        {"role": "user", "content": "Who?"},
    ]
    text = "A story.\n\nDocument: a.txt\n\nOnce.\n\nTwice."
    asked = "Question: How often?\nAnswer: Twice.\n\nQuestion: Who?\nAnswer:"
    assert prompt_of(engine, talk) == f"<s> {text}\n\n{asked}"
    stops: list[Any] = []
    plain = engine.create_completion
    engine.create_completion = lambda *args, **kwargs: (stops.append(kwargs["stop"]), plain(*args, **kwargs))[1]
    engine.create_chat_completion(user("x"), max_tokens=2)
    assert stops == [["\n"]]
    engine.close()


def test_a_format_that_nobody_knows(spm: Engine) -> None:
    engine = load(Path(spm.model_path), chat_format="nonsense")
    with pytest.raises(ConfigError, match="chat_format 'nonsense'"):
        engine.create_chat_completion(user("x"))
    engine.close()


# ---- a small context, and the end of Python ------------------------------------------------------


def test_a_context_that_is_too_small_for_the_prompt(spm: Engine) -> None:
    with pytest.raises(ContextOverflow, match="larger n_ctx"):
        spm.create_completion("ab" * 2000, stream=True)
