"""Works out the answers to questions about flat panels from their captions alone."""

import re
from collections import Counter

from minilava.data.world.scene import CELLS, NUMBERS
from tests.data.look import told

ADJECTIVES = {"blurred": "blur", "noisy": "noise", "clear": "none"}
COMPARATIVES = {
    "more blurred": ("blur", 1), "sharper": ("blur", -1), "noisier": ("noise", 1), "cleaner": ("noise", -1),
    "lighter": ("dark", -1), "brighter": ("bright", 1), "more faded": ("faded", 1),
    "stronger in contrast": ("faded", -1),
}  # fmt: skip
PLURALS = {"fish": "fish", "crosses": "cross"}


def yes(truth):
    return "yes" if truth else "no"


def index_of(flags):
    """The number, as a word from "one", of the only picture for which the flag holds."""
    (k,) = [i for i, flag in enumerate(flags) if flag]
    return NUMBERS[k + 1]


def things(caption):
    """(size, colour, kind, cell) of everything that a caption names; text in the picture is left out."""
    found = re.findall(r"an? (small|large) (\w+) (\w+) at the (\w+(?: left| right)?)", caption)
    return [(size, color, kind, CELLS.index(where)) for size, color, kind, where in found]


def the(scene, name):
    """The only thing called ``name``: colour and kind, or kind alone."""
    (thing,) = [t for t in scene if name in (f"{t[1]} {t[2]}", t[2])]
    return thing


def solve(rules, text, *context):
    """Apply the first rule whose pattern is the whole question."""
    for pattern, answer in rules:
        if match := re.fullmatch(pattern, text.rstrip("?.")):
            return answer(*context, *match.groups())
    raise AssertionError(f"no rule for {text!r}")


