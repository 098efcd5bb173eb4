"""Runs the steps of tools/gpu_check.py: each in a process of its own with a log and a limit of time, and one JSON file
that is complete after every step."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Lines of a failed step's log that go into the file.
TAIL = 200
# Seconds after which a step is taken to hang, also on a slow machine.
LIMIT = 1800.0

OK, FAILED, SKIPPED = "ok", "failed", "skipped"
# What a step's result means: whether it is right, and one line for people.
Judge = Callable[[Any], tuple[bool, str]]
Reader = Callable[[Path], Any]


@dataclass
class Step:
    """One step. status: ok, failed or skipped; summary: one line; reason: why it failed or was left out; result: its
    figures; log: the last lines of what a failed one printed."""

    name: str
    status: str
    seconds: float
    summary: str = ""
    reason: str = ""
    result: Any = None
    log: list[str] = field(default_factory=list)


def read_json(path: Path) -> Any:
    """The result of a step that writes JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


class Run:
    """All steps, in order. facts: what the file says beside them; steps may add to it."""

    def __init__(self, target: Path, logs: Path, facts: dict[str, Any], env: Mapping[str, str], cwd: Path) -> None:
        self.target, self.logs, self.facts = target, logs, facts
        self.steps: list[Step] = []
        self._env, self._cwd = dict(env), cwd
        self._start = time.monotonic()
        self.logs.mkdir(parents=True, exist_ok=True)
        self._save()

    @property
    def failed(self) -> list[Step]:
        """Steps that went wrong."""
        return [step for step in self.steps if step.status == FAILED]

    def result(self, name: str) -> Any:
        """Figures of a step that went well, else None."""
        return next((step.result for step in self.steps if step.name == name and step.status == OK), None)

    def command(
        self, name: str, command: Sequence[str | Path], *, limit: float = LIMIT, reader: Reader = read_json,
        judge: Judge = lambda result: (True, ""),
    ) -> Step:  # fmt: skip
        """Run a program; "{out}" in its words is the file that `reader` reads its result from. It fails with an exit
        code that is not 0, after `limit` seconds, without a result, or when `judge` says so."""
        out, log = self.logs / f"{_file_name(name)}.out", self.logs / f"{_file_name(name)}.log"
        out.unlink(missing_ok=True)
        words = [str(word).replace("{out}", str(out)) for word in command]

        def work() -> tuple[bool, str, str, Any]:
            code = _run(words, log, limit, self._env, self._cwd)
            try:
                result = reader(out) if "{out}" in " ".join(map(str, command)) else None
            except (OSError, ValueError) as error:
                result = None
                if code == 0:
                    return False, "", f"it left no result that can be read ({error})", None
            right, summary = judge(result) if result is not None or code == 0 else (False, "")
            if code is None:
                return False, summary, f"stopped after {limit:.0f} s", result
            return right and code == 0, summary, "" if code == 0 else _ended(code, log), result

        return self.call(name, work, log)

    def call(self, name: str, work: Callable[[], tuple[bool, str, str, Any]], log: Path | None = None) -> Step:
        """Do something that returns (right, summary, reason, result). Its exceptions fail the step and no more."""
        self._say(f"{name} ...")
        start = time.monotonic()
        try:
            right, summary, reason, result = work()
        except Exception as error:
            right, summary, reason, result = False, "", f"{type(error).__name__}: {error}", None
        step = Step(name, OK if right else FAILED, round(time.monotonic() - start, 3), summary, reason, result)
        if not right and log is not None and log.is_file():
            step.log = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
        return self._add(step)

    def skip(self, name: str, reason: str) -> Step:
        """Leave a step out and say why."""
        return self._add(Step(name, SKIPPED, 0.0, reason=reason))

    def finish(self, verdict: str) -> None:
        """Write the last word."""
        self.facts |= {"verdict": verdict, "ok": not self.failed, "finished": True}
        self._save()

    def _add(self, step: Step) -> Step:
        self.steps.append(step)
        self._save()
        said = "; ".join(part for part in (step.summary, step.reason) if part)
        self._say(f"{step.name}: {step.status}{f' ({said})' if said else ''}, {step.seconds:.1f} s")
        return step

    def _say(self, text: str) -> None:
        seconds = int(time.monotonic() - self._start)
        print(f"[{seconds // 60}:{seconds % 60:02d}] {text}", file=sys.stderr, flush=True)

    def _save(self) -> None:
        everything = {
            **self.facts,
            "seconds": round(time.monotonic() - self._start, 3),
            "steps": [asdict(step) for step in self.steps],
        }
        text = json.dumps(everything, indent=2, default=str) + "\n"
        # Names of a person's folders are nobody's business.
        with contextlib.suppress(RuntimeError):  # a user without a home
            text = text.replace(json.dumps(str(Path.home()))[1:-1], "~")
        part = self.target.with_name(self.target.name + ".part")
        part.write_text(text, encoding="utf-8")
        part.replace(self.target)


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _run(command: list[str], log: Path, limit: float, env: Mapping[str, str], cwd: Path) -> int | None:
    """Exit code, or None when the limit of time was reached. The program and what it started are ended then."""
    own_group = os.name != "nt"
    with log.open("wb") as out:
        out.write(f"$ {' '.join(command)}\n".encode())
        out.flush()
        child = subprocess.Popen(
            command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            start_new_session=own_group,
        )  # fmt: skip
        try:
            return child.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if child.poll() is None:
                if own_group:
                    os.killpg(child.pid, signal.SIGKILL)
                else:
                    child.kill()
                child.wait()


def _ended(code: int, log: Path) -> str:
    """Why a program ended: its last line, or the signal."""
    if code < 0:
        try:
            return f"it was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"it was ended by signal {-code}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"exit code {code}: {lines[-1].strip()[:300]}" if len(lines) > 1 else f"exit code {code}"
