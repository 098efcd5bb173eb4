#!/usr/bin/env python3
"""Write a long text with a few facts in it that stand nowhere else: something to ask a small model about.

The text is what Python's own documentation says, of the Python that runs this; the facts stand at even distances. Run
this inside the environment:

    . .venv/bin/activate
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

FACTS = (
    "The lighthouse keeper is called Anselm.",
    "The ferry to Holm leaves at half past six.",
    "The code of the strongbox in the cellar is 7391.",
    "Aunt Martha hid the silver spoons under the piano.",
    "The password of the library is marigold.",
    "The bakery in Elm Street sells bread with walnuts.",
)


def story(words: int, seed: int) -> str:
    """A text of about so many words. Raises ConfigError where this Python has no documentation."""
    from restkv_local.eval.turns import prose

    sentences, count = [], 0
    for sentence in prose.others(random.Random(seed)):
        sentences.append(sentence)
        count += len(sentence.split())
        if count >= words:
            break
    for number in reversed(range(len(FACTS))):
        sentences.insert(round((number + 0.5) / len(FACTS) * len(sentences)), FACTS[number])
    return " ".join(sentences)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="where the text goes")
    parser.add_argument("--words", type=int, default=20_000, help="about so many; one is 1.3 tokens (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="another one gives another text (%(default)s)")
    given = parser.parse_args()
    try:
        text = story(given.words, given.seed)
        given.file.write_text(text, encoding="utf-8")
    except ModuleNotFoundError as error:
        sys.exit(f"story.py: {error.name} is missing; run it inside the environment: . .venv/bin/activate")
    except (OSError, ValueError) as error:
        sys.exit(f"story.py: {error}")
    print(f"{len(text.split()):,} words in {given.file}; they hold:", *FACTS, sep="\n  ")


if __name__ == "__main__":
    main()
