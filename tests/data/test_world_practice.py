"""Practice: many questions on the same pictures, some of them to be answered by a letter."""

import re
from collections import Counter
from random import Random

import pytest
import yaml

from minilava.data.mixture import load_mixture
from minilava.data.world import TASKS, World, make
from minilava.data.world.example import Question
from minilava.data.world.practice import spelled, with_letters
from minilava.errors import UserError


def turns(record):
    said = [m["value"] for m in record["conversations"]]
    return list(zip(said[::2], said[1::2], strict=True))


@pytest.mark.parametrize("answer", ["red", "fish", "bottom left", "three", "bank", "41", "9", "red fish"])
def test_options_hold_the_answer_once_under_its_letter(answer):
    counts, letters = Counter(), Counter()
    for i in range(200):
        made = with_letters(Random(i), Question("What is it?", answer, "phrase", 9))
        options = dict(re.findall(r"\(([A-H])\) ([\w ]+?)(?= \(|$)", made.text))
        assert made.text.startswith("What is it? (A) ") and made.style == "letter"
        assert options[made.answer] == answer and len(set(options.values())) == len(options)
        if answer == "red fish":
            assert all(o.startswith("red ") or o.endswith(" fish") or o.count(" ") == 1 for o in options.values())
        counts[len(options)] += 1
        letters[made.answer] += 1
    assert set(counts) == {2, 3, 4} and min(letters[x] for x in "ABC") > 30


def test_a_spelled_answer_is_the_option_and_its_letter():
    made = spelled(Question("Which? (A) remove the red car (B) add a fish at the top", "B", "letter", 2))
    assert made.answer == "add a fish at the top (B)" and made.style == "option"
    shown = Question("Which candidate belongs there?", "G", "letter", 8)  # its options are pictures
    assert spelled(shown) is shown


@pytest.mark.parametrize(
    "question",
    [
        Question("Same?", "yes", "word", 2),
        Question("Same?", "no", "word", 2),
        Question("Which? (A) red (B) blue", "A", "letter", 2),
        Question("Tell.", "A red car is at the top.", "sentence"),
        Question("How do they differ?", "moved", "word", 7),
    ],
)
def test_questions_whose_answers_have_no_family_stay(question):
    assert with_letters(Random(0), question) is question


@pytest.mark.parametrize("task", TASKS)
def test_practice_asks_more_and_nothing_twice(task):
    asked = Counter()
    for i in range(60):
        plain, record = (make(task, "train", i, turns=14, practice=p) for p in (False, True))
        assert [x.tobytes() for x in plain.get("image", plain.get("video"))] == [
            x.tobytes() for x in record.get("image", record.get("video"))
        ]
        questions = [q.rpartition("\n")[2] for q, _ in turns(record)]
        assert len(questions) <= 14 and len(set(questions)) == len(questions)
        asked["practice"] += len(questions)
        asked["plain"] += len(turns(plain))
        asked["letters"] += sum("(A)" in q for q in questions)
    assert asked["practice"] >= asked["plain"] - 60  # less the description of a frame that plain ones may add
    assert asked["letters"] > 0
    if task in ("single_image", "image_caption", "multi_image_vqa", "scene_vqa"):
        assert asked["practice"] > 1.1 * asked["plain"]
    assert make(task, "train", 3, turns=14, practice=True)["conversations"] == record_again(task)


def record_again(task):
    return World(task, turns=14, practice=True)[3]["conversations"]


def test_the_test_split_does_not_change():
    """Practice is for training: what is asked of one turn is what it was without it."""
    for task in TASKS:
        made = make(task, "test", 0)
        assert len(turns(made)) == 1 and made["conversations"] == World(task, split="test")[0]["conversations"]


@pytest.mark.parametrize("value, fine", [("true", True), ("false", True), ("3", False), ("often", False)])
def test_a_mixture_asks_for_practice(tmp_path, value, fine):
    source = {"world": "single_image", "samples": 4, "turns": 8, "practice": yaml.safe_load(value)}
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump({"sources": [source]}))
    if fine:
        assert len(load_mixture(tmp_path / "mix.yaml").sources[0].records) == 4
    else:
        with pytest.raises(UserError, match="practice must be true or false"):
            load_mixture(tmp_path / "mix.yaml")
