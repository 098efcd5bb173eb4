"""Texts to read on: files, and kinds that every machine has. Nothing is bundled and nothing is downloaded.

prose, dialogue: generated. code: sources of the running Python's standard library. manual: its language reference, as
`help()` shows it. The last two are read where Python is installed and come under its license (the PSF's); they differ
between versions of Python, which every line of results names.
"""

from __future__ import annotations

import hashlib
import random
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..bench.prose import prose
from ..engine.documents import read_document
from ..errors import ConfigError
from ..paths import shown
from .prompt import Tokens, as_tokens

KINDS = ("prose", "code", "dialogue", "manual")
Tokenize = Callable[[bytes], list[int]]

# Long modules that every supported Python has as one file.
MODULES = (
    "argparse.py _pydecimal.py difflib.py doctest.py inspect.py pickle.py pickletools.py smtplib.py subprocess.py "
    "tarfile.py threading.py turtle.py typing.py configparser.py http/client.py http/cookiejar.py logging/__init__.py "
    "unittest/mock.py unittest/case.py asyncio/base_events.py xml/dom/minidom.py urllib/request.py"
).split()
_SPEAKERS = "Anna Ben Carla David Emil Frida Gustav Helen".split()
_THINGS = "umbrella notebook violin bicycle lantern passport kettle camera blanket hammer compass basket".split()
_COLOURS = "red green blue white black yellow brown orange".split()
_SPOTS = (
    "at the station; in the kitchen; under the stairs; behind the mill; on the roof; in the boat; with the baker; "
    "in the school; beside the well; in the upper room; near the church; on the night train"
).split("; ")


@dataclass(frozen=True)
class Passage:
    """Tokens of one stretch of a text. kind: of text, or the file's name; id: unique among those of a seed."""

    id: str
    kind: str
    tokens: Tokens


def passages(
    files: Sequence[str], kinds: Sequence[str], n_tokens: int, n: int, seed: int, tokenize: Tokenize
) -> list[Passage]:
    """n passages of exactly n_tokens tokens of each file and each kind; the same seed gives the same.

    Raises ConfigError for a text that is too short, and DocumentError for a file that is no text.
    """
    found: list[Passage] = []
    names = [shown(Path(path).name) for path in files]
    for path, name in zip(files, names, strict=True):
        if names.count(name) > 1:
            raise ConfigError(f"two texts are named '{name}'; rename one, or measure them in two runs")
        text = read_document(path).text
        for number in range(n):
            rng = random.Random(f"{name} {seed} {number}")
            tokens = _stretch(text, n_tokens, rng, tokenize)
            if tokens is None:
                raise ConfigError(f"'{path}' has fewer than {n_tokens} tokens; choose shorter --contexts")
            found.append(Passage(f"{name}-{number}", name, tokens))
    for kind in kinds:
        found += [
            Passage(f"{kind}-{number}", kind, _built_in(kind, n_tokens, f"{kind} {seed} {number}", tokenize))
            for number in range(n)
        ]
    return found


def digests(files: Sequence[str]) -> dict[str, str]:
    """The beginning of each file's SHA-256: what a resumed run must read again. Raises DocumentError."""
    texts = {shown(Path(path).name): read_document(path).text for path in files}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in texts.items()}


def _built_in(kind: str, n_tokens: int, seed: str, tokenize: Tokenize) -> Tokens:
    rng = random.Random(seed)
    if kind in ("prose", "dialogue"):
        write = prose if kind == "prose" else dialogue
        number = rng.randrange(2**32)
        n_words = n_tokens
        while len(tokens := tokenize(write(n_words, number).encode())) < n_tokens:
            n_words *= 2
        return as_tokens(tokens[:n_tokens])
    text = _code(rng) if kind == "code" else _manual()
    stretch = _stretch(text, n_tokens, rng, tokenize)
    if stretch is None:
        raise ConfigError(f"the text '{kind}' is shorter than {n_tokens} tokens on this machine; give one with --text")
    return stretch


def _stretch(text: str, n_tokens: int, rng: random.Random, tokenize: Tokenize) -> Tokens | None:
    """Tokens from a random line of a text on, from its beginning where it is just long enough; None: too short."""
    n_chars = 8 * n_tokens
    place = rng.randrange(max(1, len(text) - n_chars))
    start = text.rfind("\n", 0, place) + 1
    while True:
        part = text[start : start + n_chars]
        tokens = tokenize(part.encode())
        if len(tokens) >= n_tokens:
            return as_tokens(tokens[:n_tokens])
        if len(part) == n_chars:
            n_chars *= 2
        elif start:
            start = max(0, start - n_chars)
        else:
            return None


def _code(rng: random.Random) -> str:
    """All modules one after the other, in an order of this passage's own."""
    folder = Path(sysconfig.get_path("stdlib"))
    found = []
    for name in rng.sample(MODULES, len(MODULES)):
        try:
            found.append((folder / name).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            continue
    if not found:
        raise ConfigError("this Python has no sources of its standard library; give a text with --text")
    return "\n\n".join(found)


def _manual() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ConfigError("this Python has no language reference (pydoc_data); give a text with --text") from None
    return "\n\n".join(topics[name] for name in sorted(topics))


def dialogue(n_words: int, seed: int = 0) -> str:
    """At least n_words words of a talk between two people who ask each other for what was said long before."""
    rng = random.Random(seed)
    ours, theirs = rng.sample(_SPEAKERS, 2)
    told: dict[str, str] = {}
    lines: list[str] = []
    n = 0
    while n < n_words:
        thing = f"{rng.choice(_COLOURS)} {rng.choice(_THINGS)}"
        if told and rng.random() < 0.5:
            thing = rng.choice(list(told))
            pair = (f"{ours}: Where did you leave the {thing}?", f"{theirs}: I left it {told[thing]}, as I told you.")
        else:
            told[thing] = rng.choice(_SPOTS)
            pair = (f"{theirs}: I left the {thing} {told[thing]} today.", f"{ours}: Good, I will remember that.")
        lines += pair
        n += sum(line.count(" ") + 1 for line in pair)
        ours, theirs = (theirs, ours) if rng.random() < 0.1 else (ours, theirs)
    return "\n".join(lines)
