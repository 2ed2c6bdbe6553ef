"""Random and adversarial (answer, reference) pairs, seeded, for holding two statements of a rule to each other."""

from __future__ import annotations

from random import Random

PIECES = [
    "a", "b", "c", "A", "B", "(c)", "d.", "e)", "[A]", "B:", "C: cat", "A. left", "answer: b", "x", "the cat", "the",
    "3.14", "3.14.", "1.", ".5", "..", ".", ". ", "." * 40, ";", " ; ", "/", "left/right", "well-known", " - ", "_x_",
    "`", "`q`", "it's", "'", "''", '"', '"e"', "\n", "\t", " ", "  ", "yes!", "No?", "<image>", "@me", "{x}", "a=b",
    "c+d", "\\n", "Ünïcode", "你好", "١,٢", "ß", "İ", "\u00a0", "\u2003", "%", "12%", "-0.5", "1e3", "nan", "inf", "12",
    "12.6", "12.5", ":", "::", "a:b:c", "h:", ":i", ")", "(", "))((", "Spot the difference.", "the the", ",", "1,2 x,y",
    "1,000",
]  # fmt: skip


def text(rng: Random, most: int = 8) -> str:
    joined = rng.choice(["", " ", " ", " ", ". "])
    return joined.join(rng.choice(PIECES) for _ in range(rng.randrange(most + 1)))


def pairs(number: int, seed: int = 0, most: int = 8) -> list[tuple[str, str]]:
    """A third unrelated, a third with the reference edited into the answer, a third of a few characters."""
    rng, made = Random(seed), []
    for i in range(number):
        reference = text(rng, most)
        if i % 3 == 0:
            answer = text(rng, most)
        elif i % 3 == 1:
            answer = list(reference)
            for _ in range(rng.randrange(4)):
                at = rng.randrange(len(answer) + 1)
                answer[at : at + rng.randrange(3)] = rng.choice(PIECES)
            answer = "".join(answer)
        else:
            answer, reference = ("".join(rng.choices("aAbB.:, 12-%", k=rng.randrange(6))) for _ in range(2))
        made.append((answer, reference))
    return made
