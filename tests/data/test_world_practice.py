"""Practice: many questions on the same pictures, some of them to be answered by a letter."""

import os
import subprocess
import sys
from collections import Counter
from random import Random

import pytest
import yaml

from minilava.data.mixture import load_mixture
from minilava.data.world import TASKS, World, make
from minilava.data.world.example import Question
from minilava.data.world.practice import fewer, judged, spelled, stepped, with_letters
from minilava.errors import UserError
from tests.data.look import options

EDIT = Question(
    "Which edit? (A) remove the red car (B) add a fish at the top (C) make the green fish larger", "B", "letter", 3
)


def turns(record):
    said = [m["value"] for m in record["conversations"]]
    return list(zip(said[::2], said[1::2], strict=True))


@pytest.mark.parametrize("answer", ["red", "fish", "bottom left", "three", "bank", "41", "9", "red fish", "moved"])
def test_options_hold_the_answer_once_under_its_letter(answer):
    counts, letters = Counter(), Counter()
    for i in range(200):
        made = with_letters(Random(i), Question("What is it?", answer, "phrase", 9))
        listed = options(made.text)
        assert made.text.startswith("What is it? (A) ") and made.style == "letter"
        assert listed[made.answer] == answer and len(set(listed.values())) == len(listed)
        if answer == "red fish":
            assert all(o.startswith("red ") or o.endswith(" fish") or o.count(" ") == 1 for o in listed.values())
        counts[len(listed)] += 1
        letters[made.answer] += 1
    assert set(counts) == {2, 3, 4} and min(letters[x] for x in "ABC") > 30


def test_a_spelled_answer_is_the_option_and_its_letter():
    made = spelled(EDIT)
    assert made.answer == "add a fish at the top (B)" and made.style == "option" and made.text == EDIT.text


def test_a_judged_answer_says_of_every_option_whether_it_is_right():
    made = judged(EDIT)
    assert made.answer == "A no, B yes, C no" and made.style == "each" and made.text == EDIT.text


def test_fewer_options_are_some_of_those_with_the_right_one():
    seen, given = Counter(), options(EDIT.text)
    for i in range(200):
        made = fewer(Random(i), EDIT)
        listed = options(made.text)
        assert made.text.startswith("Which edit? (A) ") and listed[made.answer] == "add a fish at the top"
        assert set(listed.values()) <= set(given.values()) and list(listed) == list("ABC"[: len(listed)])
        seen[made.answer, len(listed)] += 1
    assert len(seen) == 5 and min(seen.values()) > 20


def test_steps_keep_what_is_asked():
    styles = Counter()
    for i in range(300):
        made = stepped(Random(i), EDIT)
        listed = options(made.text)
        (right,) = (k for k, option in listed.items() if option == "add a fish at the top")
        given = {"letter": right, "option": f"add a fish at the top ({right})"}
        assert given.get(made.style, ", ".join(f"{k} {'yes' if k == right else 'no'}" for k in listed)) == made.answer
        styles[made.style] += 1
    assert set(styles) == {"letter", "option", "each"} and min(styles.values()) > 50


@pytest.mark.parametrize(
    "question",
    [
        Question("Which candidate belongs there?", "G", "letter", 8),  # its options are pictures
        Question("What color is it?", "red"),
        Question("Tell.", "A red car is at the top.", "sentence"),
    ],
)
def test_questions_without_listed_options_have_no_steps(question):
    assert all(stepped(Random(i), question) is question for i in range(20))


def test_letters_are_what_is_practised_most():
    """Where a sample's own forms have enough of them."""
    styles = Counter()
    for i in range(60):
        record = make("video_caption", "train", i, turns=10, practice=True)
        said = [q for q, _ in turns(record)]
        styles["listed"] += sum("(A)" in q for q in said)
        styles["all"] += len(said)
    assert 0.55 < styles["listed"] / styles["all"] < 0.8


def test_practice_does_not_depend_on_the_process():
    """Strings hash differently in every process: nothing may be drawn in the order of a set of them."""
    code = (
        "from minilava.data.world import TASKS, make; import hashlib\n"
        "said = [make(t, 'train', i, 32, turns=14, practice=True)['conversations'] for t in TASKS for i in range(40)]\n"
        "print(hashlib.sha256(repr(said).encode()).hexdigest())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True)
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout != b"", runs[0].stderr


@pytest.mark.parametrize(
    "question",
    [
        Question("Same?", "yes", "word", 2),
        Question("Same?", "no", "word", 2),
        Question("Which? (A) red (B) blue", "A", "letter", 2),
        Question("Tell.", "A red car is at the top.", "sentence"),
        Question("Which edit?", "remove the red car", "phrase"),
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
