"""The ablations: the plan says what it compares, the statistics are what they are called, the queue can be killed."""

import json
import os
import signal
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from minilava.data.world import TASKS
from minilava.errors import UserError
from minilava.eval.figures import RESAMPLES
from minilava.eval.run import Options, start, write_lines
from minilava.inputs.geometry import video_layout
from minilava.inputs.pack import pack
from minilava.recipes.ablations import __main__ as queue
from minilava.recipes.ablations import exam, plan
from minilava.recipes.ablations.figures import NOT_REPRODUCED, OTHER_WAY, REPRODUCED, cell, difference, scores, verdict
from minilava.recipes.ablations.plan import ALL, EXAMS, RUNS, exams, jobs, likelihood
from minilava.recipes.ablations.report import markdown, write_report
from minilava.runtime.vlm import TINY, load
from minilava.train import state
from minilava.train.config import parse
from minilava.train.log import read_log
from minilava.train.loop import Run as Training

TABLES = tuple(ALL.values())


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_every_job_is_there_once_and_after_what_it_starts_from(tmp_path):
    order = [run.folder(tmp_path, seed) for run, seed in jobs(TABLES, 3)]
    assert len(set(order)) == len(order)
    assert {p.name.rsplit("-", 1)[0] for p in order} >= {"m4", "dpo", "single"} and tmp_path / "pretrain" in order
    for run, seed in jobs(TABLES, 3):
        start = run.settings(tmp_path, seed)["init"]
        before = order[: order.index(run.folder(tmp_path, seed))]
        assert start == str(tmp_path / plan.NEW) or start in [str(p / "model") for p in before]
    assert {seed for run, seed in jobs(TABLES, 3) if run.name == "frames-40"} == {1, 2}
    assert len(jobs([ALL["table14"]], 1)) == 5  # pretrain, projector, single, m4, dpo


def test_no_two_runs_are_the_same_and_the_trainer_takes_them_all(tmp_path):
    made = {}
    for run in RUNS.values():
        settings = run.settings(tmp_path, 1)
        assert parse(settings).steps == settings["steps"]
        made[run.name] = json.dumps(settings | {"out": ""}, sort_keys=True)
    assert len(set(made.values())) == len(RUNS)
    used = {row.run for table in TABLES for row in table.rows}
    assert [t.number for t in TABLES if any(r.run == "m4" for r in t.rows)] == [5, 6, 7, 14]
    starts = {RUNS[name].start for name in RUNS}
    assert used | starts == set(RUNS) | {plan.NEW}  # nothing is trained for nothing


def test_a_table_changes_one_thing():
    def settings(name):
        return RUNS[name].settings(plan.Path("out"), 1)

    m4 = settings("m4")
    for name, layout in (("interleaved", "interleaved"), ("front", "front")):
        changed = settings(name)
        assert changed["data"]["sources"][0] == m4["data"]["sources"][0] | {"layout": layout}
        assert changed["data"]["sources"][1:] == m4["data"]["sources"][1:]
        assert changed | {"out": "", "data": ""} == m4 | {"out": "", "data": ""}
    assert settings("from-stage1") | {"out": "", "init": ""} == m4 | {"out": "", "init": ""}
    for row in ALL["table7"].rows:  # so many steps that the videos are read equally often
        run = settings(row.run)
        assert run["steps"] * 1000 == sum(s["samples"] for s in run["data"]["sources"])
        assert m4["data"]["sources"][1] in run["data"]["sources"]


def test_both_sides_of_table_13_have_as_many_tokens():
    from minilava.config import ModelConfig

    config = ModelConfig.load(TINY)

    def tokens(frames, pool):
        return frames * config.vision.patches if pool == "none" else video_layout(frames, config.image, pool).tokens

    table = ALL["table13"]
    for row in table.rows:
        asked = EXAMS[row.exam]
        assert asked.frames == asked.clip_frames and row.labels[-1] == f"{tokens(asked.frames, asked.pool)} tokens"
    assert all(table.rows[c.better].labels[-1] == table.rows[c.worse].labels[-1] for c in table.claims[:2])
    for name in ("frames-10", "frames-40"):
        (source,) = RUNS[name].settings(plan.Path("out"), 1)["data"]["sources"]
        assert source["frames"] == source["clip_frames"]
        assert tokens(source["frames"], source.get("pool", "none")) == 360


