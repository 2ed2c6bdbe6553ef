"""The judge's client against a server on this machine that misbehaves in every way we could think of."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from minilava.errors import UserError
from minilava.eval import judge as judge_module
from minilava.eval.__main__ import main
from minilava.eval.judge import Failed, Judge, grade, parse
from minilava.eval.run import read_lines
from tests.eval import fixtures

GOOD = '{"score": 4}'


def completion(content):
    return 200, {}, json.dumps({"choices": [{"message": {"content": content}}]})


@contextmanager
def server(behaviour):
    """A judge on this machine; behaviour(number of the request, its body) -> (status, headers, body), or None: hang."""
    seen, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen.append((self.path, dict(self.headers), body))
                number = len(seen) - 1
            answer = behaviour(number, body)
            if answer is None:
                time.sleep(2)
                return
            status, headers, text = answer
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(text.encode()))} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1", seen
    finally:
        http.shutdown()
        http.server_close()


def client(url, tmp_path, **options):
    made = Judge(url, "m", tmp_path / "judge.jsonl", **options)
    made.waits = []
    made.pause = made.waits.append
    return made


@pytest.mark.parametrize(
    "reply",
    ["", "4", "null", "[]", "{}", '{"score": "4"}', '{"score": 6}', '{"score": -1}', '{"score": 3.5}',
     '{"score": true}',
     '{"score": 4, "why": "x"}', 'Sure! {"score": 4}', '```json\n{"score": 4}\n```', '{"score": 4} {"score": 5}',
     '{"correct": "yes", "score": 4}', '{"score": NaN}'],
)  # fmt: skip
def test_only_the_object_that_was_asked_for_counts(reply):
    with pytest.raises(ValueError):
        parse(reply, verdict=False)
    assert parse(' {"score": 4}\n', verdict=False) == {"score": 4}


def test_verdicts():
    assert parse('{"correct": "no", "score": 0}', verdict=True) == {"correct": "no", "score": 0}
    for reply in (GOOD, '{"correct": "maybe", "score": 1}', '{"correct": true, "score": 1}'):
        with pytest.raises(ValueError):
            parse(reply, verdict=True)


def test_gets_there_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(judge_module, "TIMEOUT_S", 0.3)
    for wrong in (
        None, (429, {"Retry-After": "7"}, "slow down"), (500, {}, "oops"), (200, {}, "not json"), (200, {}, "{}"),
        (200, {}, '{"choices": []}'), (200, {}, '{"choices": [{"message": {"content": null}}]}'), (200, {}, "[1]"),
        completion("I give it a 4."), (200, {"Content-Length": "500"}, "cut"),
    ):  # fmt: skip
        (tmp_path / "judge.jsonl").unlink(missing_ok=True)
        with server(lambda n, _, wrong=wrong: wrong if n < 2 else completion(GOOD)) as (url, seen):
            judge = client(url, tmp_path, key="secret")
            assert judge.ask("instructions", {"question": "q"}, False) == {"score": 4}, wrong
            assert len(seen) == judge.asked == 3 and len(judge.waits) == 2
            assert judge.waits == ([7, 7] if wrong and wrong[0] == 429 else [1, 2])
            path, headers, body = seen[-1]
            assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
            assert body["model"] == "m" and json.loads(body["messages"][1]["content"]) == {"question": "q"}


def test_gives_up_on_one_sample_and_at_once_on_a_wrong_key(tmp_path):
    with server(lambda n, _: completion("no idea")) as (url, seen):
        with pytest.raises(Failed, match="not the object"):
            client(url, tmp_path).ask("i", {}, False)
        assert len(seen) == 5
    with server(lambda n, _: (401, {}, "who are you")) as (url, seen):
        with pytest.raises(UserError, match="HTTP 401 .*check address, model and key"):
            client(url, tmp_path).ask("i", {}, False)
        assert len(seen) == 1
    with server(lambda n, _: (302, {"Location": "http://127.0.0.1:9/steal"}, "")) as (url, seen):
        with pytest.raises(UserError, match="HTTP 302"):
            client(url, tmp_path, key="secret").ask("i", {}, False)
    with pytest.raises(UserError, match="not an http"):
        client("file:///etc/passwd", tmp_path)


def test_nothing_is_asked_twice_and_the_budget_holds(tmp_path):
    with server(lambda n, _: completion(GOOD)) as (url, seen):
        for _ in range(2):  # in one client, and in the next
            judge = client(url, tmp_path, budget=3)
            for text in ("a", "b", "a"):
                assert judge.ask("i", {"question": text}, False) == {"score": 4}
        assert len(seen) == 2 and judge.asked == 0
        assert judge.ask("i", {"question": "c"}, False) and judge.ask("other instructions", {"question": "c"}, False)
        assert judge.ask("i", {"question": "d"}, False) and judge.ask("i", {"question": "e"}, False) is None
        with open(tmp_path / "judge.jsonl", "a") as f:
            f.write('{"key": "cut in ha')
        assert len(client(url, tmp_path).known) == 5
        dry = client(url, tmp_path, dry=True)
        assert dry.ask("i", {"question": "e"}, False) is None and dry.wanted == 1 and len(seen) == 5


def line(i, metric="judge-caption", **more):
    return {"id": f"v/{i}", "task": "t", "metric": metric, "score": None, "question": "q", "reference": f"r{i}",
            "answer": f"a{i}"} | more  # fmt: skip


def test_grades_of_lines(tmp_path):
    def behaviour(n, body):
        content = json.loads(body["messages"][1]["content"])
        asked = body["messages"][0]["content"]
        if '"correct"' in asked:
            return completion('{"correct": "yes", "score": 5}')
        score = 2 if "without inventing" in asked else 5 if content.get("answer_to_the_other_wording") == "a3" else 3
        return completion(json.dumps({"score": score}))

    lines = [
        line(0), line(1, "judge-qa"), line(2, "judge-generic"), line(3, "judge-consistency", graded_with="v/4"),
        line(4, "judge-consistency", other="v/3"), line(5, "exact", score=1.0), line(6, error="no video"),
    ]  # fmt: skip
    with server(behaviour) as (url, seen):
        made = grade(lines, client(url, tmp_path))
        assert [m["score"] for m in made] == [0.6, 1.0, pytest.approx(8 / 15), None, 1.0, 1.0, None]
        assert made[2]["grades"] == {"CI": 2, "DO": 3, "CU": 3} and made[4]["grades"] == {"CO": 5}
        assert grade(made, client(url, tmp_path)) == made and len(seen) == 6


def test_a_judge_that_is_down_stops_the_run_and_keeps_what_was_said(tmp_path):
    lines = [line(i) for i in range(40)]

    def down(n, body):
        up = json.loads(body["messages"][1]["content"])["reference"] in ("r0", "r1", "r2")
        return completion(GOOD) if up else (503, {}, "")

    with server(down) as (url, seen):
        with pytest.raises(UserError, match="failed 5 times in a row"):
            grade(lines, client(url, tmp_path))
        assert len(read_lines(tmp_path / "judge.jsonl")) == 3 and len(seen) < 3 + 5 * 40


def test_a_few_failures_leave_samples_without_a_score(tmp_path):
    with server(lambda n, b: completion(GOOD if "r1" not in b["messages"][1]["content"] else "?")) as (url, _):
        made = grade([line(i) for i in range(3)], client(url, tmp_path))
    assert [m["score"] for m in made] == [0.8, None, 0.8]


def test_through_the_command(tiny, tmp_path, capsys):
    data, out = fixtures.video(tmp_path / "data"), tmp_path / "out"
    arguments = ["video", "--model", str(tiny), "--data", str(data), "--out", str(out), "--device", "cpu",
                 "--frames", "2", "--max-new-tokens", "4"]  # fmt: skip

    def behaviour(n, body):
        verdict = '"correct"' in body["messages"][0]["content"]
        return completion('{"correct": "yes", "score": 5}' if verdict else GOOD)

    with server(behaviour) as (url, seen):
        asked = ["--judge", url, "--judge-model", "m"]
        assert main([*arguments, *asked, "--judge-dry-run"]) == 0 and not seen
        assert "the judge would be asked " in capsys.readouterr().err
        assert main([*arguments, *asked]) == 0
        made = json.loads((out / "report.json").read_text())
        assert made["settings"]["judge"] == "m" and made["unscored"] == {}
        values = {name: figure["value"] for name, figure in made["columns"].items()}
        assert values["ActivityNet-QA"] == 100 and values["ActivityNet-QA score"] == 5
        assert [values[c] for c in ("VDD", "CI", "DO", "CU", "TU", "CO")] == [4] * 6
        assert made["averages"]["Avg"]["missing"] == []
        assert main([*arguments, "--judge", url]) == 2
        assert "--judge needs --judge-model NAME" in capsys.readouterr().err
