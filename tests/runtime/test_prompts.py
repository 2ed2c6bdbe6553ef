"""Prompts that were read before: only what is new is read, the tokens stay the same, memory stays within its limit."""

import threading

import pytest
import torch

from minilava.runtime.cache import KVCache
from minilava.runtime.prompts import SPARE, Prompts
from tests.runtime.test_invariance import picture

ASK = dict(max_new_tokens=12)


def user(text, *images):
    return {
        "role": "user",
        "content": [*({"type": "image", "image": i} for i in images), {"type": "text", "text": text}],
    }


def talk(vlm, turns, **options):
    """The replies of a conversation."""
    messages, replies = [], []
    for turn in turns:
        messages.append(turn)
        replies.append(vlm.chat(messages, **{**ASK, **options}))
        messages.append({"role": "assistant", "content": replies[-1].text})
    return replies


@pytest.mark.parametrize("recipe", ["authors", "hf", "train"])
@pytest.mark.parametrize("draft", [0, 3])
def test_turns_of_a_conversation(fresh, recipe, draft):
    vlm, plain = fresh(), fresh(cache_bytes=0)
    for seed in range(8):
        pair = [picture(seed, 90, 60), picture(seed + 1, 40, 50)]
        turns = [user(f"What changed in {seed}?", *pair), user("Why?"), user("And here?", pair[0]), user("Really?")]
        with_cache = talk(vlm, turns, recipe=recipe, draft=draft)
        without = talk(plain, turns, recipe=recipe)
        assert [r.token_ids for r in with_cache] == [r.token_ids for r in without]
        for before, after in zip(with_cache, with_cache[1:], strict=False):
            # All of the last prompt but the end that asks for an answer; a new picture goes in front in hf's.
            moved = recipe == "hf" and after.image_tokens > before.image_tokens
            assert after.timings["cached_prompt_tokens"] >= (0 if moved else before.prompt_tokens - 3)
        assert without[-1].timings["cached_prompt_tokens"] == 0


def test_many_questions_about_the_same_pictures(fresh):
    vlm, plain = fresh(), fresh(cache_bytes=0)
    pair = [picture(1, 90, 60), picture(2, 40, 50)]
    for i in range(40):
        prompt = f"<image> and <image>: question {i * 7919 % 101} of {'many ' * (i % 4)}"
        reply = vlm.generate(prompt, pair, **ASK)
        assert reply.token_ids == plain.generate(prompt, pair, **ASK).token_ids
        if i:
            assert reply.timings["cached_prompt_tokens"] > reply.image_tokens


def test_rows_that_a_decoder_adds_to_in_place_are_known_again(fresh, monkeypatch):
    """As on a GPU, where a product writes its sum with the residual stream into that stream."""
    from minilava_kernels import linear

    chosen = linear.implementation

    def in_place(x, weight, bias=None, residual=None, activation=None):
        adds = residual is not None and bias is None and activation is None
        return "inplace" if adds else chosen(x, weight, bias, residual, activation)

    monkeypatch.setattr(linear, "implementation", in_place)
    vlm, pair = fresh(), [picture(1, 90, 60), picture(2, 40, 50)]
    for _ in range(2):
        reply = vlm.generate("What changed between <image> and <image>?", pair, **ASK)
    assert reply.timings["cached_prompt_tokens"] == reply.prompt_tokens - 1


def test_a_whole_prompt_again(fresh):
    vlm = fresh()
    first, second = (vlm.generate("What?", [picture(1, 30, 30)], **ASK) for _ in range(2))
    assert second.token_ids == first.token_ids
    assert second.timings["cached_prompt_tokens"] == first.prompt_tokens - 1


def test_another_picture_is_another_prompt(fresh):
    """The ids are the same, the features are not."""
    vlm, plain = fresh(), fresh(cache_bytes=0)
    a, b, c = (picture(s, 60, 60) for s in range(3))
    prompt = "First <image> then <image> and so on"
    whole = vlm.generate(prompt, [a, b], **ASK)
    second = vlm.generate(prompt, [a, c], **ASK)
    first = vlm.generate(prompt, [c, b], **ASK)
    known = [r.timings["cached_prompt_tokens"] for r in (whole, second, first)]
    assert 0 == known[0] < known[2] < 36 + known[2] < known[1] < whole.prompt_tokens - 36
    assert second.token_ids == plain.generate(prompt, [a, c], **ASK).token_ids
    assert first.token_ids == plain.generate(prompt, [c, b], **ASK).token_ids


