"""Encoded pictures: the tower runs once per picture, features keep their bits, and nothing stale or damaged is used."""

import io
import threading

import pytest
import torch
from PIL import Image

from minilava.errors import UserError
from minilava.runtime.pictures import Pictures
from tests.runtime.test_invariance import picture

ASK = dict(max_new_tokens=8)


def views(vlm, *images, **options):
    """The patches of pictures, as the tower gets them."""
    return torch.cat([p for image in images for p in sample(vlm, image, **options).patches])


def sample(vlm, image, **options):
    from minilava.inputs.messages import load_media
    from minilava.inputs.sample import place_media

    content = place_media("x", load_media([("image", image)], 1, "none"))
    return vlm.sample(vlm.request([{"role": "user", "content": content}], **options))


def test_a_second_question_never_runs_the_tower(fresh, calls):
    vlm, plain = fresh(), fresh(cache_bytes=0)
    pair = [picture(1, 90, 60), picture(2, 40, 50)]
    first = vlm.generate("Between <image> and <image>?", pair, **ASK)
    assert sum(calls) == 2 and first.timings["cached_views"] == 0
    del calls[:]
    second = vlm.generate("Again, in other words: <image> <image>", pair[::-1], **ASK)
    assert calls == [] and second.timings["cached_views"] == 2
    assert second.token_ids == plain.generate("Again, in other words: <image> <image>", pair[::-1], **ASK).token_ids
    assert first.token_ids == plain.generate("Between <image> and <image>?", pair, **ASK).token_ids
    assert second.token_ids != first.token_ids and sum(calls) == 4


def test_what_counts_is_what_the_tower_sees(fresh, calls):
    """The same pixels from a file, an array or a picture are known; another way to resize them is not."""
    vlm, pixels = fresh(), picture(3, 90, 60)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    for image in (pixels, Image.fromarray(pixels), file.getvalue()):
        vlm.generate("What?", [image], **ASK)
    assert calls == [1]
    vlm.generate("What?", [pixels], recipe="train", anyres=False, **ASK)  # padded
    assert calls == [1, 1]
    tiled = vlm.generate("What?", [pixels], anyres=True, **ASK)  # its base view is the squashed picture
    assert calls[2] == len(views(vlm, pixels, anyres=True)) - 1 and tiled.timings["cached_views"] == 1


def test_the_rest_is_encoded_at_once_to_the_same_bits(fresh, calls):
    vlm = fresh()
    seen = [picture(s, 50, 50) for s in range(5)]
    patches = views(vlm, *(seen[i] for i in (3, 0, 1, 0, 4, 2, 3)))
    kept = Pictures(vlm.model, 1 << 30)
    with torch.inference_mode():
        kept.features(patches[1:3], vlm.model.encode)
        del calls[:]
        features, known = kept.features(patches, vlm.model.encode)
        assert calls == [3] and known == 4  # 3, 4 and 2: once each, together
        assert torch.equal(features, vlm.model.encode(patches))
        again, known = kept.features(patches, None)
        assert torch.equal(again, features) and known == 7


def test_memory_is_bounded_and_the_oldest_go(fresh):
    vlm = fresh()
    patches = views(vlm, *(picture(s, 50, 50) for s in range(4)))
    each = 36 * 64 * 4
    kept = Pictures(vlm.model, 2 * each + 1)
    with torch.inference_mode():
        kept.features(patches[:2], vlm.model.encode)
        kept.features(patches[:1], None)
        kept.features(patches[2:3], vlm.model.encode)  # the second goes, the first was used since
        assert kept.features(patches[[0, 2]], None)[1] == 2
        assert kept.features(patches, vlm.model.encode)[1] == 2
        assert kept.nbytes == sum(v.untyped_storage().nbytes() for v in kept.views.values()) == 2 * each
        nothing = Pictures(vlm.model, each - 1)
        nothing.features(patches, vlm.model.encode)
    assert nothing.nbytes == len(nothing.views) == 0


def test_a_folder_serves_the_next_process(fresh, calls, tmp_path):
    pair = [picture(1, 90, 60), picture(2, 40, 50)]
    first = fresh(cache_dir=tmp_path).generate("What?", pair, **ASK)
    del calls[:]
    for memory in (1 << 30, 0):
        again = fresh(cache_dir=tmp_path, cache_bytes=memory).generate("What?", pair, **ASK)
        assert calls == [] and again.token_ids == first.token_ids and again.timings["cached_views"] == 2
    other = fresh(cache_dir=tmp_path)
    other.model.projector.fc2.bias.data[0] += 1e-3
    other.generate("What?", pair, **ASK)
    assert sum(calls) == 2 and len(list(tmp_path.iterdir())) == 2  # other weights, another folder


def flip(data):
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize("damage", [lambda d: d[:40], lambda d: d[:-4], lambda d: b"", lambda d: b"\0" * len(d), flip])
def test_damaged_files_are_replaced(fresh, calls, tmp_path, damage):
    pair = [picture(1, 90, 60), picture(2, 40, 50)]
    first = fresh(cache_dir=tmp_path).generate("What?", pair, **ASK)
    file = sorted(tmp_path.rglob("*.safetensors"))[0]
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    del calls[:]
    again = fresh(cache_dir=tmp_path).generate("What?", pair, **ASK)
    assert calls == [1] and again.token_ids == first.token_ids
    assert file.read_bytes() == whole and not list(tmp_path.rglob("*.tmp"))


def test_a_folder_that_cannot_be_written_is_one_line(fresh, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(UserError, match="cannot write features"):
        fresh(cache_dir=tmp_path / "file").generate("What?", [picture(1, 30, 30)], **ASK)


def test_changed_weights_are_forgotten_on_request(fresh):
    vlm, plain, image = fresh(), fresh(cache_bytes=0), picture(1, 60, 60)
    before = vlm.generate("What?", [image], **ASK).token_ids
    for model in (vlm.model, plain.model):
        model.projector.fc2.weight.data *= -1
    vlm.forget()
    after = vlm.generate("What?", [image], **ASK)
    assert after.timings["cached_views"] == 0 and before != after.token_ids
    assert after.token_ids == plain.generate("What?", [image], **ASK).token_ids


def test_many_threads(fresh, tmp_path):
    """Overlapping questions at once: everyone gets the answer that they would get alone, and the books balance."""
    questions = [(f"Question {i % 5}?", [picture(i % 3, 50, 60), picture(7, 30, 40)]) for i in range(24)]
    plain = fresh(cache_bytes=0)
    wanted = [plain.generate(p, m, **ASK).token_ids for p, m in questions]
    vlm = fresh(cache_dir=tmp_path)
    got = [None] * len(questions)

    def ask(worker):
        for i in range(worker, len(questions), 6):
            got[i] = vlm.generate(*questions[i], **ASK).token_ids

    threads = [threading.Thread(target=ask, args=(w,)) for w in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert got == wanted
    kept = vlm.engine.pictures
    assert kept.nbytes == sum(v.nbytes for v in kept.views.values()) == 4 * 36 * 64 * 4
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4 and not list(tmp_path.rglob("*.tmp"))
