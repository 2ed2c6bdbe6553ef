"""Video tasks: questions about what happens in a short clip, and its exact description."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from minilava.data.world import draw
from minilava.data.world.example import Example, Question, lettered, say, yes
from minilava.data.world.motion import FRAMES, Clip, Event, describe, four, random_clip, wrong
from minilava.data.world.scene import CELLS, NUMBERS

NAMES = len(draw.COLORS) * len(draw.KINDS)
DIRECTION = ("Which way does the {name} move?", "In which direction does the {name} move?", "Where does the {name} go?")
APPEARS = ("What appears?", "Which thing appears in the video?", "What new thing appears?")
DISAPPEARS = ("What disappears?", "Which thing disappears in the video?", "Which thing goes away?")
BECOMES = ("What color does the {kind} become?", "Which color does the {kind} turn?", "The {kind} turns which color?")
RESIZE = ("Does the {name} grow or shrink?", "What does the {name} do: grow or shrink?")
COUNT = ("How many things are there at the end?", "How many things does the last frame show?")
PLACE = ("Where is the {name} at the end?", "Where is the {name} in the last frame?")
MEET = ("Do {a} and {b} meet?", "Does the video show {a} and {b} meeting?", "Do {a} and {b} touch?")
FIRST = ("Which happens first?", "What comes first in the video?", "Which of these happens first?")
LAST = ("Which happens last?", "What comes last in the video?", "Which of these happens last?")
TELL = ("What happens in the video?", "Describe what happens in the video.", "Tell all events of the video in order.")
TELL_FIRST = ("What happens first?", "Describe the first event.", "What is the first event?")
TELL_LAST = ("What happens last?", "Describe the last event.", "What is the last event?")
RIGHT = ("Which description is right?", "Which text fits the video?", "Which of the two describes the video?")
EVENT = ("Which of these happens?", "What happens in the video?", "Which event does the video show?")
# For practice only: the steps to a whole event.
HAPPENS = ("Does it happen that {text}?", "Does the video show that {text}?")
IS_FIRST = ("Is the first event that {text}?", "Does it happen first that {text}?")
IS_LAST = ("Is the last event that {text}?", "Does it happen last that {text}?")
ACTS_FIRST = ("Which thing changes first?", "Which thing does something first?")
ACTS_LAST = ("Which thing changes last?", "Which thing does something last?")


def video_qa(rng: Random, size: int, frames: int = FRAMES) -> Example:
    """One to three events and questions about each of them."""
    clip = random_clip(rng, rng.choice((1, 2, 2, 3)), meet=rng.random() < 0.35)
    questions = [q for event in clip.events for q in _about(rng, event)]
    questions.append(Question(say(rng, COUNT), NUMBERS[len(clip.scene(-1).things)], choices=4))
    thing = rng.choice(clip.scene(-1).things)
    questions.append(Question(say(rng, PLACE, name=thing.name), thing.where, "phrase", len(CELLS)))
    questions += _meeting(rng, clip)
    if len(clip.events) > 1:
        questions.append(_order(rng, [e.brief() for e in clip.events]))

    def more() -> list[Question]:
        again = _meeting(rng, clip) + [q for event in clip.events for q in _about(rng, event)]
        if len(clip.events) > 1:
            briefs = [e.brief() for e in clip.events]
            again += [_order(rng, briefs), _is_at(rng, briefs), *_acts(rng, clip)]
        return again

    return _example(rng, clip, size, questions, frames, more)


def video_caption(rng: Random, size: int, frames: int = FRAMES) -> Example:
    """Two or three events, to be told in order, and choices between descriptions that differ in a detail."""
    clip = random_clip(rng, rng.choice((2, 3)), meet=rng.random() < 0.25)

    def told() -> list[Question]:
        listed, letter = lettered(rng, clip.describe(), [describe(wrong(rng, clip.events))])
        return [
            Question(f"{say(rng, RIGHT)} {listed}", letter, "letter", 2),
            _event(rng, clip),
            _order(rng, [e.text() for e in clip.events]),
            Question(say(rng, TELL_FIRST), clip.events[0].text(), "phrase"),
            Question(say(rng, TELL_LAST), clip.events[-1].text(), "phrase"),
        ]

    def more() -> list[Question]:
        steps = [_happens(rng, clip), _is_at(rng, [e.text() for e in clip.events]), *_acts(rng, clip)]
        return told() + steps + [q for event in clip.events for q in _about(rng, event)]

    questions = [Question(say(rng, TELL), clip.describe(), "text"), *told()]
    return _example(rng, clip, size, questions, frames, more)


def _example(
    rng: Random,
    clip: Clip,
    size: int,
    questions: list[Question],
    frames: int,
    more: Callable[[], list[Question]] | None = None,
) -> Example:
    """frames: how many the clip is drawn in. Other numbers than its own have no captions: nobody counts to frame 23."""
    rng.shuffle(questions)
    preference = (say(rng, TELL), clip.describe(), describe(wrong(rng, clip.events)))
    captions = clip.captions() if frames == FRAMES else None
    return Example("video", clip.draw(size, frames), "<video>\n", questions, captions, preference=preference, more=more)


def _about(rng: Random, event: Event) -> list[Question]:
    """What can be asked about one event."""
    name, kind = event.name, event.name.split()[1]
    if event.verb in ("move", "meet"):  # a thing that bounces moves both ways
        return [Question(say(rng, DIRECTION, name=name), event.detail, choices=4)]
    if event.verb == "appear":
        return [Question(say(rng, APPEARS), name, "phrase", NAMES)]
    if event.verb == "disappear":
        return [Question(say(rng, DISAPPEARS), name, "phrase", NAMES)]
    if event.verb == "recolor":
        return [Question(say(rng, BECOMES, kind=kind), event.detail, choices=len(draw.COLORS))]
    if event.verb in ("grow", "shrink"):
        return [Question(say(rng, RESIZE, name=name), event.verb, choices=2)]
    return []


def _order(rng: Random, clauses: list[str]) -> Question:
    """Which of the events is the first or the last."""
    forms, i = (FIRST, 0) if rng.random() < 0.5 else (LAST, -1)
    listed, letter = lettered(rng, clauses[i], [c for c in clauses if c != clauses[i]])
    return Question(f"{say(rng, forms)} {listed}", letter, "letter", len(clauses))


def _is_at(rng: Random, clauses: list[str]) -> Question:
    """Whether an event is the first, or the last."""
    forms, i = (IS_FIRST, 0) if rng.random() < 0.5 else (IS_LAST, -1)
    right = rng.random() < 0.5
    text = clauses[i] if right else rng.choice([c for c in clauses if c != clauses[i]])
    return Question(say(rng, forms, text=text), yes(right), choices=2)


def _acts(rng: Random, clip: Clip) -> list[Question]:
    """The thing of the first or the last event, alone and among those of the others."""
    forms, i = (ACTS_FIRST, 0) if rng.random() < 0.5 else (ACTS_LAST, -1)
    names = [e.name for e in clip.events]
    listed, letter = lettered(rng, names[i], [n for n in names if n != names[i]])
    return [
        Question(say(rng, forms), names[i], "phrase", NAMES),
        Question(f"{say(rng, forms)} {listed}", letter, "letter", len(names)),
    ]


def _happens(rng: Random, clip: Clip) -> Question:
    """Whether an event happens at all."""
    texts = [e.text() for e in four(rng, rng.choice(clip.events), clip.events)]
    right = rng.random() < 0.5
    return Question(say(rng, HAPPENS, text=texts[0] if right else rng.choice(texts[1:])), yes(right), choices=2)


def _meeting(rng: Random, clip: Clip) -> list[Question]:
    """Yes for the two that meet; no for a thing that moves and one that it never comes near."""
    for event in clip.events:
        if event.verb in ("meet", "bounce"):
            pair, answer = [event.name, event.partner], "yes"
            break
    else:
        movers = [i for i, e in enumerate(clip.events) if e.verb == "move"]
        pairs = [(i, j) for i in movers for j in range(len(clip.tracks)) if i != j and clip.gap(i, j) > 1]
        if not pairs:
            return []
        pair, answer = [next(t for t in clip.tracks[i] if t).name for i in rng.choice(pairs)], "no"
    rng.shuffle(pair)
    return [Question(say(rng, MEET, a=f"the {pair[0]}", b=f"the {pair[1]}"), answer, choices=2)]


def _event(rng: Random, clip: Clip) -> Question:
    """One of four descriptions of an event."""
    event = rng.choice(clip.events)
    texts = [e.text() for e in four(rng, event, clip.events)]
    listed, letter = lettered(rng, texts[0], texts[1:])
    return Question(f"{say(rng, EVENT)} {listed}", letter, "letter", 4)
