"""Numbers out of bounds are refused in a sentence, before anything is loaded or read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from cli_fake import FakeEngine
from restkv_local.cli.bench.main import main as bench
from restkv_local.cli.chat.main import main as chat
from restkv_local.cli.eval.main import main as evaluation
from restkv_local.config import THREADS_MAX
from restkv_local.errors import ConfigError
from restkv_local.sampling import SAMPLING, TEMPERATURE_MIN, check_sampling


@pytest.mark.parametrize("name", SAMPLING)
def test_bounds_of_sampling(name: str) -> None:
    low, high = SAMPLING[name]
    for value in (low, high, type(low)((low + high) / 2)):
        check_sampling({name: value})
    for wrong in (math.nan, math.inf, -math.inf, low - 1, high + 1, "1", None, True):
        with pytest.raises(ConfigError, match=f"^{name} must be a"):
            check_sampling({name: wrong})


def test_other_numbers_of_sampling() -> None:
    check_sampling({"temperature": np.float32(0.5), "top_k": np.int64(40), "stop": None, "tfs_z": 1.0})
    check_sampling({"temperature": TEMPERATURE_MIN})
    with pytest.raises(ConfigError, match=r"^temperature must be 0 .* or at least 1e-06; got 1e-40$"):
        check_sampling({"temperature": 1e-40})
    with pytest.raises(ConfigError, match="top_k must be a whole number"):
        check_sampling({"top_k": 0.5})


@pytest.mark.parametrize(("arguments", "message"), [
    (("--temp", "nan"), "'--temp': temperature must be a number from 0 to 1000"),
    (("--temp", "1e-40"), "'--temp': temperature must be 0 (the likeliest token) or at least"),
    (("--temp", "inf"), "'--temp': inf is not in the range"),
    (("--temp", "-1"), "'--temp': -1.0 is not in the range"),
    (("--threads", "100000"), f"'--threads': 100000 is not in the range 1<=x<={THREADS_MAX}"),
    (("--gpu-layers", "9999999999"), "'--gpu-layers': 9999999999 is not in the range"),
])  # fmt: skip
def test_the_chat_refuses(arguments: tuple[str, ...], message: str) -> None:
    FakeEngine.instances.clear()
    result = CliRunner().invoke(chat, ["--ask", "hi", *arguments], obj={"engine": FakeEngine})
    assert result.exit_code == 2 and message in result.stderr and not FakeEngine.instances


@pytest.mark.parametrize(("program", "command"), [
    (bench, "speed"), (bench, "memory"), (bench, "needle"), (evaluation, "niah"), (evaluation, "ppl"),
])  # fmt: skip
def test_every_program_bounds_its_threads(program: Any, command: str) -> None:
    result = CliRunner().invoke(program, [command, "--threads", str(THREADS_MAX + 1)])
    assert result.exit_code == 2 and "'--threads'" in result.stderr


@pytest.fixture(scope="module")
def engine(native: None) -> Iterator[Any]:
    from restkv_local import Engine

    made = Engine(n_ctx=512)
    yield made
    made.close()


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("settings", [
    {"n_threads": 100000}, {"n_threads": -1}, {"n_threads": 1.5}, {"n_threads_batch": 100000}, {"n_gpu_layers": 2**32},
    {"n_ubatch": -1}, {"last_n_tokens_size": 2**31}, {"rope_freq_base": math.nan}, {"yarn_ext_factor": math.inf},
])  # fmt: skip
def test_the_engine_refuses_settings_before_it_loads(settings: dict[str, Any]) -> None:
    from restkv_local import Engine

    with pytest.raises(ConfigError, match=f"^{next(iter(settings))} must be a"):
        Engine("/no/such/model.gguf", **settings)


@pytest.mark.usefixtures("native")
def test_the_engine_refuses_sampling_before_it_reads(engine: Any) -> None:
    text = engine.tokenize(b"The sea was quiet.")
    engine.eval(text)
    for options in ({"temperature": math.nan}, {"temperature": 1e-40}, {"top_p": 2.0}, {"repeat_penalty": 0.0}):
        for stream in (False, True):
            with pytest.raises(ConfigError):
                list(engine.create_completion("Another text", max_tokens=2, stream=stream, **options))
            with pytest.raises(ConfigError):
                list(engine.create_chat_completion([{"role": "user", "content": "q"}], stream=stream, **options))
    with pytest.raises(ConfigError, match="temperature"):
        next(engine.generate(text, 40, 0.9, 0.05, 1.0, math.nan))
    engine._sampler = None
    with pytest.raises(ConfigError, match="temperature"):
        engine.sample(temp=math.nan)
    assert engine.n_tokens == len(text)
    assert engine.create_completion("Another text", max_tokens=2, temperature=0.7)["choices"][0]["text"]
