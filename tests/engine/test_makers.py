"""What the makers of a model say about drawing its answers: the file's own keys, then the table, then nothing."""

from __future__ import annotations

import pytest

from restkv_local.models.makers import _TABLE, wishes
from restkv_local.sampling import check_sampling

# As the embedded model's file has it.
SMOL = {
    "general.name": "Smollm2 135M 8k Lc100K Mix1 Ep2", "general.basename": "smollm2",
    "tokenizer.chat_template": "... You are a helpful AI assistant named SmolLM, trained by Hugging Face ...",
}  # fmt: skip


def test_the_embedded_model_gets_a_prompt_that_suits_it() -> None:
    found = wishes(SMOL)
    assert found.system == ""
    assert found.sampling == {"temperature": 0.2, "top_p": 0.9} and "SmolLM2-135M-Instruct" in found.source


def test_the_file_goes_before_the_table() -> None:
    own = {"general.sampling.temp": "0.55", "general.sampling.top_k": "12", "general.sampling.penalty_repeat": "1.05"}
    found = wishes({**SMOL, **own})
    assert found.sampling == {"temperature": 0.55, "top_k": 12, "repeat_penalty": 1.05}
    assert (found.source, found.ignored) == ("the model's file", "") and found.system is not None


@pytest.mark.parametrize("value", ["hot", "-1", "nan", "inf", "1e9", ""])
def test_values_that_cannot_be_are_left_out_and_said(value: str) -> None:
    found = wishes({"general.sampling.temp": value, "general.sampling.top_p": "0.8"})
    assert found.sampling == {"top_p": 0.8}
    assert f"general.sampling.temp = {value}" in found.ignored


@pytest.mark.parametrize(
    ("name", "temperature"),
    [
        ("Qwen3 8B", 0.6),
        ("Qwen3 4B Instruct 2507", 0.7),
        ("Qwen3 8B Base", None),
        ("Gemma 3 4b It", 1.0),
        ("Gemma 3 270m", None),
        ("Meta Llama 3.1 8B Instruct", 0.6),
        ("Meta Llama 3.1 8B", None),
        ("Smollm2 135M", None),
        ("Mistral 7B Instruct v0.3", None),
    ],
)
def test_names(name: str, temperature: float | None) -> None:
    found = wishes({"general.name": name})
    assert found.sampling.get("temperature") == temperature
    assert bool(found.source) == (temperature is not None)


def test_a_name_may_come_from_the_file_alone() -> None:
    assert wishes({}, "Llama-3.2-1B-Instruct-Q4_K_M.gguf").source
    assert wishes({}).sampling == {} and wishes({}).source == ""


def test_every_row_has_a_source_and_values_in_bounds() -> None:
    for row in _TABLE:
        assert row.wishes.source and row.wishes.sampling
        check_sampling(row.wishes.sampling)
