"""Rows of restkv-eval turns that run on the reference engine: read and asked as those of the engine are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from eval_models import evaluate, lines, tiny  # noqa: E402, F401
from restkv_local.config import EvictConfig  # noqa: E402
from restkv_local.errors import ConfigError  # noqa: E402
from restkv_local.eval.turns import in_torch, prompts  # noqa: E402
from restkv_local.eval.turns.asking import Talk  # noqa: E402
from restkv_local.eval.turns.document import make  # noqa: E402
from restkv_local.eval.turns.prompts import FRESH, KEPT, MODES, Plain, Script  # noqa: E402
from restkv_local.eval.turns.rows import EVERYTHING, PAGES, WAYS  # noqa: E402

IN_TORCH = [name for name, way in WAYS.items() if way.reference]
EVICT = EvictConfig(budget=64, reserve=128, archive="ram", prefill="recall")


def load(path: Path) -> Any:
    from restkv_local import Engine

    return Engine(str(path), 2048, EVICT, n_threads=1, n_batch=100)


def scripted(engine: Any) -> Script:
    def count(text: str) -> int:
        return len(engine.tokenize(text.encode(), add_bos=False, special=False))

    return prompts.script(engine, Plain(engine), make("facts", count, 500, 3, 0, 0), MODES)


def asked(engine: Any, name: str, script: Script) -> dict[str, list[Any]]:
    talk = Talk(engine, WAYS[name], script, again=True)
    return {mode: [record for _, record in talk.ask_all(mode)] for mode in MODES}


def test_it_reads_as_the_engine_does(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """With the recalls of the engine in the place of other ones."""
    from restkv_local.reference.model import ReferenceEngine

    engine = load(tiny)
    script = scripted(engine)
    theirs = asked(engine, "recall", script)
    monkeypatch.setattr(in_torch, "_engine", lambda _: ReferenceEngine)
    ours = asked(in_torch.in_torch(engine, EVICT, PAGES), "pages", script)
    for mode in MODES:
        for mine, other in zip(ours[mode], theirs[mode], strict=True):
            assert mine["scores"]["log_prob"] == pytest.approx(other["scores"]["log_prob"], abs=0.3)
            np.testing.assert_allclose(mine["found"], other["found"], atol=0.1)
            assert "recall" in other and "recall" not in mine
    assert 0 < sum(record["scores"]["found"] for record in ours[KEPT]) < 3


def test_what_each_chooses(tiny: Path) -> None:  # noqa: F811
    script = scripted(engine := load(tiny))
    attended = in_torch.in_torch(engine, EVICT, EVERYTHING)
    found = asked(attended, "attended", script)
    assert all(record["scores"]["found"] == 1.0 for mode in MODES for record in found[mode])
    assert attended.cells == attended.n_tokens == script.turns[FRESH][-1].positions - 1
    assert attended.report().backend == "reference" and attended.report().n_evictions > 0
    with pytest.raises(ConfigError, match="layer 0 has no KV head 2"):
        attended.kept(0, 2)

    paged = in_torch.in_torch(load(tiny), EVICT, PAGES)
    first = asked(paged, "pages", script)
    assert asked(paged, "pages", script)[KEPT][0]["scores"] == first[KEPT][0]["scores"], "a text begins anew"
    assert 0 < np.mean([record["scores"]["found"] for record in first[KEPT]]) < 1
    logs = [[record["scores"]["log_prob"] for record in of[FRESH]] for of in (found, first)]
    assert not np.allclose(*logs, atol=0.01)


def test_with_cells_for_all_they_are_the_full_cache(tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    words = (
        "turns",
        "--contexts",
        "400",
        "--budgets",
        "1024",
        "--reserve",
        "128",
        "--samples",
        "1",
        "--questions",
        "2",
    )
    rows = ",".join(("full", *IN_TORCH))
    result = evaluate(*words, "--model", tiny, "--raw", "--rows", rows, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    records = lines(tmp_path / "out" / "turns.jsonl")
    full = {(r["task"], r["sample"]): r["scores"]["log_prob"] for r in records if r["setting"]["name"] == "full"}
    others = [r for r in records if r["setting"]["name"] != "full"]
    assert len(full) == 4 and len(others) == 8
    for record in others:
        assert record["scores"]["log_prob"] == pytest.approx(full[record["task"], record["sample"]], abs=0.1)
        assert record["run"]["backend"] == "reference" and record["scores"]["found"] == 1.0
