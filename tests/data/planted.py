"""A corpus with known defects: English prose that every filter keeps, and what should go.

Each document's id says what it is; `near-…` carries its Jaccard similarity in the metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any


def listed(text: str) -> list[str]:
    return text.split()


NOUNS = listed(
    """
    river mountain teacher garden letter window market village engine doctor painter harbour
    bridge forest kitchen library farmer station island captain museum valley blanket candle
    mirror ladder orchard meadow tower castle village fountain lantern carpet basket hammer
    wagon saddle compass anchor sail rope barrel bottle pocket button ribbon feather pebble
    shell branch acorn maple willow sparrow falcon otter badger rabbit pony donkey kitten
    puppy lamb turtle beetle spider honey butter cheese pepper ginger onion carrot apple
    cherry lemon walnut cousin uncle neighbour stranger visitor soldier sailor baker tailor
    miner pilot judge lawyer singer dancer writer editor printer scholar student pupil nurse
    guard clerk porter waiter barber weaver potter shepherd"""
)
VERBS = listed(
    """
    watched carried followed painted repaired remembered described visited admired found
    borrowed returned cleaned covered lifted measured opened ordered planted pulled pushed
    questioned raised reached received rescued saved searched shared showed studied supported
    surprised taught thanked touched trusted understood used wanted warned washed welcomed
    wrapped answered asked avoided believed blamed built bought called caught chose climbed
    collected compared"""
)
ADJECTIVES = listed(
    """
    quiet ancient bright careful clever curious distant eager early empty famous gentle golden
    happy heavy hollow honest hungry little lonely lucky narrow noble patient pleasant polite
    proud quick rare rich rough round silent simple sleepy slender smooth sour steep strange
    strong sudden sweet tall tender thick thin tiny tired warm weary wide wild wise wooden
    young"""
)
TIMES = listed(
    """
    yesterday tonight later afterwards sometimes often rarely quietly slowly quickly finally
    eventually suddenly usually perhaps certainly today recently meanwhile everywhere outside"""
)
PATTERNS = [
    "The {a} {n} {v} a {a} {n} that stood beside the {n}.",
    "{T}, my {n} {v} the {n} and the {a} {n} with a {n}.",
    "A {n} of the {a} {n} {v} them because the {n} seemed {a}.",
    "When the {n} {v} his {n}, every {a} {n} in the {n} turned {a}.",
    "Nobody {v} the {a} {n}, although her {n} {v} it {t}.",
    "It was a {a} {n} to have, and the {n} {v} it {t}.",
    "We {v} one {n} after another until some {a} {n} {v} our {n}.",
    "Behind that {n} they {v} {w} {n}s and {w} {a} {n}s.",
]
NUMBERS = listed(
    """
    two three four five six seven eight nine ten eleven twelve twenty thirty"""
)
FOREIGN = {
    "fr": """la maison est grande et le jardin donne sur une rivière tranquille où les enfants
    jouent souvent avec leurs amis pendant que leur mère prépare un bon repas dans cette cuisine""",
    "de": """das alte Haus steht hinter dem Wald und wir gehen jeden Morgen über die Brücke zum
    Markt weil dort die Bauern frisches Brot und süße Äpfel verkaufen während ihre Kinder lachen""",
    "ru": """старый дом стоит за лесом и каждое утро мы идём через мост на рынок потому что там люди
    продают свежий хлеб и сладкие яблоки пока их дети весело играют возле тихой реки""",
}
BOILERPLATE = [
    "Subscribe to our newsletter and never miss another story from us.",
    "Copyright 2024 by the Example Publishing House, all rights reserved.",
    "Please accept our terms before you continue to read this page.",
]
CLEAN = 12_500


def prose(rng: Random, sentences: int) -> list[str]:
    """Sentences of plain English, almost surely new."""
    pick = rng.choice

    def fill(pattern: str) -> str:
        words = {"n": NOUNS, "v": VERBS, "a": ADJECTIVES, "t": TIMES, "w": NUMBERS}
        for key, options in words.items():
            while "{" + key + "}" in pattern:
                pattern = pattern.replace("{" + key + "}", pick(options), 1)
        return pattern.replace("{T}", pick(TIMES).capitalize())

    return [fill(pick(PATTERNS)) for _ in range(sentences)]


def page(rng: Random) -> str:
    """A page of three to five paragraphs of prose, a line each."""
    return "\n".join(" ".join(prose(rng, rng.randint(2, 3))) for _ in range(rng.randint(3, 5)))


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.lower().replace(".", " ").replace(",", " ").split()
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def similarity(a: str, b: str) -> float:
    """Jaccard similarity of two texts' 5-grams of words."""
    one, other = shingles(a), shingles(b)
    return len(one & other) / len(one | other)


