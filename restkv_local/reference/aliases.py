"""Names under which published code knows methods and options, translated to ours."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError

# kvpress calls its scorers presses and names what they keep.
_METHODS = {"kvpress_TOVAPress": "tova", "kvpress_KeyDiffPress": "keydiff", "kvpress_KnormPress": "knorm"}
# The ablation of ReST-KV's published code: temporal smoothing `ts` (the weighting of the rows).
_ROWS = {"ema": "ema", "mean": "mean", "inv-ema": "inverted-ema", "inv_ema": "inverted-ema", "none": "last"}
_INDICATORS = {"attn": "attention", "attn-v": "attention-value-norm", "reconstruction": "reconstruction"}
_ABLATION_KERNEL = 5


def translate(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters with the names of `ScoreParams`. Raises ConfigError for an unknown value of an alias."""
    params = dict(params)
    method = params.get("method")
    if method == "ablation":
        return _ablation(params)
    if isinstance(method, str) and method in _METHODS:
        params["method"] = _METHODS[method]
        if "keep" in params:
            params["budget"] = params.pop("keep")
    return params


def _ablation(params: dict[str, Any]) -> dict[str, Any]:
    """The ablation of the published code: attention is summed over the rows and always average-pooled, whatever `ts`
    and `ss` (spatial smoothing) say; both act on the reconstruction."""
    indicator = _known("indicator", params.pop("indicator", "reconstruction"), _INDICATORS)
    rows = _known("ts", params.pop("ts", "ema"), _ROWS)
    pooling = params.pop("ss", "adaptive")
    if indicator != "reconstruction":
        rows, pooling = "sum", "avgpool"
    params.setdefault("kernel", _ABLATION_KERNEL)
    return params | {"method": "restkv", "indicator": indicator, "rows": rows, "pooling": pooling}


def _known(name: str, value: Any, known: dict[str, str]) -> str:
    if value in known.values():
        return str(value)
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(known)}; got {value!r}")
    return known[value]
