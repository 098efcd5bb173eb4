"""What tools/gpu_check.py does, step by step, and what the results mean."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

from ..setup.source import ROOT, cache_dir
from .place import GRAPH_TESTS, PROBE, Place, Words
from .run import Run

NAMES = ("stages", "tests", "engine", "model", "bench")
_GPUS = ("gpu", "igpu")
# In the description of a device that is a program.
_SOFTWARE = ("llvmpipe", "lavapipe", "swiftshader")
# Of the embedded model: cells that survive, as many free ones, and tokens of the text.
_ENGINE, _ENGINE_QUICK, _ENGINE_SOFTWARE = (256, 3072), (256, 832), (64, 224)

# The benchmark on a GPU: the shape, what it takes, and what is left free of memory and disk.
_SHAPE, _TYPE, _BUDGET, _RESERVE, _TEXT = "llama-3.1-8b", "q4_0", 4096, 2048, 131072
_LAYERS_MAX = 32
# Bytes: per layer of weights, and of the cells of a full cache of 131,072 positions; the embeddings and the head.
_LAYER, _LAYER_CELLS, _REST = 123_000_000, 131072 * 4096, 600_000_000
_MEMORY_SHARE = 0.85
# Tokens that the evicting cache reads of the text: what follows takes as long, token by token.
_READ = 32768
# Without a GPU, or quickly: the same steps at sizes that any machine runs.
_SMALL = {"shape": "tiny", "layers": 2, "text": 4096, "budget": 512, "reserve": 256, "read": 4096}


def all_steps(run: Run, options: argparse.Namespace, place: Place) -> None:
    """Everything after the build."""
    python, quick = place.python, (["quick"] if options.quick else [])
    run.command("devices", [python, PROBE, "about", "{out}"], judge=_devices)
    found = run.result("devices")
    if found is None:
        for name in options.only:
            run.skip(name, "the library does not tell its devices")
        return
    run.facts |= found
    devices = [device for device in found["devices"] if device["kind"] in ("cpu", *_GPUS)]
    gpu = next((device for device in devices if device["kind"] in _GPUS), None)
    run.facts["on"] = gpu["name"] if gpu else "CPU"
    if "stages" in options.only:
        # The yardstick first: numba compiles the reference for it.
        run.command("stages of the CPU's kernels", [python, PROBE, "fused", "{out}", *quick], judge=_stages)
        for device in devices:
            words = [python, PROBE, "stages", "{out}", device["name"], *quick]
            run.command(f"stages on {device['name']}", words, judge=_stages)
    if "tests" in options.only and place.pytest is None:
        run.skip("tests", f"pytest is not installed for {python}")
    elif "tests" in options.only and place.pytest is not None:
        # Quickly: scores and cache types; the rest takes a minute more.
        some = [*GRAPH_TESTS, "-k", "golden or cache_types"] if options.quick else place.tests
        words = [*place.pytest, "-q", "-p", "no:cacheprovider", "--junitxml={out}", *some]
        run.command("tests", words, reader=read_tests, judge=_tests)
    if "engine" in options.only and found["embedded_model"] is None:
        run.skip("engine", "the embedded model is not installed, and RESTKV_MODEL names none")
    elif "engine" in options.only:
        lengths = _ENGINE_SOFTWARE if _is_software(gpu) else _ENGINE_QUICK if options.quick else _ENGINE
        words = [python, PROBE, "engine", "{out}", "-1" if gpu else "0", *map(str, lengths)]
        run.command("engine", words, judge=_engine)
    size = sizes(options, gpu, shutil.disk_usage(cache_dir()).free)
    model = _model(run, options, size, place)
    if "bench" in options.only:
        _bench(run, gpu, size, model, place)


def sizes(options: argparse.Namespace, gpu: dict[str, Any] | None, free_disk: int) -> dict[str, Any]:
    """Shape, layers, text, budget and reserve of the benchmark; layers: what the GPU and the disk hold. Where there is
    no GPU, a shape that was asked for is still measured at the budget of a GPU, and reads less of the text."""
    slow = gpu is None or _is_software(gpu)
    small = options.quick or (slow and not options.shape)
    found: dict[str, Any] = dict(_SMALL)
    if not small:
        room = _MEMORY_SHARE * ((gpu or {}).get("memory_free") or 8e9) - _REST
        layers = min(room // (_LAYER + _LAYER_CELLS), (free_disk - 2e9) // _LAYER, _LAYERS_MAX)
        found = {"shape": _SHAPE, "layers": max(1, int(layers)), "text": _TEXT, "budget": _BUDGET, "reserve": _RESERVE}
        found["read"] = _READ if not slow else _BUDGET + 2 * _RESERVE
    if options.shape:
        found |= {"shape": options.shape, "layers": options.layers}
    if options.layers:
        found["layers"] = options.layers
    if options.text:
        found["text"] = options.text
    return found


def _is_software(device: dict[str, Any] | None) -> bool:
    return device is not None and any(name in device["description"].lower() for name in _SOFTWARE)


def _model(run: Run, options: argparse.Namespace, size: dict[str, Any], place: Place) -> Path | None:
    """The model of the benchmark, written once and kept in the cache; None when it could not be written."""
    if not {"model", "bench"} & set(options.only):
        return None
    layers = [] if size["layers"] is None else ["--layers", str(size["layers"])]
    # A writer that has changed writes another file.
    models = ROOT / "restkv_local" / "models"
    writer = b"".join((models / name).read_bytes() for name in ("shapes.py", "random_gguf.py"))
    key = hashlib.sha256(writer).hexdigest()[:8]
    path = cache_dir() / "shapes" / f"{size['shape']}-{size['layers'] or 'all'}-{key}.{_TYPE}.gguf"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    words = [*place.bench, "shapes", size["shape"], *layers, "--type", _TYPE, "--out", path]
    step = run.command("model", words, judge=lambda _: (True, f"{size['shape']}, {size['layers']} layers"))
    return path if step.status == "ok" else None


def _bench(
    run: Run, gpu: dict[str, Any] | None, size: dict[str, Any], model: Path | None, place: Place
) -> None:
    if model is None:
        run.skip("bench", "there is no model to measure")
        return
    words: Words = [*place.bench, "device", "--model", model, "--json", "{out}"]
    for name in ("budget", "reserve", "text"):
        words += [f"--{name}", str(size[name])]
    words += ["--prefill-limit", str(size["read"]), "--gpu-layers", "-1" if gpu else "0"]
    if gpu is None:
        words += ["--rounds", "2", "--decode-tokens", "8"]
        words += ["--copy-bytes", str(64 << 20), "--threads", str(max(1, (os.cpu_count() or 2) // 2))]
    run.command("bench", words, judge=_figures)


# ---- what the results mean ---------------------------------------------------------------------


def _devices(result: Any) -> tuple[bool, str]:
    names = [f"{device['name']} ({device['description']})" for device in result["devices"]]
    return bool(names), ", ".join(names)


def _stages(result: Any) -> tuple[bool, str]:
    verdict, n = result["verdict"], len(result["stages"])
    if verdict == "unsupported":
        return True, f"lacks operations, so evictions go through the host: {result['reason']}"
    error, sets = result["error"], result["sets"]
    figures = "" if error is None else f", scores within {error:.1e}, {sets:.2%} of the sets equal"
    ran = sum(stage["verdict"] != "unsupported" for stage in result["stages"])
    cases = f"{n} cases" if ran == n else f"{ran} of {n} cases"
    return verdict == "ok", f"{cases}{figures}" if verdict == "ok" else f"{verdict}: {result['reason']}"


def read_tests(path: Path) -> dict[str, Any]:
    """Counts and names of what failed, of pytest's XML."""
    suites = list(xml.etree.ElementTree.parse(path).getroot().iter("testsuite"))
    names = ("tests", "failures", "errors", "skipped")
    count: dict[str, Any] = {name: sum(int(suite.get(name, 0)) for suite in suites) for name in names}
    failed = [
        f"{case.get('classname', '')}::{case.get('name', '')}"
        for suite in suites
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {**count, "failed": failed}


def _tests(result: Any) -> tuple[bool, str]:
    wrong = result["failures"] + result["errors"]
    ran = result["tests"] - result["skipped"]
    said = f"{ran - wrong} of {ran} passed" + (f", {result['skipped']} skipped" if result["skipped"] else "")
    first = f"; first: {result['failed'][0]}" if result["failed"] else ""
    return wrong == 0 and ran > 0, said + first


def _engine(result: Any) -> tuple[bool, str]:
    close = result["logprob_difference"] <= result["logprob_max"]
    same = result["first_sets"] >= result["first_sets_min"]
    return close and same and result["evictions"] > 1, (
        f"{result['backend']}, {result['evictions']} evictions, first {result['first_sets']:.2%} equal; to the CPU: "
        f"log-probability off by {result['logprob_difference']:.4f}, {result['tokens']} of {result['tokens_of']} "
        "likeliest tokens equal"
    )


def _figures(result: Any) -> tuple[bool, str]:
    eviction = result["eviction"]
    said = (
        f"an eviction takes {eviction['seconds'] * 1000:.1f} ms, {eviction['evict_share']:.1%} of reading "
        f"{eviction['prefill_tokens']:,} tokens"
    )
    text = result.get("text")
    if text and text["stock_decode_ms"]:
        said += (
            f"; a token behind {text['context']:,} takes {text['decode_ms']:.1f} ms, "
            f"{text['stock_decode_ms']:.1f} ms with a full cache"
        )
    return True, said


def verdict(run: Run) -> str:
    """What a person should know."""
    name = run.facts.get("on", "")
    device = next((device for device in run.facts.get("devices", []) if device["name"] == name), None)
    where = f"{name} ({device['description']})" if device else "this machine"
    if run.failed:
        names = ", ".join(step.name for step in run.failed)
        lines = [f"{where}: {len(run.failed)} of {len(run.steps)} steps went wrong: {names}."]
        lines += [f"  {step.name}: {step.reason or step.summary}" for step in run.failed]
    else:
        done = sum(step.status == "ok" for step in run.steps)
        lines = [f"{where}: evictions work as on the CPU; all {done} steps went well."]
    lines += [f"  left out: {step.name} ({step.reason})" for step in run.steps if step.status == "skipped"]
    bench = run.result("bench")
    if bench:
        words = {"evict_share": "an eviction as a part of reading", "saved": "memory saved against a full cache"}
        for key, target in bench["targets"].items():
            asked = f"at most {target['most']:.0%}" if target["most"] is not None else f"at least {target['least']:.0%}"
            met = {True: "met", False: "missed", None: "not measured"}[target["met"]]
            value = "-" if target["value"] is None else f"{target['value']:.1%}"
            lines.append(f"  {words[key]}: {value}, target {asked}: {met}")
        if name == "CPU" or run.facts["options"]["quick"] or _is_software(device):
            lines.append("  (targets are meant for a GPU with a model of 8B)")
    return "\n".join(lines)
