"""LongBench: prompts, cutting in the middle, measures per dataset, official prompt file, download."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import task_data as data
from restkv_local.errors import ConfigError
from restkv_local.eval import fit, longbench, templates
from restkv_local.eval.sample import CountTokens, Sample


def made(folder: Path, name: str, *rows: dict[str, Any], length: int = 5000, n: int = 10) -> list[Sample]:
    data.write_jsonl(folder / f"{name}.jsonl", rows)
    task = next(task for task in longbench.tasks(folder) if task.name == name)
    return list(task.samples(data.fake_count, length, n, 0))


def score(name: str, answer: str, *references: str, classes: tuple[str, ...] = ()) -> float:
    task = next(task for task in longbench.tasks() if task.name == name)
    return task.score(longbench.ClassSample("", "", "", references, 1, classes=classes), answer)


def test_sixteen_datasets_with_official_lengths() -> None:
    assert [task.name for task in longbench.tasks()] == list(longbench.NAMES)
    lengths = {about.name: about.max_tokens for about in longbench.ABOUT}
    assert lengths == {
        "narrativeqa": 128, "qasper": 128, "multifieldqa_en": 64, "hotpotqa": 32, "2wikimqa": 32, "musique": 32,
        "gov_report": 512, "qmsum": 512, "multi_news": 512, "trec": 64, "triviaqa": 32, "samsum": 128,
        "passage_count": 32, "passage_retrieval_en": 32, "lcc": 64, "repobench-p": 64,
    }  # fmt: skip


@pytest.mark.parametrize("name", longbench.NAMES)
def test_every_dataset_renders(tmp_path: Path, name: str) -> None:
    [sample] = made(tmp_path, name, data.trec_row(context="THE DOCUMENT\n", input="THE INPUT\n"))
    message = sample.context + sample.question
    assert message.count("THE DOCUMENT") == 1
    asks = "{input}" in longbench.PROMPTS[name]
    assert message.count("THE INPUT") == (1 if asks else 0)
    assert "{" not in message
    assert sample.chat is (name not in ("trec", "triviaqa", "samsum", "lcc", "repobench-p"))
    assert sample.answer_prefix == "" and sample.labels == {"prompt": "own words", "cut": "no"}
    assert sample.question.strip() and message.endswith(sample.question)


def test_question_is_what_follows_the_document(tmp_path: Path) -> None:
    [sample] = made(tmp_path, "narrativeqa", data.longbench_row())
    assert "Who is the captain?" in sample.question and "Who is" not in sample.context
    assert sample.context.endswith("The ship is grey.") and sample.question.endswith("Answer:")
    assert sample.references == ("Anna", "captain Anna") and sample.id == "line-1"


def test_last_lines_of_code_guide(tmp_path: Path) -> None:
    code = "".join(f"line_{i} = {i}\n" for i in range(100))
    [sample] = made(tmp_path, "repobench-p", data.longbench_row(context=code, input="import x\ny = 1\n"))
    assert sample.question.startswith("line_94 = 94\n") and sample.question.endswith("y = 1\nNext line of code:\n")
    assert f"{code}import x\ny = 1\nNext line of code:\n" in sample.context + sample.question
    [sample] = made(tmp_path, "lcc", data.longbench_row(context="x" * 9000, input=""))
    assert len(sample.question) == longbench.CODE_CHARS


def test_marks_in_data_are_left_alone(tmp_path: Path) -> None:
    row = data.longbench_row(context="a {input} {context} {0.__class__}", input="{x}")
    [sample] = made(tmp_path, "narrativeqa", row)
    assert "a {input} {context} {0.__class__}" in sample.context and "Question: {x}" in sample.question


@pytest.mark.parametrize("length", [200, 333, 600])
def test_cut_in_the_middle(tmp_path: Path, length: int) -> None:
    whole = made(tmp_path, "narrativeqa", data.longbench_row())[0]
    [sample] = made(tmp_path, "narrativeqa", data.longbench_row(), length=length)
    assert sample.labels["cut"] == "middle" and sample.question == whole.question
    size = fit.size(data.fake_count, sample)
    assert length - 8 <= size <= length
    text = whole.context + whole.question
    kept = sample.context + sample.question
    head = next(i for i in range(len(kept) + 1) if i == len(kept) or kept[i] != text[i])
    tail = next(i for i in range(len(kept) + 1) if i == len(kept) or kept[-1 - i] != text[-1 - i])
    assert head + tail >= len(kept)
    # Half of the tokens from the front and half from the back.
    assert abs(data.fake_count(kept[: len(kept) - tail]) - length / 2) < 8


def test_cut_with_the_real_tokenizer(tmp_path: Path, native: None, smollm2: Path) -> None:
    import llama_cpp

    model = llama_cpp.Llama(str(smollm2), vocab_only=True, verbose=False)

    def count(text: str) -> int:
        return len(model.tokenize(text.encode(), add_bos=False, special=False))

    text = "".join(f"Ünï {i} 漢字 🙂 {'x' * (i % 7)}\n" for i in range(800))
    data.write_jsonl(tmp_path / "qmsum.jsonl", [data.longbench_row(context=text)])
    task = next(task for task in longbench.tasks(tmp_path) if task.name == "qmsum")
    for length in (300, 1000, 4001):
        [sample] = task.samples(count, length, 1, 0)
        assert 0.97 * length <= fit.size(count, sample) <= length
        assert sample.labels["cut"] == "middle"


def test_cut_asks_the_tokenizer_seldom(tmp_path: Path) -> None:
    data.write_jsonl(tmp_path / "qmsum.jsonl", [data.longbench_row(context=data.long_text(20000))])
    task = next(task for task in longbench.tasks(tmp_path) if task.name == "qmsum")
    count = data.Counter()
    [sample] = task.samples(count, 4000, 1, 0)
    whole = data.fake_count(data.long_text(20000))
    assert count.tokens < 3 * whole + 40 * 4000 and sample.labels["cut"] == "middle"


def test_a_question_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the question alone takes more than half of 100 tokens"):
        made(tmp_path, "narrativeqa", data.longbench_row(input="why " * 100), length=100)


def test_rows_are_drawn_by_the_seed(tmp_path: Path) -> None:
    rows = [data.longbench_row(input=f"Question {i}?") for i in range(30)]
    data.write_jsonl(tmp_path / "qasper.jsonl", rows)
    task = next(task for task in longbench.tasks(tmp_path) if task.name == "qasper")
    first, again, other = ([s.id for s in task.samples(data.fake_count, 5000, 5, seed)] for seed in (1, 1, 2))
    assert first == again != other and len(set(first)) == 5
    assert len(task.samples(data.fake_count, 5000, 100, 1)) == 30


def test_scores_by_dataset() -> None:
    assert score("hotpotqa", "the Anna", "Berta", "Anna") == 1
    assert score("triviaqa", "\n\nAnna\nQuestion: more", "Anna") == 1  # the first line alone
    assert score("narrativeqa", "Anna\nQuestion: more", "Anna") == pytest.approx(0.5)
    assert score("samsum", "a b\nc d", "a b") == pytest.approx(1)
    assert score("gov_report", "a b", "a b c d") == pytest.approx(2 / 3)
    assert score("trec", "Location\nPerson", "Location", classes=("Location", "Person")) == 1
    assert score("trec", "Location", "Location") == 0  # no classes, nothing to name
    assert score("passage_count", "7", "7") == score("passage_retrieval_en", "Paragraph 7", "Paragraph 7") == 1
    assert score("lcc", "x = 1\ny", "x = 1") == 1
    assert all(score(name, "", "Anna", classes=("Anna",)) == 0 for name in longbench.NAMES)


def test_classes_come_with_the_sample(tmp_path: Path) -> None:
    [sample] = made(tmp_path, "trec", data.trec_row())
    task = next(task for task in longbench.tasks() if task.name == "trec")
    assert task.score(sample, "Location") == 1 and task.score(sample, "Location or Person") == 0.5
    with pytest.raises(ConfigError, match=r"trec\.jsonl, line 1: 'all_classes' must be a list"):
        made(tmp_path, "trec", data.trec_row(all_classes=None))


# ---- the official prompts ----------------------------------------------------------------------


def test_official_prompt_file_takes_our_place(tmp_path: Path) -> None:
    (tmp_path / "dataset2prompt.json").write_text(json.dumps({"narrativeqa": "S: {context}\nQ: {input}\nA:"}))
    [sample] = made(tmp_path, "narrativeqa", data.longbench_row(context="once"))
    assert sample.context + sample.question == "S: once\nQ: Who is the captain?\nA:"
    assert sample.labels["prompt"] == "official"
    with pytest.raises(ConfigError, match=r"dataset2prompt\.json: the field 'qasper' is missing"):
        made(tmp_path, "qasper", data.longbench_row())


@pytest.mark.parametrize(
    "text", ["no mark", "{input} {context}", "{context} {other}", "{other} {context}", "{context}{context}"]
)
def test_bad_templates_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset2prompt.json").write_text(json.dumps({"narrativeqa": text}))
    with pytest.raises(ConfigError, match=r"dataset2prompt\.json: 'narrativeqa': a template needs"):
        made(tmp_path, "narrativeqa", data.longbench_row())


def test_every_template_of_ours_parses() -> None:
    for name, text in longbench.PROMPTS.items():
        template = templates.parse(name, text)
        assert template.question(input="x").strip() and "{" not in template.before


# ---- download ----------------------------------------------------------------------------------


def package(monkeypatch: pytest.MonkeyPatch, unpacked: Path | Exception) -> None:
    """A `datasets` that has unpacked something, or fails."""

    class DownloadManager:
        def download_and_extract(self, url: str) -> str:
            assert url.startswith("https://huggingface.co/datasets/THUDM/LongBench/")
            if isinstance(unpacked, Exception):
                raise unpacked
            return str(unpacked)

    module: Any = types.ModuleType("datasets")
    module.DownloadManager = DownloadManager
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_download_takes_the_files_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked, folder = tmp_path / "cache", tmp_path / "data"
    (unpacked / "data").mkdir(parents=True)
    data.write_jsonl(unpacked / "data" / "trec.jsonl", [data.trec_row()])
    package(monkeypatch, unpacked)
    assert longbench.download(["trec"], folder) == [folder / "trec.jsonl"]
    assert (folder / "trec.jsonl").read_bytes() == (unpacked / "data" / "trec.jsonl").read_bytes()
    assert [path.name for path in folder.iterdir()] == ["trec.jsonl"]
    package(monkeypatch, RuntimeError("not asked again"))
    assert longbench.download(["trec"], folder) == [folder / "trec.jsonl"]


def test_download_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"needs the package datasets \(pip install datasets\); or put .*trec\.jsonl"):
        longbench.download(["trec"], tmp_path)


def test_download_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(monkeypatch, OSError("no\nnetwork"))
    with pytest.raises(ConfigError, match="could not be fetched: no network$"):
        longbench.download(["trec"], tmp_path / "data")
    (tmp_path / "trec.jsonl").write_text("{bad\n")
    package(monkeypatch, tmp_path)
    with pytest.raises(ConfigError, match=r"trec\.jsonl, line 1: not JSON"):
        longbench.download(["trec"], tmp_path / "data")
    with pytest.raises(ConfigError, match=r"the archive of LongBench has no lcc\.jsonl"):
        longbench.download(["lcc"], tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_count_is_the_contract(tmp_path: Path) -> None:
    """A tokenizer that counts characters is a tokenizer too."""
    count: CountTokens = len
    data.write_jsonl(tmp_path / "qmsum.jsonl", [data.longbench_row()])
    task = next(task for task in longbench.tasks(tmp_path) if task.name == "qmsum")
    [sample] = task.samples(count, 1000, 1, 0)
    assert 990 <= len(sample.context + sample.question) <= 1000
