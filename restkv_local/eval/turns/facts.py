"""Facts with a code, asked for one by one or many at a time; and facts that are asked for in other words."""

from __future__ import annotations

import random

from ...errors import ConfigError
from .material import THINGS, Material, Question, codes

# How many look-ups a question of the kind "list" asks for.
LOOK_UPS = (1, 2, 4, 8, 16, 32)
# Fact, question and the stem of its answer: fact and question share no word but small ones.
PARAPHRASES = (
    ("Agatha, a physician, lives beside Lake {name}.", "Near which water did the female doctor settle?", "It was "),
    ("Old Rupert sleeps inside Hotel {name} every weekend.", "Where does the elderly man spend his nights?", "At "),
    ("Our cook adores cheese made by {name}.", "Whose dairy product pleases the chef most?", "That of "),
    ("Ivan purchased his violin from {name}.", "Who sold the string instrument to the musician?", "The seller was "),
    ("Clara married {name} last spring.", "Who is the bride's husband?", "He is "),
    ("Father named our puppy {name}.", "What do they call the young dog?", "They call it "),
    ("The ferry is steered by {name}.", "Which captain takes passengers across the sea?", "Captain "),
    ("Every morning {name} bakes the rolls for our street.", "Who provides fresh bread at dawn?", "It comes from "),
    ("The attorney {name} won the trial.", "Which lawyer was victorious in court?", "Lawyer "),
    ("The thief hid the diamonds in Villa {name}.", "Which house did the burglar choose for the jewels?", "The house "),
    ("The tallest oak here is known as {name}.", "What is the biggest tree in the woods called?", "It is called "),
    ("Grandmother learned to swim from {name}.", "Who taught the old lady to move through water?", "It was "),
    ("The engine of the tractor was repaired by {name}.", "Which mechanic fixed the motor?", "The mechanic was "),
    ("The orchestra will be conducted by {name}.", "Who leads the musicians?", "The leader is "),
    ("The youngest pupil, {name}, solved the riddle.", "Which child could guess the puzzle?", "The child was "),
    ("The cathedral was planned by the architect {name}.", "Who designed the big church?", "It was designed by "),
    ("Smugglers landed their barrels at Cape {name}.", "Where did criminals bring casks ashore?", "At the headland "),
    ("The king's crown was forged by {name}.", "Which goldsmith made the monarch's headdress?", "The goldsmith was "),
    ("Wolves were seen close to the hamlet of {name}.", "By which village did people notice predators?", "By "),
    ("The novel about the whale was translated by {name}.", "Who put the sea mammal's story into French?", "It was "),
    ("Uncle Oswald lost his purse at Inn {name}.", "In which tavern did a relative mislay money?", "In the tavern "),
    ("The vaccine was discovered by {name}.", "Which scientist found the remedy?", "The scientist was "),
    ("The submarine {name} sank during a storm.", "Which vessel went down in bad weather?", "The vessel was the "),
    ("A portrait of the duchess was painted by {name}.", "Which artist drew the noblewoman?", "The artist was "),
)
NAMES = (
    "Belmont Carver Delmar Fenwick Garrick Hadley Langdon Marlow Norwood Prescott Radcliff Sutton Wexford Thornton "
    "Ashby Bramley Colville Dunmore Elwood Farnham Gresham Hartley Kendall Lindley Merton Oakham Pelham Rowland Selby "
    "Tilbury Upton Whitby"
).split()


def facts(rng: random.Random, n: int) -> Material:
    """Codes of n things."""
    planted, values = _coded("facts", rng, n)
    questions = [
        Question(
            "facts",
            f"What is the code of the {thing}?",
            f"The code of the {thing} is ",
            code,
            (_sentence(thing, code),),
        )
        for thing, code in values.items()
    ]
    return Material(planted, tuple(questions))


def lists(rng: random.Random, n: int) -> Material:
    """Codes of 32 things; the questions ask for one, two, four and up to all of them at once."""
    planted, values = _coded("list", rng, LOOK_UPS[-1])
    questions = []
    for number in range(n):
        k = LOOK_UPS[number % len(LOOK_UPS)]
        things = rng.sample(sorted(values), k)
        wanted = tuple(values[thing] for thing in things)
        named = _series([f"the {thing}" for thing in things])
        questions.append(
            Question(
                f"list {k}",
                f"What are the codes of {named}? Give them in this order.",
                "In this order, the codes are ",
                ", ".join(wanted),
                tuple(_sentence(thing, values[thing]) for thing in things),
                wanted,
            )
        )
    return Material(planted, tuple(questions))


def paraphrased(rng: random.Random, n: int) -> Material:
    """Facts that have to be understood to be found."""
    if n > len(PARAPHRASES):
        raise ConfigError(f"there are {len(PARAPHRASES)} paraphrased facts and {n} questions; lower --questions")
    names = rng.sample(NAMES, n)
    planted, questions = [], []
    for (fact, text, stem), name in zip(rng.sample(PARAPHRASES, n), names, strict=True):
        sentence = fact.format(name=name)
        planted.append((sentence,))
        questions.append(Question("paraphrased", text, stem, name, (sentence,)))
    return Material(tuple(planted), tuple(questions))


def _coded(kind: str, rng: random.Random, n: int) -> tuple[tuple[tuple[str, ...], ...], dict[str, str]]:
    if n > len(THINGS):
        raise ConfigError(f"there are {len(THINGS)} things for the kind '{kind}' and {n} questions; lower --questions")
    values = dict(zip(rng.sample(THINGS, n), codes(rng, n), strict=True))
    return tuple((_sentence(thing, code),) for thing, code in values.items()), values


def _sentence(thing: str, code: str) -> str:
    return f"The code of the {thing} is {code}."


def _series(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