def near(rng: Random, text: str, wanted: float) -> str:
    """The text with words of its end replaced until the similarity is just above `wanted`."""
    words, best = text.split(" "), text
    for place in range(len(words) - 1, 0, -1):
        words[place] = rng.choice(NOUNS) + ("." if words[place].endswith(".") else "")
        changed = " ".join(words)
        if similarity(text, changed) < wanted:
            break
        best = changed
    return best


def gibberish(rng: Random) -> str:
    letters = "bcdfghjklmnpqrstvwxz0123456789#%&"
    return " ".join("".join(rng.choices(letters, k=rng.randint(2, 14))) for _ in range(120)) + "."


def foreign(rng: Random) -> tuple[str, str]:
    language = rng.choice(list(FOREIGN))
    words = FOREIGN[language].split()
    rng.shuffle(words)
    return language, " ".join(words + rng.sample(words, 20)).capitalize() + "."


def item(rng: Random) -> dict[str, str]:
    """A benchmark item of 25 to 40 words."""
    return {"question": " ".join(prose(rng, 2)), "answer": " ".join(prose(rng, 1))}


def planted(seed: int = 0) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """20,000 documents in shuffled order, and the items of the benchmark some contain."""
    rng = Random(seed)
    rows: list[dict[str, Any]] = []
    benchmark = [item(rng) for _ in range(200)]

    def add(kind: str, text: str, **metadata: Any) -> None:
        number = len(rows)
        url = f"https://site-{number % 97}.example/{number}"
        rows.append({"id": f"{kind}-{number}", "text": text, "url": url, "date": number} | metadata)

    for _ in range(CLEAN):
        add("clean", page(rng))
    for kind, count in (("exact", 1500), ("near", 1500)):
        for source in rng.sample(range(CLEAN), count):
            text = rows[source]["text"]
            if kind == "exact":
                add(kind, text, of=rows[source]["id"])
            else:
                changed = near(rng, text, rng.choice([0.8, 0.85]))
                add(kind, changed, of=rows[source]["id"], similarity=similarity(text, changed))
    for source in rng.sample(range(CLEAN), 1000):  # an older fetch of a page
        add("oldurl", page(rng), url=rows[source]["url"], date=rows[source]["date"] - 50_000)
    for _ in range(1500):
        lines = page(rng).split("\n")
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(BOILERPLATE))
        add("footer", "\n".join(lines))
    for _ in range(750):
        add("gibberish", gibberish(rng))
        add("foreign", foreign(rng)[1])
    for _ in range(500):
        chosen, lines = rng.choice(benchmark), page(rng).split("\n")
        lines.insert(rng.randrange(len(lines)), f"{chosen['question']} {chosen['answer']}")
        add("leaked", "\n".join(lines))
    rng.shuffle(rows)
    return rows, benchmark


def write_planted(
    folder: Path, files: int = 8
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The planted corpus as .jsonl files in `folder`/corpus, the benchmark beside."""
    rows, benchmark = planted()
    (folder / "corpus").mkdir(parents=True)
    for number in range(files):
        write_rows(folder / "corpus" / f"{number}.jsonl", rows[number::files])
    write_rows(folder / "benchmark.jsonl", benchmark)
    return rows


def write_rows(path: Path, rows: list[Any]) -> None:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
