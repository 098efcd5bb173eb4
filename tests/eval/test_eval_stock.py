"""The full cache's scores are those of stock llama-cpp-python: RULER's prompts go through both."""

from __future__ import annotations

from pathlib import Path

import stock
from eval_models import evaluate, lines
from restkv_local.eval import ruler
from restkv_local.eval.prompt import render
from restkv_local.eval.sample import Sample

TASKS = ("niah_single_1", "niah_single_2", "niah_multikey_1")
CONTEXT, SAMPLES, SEED = 300, 2, 5


def test_ruler_scores_of_the_full_cache_are_those_of_stock_llama_cpp_python(smollm2: Path, tmp_path: Path) -> None:
    stock.llama_module()  # the library is chosen before llama_cpp loads one
    import llama_cpp
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    done = evaluate(
        "ruler", "--tasks", ",".join(TASKS), "--contexts", CONTEXT, "--samples", SAMPLES, "--seeds", SEED,
        "--methods", "full", "--threads", "2", "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    measured = {(r["task"], r["sample"]): r for r in lines(tmp_path / "out" / "ruler.jsonl")}
    assert len(measured) == len(TASKS) * SAMPLES

    model = llama_cpp.Llama(
        str(smollm2), n_ctx=1024, n_batch=512, n_threads=2, n_threads_batch=2, flash_attn=True, verbose=False
    )
    try:
        form = Jinja2ChatFormatter(model.metadata["tokenizer.chat_template"], eos_token="<|im_end|>", bos_token="")

        def count(text: str) -> int:
            return len(model.tokenize(text.encode(), add_bos=False, special=False))

        def answer(sample: Sample) -> str:
            prompt = render(model, sample).prompt.tolist()
            # What is read is the chat as stock renders it, and the answer's beginning, of which the last piece may be
            # left to the model.
            chat = form(messages=[{"role": "user", "content": sample.context + sample.question}]).prompt
            read = model.detokenize(prompt, special=True).decode()
            assert read.startswith(chat) and sample.answer_prefix.startswith(read[len(chat) :])
            done = model.create_completion(prompt, max_tokens=sample.max_tokens, temperature=0.0, repeat_penalty=1.0)
            return str(done["choices"][0]["text"])

        frame = len(render(model, Sample("", "", "", (), 1)).prompt)
        scores = []
        for task in ruler.tasks():
            if task.name not in TASKS:
                continue
            for sample in task.samples(count, CONTEXT - frame, SAMPLES, SEED):
                record = measured.pop((task.name, sample.id))
                model.reset()
                text = answer(sample)
                assert record["answer"].strip() == text.strip()
                assert record["scores"]["score"] == task.score(sample, text)
                scores.append(record["scores"]["score"])
        assert not measured
        assert max(scores) > 0, "scores that are all 0 would agree whatever is written"
    finally:
        model.close()