def test_an_exam_does_not_depend_on_the_tables_asked_for():
    assert set(exams("m4")) == {"interleaved", "front"} and exams("single") == {}
    known = {*TASKS, plan.DESCRIPTION, plan.PREFERENCES}
    for table in TABLES:
        for row in table.rows:
            assert set(table.tasks) <= set(exams(row.run)[row.exam]) <= known


def test_questions():
    few, more = exam.asked("video_qa", 3, None), exam.asked("video_qa", 6, None)
    assert [i.id for i in more[:3]] == [i.id for i in few] and len({i.id for i in more}) == 6
    dense = exam.asked("video_qa", 3, 20)
    assert [i.turns for i in dense] == [i.turns for i in few]  # the same events
    assert [len(items[0].media()[0][1]) for items in (few, dense)] == [6, 20]
    (described, _) = exam.asked(plan.DESCRIPTION, 8, None)
    assert described.metric == "open-ended" and described.turns[0][0].startswith("<video>")


def test_likelihood_is_of_the_reference_answer_and_its_end(monkeypatch):
    vlm = load(TINY, dtype="float32", cache_bytes=0)
    tasks = ("video_qa", 3), ("low_level", 3), (plan.DESCRIPTION, 4)
    items = [item for task, count in tasks for item in exam.asked(task, count, None)]
    options = Options(asking={"layout": "front", "frames": 6, "pool": "average"})
    monkeypatch.setattr(exam, "BUDGET", 300)  # one, two or three samples together
    found = list(exam.likely(vlm, items, options))
    for item, line in zip(items, found, strict=True):
        sample = start(item, vlm, options).ask(vlm, options).sample
        reply = [*vlm.tokenizer.encode(item.turns[0][1]), vlm.tokenizer.im_end]
        packed = pack([replace(sample, ids=sample.ids + reply)], vlm.config.vision.patches)
        with torch.inference_mode():
            logits = vlm.model.text.logits(vlm.model.hidden(packed)[-len(reply) - 1 : -1])
        logs = logits.log_softmax(1)[range(len(reply)), reply]
        assert line["id"] == item.id and line["task"] == likelihood(item.task)
        assert line["score"] == pytest.approx(logs.mean().exp().item(), rel=1e-3)
    assert len({line["score"] for line in found}) == len(items)


# --- the statistics ---------------------------------------------------------------------------------------------------


def random_scores(seeds, questions, chance=0.5, tasks=("a", "b"), seed=0):
    rng = np.random.default_rng(seed)
    return [{task: (rng.random(questions) < chance).astype(float) for task in tasks} for _ in range(seeds)]


def test_a_cell_is_mean_and_deviation_over_seeds():
    made = cell([{"a": np.array([1.0, 0]), "b": np.ones(3)}, {"a": np.zeros(2), "b": np.ones(3)}], ["a", "b"])
    assert made.seeds == [75, 50] and made.mean == 62.5
    assert made.deviation == pytest.approx(((75 - 62.5) ** 2 * 2 / 1) ** 0.5)
    assert cell([{"a": np.ones(4)}], ["a"]).deviation is None
    lines = [{"task": "a", "score": 1.0}, {"task": "b", "score": 0.5}, {"task": "a", "score": 0.0}]
    assert {task: v.tolist() for task, v in scores(lines).items()} == {"a": [1, 0], "b": [0.5]}


