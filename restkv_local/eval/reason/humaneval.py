"""HumanEval (Chen et al., 2021): complete a function; the answer is right when the tests of the problem pass."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError
from ..files import Row, choose, find, read_objects
from ..fit import size
from ..sample import CountTokens, Sample
from . import sandbox

MAX_TOKENS = 512
FILES = ("HumanEval.jsonl", "humaneval.jsonl")
# What begins a new piece after the function, as the authors stop a completion.
_STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint", "\n@", "\n```", "\nassert ")
_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class CodeSample(Sample):
    """prompt: the beginning of the program, given to the model. test: defines check(candidate). entry_point: the name
    of the function."""

    prompt: str = ""
    test: str = ""
    entry_point: str = ""


@dataclass(frozen=True)
class HumanEval:
    """The task. run_code: whether answers may be run; without it neither samples nor scores are given."""

    data: Path | None = None
    run_code: bool = False
    limits: sandbox.Limits = sandbox.Limits()
    name: str = "humaneval"

    def samples(self, count_tokens: CountTokens, length: int, n: int, seed: int) -> Sequence[Sample]:
        """See Task. Plain completion, as the authors measure it: the prompt is the beginning of the program."""
        self._allowed()
        path = find(self.data, FILES, "reason humaneval")
        made = (self._sample(row) for row in read_objects(path))
        chosen = choose(made, n, f"{self.name}/{seed}")
        for sample in chosen:
            needed = size(count_tokens, sample)
            if needed > length:
                raise ConfigError(f"reason humaneval needs at least {needed} tokens; {length} are given")
        return chosen

    def score(self, sample: Sample, answer: str) -> float:
        """1 when the program runs through the problem's tests inside the limits."""
        self._allowed()
        if not isinstance(sample, CodeSample):
            raise ConfigError("reason humaneval scores its own samples only")
        body = completion(answer, sample.prompt, sample.entry_point)
        return float(sandbox.run(f"{body}\n\n{sample.test}\n\ncheck({sample.entry_point})\n", self.limits))

    def _allowed(self) -> None:
        if not self.run_code:
            raise ConfigError(
                "reason humaneval runs code that the model writes; it does so only when that is allowed explicitly "
                "(run_code), best on a machine that holds nothing of value"
            )
        if not sandbox.supported():
            raise ConfigError("reason humaneval needs a system that can limit a process: Linux, macOS or other Unix")

    def _sample(self, row: Row) -> CodeSample:
        entry_point = row.text("entry_point")
        if not entry_point.isidentifier():
            row.fail("'entry_point' is no name of a function")
        prompt = row.text("prompt")
        place = prompt.rfind("\ndef ") + 1
        return CodeSample(
            id=f"problem-{row.number}",
            context=prompt[:place],
            question=prompt[place:],
            references=(row.text("canonical_solution"),),
            max_tokens=MAX_TOKENS,
            chat=False,
            prompt=prompt,
            test=row.text("test"),
            entry_point=entry_point,
        )


def completion(answer: str, prompt: str, entry_point: str) -> str:
    """The program that an answer makes of the prompt: the prompt and the answer up to the next piece of code; or the
    code between fences when that defines the function itself."""
    fenced = _FENCE.search(answer)
    if fenced and re.search(rf"^\s*def {re.escape(entry_point)}\b", fenced[1], re.MULTILINE):
        head = prompt[: max(prompt.rfind(f"def {entry_point}"), 0)]
        return f"{head}\n{fenced[1]}"
    ends = [place for stop in _STOPS if (place := answer.find(stop)) >= 0]
    return prompt + answer[: min(ends, default=len(answer))]
