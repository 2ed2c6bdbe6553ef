"""World tasks on flat panels: every exact answer is worked out again from captions, and captions from pixels."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from minilava.data.world import draw, example, make
from minilava.data.world.scene import CELLS, NUMBERS
from tests.data.look import every
from tests.data.panels import SOLVERS, check_steps, things

TASKS = ("single_image", "multi_image_vqa", "low_level", "puzzle", "text_rich")
EXACT = ("word", "phrase", "letter")


def samples(task, count=150, size=128):
    return [example(task, "train", i, size)[0] for i in range(count)]


@pytest.mark.parametrize("task", TASKS)
def test_every_exact_answer_follows_from_the_captions(task):
    for made in samples(task, 300):
        assert len(made.captions) == len(made.frames)
        for q in every(made):
            if q.style in ("each", "option"):
                check_steps(task, q, made)
            if q.style not in EXACT:
                continue
            text, answer = q.text, q.answer
            options = re.findall(r"\(([A-H])\) ([\w ]+?)(?= \(|$)", text)
            if options:
                assert len(options) == q.choices
                answer = dict(options)[answer]
                text = text.partition(" (A)")[0]
                answer = NUMBERS[int(answer[-1])] if answer.startswith("picture ") else answer
            assert SOLVERS[task](text, made) == answer, (q, made.captions)


def check_scene(picture, caption):
    """Named cells show the named colour, the others nothing but the background."""
    pixels, side = np.asarray(picture).astype(int), picture.width
    named = {cell: color for _, color, _, cell in things(caption)}
    written = re.search(r"the (?:word|number) \w+ at the (.+)$", caption)
    for cell in range(9):
        top, left = (round((v + 0.2) * side / 3) for v in divmod(cell, 3))
        inner = pixels[top : top + side // 5, left : left + side // 5].reshape(-1, 3)
        drawn = ~np.any([(inner == c).all(1) for c in draw.BACKGROUNDS.values()], 0)
        if cell in named:
            assert (inner == draw.COLORS[named[cell]]).all(1).mean() > 0.08, (caption, cell)
        else:
            assert drawn.any() == (written is not None and CELLS[cell] == written[1]), (caption, cell)


@pytest.mark.parametrize("task", ["single_image", "multi_image_vqa", "low_level"])
def test_captions_name_what_the_pixels_show(task):
    checked = 0
    for made in samples(task, 80):
        for picture, caption in zip(made.frames, made.captions, strict=True):
            if made.anyres:
                w, h = picture.size
                second = (w // 2, 0, w, h) if w > h else (0, h // 2, w, h)
                parts = caption.split("; ")
                check_scene(picture.crop((0, 0, min(w, h), min(w, h))), parts[0])
                check_scene(picture.crop(second), parts[1])
            elif task != "low_level" or caption.startswith("clear"):
                check_scene(picture, caption.removeprefix("clear: "))
            checked += 1
    assert checked >= 80


def test_faults_change_the_pixels_as_they_say():
    """Against the same scene drawn clear: noise and blur by their edges, light by the mean, fading by the spread."""
    seen = set()
    for made in samples("low_level", 200):
        by_scene = defaultdict(dict)
        for picture, caption in zip(made.frames, made.captions, strict=True):
            quality, scene = caption.split(": ")
            by_scene[scene][quality] = np.asarray(picture).astype(float)
        for shots in by_scene.values():
            clear = shots.pop("clear", None)
            for quality, shot in shots.items() if clear is not None else ():
                word = quality.split()[-1]
                seen.add(quality)
                edge = np.abs(np.diff(shot, axis=1)).mean() / np.abs(np.diff(clear, axis=1)).mean()
                light, spread = shot.mean() - clear.mean(), shot.std() / clear.std()
                assert {
                    "blurred": edge < 0.9 and abs(light) < 3,
                    "noisy": edge > 3,
                    "dark": light < -50,
                    "bright": light > 0 and spread < 0.8,
                    "faded": spread < 0.8,
                }[word], (quality, edge, light, spread)
    assert len(seen) == 10


@pytest.mark.parametrize("task", TASKS)
def test_guessing_without_pictures_stays_at_chance(task):
    """Yes, no, letters and numbers of pictures are all about equally frequent."""
    answers, styles = defaultdict(Counter), set()
    for made in samples(task, 500):
        styles |= {q.style for q in made.questions}
        for q in made.questions:
            if q.answer in ("yes", "no"):
                answers["yes or no", 2][q.answer] += 1
            elif q.answer in ("true", "false"):
                answers["true or false", 2][q.answer] += 1
            elif q.style == "letter":
                answers["letter", q.choices][q.answer] += 1
            elif q.text.startswith(("Which picture", "In which picture", "Find the picture")):
                answers["picture 2 or 3" if "picture 3" in q.text else "picture", q.choices][q.answer] += 1
    assert len(styles & set(EXACT)) >= 2
    for (kind, choices), found in answers.items():
        assert len(found) <= choices
        count, chance = sum(found.values()), 1 / choices
        error = (chance * (1 - chance) / count) ** 0.5
        assert max(found.values()) / count < chance + 0.02 + 3.5 * error, (kind, choices, found)


@pytest.mark.parametrize("size", [64, 128, 200])
@pytest.mark.parametrize("task", TASKS)
def test_prompts_sizes_and_repeatability(task, size):
    for i in range(25):
        made = example(task, "train", i, size)[0]
        again = example(task, "train", i, size)[0]
        assert made.prompt.count("<image>") == len(made.frames) and made.prompt.endswith("\n")
        assert (made.questions, made.captions, made.prompt) == (again.questions, again.captions, again.prompt)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(made.frames, again.frames, strict=True))
        longest = 2 * size if made.anyres else size
        assert all(f.mode == "RGB" and max(f.size) == longest and min(f.size) == size for f in made.frames)
        assert 3 <= len(made.questions) <= 16
        other = example(task, "test", i, size)[0]
        assert [f.tobytes() for f in other.frames] != [f.tobytes() for f in made.frames]
        question, chosen, rejected = made.preference
        assert chosen != rejected and question


def test_every_task_asks_several_things_at_once():
    record = make("multi_image_vqa", "train", 0, turns=3)
    assert len(record["conversations"]) == 6
    assert all("<image>" not in m["value"] for m in record["conversations"][1:])
    wide = [made for made in samples("single_image", 80) if made.anyres]
    assert 4 <= len(wide) <= 18  # one in eight