def test_a_resample_draws_seeds_and_questions_independently():
    """Against loops that say so, with enough draws for both to agree."""
    better, worse = random_scores(3, 40, 0.7), random_scores(3, 40, 0.5, seed=1)
    made = difference(better, worse, ["a", "b"])
    rng, drawn = np.random.default_rng(5), []
    for _ in range(4000):
        seeds = rng.integers(3, size=3)
        total = 0.0
        for task in ("a", "b"):
            questions = rng.integers(40, size=40)
            total += np.mean([[better[s][task][q] - worse[s][task][q] for q in questions] for s in seeds])
        drawn.append(100 * total / 2)
    assert made.value == pytest.approx(cell(better, ["a", "b"]).mean - cell(worse, ["a", "b"]).mean)
    assert (made.low, made.high) == pytest.approx(np.percentile(drawn, (2.5, 97.5)), abs=1.5)
    assert RESAMPLES >= 1000 and made == difference(better, worse, ["a", "b"])


def test_what_is_paired_cancels():
    base = random_scores(3, 50)
    same = difference(base, base, ["a"])
    assert (same.value, same.low, same.high, same.verdict) == (0, 0, 0, NOT_REPRODUCED)
    hard = [{"a": s["a"] * 0.5} for s in base]
    easy = [{"a": s["a"] * 0.5 + 0.1} for s in base]
    assert difference(easy, hard, ["a"]).low == pytest.approx(10) == difference(easy, hard, ["a"]).high
    only_seeds = [{"a": np.full(50, x)} for x in (0.0, 0.3, 0.6)]  # no spread over questions
    nothing = [{"a": np.zeros(50)}] * 3
    assert (difference(only_seeds, nothing, ["a"]).low, difference(only_seeds, nothing, ["a"]).high) == (0, 60)


def test_verdicts():
    assert [verdict(*i) for i in ((1, 2), (-1, 2), (-2, -1), (0, 0))] == [
        REPRODUCED, NOT_REPRODUCED, OTHER_WAY, NOT_REPRODUCED
    ]  # fmt: skip
    assert [verdict(*i, within=2) for i in ((-1, 1.9), (1, 3), (2.5, 3), (-9, -3))] == [
        REPRODUCED, NOT_REPRODUCED, OTHER_WAY, OTHER_WAY
    ]  # fmt: skip


# --- the report -------------------------------------------------------------------------------------------------------


def answers(out, run, seed, name, tasks, share):
    """A finished exam with this share of right answers."""
    folder = RUNS[run].folder(out, seed) / "exams" / name
    folder.mkdir(parents=True)
    right = np.random.default_rng([seed, 7]).random(60) < share
    lines = [{"task": t, "score": float(r), "chance": 0.25} for t in tasks for r in right]
    write_lines(folder / exam.SAMPLES, lines)
    likely = [{"task": likelihood(t), "score": share * (0.4 + 0.2 * r)} for t in tasks for r in right]
    write_lines(folder / exam.LIKELIHOODS, likely)