SCENE = [
    (r"(?:What color is|Which color does|Name the color of) the (\w+)(?: have)?", lambda s, kind: the(s, kind)[1]),
    (r"(?:What is|Which thing is|What can you see) at the (.+)",
     lambda s, where: next(f"{c} {k}" for _, c, k, cell in s if CELLS[cell] == where)),
    (r"(?:Where is|In which place is|Where can) the (\w+ \w+)(?: be found)?", lambda s, n: CELLS[the(s, n)[3]]),
    (r"(?:How many|Count the) things(?: are(?: there)?)?", lambda s: NUMBERS[len(s)]),
    (r"(?:How many|Count the) (\w+) things(?: are there)?", lambda s, c: NUMBERS[sum(t[1] == c for t in s)]),
    (r"(?:Is there|Can you see|Does it show) an? (\w+ \w+)", lambda s, n: yes(any(n == f"{t[1]} {t[2]}" for t in s))),
    (r"(?:Is|What size is) the (\w+ \w+)(?: small or large)?", lambda s, n: the(s, n)[0]),
    (r'(?:Does the caption "|Does it show |Does the picture show |Is there )an? (\w+) (\w+) at the ([\w ]+?)(?:" fit)?',
     lambda s, *t: yes(any(t == (c, k, CELLS[cell]) for _, c, k, cell in s))),
    (r"Is the (\w+ \w+) (?:to the )?left of the (\w+ \w+)", lambda s, a, b: yes(the(s, a)[3] % 3 < the(s, b)[3] % 3)),
    (r"Is the (\w+ \w+) (?:above|higher than) the (\w+ \w+)",
     lambda s, a, b: yes(the(s, a)[3] // 3 < the(s, b)[3] // 3)),
]  # fmt: skip


def solve_scene(text, scenes):
    """A question about one scene; scenes: by what it is called in the question."""
    places = [p for p in scenes if p in text]
    place = places[0] if places else "the picture"
    text = text.replace(f" in {place}", "").replace(f"Does {place} show", "Does it show")
    return solve(SCENE, text, scenes[place])


def more(s, first, second):
    counts = [len(s[f"the {half} half"]) for half in (first, second)]
    assert counts[0] != counts[1]
    return (first, second)[counts.index(max(counts))]


def solve_single(text, made):
    caption = made.captions[0]
    if made.anyres:
        parts = [part.split(" half: ") for part in caption.split("; ")]
        scenes = {f"the {half} half": things(rest) for half, rest in parts}
        half = {half: scenes[f"the {half} half"] for half, _ in parts}
        pair = rf"({parts[0][0]}) or ({parts[1][0]})"
        named = lambda name, *_: next(h for h, s in half.items() if any(f"{t[1]} {t[2]}" == name for t in s))  # noqa
        rules = [
            (rf"Which half has more things, {pair}", lambda a, b: more(scenes, a, b)),
            (rf"Are there more things in the {pair} half", lambda a, b: more(scenes, a, b)),
            (rf"Is the (\w+ \w+) in the {pair} half", named),
            (rf"Which half shows the (\w+ \w+), {pair}", named),
        ]
        if any(re.fullmatch(p, text.rstrip("?")) for p, _ in rules):
            return solve(rules, text)
        return solve_scene(text, scenes)
    written = re.search(r"the (word|number) (\w+) at the (.+)$", caption)
    if written and f" {written[1]}" in text:
        return written[3] if re.match("Where|In which place", text) else written[2]
    return solve_scene(text, {"the picture": things(caption)})


def count_all(scenes, what):
    kind = PLURALS.get(what, what.removesuffix("s"))
    return NUMBERS[sum(t[2] == kind or f"{t[1]} things" == what for s in scenes for t in s)]


def everywhere(scenes, kind):
    return all(any(t[2] == kind for t in s) for s in scenes)


def most(numbers):
    return index_of([n == max(numbers) for n in numbers])


MULTI = [
    (r"(?:How many|Count the) (.+?)(?: are)? in all pictures(?: together)?", count_all),
    (r"Which picture (?:has|shows) the most things|In which picture are most things", lambda s: most([*map(len, s)])),
    (r"(?:Which picture (?:shows|has)|In which picture is) the (\w+ \w+)",
     lambda s, n: index_of([any(n == f"{t[1]} {t[2]}" for t in scene) for scene in s])),
    (r"Do (?:both|all) pictures (?:contain|show) an? (\w+)", lambda s, k: yes(everywhere(s, k))),
    (r"Is there an? (\w+) in (?:each|every) picture", lambda s, k: yes(everywhere(s, k))),
    (r"True or false: (?:each|every) picture shows an? (\w+)", lambda s, k: str(everywhere(s, k)).lower()),
    (r"(?:Each|Every) picture contains an? (\w+). True or false", lambda s, k: str(everywhere(s, k)).lower()),
    (r"Which thing is in (?:each|every) picture|What do (?:both|all) pictures have in common",
     lambda s: " ".join(set.intersection(*({t[2] for t in scene} for scene in s)))),
    (r"Do picture (.) and picture (.) have the same number of things",
     lambda s, i, j: yes(len(s[int(i) - 1]) == len(s[int(j) - 1]))),
    (r"Are there as many things in picture (.) as in picture (.)",
     lambda s, i, j: yes(len(s[int(i) - 1]) == len(s[int(j) - 1]))),
    (r"Does picture (.) show an? (.+)", lambda s, i, part: yes(has(s[int(i) - 1], part))),
    (r"Is an? (.+) in picture (.)", lambda s, part, i: yes(has(s[int(i) - 1], part))),
    (r"(?:Which pictures show|In which pictures is) an? (.+)",
     lambda s, part: " and ".join(", ".join(NUMBERS[i + 1] for i, t in enumerate(s) if has(t, part)).rsplit(", ", 1))),
]  # fmt: skip
# The same, told picture by picture.
EACH = [
    (r"(?:How many|Count the) (.+?)(?: are)? in all pictures(?: together)?",
     lambda s, what: [count_all([t], what) for t in s]),
    (r"Which picture (?:has|shows) the most things|In which picture are most things",
     lambda s: [NUMBERS[len(t)] for t in s]),
    (r".* an? (\w+ ?\w*?)(?: in (?:each|every) picture)?(?:. True or false)?",
     lambda s, part: [yes(has(t, part)) for t in s]),
]  # fmt: skip


def has(scene, part):
    """Whether there is a thing of this kind, or of this color and kind."""
    return any(part in (t[2], f"{t[1]} {t[2]}") for t in scene)


def solve_multi(text, made):
    scenes = [things(c) for c in made.captions]
    if re.search("color.* in picture", text) and "all pictures" not in text:
        return solve_scene(text, {f"picture {i + 1}": s for i, s in enumerate(scenes)})
    return solve(MULTI, text, scenes)


def solve_quality(text, made):
    shots = []
    for caption in made.captions:
        quality, scene = caption.split(": ")
        word = quality.split()[-1]
        level = 0 if word == "clear" else 1 if quality.startswith("a little") else 2
        shots.append((ADJECTIVES.get(word, word), level, scene))

    def strength(word):
        """How much of it every picture has."""
        if word == "darker" and any(fault == "bright" for fault, _, _ in shots):
            return [-level for _, level, _ in shots]
        fault, sign = ("dark", 1) if word == "darker" else COMPARATIVES[word]
        return [sign * level if f == fault else 0 for f, level, _ in shots]

    def fault(word):
        wanted = "none" if word == "without a fault" else ADJECTIVES.get(word, word).removeprefix("too ")
        return index_of([f == wanted for f, _, _ in shots])

    def base(superlative):
        return {"noisiest": "noisier"}.get(superlative, superlative.replace("most", "more").replace("est", "er"))

    kinds = "blurred|noisy|too dark|too bright|faded|without a fault"
    than = lambda i, word, j: yes(strength(word)[int(i) - 1] > strength(word)[int(j) - 1])  # noqa: E731
    head = "(?:Which picture is|Find the picture that is)"
    return solve([
        (r"(?:What is wrong with|Which fault does|Name the fault of) picture (.)(?: have)?(?:: blur.*)?",
         lambda k: shots[int(k) - 1][0]),
        (r"Is picture (.) (.+) than picture (.)", than),
        (r"Compared with picture (.), is picture (.) (.+)", lambda j, i, word: than(i, word, j)),
        (r"Do (?:both|all) pictures show the same scene|Are the same things in (?:both|all) pictures",
         lambda: yes(len({s for _, _, s in shots}) == 1)),
        (r"Which picture is more like picture 1, picture 2 or picture 3|Does picture 2 or picture 3 match picture 1",
         lambda: NUMBERS[2 + [s for _, _, s in shots[1:]].index(shots[0][2])]),
        (rf"{head} ({kinds})", fault),
        (rf"{head} the (.+)", lambda word: most(strength(base(word)))),
        (rf"{head} (.+)", lambda word: most(strength(word))),
    ], text)  # fmt: skip


def missing(cells):
    """The next value of a square matrix by the rules that people use."""
    if len(cells) == 3:
        a, b, c = cells
        return c if a == b else b
    rows = cells[:3], cells[3:6], cells[6:]
    if len(set(rows[0])) == 1:
        assert len(set(rows[1])) == len(set(rows[2])) == 1
        return rows[2][0]
    assert set(rows[0]) == set(rows[1]) and len(set(rows[0])) == 3
    (value,) = set(rows[0]) - set(rows[2])
    return value


def parse_cell(name):
    amount, color, kind = re.fullmatch(r"(?:an? )?(\w+) (\w+) (\w+)", name).groups()
    return amount, color, PLURALS.get(kind, kind.removesuffix("s") if amount in ("two", "three") else kind)


def solve_puzzle(text, made):
    cells = re.split("; row \\w+: |, ", made.captions[0].removeprefix("row one: "))
    assert cells.pop() == "a question mark"
    names = made.captions[1:]
    if len(names) == 1:
        names = re.findall(r"(?:^|, )[A-H] ([^,]+)", names[0])
    assert len(names) == len(set(names)) == 8
    right = tuple(missing(values) for values in zip(*map(parse_cell, cells), strict=True))
    (letter,) = [k for k, n in zip("ABCDEFGH", names, strict=True) if parse_cell(n) == right]
    for k in range(3):  # no value is more frequent among the candidates than its alternative
        assert set(Counter(parse_cell(n)[k] for n in names).values()) == {4}
    look = lambda k: names["ABCDEFGH".index(k)]  # noqa: E731

    def like(part):
        """The letters of the candidates that have all the values that a plural names."""
        said = {PLURALS.get(w, w.removesuffix("s")) if w != "cross" else w for w in part.split()} - {"thing"}
        return [k for k, n in zip("ABCDEFGH", names, strict=True) if said <= set(parse_cell(n))]

    def same(what):
        """The letters of the candidates that have this value of the missing cell."""
        k = {"color": 1, "kind": 2}.get(what, 0)
        return ", ".join(x for x, n in zip("ABCDEFGH", names, strict=True) if parse_cell(n)[k] == right[k])

    def along(what, row):
        """A value of the cells of a row, the missing one left out."""
        side, k = (len(cells) + 1) ** 0.5, {"color": 1, "kind": 2}.get(what, 0)
        values = [parse_cell(n)[k] for n in cells[int((int(row) - 1) * side) : int(int(row) * side)]]
        return ", ".join(str(NUMBERS.index(v)) if what == "number" else v for v in values)

    return solve([
        (r"Which candidates (?:have the missing|show the) (\w+)(?: that is missing)?", same),
        (r"(?:What are|Name) the (\w+)s (?:of|in) row (.)", along),
        (r"(?:Which candidates show|Which letters stand for) (.+)", lambda part: ", ".join(like(part))),
        (r"(?:Does|Is) candidate (.) (?:show|one of) (.+)", lambda k, part: yes(k in like(part))),
        (r"Which candidate (?:completes|belongs).*|Choose the candidate.*", lambda: letter),
        (r"(?:Which candidate shows|Which letter stands for) (.+)", lambda n: "ABCDEFGH"[names.index(n)]),
        (r"What (?:does|is) candidate (.)(?: show)?", look),
        (r"(?:How many|Is the missing thing|What size).+", lambda: right[0]),
        (r"Which color.+", lambda: right[1]),
        (r"Which kind.+", lambda: right[2]),
        (r"What belongs in the empty cell|Describe the missing cell", lambda: look(letter)),
    ], text)  # fmt: skip


def solve_text(text, made):
    pages = made.captions
    said = [re.sub(r".* sign that says ", "", p) for p in pages]
    place = re.search(r" in picture (\d)", text)
    page = pages[int(place[1]) - 1 if place else 0]
    bars = {c: NUMBERS.index(n) for c, n in re.findall(r"(\w+) (\w+)(?:,|$)", page.partition("chart: ")[2])}
    table = {k: {"A": a, "B": b} for k, a, b in re.findall(r"(\w+) A (\d+) B (\d+)", page)}
    prices = dict(re.findall(r"(\w+) (\d+)", page.partition("receipt: ")[2]))
    if prices:
        assert sum(map(int, prices.values())) == 2 * int(prices["total"])
    extreme = {"highest": max, "lowest": min}
    return solve([
        (r"What do the signs say|Read all signs", lambda: said),
        (r"Do both signs say the same|Is the same written on both signs", lambda: yes(said[0] == said[1])),
        (r'(?:Which picture says|In which picture is) "(\w+)"(?: written)?',
         lambda label: index_of([s == label for s in said])),
        (r"Which picture shows the larger.*|In which picture is the number larger", lambda: most([*map(int, said)])),
        (r"(?:What|Which) color (?:is|does) the sign(?: have)?", lambda: page.split()[1]),
        (r"What does the sign say|What is written on the sign|Read the sign|What number .+|Read the number",
         lambda: page.split()[-1]),
        (r"(?:What does|How much is|What is the price of) the (\w+)(?: cost)?", lambda item: prices[item]),
        (r"What is the total|How much is everything together|Read the total", lambda: prices["total"]),
        (r"What is the value of the (\w+) in column (.)", lambda k, c: table[k][c]),
        (r"What is in column (.) beside the (\w+)", lambda c, k: table[k][c]),
        (r"Which (?:row|thing) has (\d+) in column (.)", lambda v, c: next(k for k in table if table[k][c] == v)),
        (r"(?:Which bar is the|What color is the) (\w+)(?: bar)?", lambda m: extreme[m](bars, key=bars.get)),
        (r"How many bars are there|Count the bars", lambda: NUMBERS[len(bars)]),
    ], text.replace(place[0], "") if place else text)  # fmt: skip


SOLVERS = {
    "single_image": solve_single, "multi_image_vqa": solve_multi, "low_level": solve_quality,
    "puzzle": solve_puzzle, "text_rich": solve_text,
}  # fmt: skip


def check_steps(task, question, made):
    """What is answered for every picture or candidate, and a candidate with its letter."""
    text, names = question.text, [str(i + 1) for i in range(len(made.frames))]
    if task == "multi_image_vqa":
        right = solve(EACH, text, [things(c) for c in made.captions])
    elif task == "puzzle" and question.style == "option":
        letter = solve_puzzle(text, made)
        assert question.answer == f"{solve_puzzle(f'What is candidate {letter}?', made)} ({letter})"
        return
    elif task == "puzzle":
        letter, names = solve_puzzle(text, made), "ABCDEFGH"
        right = [yes(name == letter) for name in names]
    else:
        said, wanted = solve_text("Read all signs.", made), re.search('"(.*)"', text)
        right = [yes(s == wanted[1]) for s in said] if wanted else said
    assert told(question.answer) == dict(zip(names, right, strict=True)), question
