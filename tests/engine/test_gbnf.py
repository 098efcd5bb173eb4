"""Grammars are read as llama.cpp reads them, and what would end the process is refused in a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from restkv_local.engine.answers.gbnf import DEPTH_MAX, NESTING_MAX, Grammar
from restkv_local.errors import ConfigError, LibraryError

try:
    from llama_cpp import llama_grammar

    from restkv_local.engine.answers.grammar import check_grammar, check_schema
    from restkv_local.native.binding import c
except LibraryError as error:
    pytest.skip(f"no patched library: {error}", allow_module_level=True)

N_VOCAB = 1000


def read(text: str) -> Grammar:
    grammar = Grammar(text, N_VOCAB, lambda token: token == "<|end|>")
    grammar.check("root")
    return grammar


GOOD = [
    'root ::= "a"',
    "root ::=",
    'root ::= ""',
    "root ::= [] [^]",
    '# a remark\nroot ::= # another\n  "a" | # and one\n "b"\n\nother ::= root\n',
    'root ::= ( "a" | b )+ "c"? b* [^\\]"\\x41-\\u00e9]{2,5} .{3} "x"{1,}\nb ::= "b"',
    'root ::= "a" root "b" | ""',
    "root ::= <|end|> !<|end|> <[7]> !<[999]>",
    'root ::= "a"{0}',
    'root ::= "a"{2,5000}',
    'root ::= "ₓ\\U0001F600" "😀"',
    'root ::= "a"\r\nb ::= "b"\r\n',
    'root ::= a-1\na-1 ::= [a-]',
    "root ::= a\na ::= b\nb ::= [0-9]",
    "root ::= " + "(" * NESTING_MAX + '"a"' + ")" * NESTING_MAX,
    *(value for name, value in vars(llama_grammar).items() if name.endswith("_GBNF")),
]
BAD = [
    ("", "empty"),
    ("# nothing\n", "empty"),
    ('rot ::= "a"', "no rule named 'root'"),
    ("root ::= a", "'a'"),
    ('root ::= "a', "line 1: the end comes inside"),
    ('root ::= "a"\n\nb = "c"', "line 3: ::= is missing"),
    ("root ::= [a", "inside"),
    ("root ::= [a-", "inside"),
    ('root ::= ("a"', r"'\)' is missing"),
    ('root ::= "a")', "does not end"),
    ("root ::= *", "nothing is there"),
    ('root ::= "a" | +', "nothing is there"),
    ("root ::= []*", "nothing is there"),
    ('root ::= "a"{0}*', "nothing is there"),
    ('root ::= "a"{', "number"),
    ('root ::= "a"{,3}', "number"),
    ('root ::= "a"{3', "'}'"),
    ('root ::= "a"{5,3}', "fewer"),
    ('root ::= "a"{2001}', "2000"),
    ('root ::= ("a"{2000} b){2000}\nb ::= "b"', "2000"),
    ('root ::= "\\q"', "unknown escape"),
    ('root ::= "\\x4"', "unknown escape"),
    ('root ::= "\\', "unknown escape"),
    ("root ::= <[1000]>", "no token"),
    ("root ::= <nonsense>", "no token"),
    ("root ::= <|end|", "token"),
    ("root ::= !x", "token"),
    ("root ::= §", "does not end"),
    ("ro_ot ::= x", "::="),
    ('root ::= "a"\0', "zero character"),
    ('root ::= root "a" | "b"', "'root' begins with itself"),
    ('root ::= a "x"\na ::= b\nb ::= a "y" | "z"', "begins with itself"),
    ('root ::= e root "a"\ne ::= f\nf ::= "x"?', "'root' begins with itself"),
    ('root ::= (("" | "a") root "b") | "c"', "'root' begins with itself"),
    ("root ::= " + "(" * (NESTING_MAX + 1) + '"a"' + ")" * (NESTING_MAX + 1), "nested"),
    ("root ::= " + "(" * 1_000_000, "nested"),
    ("root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(DEPTH_MAX)) + f'r{DEPTH_MAX} ::= "a"', "deep"),
]


@pytest.mark.parametrize("text", GOOD, ids=range(len(GOOD)))
def test_what_can_be_read(text: str) -> None:
    read(text)


@pytest.mark.parametrize(("text", "reason"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_read_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read(text)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from models import write_random
    from restkv_local.engine.vocabulary import Model

    path = write_random(tmp_path_factory.mktemp("gbnf") / "bpe.gguf", "llama", pre="gpt-4o", n_vocab=N_VOCAB)
    params = c.llama_model_default_params()
    params.vocab_only = True
    made = Model(path_model=str(path), params=params, verbose=True)
    yield made
    made.close()


def grammar(text: str) -> Any:
    return llama_grammar.LlamaGrammar.from_string(text, verbose=False)


@pytest.mark.parametrize("text", GOOD, ids=range(len(GOOD)))
def test_llama_cpp_reads_the_same(model: Any, text: str) -> None:
    check_grammar(grammar(text), model)


LLAMA_CPP_SAYS = """
import sys
from restkv_local.native.binding import c
params = c.llama_model_default_params()
params.vocab_only = True
model = c.llama_model_load_from_file(sys.argv[1].encode(), params)
sampler = c.llama_sampler_init_grammar(c.llama_model_get_vocab(model), sys.stdin.buffer.read(), b"root")
print("reads" if sampler else "refuses")
"""


def llama_cpp_says(model: Any, text: str) -> str:
    """In a process of its own: some end it, and from some it never comes back."""
    try:
        command = [sys.executable, "-c", LLAMA_CPP_SAYS, model.path_model]
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=10)
    except subprocess.TimeoutExpired:
        return "hangs"
    return done.stdout.decode().strip()


# llama.cpp takes no text for no grammar, and never meets a token that the model does not have.
READ_THERE = {"", "# nothing\n", "root ::= <[1000]>"}
HANGS_THERE = 'root ::= e root "a"\ne ::= f\nf ::= "x"?'
REFUSED_THERE = [text for text, _ in BAD if len(text) < 200 and "\0" not in text and "{5,3}" not in text]


@pytest.mark.parametrize("text", [text for text in REFUSED_THERE if text not in READ_THERE and text != HANGS_THERE])
def test_llama_cpp_refuses_the_same(model: Any, text: str) -> None:
    assert llama_cpp_says(model, text) == "refuses"


def test_llama_cpp_hangs_where_rules_may_be_empty_by_way_of_others(model: Any) -> None:
    assert llama_cpp_says(model, HANGS_THERE) == "hangs"


def test_what_only_llama_cpp_refuses_is_named_too(model: Any) -> None:
    text = 'root ::= "a" x*\nx ::= "b" | ""'
    read(text)
    with pytest.raises(ConfigError, match="'root' begins with itself"):
        check_grammar(grammar(text), model)


def test_what_is_no_grammar(model: Any) -> None:
    with pytest.raises(ConfigError, match="LlamaGrammar.from_string"):
        check_grammar('root ::= "a"', model)
    with pytest.raises(ConfigError, match="surrogate"):
        check_grammar(grammar('root ::= "\ud800"'), model)


def test_a_token_of_the_model(model: Any) -> None:
    check_grammar(grammar('root ::= "a" <|end|>'), model)
    with pytest.raises(ConfigError, match="no token of this model"):
        check_grammar(grammar("root ::= <" + "a" * 100_000 + ">"), model)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "#/nowhere"},
        {"type": "string", "pattern": "a"},
        {"$ref": "#"},
        json.loads('{"type":"array","items":' * 400 + "{}" + "}" * 400),
    ],
    ids=range(5),
)
def test_schemas_that_make_no_grammar(model: Any, schema: Any) -> None:
    with pytest.raises(ConfigError, match="the schema .*grammar"):
        check_schema(schema, model, "the schema")


def test_schemas_that_make_one(model: Any) -> None:
    for schema in (
        {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "number"}}, "required": ["a"]},
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 300},
        {},
    ):
        check_schema(schema, model, "the schema")


def test_nothing_is_printed(model: Any, capfd: pytest.CaptureFixture[str]) -> None:
    for text, _ in BAD:
        with pytest.raises(ConfigError):
            check_grammar(grammar(text), model)
    assert capfd.readouterr() == ("", "")


def test_path_of_this_file_is_no_grammar(model: Any) -> None:
    with pytest.raises(ConfigError, match="line 1"):
        check_grammar(grammar(Path(__file__).read_text(encoding="utf-8")), model)