def test_the_report_says_which_way_it_went(tmp_path):
    shares = {"m4": 0.8, "from-stage1": 0.3, "interleaved": 0.8, "front": 1.0}
    for run, share in shares.items():
        for name, tasks in exams(run).items():
            for seed in (1, 2, 3):
                answers(tmp_path, run, seed, name, tasks, share)
    write_lines(tmp_path / "queue.jsonl", [{"run": "m4", "seed": 2, "work": "train", "seconds": 90.0}])
    text = write_report(tmp_path, tmp_path / "new" / "report", [ALL["table5"], ALL["table6"]], 3, 60, 1.0)
    made = json.loads((tmp_path / "new" / "report" / "report.json").read_text())
    assert made["tables"]["table5"]["verdicts"] == {REPRODUCED: 5, NOT_REPRODUCED: 0, OTHER_WAY: 0}
    assert made["tables"]["table6"]["verdicts"] == {REPRODUCED: 0, NOT_REPRODUCED: 2, OTHER_WAY: 2}
    assert made["tables"]["table5"]["likelihood_verdicts"][REPRODUCED] == 5
    mixed = made["tables"]["table6"]["rows"][4]
    assert mixed["labels"] == ["mixed", "interleaved"] and len(mixed["cells"]["multi-image"]["seeds"]) == 3
    runs = {(run["run"], run["seed"]): run for run in made["runs"]}
    assert runs["m4", 2]["seconds"]["train"] == 90 and parse(runs["m4", 2]["settings"]).seed == 2
    said = "| chance", "| 25.0", "5 reproduced (3 seeds)", "| 5 reproduced ", "2 not reproduced, 2 the other way"
    assert all(words in text for words in (*said, " ± ", "78.2"))
    assert "of the planned steps" not in text and "above chance" not in text and made["machine"]["torch"] in text
    made["tables"]["table5"]["chance"]["low_level"] = 100.0
    assert "No row is above chance in low_level: those" in markdown(made)
    for name in ("table5", "table6"):
        assert (tmp_path / "new" / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


# --- the queue --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Runs of seconds: three steps of short packs in this process, a vocabulary from little text."""
    real = plan.Run.settings

    def settings(self, *args, **kwargs):
        made = real(self, *args, **kwargs)
        quick = {"steps": 3, "budget": 1000, "workers": 0, "device": "cpu", "dtype": "float32", "save_every": 100}
        return made | quick

    monkeypatch.setattr(plan.Run, "settings", settings)
    monkeypatch.setattr("minilava.train.new.TEXT_SAMPLES", 100)


def run_queue(out, only, *more):
    queue.main(["--out", str(out), "--only", only, "--seeds", "1", "--questions", "2", "--steps-scale", "0.01", *more])


def test_killed_it_goes_on_where_it_stopped(tmp_path, small, monkeypatch):
    steps, real = [], Training.advance

    def counted(self):
        steps.append((self.out.name, self.step + 1))
        if steps == [("pretrain", i) for i in (1, 2, 3)] + [("projector", 1), ("projector", 2)]:
            os.kill(os.getpid(), signal.SIGTERM)  # as timeout(1) does: this step is finished and saved
        return real(self)

    monkeypatch.setattr(Training, "advance", counted)
    with pytest.raises(KeyboardInterrupt):
        run_queue(tmp_path, "table14")
    assert steps[-1] == ("projector", 2) and state.latest(tmp_path / "projector").name.endswith("2")
    asked, sit = [], exam.sit
    monkeypatch.setattr(exam, "sit", lambda *a: asked.append(a[1].parts[-3:]) or sit(*a))
    run_queue(tmp_path, "table14", "--results", str(tmp_path / "results"))
    order = ("pretrain", "projector", "single-1", "m4-1", "dpo-1")
    assert steps == [(name, i) for name in order for i in (1, 2, 3)]  # every step once
    assert [row["step"] for row in read_log(tmp_path / "projector")] == [1, 2, 3]
    assert not list(tmp_path.glob("*/step-*"))
    assert asked == [("m4-1", "exams", "interleaved"), ("m4-1", "exams", "front"), ("dpo-1", "exams", "interleaved")]
    made = json.loads((tmp_path / "results" / "report.json").read_text())
    seconds = {run["run"]: run["seconds"] for run in made["runs"]}
    assert seconds["projector"]["train"] > 0 and seconds["dpo"]["exams"] > 0
    assert (tmp_path / "results" / "table14.png").exists()
    tasks = {line["task"] for line in exam.lines(tmp_path / "m4-1" / "exams" / "interleaved")}
    expected = set(exams("m4")["interleaved"])
    assert tasks == expected | {likelihood(task) for task in expected - {plan.PREFERENCES}}

    # Finished: nothing is trained or asked again, and the same report comes out.
    before, journal = len(steps), (tmp_path / "queue.jsonl").read_bytes()
    run_queue(tmp_path, "table14", "--results", str(tmp_path / "again"))
    assert len(steps) == before and len(asked) == 3 and (tmp_path / "queue.jsonl").read_bytes() == journal
    assert json.loads((tmp_path / "again" / "report.json").read_text())["tables"] == made["tables"]

    # Other questions, or another recipe, are not mixed in.
    with pytest.raises(UserError, match="questions 2, not 3"):
        run_queue(tmp_path, "table14", "--questions", "3")
    recipe = tmp_path / "single-1" / queue.RECIPE
    recipe.write_text(recipe.read_text().replace("1.5e-3", "2.5e-3").replace("0.0015", "0.0025"))
    with pytest.raises(UserError, match="single-1.*is not what the plan says"):
        run_queue(tmp_path, "table14")


def test_what_another_process_is_at_is_left_to_it(tmp_path, small, monkeypatch):
    """The lock of a folder is of the open file, so that this process can stand for another one, too."""
    trained, waits, real = [], [], queue.train
    monkeypatch.setattr(queue, "train", lambda c: trained.append(tmp_path / c.out) or real(c))
    with queue.claimed(tmp_path / "single-1") as mine, queue.claimed(tmp_path / "single-1") as also:
        assert mine and not also
    other = queue.claimed(tmp_path / "single-1")
    assert other.__enter__()

    def sleep(seconds):
        assert [p.name for p in trained] == ["pretrain", "projector", "from-stage1-1"]  # not what starts from single-1
        waits.append(seconds)
        if len(waits) == 2:  # the other one dies
            other.__exit__(None, None, None)

    monkeypatch.setattr(queue.time, "sleep", sleep)
    run_queue(tmp_path, "table5")
    assert [p.name for p in trained[3:]] == ["single-1", "m4-1"] and len(waits) == 2


def test_an_early_run_that_becomes_free_is_next(tmp_path, monkeypatch):
    """The first seed is to be whole before the next one: a queue that is stopped then has a table to show."""
    done = []
    other = queue.claimed(tmp_path / "single-1")
    assert other.__enter__()

    def do(out, run, seed, *rest):
        done.append(run.folder(out, seed).name)
        (run.folder(out, seed) / queue.MODEL).mkdir()
        if done[-1] == "from-stage1-2":  # the other one dies
            other.__exit__(None, None, None)

    monkeypatch.setattr(queue, "do", do)
    monkeypatch.setattr(queue, "begin", lambda new, scale: None)
    queue.work(tmp_path, [ALL["table5"]], seeds=2, questions=1, scale=1.0)
    order = ("pretrain", "projector", "from-stage1-1", "from-stage1-2", "single-1", "m4-1", "single-2", "m4-2")
    assert done == list(order)


@pytest.mark.slow
def test_the_whole_queue_in_small(tmp_path, small):
    run_queue(tmp_path, ",".join(ALL))
    made = json.loads((tmp_path / "report.json").read_text())
    assert set(made["tables"]) == set(ALL) and len(made["runs"]) == len(RUNS)
    assert "of the planned steps" in (tmp_path / "report.md").read_text()
    for name in ALL:
        assert (tmp_path / f"{name}.png").exists()


def test_the_plan_can_be_shown(tmp_path, capsys):
    queue.main(["--out", str(tmp_path / "none"), "--dry-run"])
    text = capsys.readouterr().out
    assert all(f"| {run.folder(tmp_path, seed).name} " in text for run, seed in jobs(TABLES, 3))
    assert "hours on two cores" in text and not (tmp_path / "none").exists()


def test_bad_arguments(tmp_path):
    for more, said in (
        (["--only", "table1"], "the tables are table5"), (["--seeds", "9"], "--seeds is from 1 to 3"),
        (["--steps-scale", "0"], "above 0"), (["--questions", "0"], "at least 1"), (["--frob"], "see --help"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            queue.main(["--out", str(tmp_path), *more])


def test_pairs_of_runs_share_questions():
    """What a claim compares has been asked the same: the same tasks, and for every task the same questions."""
    for table in TABLES:
        for claim in table.claims:
            sides = [EXAMS[table.rows[i].exam] for i in (claim.better, claim.worse)]
            ids = [[i.id for i in exam.asked("video_qa", 2, side.clip_frames)] for side in sides]
            assert all(a == b for a, b in combinations(ids, 2)) and set(table.columns[claim.column]) <= set(table.tasks)
