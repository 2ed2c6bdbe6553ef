"""The same tokens alone, in a batch, with chunked prefill and in any company: exact, for mixed batches."""

import numpy as np
import pytest
import torch

import minilava
from minilava.errors import UserError
from minilava.inputs.messages import load_media
from minilava.inputs.pack import pack
from minilava.inputs.sample import Medium, place_media
from minilava.model.qwen import Segments
from minilava.runtime.cache import KVCache

NEW = 10


@pytest.fixture(scope="module", params=["tiny", "tiny_hf"])
def vlm(request):
    vlm = minilava.load(request.getfixturevalue(request.param), dtype="float32", device="cpu", cache_bytes=0)
    for p in vlm.model.parameters():  # at its small initial values a random model only repeats its last token
        p.data = p.data * 8 if p.ndim > 1 else p.data.clone()
    return vlm


def picture(seed, width, height):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def requests(vlm):
    """Eight conversations of very different lengths: text only, one to four images, tiles, pooled and plain video."""
    video = [picture(i, 40, 30) for i in range(5)]
    specs = [
        ("Hello", [], {}),
        ("What is this? <image>", [("image", picture(1, 50, 70))], {}),
        ("Between <image> and <image>, what changed?", [("image", picture(i, 60, 20)) for i in (2, 3)], {}),
        ("Tiles please", [("image", picture(4, 300, 110))], {"anyres": True}),
        ("A" * 150, [], {"temperature": 0.8, "seed": 5}),
        ("<video> then <image>", [("video", video), ("image", picture(6, 9, 90))], {"repetition_penalty": 1.3}),
        ("Four", [("image", picture(i, 33, 33)) for i in range(7, 11)], {"layout": "front"}),
        ("x", [], {"max_new_tokens": 3}),
    ]
    out = []
    for prompt, media, options in specs:
        loaded = load_media(media, 4, "none")
        content = place_media(prompt, loaded)
        out.append(vlm.request([{"role": "user", "content": content}], **{"max_new_tokens": NEW, **options}))
    for pool, newline in (("average", "grid"), ("max", "frame"), ("bilinear", "one_token")):
        content = place_media("pooled <video>", load_media([("video", video)], 3, pool))
        message = [{"role": "user", "content": content}]
        out.append(vlm.request(message, max_new_tokens=NEW, newline_position=newline))
    return out


def test_a_lone_picture_is_one_picture(vlm, tmp_path):
    from PIL import Image

    array = picture(0, 40, 30)
    file = tmp_path / "a.png"
    Image.fromarray(array).save(file)
    expected = vlm.generate("What?", images=[array], max_new_tokens=4)
    for lone in (array, Image.fromarray(array), str(file), file, file.read_bytes(), array[None]):
        reply = vlm.generate("What?", images=lone, max_new_tokens=4)
        assert (reply.token_ids, reply.image_tokens) == (expected.token_ids, expected.image_tokens)
    video = np.stack([array, array])
    assert (
        vlm.generate("What?", videos=video, max_new_tokens=4).token_ids
        == vlm.generate("What?", videos=[video], max_new_tokens=4).token_ids
    )


def test_nothing_to_answer_is_refused(vlm):
    for messages in ([], [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]):
        with pytest.raises(UserError, match="last message"):
            vlm.chat(messages)
    assert vlm.batch([]) == []


def test_alone_equals_batched(vlm):
    batch = requests(vlm)
    together = [r.token_ids for r in vlm.batch(batch)]
    alone = [vlm.batch([r])[0].token_ids for r in batch]
    backwards = [r.token_ids for r in vlm.batch(batch[::-1])][::-1]
    assert together == alone == backwards
    assert len({tuple(t) for t in together}) > 6  # the replies differ, so the comparison means something


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunked_prefill(vlm, chunk):
    batch = requests(vlm)[:6]
    whole = [r.token_ids for r in vlm.batch(batch)]
    packed = pack([vlm.sample(r) for r in batch], vlm.config.vision.patches)
    out = [[] for _ in batch]
    limits = [r.max_new_tokens for r in batch]
    for step in vlm.engine.generate(packed, [r.sampling for r in batch], limits, vlm.eos_ids, chunk=chunk):
        for s, token in step:
            out[s].append(token)
    assert out == whole


def test_stream_equals_whole(vlm):
    stream = vlm.stream("Say <image>", images=[picture(1, 30, 30)], max_new_tokens=NEW)
    pieces = "".join(stream)
    assert pieces == stream.reply.text == vlm.generate("Say <image>", [picture(1, 30, 30)], max_new_tokens=NEW).text


def test_teacher_forced_logits_equal_cached(vlm):
    """forward(Packed) as the trainer calls it and the cached path as the engine does: the same numbers."""
    request = requests(vlm)[2]
    packed = pack([vlm.sample(request)], vlm.config.vision.patches)
    with torch.inference_mode():
        full = vlm.model(packed)
        cache = KVCache(vlm.config.text, [packed.tokens], torch.float32, torch.device("cpu"))
        x = vlm.model.embed(packed)
        rows = []
        for i in range(packed.tokens):
            positions, segments = cache.extend([0], [1])
            rows.append(vlm.model.text(x[i : i + 1], positions, segments, cache.layers))
        cached = vlm.model.text.logits(torch.cat(rows))
        last = vlm.model(packed, last_only=True)
    torch.testing.assert_close(cached, full, rtol=0, atol=2e-5)
    torch.testing.assert_close(last, full[-1:], rtol=0, atol=2e-5)


def test_pack_equals_its_samples(vlm):
    batch = [vlm.sample(r) for r in requests(vlm)]
    p = vlm.config.vision.patches
    with torch.inference_mode():
        together = vlm.model(pack(batch, p))
        alone = torch.cat([vlm.model(pack([s], p)) for s in batch])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-5)


def test_segments_of_a_batch_without_cache():
    cu = torch.tensor([0, 3, 4], dtype=torch.int32)
    segments = Segments.whole(cu, (3, 1))
    assert segments.max_q == 3 and segments.lengths.tolist() == [3, 1] and segments.slots is None


def test_media_do_not_leak_between_samples(vlm):
    """The same prompt with another picture must not give the same logits (a shared cache key would)."""
    a, b = (
        vlm.sample(vlm.request([{"role": "user", "content": place_media("Hi", [m])}], max_new_tokens=1))
        for m in (Medium("image", load_media([("image", picture(s, 30, 30))], 1, "none")[0].frames) for s in (1, 2))
    )
    with torch.inference_mode():
        p = vlm.config.vision.patches
        assert not torch.equal(vlm.model(pack([a], p)), vlm.model(pack([b], p)))
