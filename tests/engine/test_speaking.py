"""Answers of an engine: streams, prompts, tokens, grammars, seeds and templates that stock llama_cpp gets wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from models import write_random
from restkv_local.config import EvictConfig
from restkv_local.errors import ConfigError, ContextOverflow, LibraryError, ModelError, RestkvError

try:
    from llama_cpp import LlamaGrammar, LogitsProcessorList

    from restkv_local import Engine
    from restkv_local.engine.answers.chat_templates import NO_TEMPLATE, RAW
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)

TINY = EvictConfig(budget=64, reserve=64)
WILD: dict[str, Any] = {"max_tokens": 12, "temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'tool' %}{{ raise_exception('No tools here!') }}{% endif %}"
    "{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}assistant:"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("speaking")


def load(path: Path, **options: Any) -> Engine:
    return Engine(path, **{"n_threads": 1, "n_ctx": 512, "evict": TINY, **options})


@pytest.fixture(scope="module")
def spm(folder: Path) -> Iterator[Engine]:
    """Begins every text with a token; has no template."""
    engine = load(write_random(folder / "spm.gguf", "llama"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def bpe(folder: Path) -> Iterator[Engine]:
    """Has no token that begins a text, and a template."""
    engine = load(write_random(folder / "bpe.gguf", "llama", pre="gpt-4o", template=TEMPLATE))
    yield engine
    engine.close()


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


# ---- tokens --------------------------------------------------------------------------------------

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


# ---- grammars and processors ---------------------------------------------------------------------

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


def test_a_format_that_nobody_knows(spm: Engine) -> None:
    engine = load(Path(spm.model_path), chat_format="nonsense")
    with pytest.raises(ConfigError, match="chat_format 'nonsense'"):
        engine.create_chat_completion(user("x"))
    engine.close()


# ---- LoRA ----------------------------------------------------------------------------------------


def write_lora(
    path: Path, arch: str = "llama", kind: str = "lora", tensor: str = "blk.0.attn_q.weight", n: int = 256
) -> Path:
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", kind)
    writer.add_float32("adapter.lora.alpha", 1.0)
    writer.add_tensor(f"{tensor}.lora_a", np.full((4, n), 0.1, dtype=np.float32))
    writer.add_tensor(f"{tensor}.lora_b", np.full((256, 4), 0.1, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_files_that_are_no_lora(folder: Path, spm: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    text = folder / "lora.txt"
    text.write_text("GGUF, but not really")
    (folder / "lora.json").write_text("{}")
    cut = folder / "cut.gguf"
    cut.write_bytes(write_lora(folder / "whole.gguf").read_bytes()[:150])
    cases = {
        folder / "nowhere.gguf": "there is no file",
        folder: "cannot be read",
        folder / "lora.json": "no GGUF file",
        text: "damaged",
        cut: "damaged",
        Path(spm.model_path): "no LoRA",
        write_lora(folder / "control.gguf", kind="ia3"): "no LoRA",
        write_lora(folder / "qwen.gguf", arch="qwen2"): "'qwen2' models",
    }
    from restkv_local.engine import core

    with monkeypatch.context() as patch:
        patch.setattr(core, "construct", lambda *_args: pytest.fail("the model is loaded"))
        for path, reason in cases.items():
            with pytest.raises(ModelError, match=reason):
                load(Path(spm.model_path), lora_path=str(path), evict=TINY.with_(use_wo=False))
    for path in (write_lora(folder / "name.gguf", tensor="blk.9.x.weight"), write_lora(folder / "shape.gguf", n=64)):
        with pytest.raises(ModelError, match="cannot be used: .*wrong base model"):
            load(Path(spm.model_path), lora_path=str(path), evict=TINY.with_(use_wo=False))


def test_a_lora_changes_what_is_said(folder: Path, spm: Engine) -> None:
    path = write_lora(folder / "good.gguf")
    engine = load(Path(spm.model_path), lora_path=str(path), evict=TINY.with_(use_wo=False))
    rows = []
    for one in (engine, spm):
        one.reset()
        one.eval(one.tokenize(b"abc"))
        rows.append(np.asarray(one.scores[-1, :]))
    assert not np.array_equal(rows[0], rows[1])
    engine.close()


def test_a_context_that_is_too_small_for_the_prompt(spm: Engine) -> None:
    with pytest.raises(ContextOverflow, match="larger n_ctx"):
        spm.create_completion("ab" * 2000, stream=True)


EXIT = """
import sys, threading, time
from restkv_local import Engine, EvictConfig

engine = Engine(sys.argv[1], n_threads=1, n_ctx=4096, evict=EvictConfig(budget=64, reserve=64))
begun = threading.Event()

def work():
    while True:
        try:
            for _ in engine.generate(list(range(5, 250)) * 8, temp=1.0):
                begun.set()
        except Exception:
            if sys.argv[2] == "once":
                return

threading.Thread(target=work, daemon=True).start()
begun.wait()
print("bye")
"""


@pytest.mark.parametrize("how", ["once", "again and again"])
def test_python_ends_while_a_daemon_thread_answers(spm: Engine, how: str) -> None:
    for _ in range(3):
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", EXIT, spm.model_path, how], capture_output=True, text=True, timeout=120
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "bye\n", "")
        assert time.monotonic() - begin < 60