def test_conversations_in_turns_keep_their_own(fresh):
    """What two of them share, the system block, is copied, not taken from the other."""
    vlm, plain = fresh(), fresh(cache_bytes=0)
    a, b = ([user("One " * 60)], [user("Two " * 60, picture(2, 40, 40))])
    for i in range(3):
        for messages in (a, b):
            reply = vlm.chat(messages, **ASK)
            assert reply.token_ids == plain.chat(messages, **ASK).token_ids
            if i:
                assert reply.timings["cached_prompt_tokens"] > 200
            messages += [{"role": "assistant", "content": reply.text}, user("More?")]
    assert len(vlm.engine.prompts.kept) == 2


def test_an_abandoned_reply_is_kept_and_a_failed_one_is_not(fresh, monkeypatch):
    vlm, plain = fresh(), fresh(cache_bytes=0)
    stream = vlm.stream("Tell me", max_new_tokens=50)
    next(iter(stream)), next(iter(stream))
    stream.pieces.close()
    (rows, cache), *_ = vlm.engine.prompts.kept
    assert sum(map(len, rows)) == cache.lengths[0]
    assert vlm.generate("Tell me", **ASK).token_ids == plain.generate("Tell me", **ASK).token_ids

    real, left = vlm.model.text.forward, [3]

    def fails(*args, **kwargs):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(vlm.model.text, "forward", fails)
    with pytest.raises(KeyboardInterrupt):
        vlm.generate("Tell me", **ASK)
    assert vlm.engine.prompts.kept == []


def test_a_batch_of_several_neither_uses_nor_leaves_any(fresh):
    vlm = fresh()
    request = vlm.request([user("Hello")], **ASK)
    assert [r.timings["cached_prompt_tokens"] for r in vlm.batch([request] * 2)] == [0, 0]
    assert vlm.engine.prompts.kept == []
    vlm.batch([request])
    assert vlm.batch([request])[0].timings["cached_prompt_tokens"] > 0


def test_memory_is_bounded_and_the_oldest_go(fresh):
    vlm = fresh()
    config = vlm.config.text

    def make(n):
        return KVCache(config, [n], torch.float32, torch.device("cpu"))

    def read(prompts, rows, capacity):
        cache = prompts.take(rows, capacity, make)
        known = cache.lengths[0]
        cache.extend([0], [len(rows) - known])
        for number, (k, v) in enumerate(cache.layers):
            k[known : len(rows)] = rows[known:, :1, None] + number
            v[known : len(rows)] = -rows[known:, :1, None]
        return cache, known

    a, b, c = (torch.randn(100, config.width) for _ in range(3))
    each = make(SPARE).nbytes + a.nbytes
    prompts = Prompts(2 * each)
    for rows in (a, b, a, c):  # so b goes
        prompts.keep([rows], read(prompts, rows, 120)[0])
        assert sum(k.nbytes + r.nbytes for (r,), k in prompts.kept) <= prompts.limit
    assert [r is a or r is c for (r,), _ in prompts.kept] == [True, True]

    longer = torch.cat([a, b])
    cache, known = read(prompts, longer, SPARE + 1)  # has to move
    assert known == 100 and cache.capacities == [2 * SPARE] and len(prompts.kept) == 0
    for number, (k, v) in enumerate(cache.layers):
        assert torch.equal(k[:200, 0, 0], longer[:, 0] + number) and torch.equal(v[:200, 1, 3], -longer[:, 0])
    prompts.keep([*longer.split([60, 0, 140])], cache)  # in pieces it is as long
    cache, known = read(prompts, longer[:150], 160)  # cut back in place
    assert known == 149 and cache.capacities == [2 * SPARE]
    prompts.keep([torch.randn(9, config.width)], make(3 * SPARE))  # more than the limit
    assert prompts.kept == []


def test_many_threads(fresh):
    vlm, plain = fresh(), fresh(cache_bytes=0)
    conversations = [[user("System words in common. " * 4 + f"{i}", picture(i % 2, 30, 30)), user("Why?"), user("So?")]
                     for i in range(6)]  # fmt: skip
    wanted = [[r.token_ids for r in talk(plain, turns)] for turns in conversations]
    got = [None] * len(conversations)

    def run(i):
        got[i] = [r.token_ids for r in talk(vlm, conversations[i])]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(conversations))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert got == wanted
