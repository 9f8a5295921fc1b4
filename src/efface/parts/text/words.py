"""Make up words, numbers and phrases as signs and captions have them, apart for training and testing."""

# ruff: noqa: SIM905 (lists of syllables read better as text)

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from numpy.random import Generator

from efface.parts.text.fonts import hash_unit

Split = Literal["train", "test"]
T = TypeVar("T")

HELD_OUT = 0.2
"""Share of all words that the test split alone draws."""

_ONSETS = (
    "b c d f g h j k l m n p r s t v w y z bl br ch cl cr dr fl fr gr ph pl pr qu sh sl sp st str th tr wh".split()
)
_VOWELS = "a a a e e e e i i i o o o u ai au ea ee ie oo ou y".split()
_CODAS = ["", "", "", "", *"b ck d g l ll m n n n nd ng nt p r r rd rt s s ss st t t th x".split()]
_ENDINGS = "ing ed er s ly tion ment able ness y".split()
_SHORT = "a an and at by for in is it my new no of on or our the to up we with you".split()
_DOMAINS = "com net org info shop tv co.uk de fr".split()
_MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()


def pick(generator: Generator, items: Sequence[T]) -> T:
    """Return one of ``items``, each as likely."""
    return items[int(generator.random() * len(items))]


def word(generator: Generator, split: Split = "train") -> str:
    """Return a made-up lower-case word of the split."""
    return _of_split(_syllables, generator, split)


def token(generator: Generator, split: Split = "train") -> str:
    """Return a number, price, date, time, address or handle of the split."""
    return _of_split(pick(generator, _TOKENS), generator, split)


def phrase(generator: Generator, split: Split = "train", most: int = 4) -> str:
    """Return one line of 1 to ``most`` words, in one of the cases and with the punctuation that captions have."""
    if generator.random() < 0.15:
        return token(generator, split)
    words = [_any_word(generator, split) for _ in range(int(generator.integers(1, most + 1)))]
    case = generator.random()
    if case < 0.35:
        words = [w.upper() for w in words]
    elif case < 0.6:
        words = [w[:1].upper() + w[1:] for w in words]
    elif case < 0.85:
        words[0] = words[0][:1].upper() + words[0][1:]
    if generator.random() < 0.1:
        words.append(token(generator, split))
    line = (", " if len(words) == 2 and generator.random() < 0.1 else " ").join(words)
    dress = generator.random()
    if dress < 0.25:
        return line + pick(generator, ["!", ".", "?", "...", ":", "!!"])
    return pick(generator, ['"{}"', "({})", "- {} -", "#{}", "'{}'", "* {}"]).format(line) if dress < 0.31 else line


def lines_of(generator: Generator, split: Split = "train", most: int = 3) -> list[str]:
    """Return 1 to ``most`` lines of text, usually one."""
    count = 1 + sum(generator.random() < 0.25 for _ in range(most - 1))
    return [phrase(generator, split) for _ in range(count)]


def split_of(text: str) -> Split:
    """Return the split that a word or token belongs to, whatever its case."""
    return "test" if hash_unit(text.lower()) < HELD_OUT else "train"


def _of_split(make: Callable[[Generator], str], generator: Generator, split: Split) -> str:
    while True:
        text = make(generator)
        if split_of(text) == split:
            return text


def _any_word(generator: Generator, split: Split) -> str:
    short = generator.random() < 0.2
    return _of_split(lambda g: pick(g, _SHORT), generator, split) if short else word(generator, split)


def _syllables(generator: Generator) -> str:
    count = 1 + int(generator.random() < 0.7) + int(generator.random() < 0.25)
    parts = [pick(generator, kind) for _ in range(count) for kind in (_ONSETS, _VOWELS, _CODAS)]
    if generator.random() < 0.15:
        parts[0] = ""
    if generator.random() < 0.2:
        parts.append(pick(generator, _ENDINGS))
    return "".join(parts)


def _number(generator: Generator) -> str:
    return f"{int(10 ** generator.uniform(0.3, 5)):{',' if generator.random() < 0.3 else ''}}"


def _price(generator: Generator) -> str:
    sign, cents = pick(generator, ["$", "", ""]), pick(generator, [".99", ".50", ",-", ""])
    return f"{sign}{int(10 ** generator.uniform(0, 3))}{cents}"


def _percent(generator: Generator) -> str:
    return f"{pick(generator, ['', '-', '+'])}{int(generator.integers(1, 100))}%"


def _date(generator: Generator) -> str:
    day, year = int(generator.integers(1, 29)), int(generator.integers(1950, 2050))
    month = int(generator.integers(1, 13))
    forms = [f"{day:02}/{month:02}/{year}", f"{year}-{month:02}-{day:02}", f"{day} {_MONTHS[month - 1]} {year}"]
    return pick(generator, [*forms, f"{day}.{month}.{year % 100:02}"])


def _time(generator: Generator) -> str:
    return f"{int(generator.integers(24))}:{int(generator.integers(60)):02}{pick(generator, ['', '', ' am', ' pm'])}"


def _url(generator: Generator) -> str:
    return f"{pick(generator, ['www.', ''])}{_syllables(generator)}.{pick(generator, _DOMAINS)}"


def _handle(generator: Generator) -> str:
    return f"{pick(generator, ['@', '#', '(c) '])}{_syllables(generator)}{int(generator.integers(100))}"


def _phone(generator: Generator) -> str:
    return f"{int(generator.integers(100, 1000))}-{int(generator.integers(10000)):04}"


_TOKENS = [_number, _number, _price, _percent, _date, _time, _url, _handle, _phone]
