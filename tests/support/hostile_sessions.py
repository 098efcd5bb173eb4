"""Session files as an attacker, or a bad disk, leaves them: changed with a seed, their checksums wrong or made right.

    python tests/support/hostile_sessions.py [N] [SEED]

tries N of them (10,000) on the loader of a small random model and prints what was said how often.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from restkv_local.engine.session_file import SECTIONS, SessionFile, write_session

_PRELUDE = struct.Struct("<8sII32s")
_VALUES = (None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1.5, "", "x" * 999, [], [[]], {}, {"a": 1}, [1, "2"])
_NUMBERS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 0x7FC00000, 0x7F800000, 0x3FFFFFFF)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Without knowing the format: flipped bits, cut, longer, pieces doubled, other numbers in the first bytes."""
    kind = rng.randrange(6)
    out = bytearray(data)
    if kind == 0:
        for _ in range(rng.randint(1, 4)):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del out[rng.randrange(len(out)) :]
    elif kind == 2:
        out += rng.randbytes(rng.randint(1, 200))
    elif kind == 3:
        at = rng.randrange(len(out))
        out[at:at] = out[at : at + rng.randint(1, 400)]
    elif kind == 4:
        at = rng.randrange(0, 48)
        out[at : at + 4] = struct.pack("<I", rng.choice(_NUMBERS))
    else:
        at = rng.randrange(len(out))
        del out[at : at + rng.randint(1, 400)]
    return bytes(out)


def other_header(data: bytes, rng: random.Random) -> bytes:
    """JSON of other types, lengths and depths, with the right checksum."""
    magic, schema, length, _ = _PRELUDE.unpack(data[: _PRELUDE.size])
    text = data[_PRELUDE.size : _PRELUDE.size + length]
    rest = data[_PRELUDE.size + length :]
    kind = rng.randrange(4)
    if kind == 0:
        text = rng.choice(
            (b"[" * 200_000, b"", b"null", b"[]", b'"x"', b"{}", b"\xff\xfe", b"NaN", b"1" * 9999, text[:-1])
        )
    else:
        header = json.loads(text)
        at: Any = header
        while (
            isinstance(at, dict)
            and (inner := [v for v in at.values() if isinstance(v, dict) and v])
            and rng.random() < 0.5
        ):
            at = rng.choice(inner)
        name = rng.choice(list(at))
        if kind == 1:
            del at[name]
        elif kind == 2:
            at[name] = rng.choice(_VALUES)
        else:
            old = at[name]
            at[name] = old + rng.choice((-1, 1, 64)) if type(old) is int else rng.choice(_VALUES)
        text = json.dumps(header).encode()
    return _PRELUDE.pack(magic, schema, len(text), hashlib.sha256(text).digest()) + text + rest


def forged(path: Path, to: Path, rng: random.Random) -> None:
    """Sections with other contents and right checksums: only what reads them can tell."""
    with SessionFile(path) as file:
        parts = {name: bytearray(file.read(name)) for name in SECTIONS}
        header = file.header
    name = rng.choice([name for name in ("state", "state", "state", *SECTIONS) if parts[name]])
    data = parts[name]
    kind = rng.randrange(4)
    if kind == 0:
        del data[rng.randrange(len(data)) :]
    elif kind == 1:
        data += rng.randbytes(rng.randint(1, 64))
    else:
        # tables stand at the beginning of a state, and of each of its layers
        most = len(data) if kind == 2 else min(len(data), 2048)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(0, max(1, most - 4), 4)
            data[at : at + 4] = struct.pack("<I", rng.choice(_NUMBERS))
    write_session(to, header, {each: (len(x), [bytes(x)]) for each, x in parts.items()})


def hostile(path: Path, to: Path, rng: random.Random) -> None:
    """One of all of these."""
    kind = rng.randrange(3)
    if kind == 0:
        forged(path, to, rng)
        return
    change = damaged if kind == 1 else other_header
    to.write_bytes(change(path.read_bytes(), rng))


def _main() -> None:
    import tempfile

    from engines import SMALL, load
    from models import write_random
    from restkv_local.errors import RestkvError

    n, seed = (int(value) for value in [*sys.argv[1:], *("10000", "0")[len(sys.argv) - 1 :]])
    said: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine = load(write_random(folder / "model.gguf", "llama"), n_ctx=1024, evict=SMALL.with_(archive="ram"))
        engine.eval(list(range(5, 255)) * 2)
        engine.save_session(folder / "text", messages=[{"role": "user", "content": "x"}], notes={"a": {"b": 1}})
        for i in range(n):
            hostile(folder / "text", folder / "other", random.Random(seed * 1_000_003 + i))
            try:
                engine.load_session(folder / "other")
                said["(loaded)"] += 1
                engine.eval([9, 8])
            except RestkvError as error:
                text = str(error)
                assert "\n" not in text, text
                said[text.split("' ", 1)[-1].split(":")[0].split(" (")[0]] += 1
            engine.n_tokens and engine.report()
        engine.load_session(folder / "text")
        engine.close()
    for text, count in said.most_common():
        print(f"{count:6}  {text}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    _main()
