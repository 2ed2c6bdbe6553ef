"""Tiny copies of the benchmarks in their published layouts."""

from __future__ import annotations

import json
from random import Random

from PIL import Image

SETS = {  # data set -> (question_type, references, pictures)
    "Spot-the-Diff": ("open-ended", ["The car is gone.", "A man, in red, left."], 2),
    "MagicBrush": ("open-ended", ["Add a well-known hat; please.", " ; "], 2),
    "VIST": ("open-ended", ["We went out. It was fun.", "The end."], 3),
    "TQA": ("multi-choice", ["A", "B"], 1),
    "VISION": ("multi-choice", ["yes", "no"], 2),
    "RAVEN": ("multi-choice", ["C", "(D)"], 3),
    "QBench": ("multi-choice", ["A", "B"], 2),
    "NLVR2_Mantis": ("multi-choice", ["True", "False"], 2),
    "COMICS_Dialogue": ("multi-choice", ["A", "B"], 2),
}
OUT = {"BLINK": ("multi-choice", ["A", "B"], 2), "MathVerse": ("multi-choice", ["C", "D"], 1)}
VIEWS = {"ScanQA": ("open-ended", ["a brown chair", "two"], 4), "ALFRED": ("open-ended", ["Go left."], 2)}


def picture(path, seed=0, size=(40, 30)):
    rng = Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = tuple(rng.randrange(256) for _ in range(3))
    Image.new("RGB", size, colour).save(path)
    return path


def record(name, i, kind, reference, pictures, folder):
    names = [f"Split{1 + i % 2}/{name}/{i}_{k}.jpg" for k in range(pictures)]
    for k, n in enumerate(names):
        picture(folder / n, seed=10 * i + k)
    question = "".join("<image>\n" for _ in names) + f"What about number {i}?"
    talk = [{"from": "human", "value": question}, {"from": "gpt", "value": reference}]
    return {
        "sample_id": i, "image": names, "conversations": talk, "metadata": {"dataset": name, "question_type": kind}
    }  # fmt: skip


def interleave_bench(data, zipped=True):
    """Both files and the picture folders; the first record of VIST has two turns."""
    folder = data / "eval_images" if zipped else data
    files = {"multi_image_in_domain.json": SETS, "multi_image_out_domain.json": OUT, "multi_view_in_domain.json": VIEWS}
    for file, sets in files.items():
        records = [
            record(name, i, kind, reference, n, folder)
            for name, (kind, references, n) in sets.items()
            for i, reference in enumerate(references)
        ]
        for r in records:
            if r["metadata"]["dataset"] == "VIST" and r["sample_id"] == 0:
                r["conversations"] += [{"from": "human", "value": "And then?"}, {"from": "gpt", "value": "We slept."}]
        (data / file).write_text(json.dumps(records))
    return data


def frames(folder, name, count=3):
    for i in range(count):
        picture(folder / name / f"{i:03d}.png", seed=i)


def video(data):
    """The five video suites; every video is a folder of frames."""
    for folder in ("nextqa", "mvbench", "activitynet-qa", "videochatgpt", "vdd"):
        for name in ("1164/v1", "v_abc", "clip_0.5_3.0"):
            frames(data / folder / "videos", name)
    head = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
    rows = 'v1,900,320,240,"why, then, run",1,0,CW,a,b,c,d,e\nv1,900,320,240,who,4,1,TN,a,b,c,d,e\n'
    (data / "nextqa/test.csv").write_text(head + rows)
    write(data / "nextqa/map_vid_vidorID.json", {"v1": "1164/v1"})
    row = {"video": "v1.mp4", "question": "What?", "candidates": ["red", "blue"], "answer": "blue"}
    write(data / "mvbench/json/moving_direction.json", [row])
    clip = row | {"video": "clip.mp4", "start": 0.5, "end": 3.0}
    write(data / "mvbench/json/action_sequence.json", [clip])
    asked = [{"video_name": "abc", "question": f"is it {c}", "question_id": f"v_abc_{c}"} for c in "xyz"]
    write(data / "activitynet-qa/test_q.json", asked)
    answers = [{"answer": "yes", "type": 3, "question_id": q["question_id"]} for q in asked]
    write(data / "activitynet-qa/test_a.json", answers)
    generic = {"Q": "What happens?", "A": "A man runs.", "video_name": "v_abc"}
    for kind in ("generic", "temporal"):
        write(data / f"videochatgpt/{kind}_qa.json", [generic, generic])
    both = {"Q1": "What happens?", "Q2": "What is going on?", "A": "A man runs.", "video_name": "v_abc"}
    write(data / "videochatgpt/consistency_qa.json", [both])
    (data / "vdd/Test_Human_Annotated_Captions").mkdir()
    (data / "vdd/Test_Human_Annotated_Captions/v_abc.txt").write_text("A man runs in a park.\n")
    return data


def single(data):
    """The six single-image suites."""
    picture(data / "ai2d/images/0.png")
    question = {"abcLabel": False, "answerTexts": ["moon", "sun"], "correctAnswer": 1, "questionId": "0.png-0"}
    for name in ("0.png", "1.png"):
        write(data / f"ai2d/questions/{name}.json", {"imageName": name, "questions": {"What shines?": question}})
    (data / "ai2d/ai2d_test_ids.csv").write_text("0\n")
    picture(data / "chartqa/test/png/c.png")
    for part in ("human", "augmented"):
        write(data / f"chartqa/test/test_{part}.json", [{"imgname": "c.png", "query": "How many?", "label": "12"}])
    picture(data / "docvqa/documents/d.png")
    pages = [{"questionId": 7, "question": "Who?", "image": "documents/d.png", "answers": ["Ann", "ann b."]}]
    write(data / "docvqa/val_v1.0_withQT.json", {"dataset_name": "docvqa", "data": pages})
    both = "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
    picture(data / "mme/existence/1.jpg")
    (data / "mme/existence/1.txt").write_text(both)
    picture(data / "mme/artwork/images/9.jpg")
    (data / "mme/artwork/questions_answers_YN").mkdir()
    (data / "mme/artwork/questions_answers_YN/9.txt").write_text(both)
    picture(data / "pope/val2014/COCO_1.jpg")
    rows = [
        {"question_id": i, "image": "COCO_1.jpg", "text": "Is there a cat?", "label": label}
        for i, label in ((1, "yes"), (2, "no"))
    ]
    for part in ("random", "popular", "adversarial"):
        (data / f"pope/coco_pope_{part}.json").write_text("".join(json.dumps(r) + "\n" for r in rows))
    problem = {"question": "Which?", "choices": ["a", "b", "c"], "answer": 2, "hint": "Look.", "image": "image.png"}
    write(data / "scienceqa/problems.json", {"5": problem, "6": problem | {"image": None}, "7": problem})
    write(data / "scienceqa/pid_splits.json", {"test": ["5", "6"], "train": ["7"]})
    picture(data / "scienceqa/test/5/image.png")
    return data


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
