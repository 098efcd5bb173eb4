"""Style of the page, for light and dark."""

from __future__ import annotations

# One per method, told apart on white and on near-black.
_LIGHT = (
    "#2563eb #d9480f #2b8a3e #9c36b5 #c2255c #0b7285 #846200 #5c4ee5 #c92a2a #3b7a00 #8a5a44 #495057"
).split()
_DARK = (
    "#74a7ff #ff922b #69db7c #da77f2 #faa2c1 #3bc9db #ffd43b #b197fc #ff8787 #a9e34b #d8a48f #ced4da"
).split()


def _variables(colours: list[str]) -> str:
    return "".join(f"--c{i}:{colour};" for i, colour in enumerate(colours))


STYLE = (
    ":root{color-scheme:light dark;--back:#fff;--fore:#1c1f23;--dim:#5b6470;--rule:#d7dce2;--heat:72%;"
    f"{_variables(_LIGHT)}}}"
    "@media(prefers-color-scheme:dark){:root{--back:#14171a;--fore:#e6e9ed;--dim:#9aa4b0;--rule:#333a42;--heat:28%;"
    f"{_variables(_DARK)}}}}}"
    "body{background:var(--back);color:var(--fore);font:15px/1.5 system-ui,sans-serif;max-width:76rem;"
    "margin:2rem auto;padding:0 1rem}"
    "h1{font-size:1.6rem}h2{font-size:1.25rem;margin-top:2.5rem;border-bottom:1px solid var(--rule)}"
    "h3{font-size:1.05rem}h4{font-size:.95rem;margin:.5rem 0}p{max-width:52rem}"
    "table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}"
    "th,td{padding:.2rem .6rem;border-bottom:1px solid var(--rule);text-align:left;white-space:nowrap}"
    "td.n{text-align:right}.facts td{white-space:normal}.wide{overflow-x:auto}"
    ".charts,.maps{display:flex;flex-wrap:wrap;gap:1rem}.charts>*{flex:1 1 26rem;max-width:40rem}"
    "figure{margin:0}figure.small{flex:0 0 auto;overflow-wrap:anywhere}figcaption{font-size:.8rem;color:var(--dim)}"
    ".key{display:inline-flex;align-items:center;gap:.3rem;margin-right:.9rem}.swatch{width:24px;height:8px}"
    "svg{width:100%;height:auto}svg text{font-size:11px;fill:var(--fore)}"
    "svg .grid{stroke:var(--rule)}.heat{fill:hsl(var(--hue) 60% var(--heat))}"
    ".full{stroke:var(--dim);fill:var(--dim)}g.full polyline,g[class^=c] polyline{fill:none;stroke-width:1.8}"
    + "".join(f".c{i}{{stroke:var(--c{i});fill:var(--c{i})}}" for i in range(len(_LIGHT)))
    + "@media print{body{max-width:none}}"
)
