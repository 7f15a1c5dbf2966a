"""Shards: what is written is read; an interrupted pass keeps what is whole and of the same making."""

import numpy as np
import pytest

from pcb.errors import UserError
from pcb.evaluation.shards import Shards, ShardWriter, plan_shards

VARIANTS = ["plain", "step1"]


def columns(part, seed=0):
    """Two rows an image except the last, which has none; the second row is kept by `step1` alone."""
    rng = np.random.default_rng(seed)
    images = np.repeat(part[:-1], 2)
    n = len(images)
    return {
        "image_id": images,
        "category_id": rng.integers(1, 9, n),
        **{k: rng.random(n) * 50 for k in "xywh"},
        "rle": [bytes(rng.integers(48, 100, 12).tolist()) for _ in range(n)],
        "height": np.full(n, 60),
        "width": np.full(n, 80),
        "score:plain": np.where(np.arange(n) % 2, np.nan, rng.random(n)),
        "score:step1": rng.random(n),
    }


def write_all(folder, parts, fingerprint="abc"):
    writer = ShardWriter(folder, fingerprint, VARIANTS)
    written = [part for part in parts if not writer.has(part)]
    for part in written:
        writer.write(part, columns(part))
    return written, writer.finish(parts)


def test_the_plan_covers_every_image_once_in_order():
    parts = plan_shards(range(10, 21), per_shard=4)
    assert [len(p) for p in parts] == [4, 4, 3] and [i for part in parts for i in part] == list(
        range(10, 21)
    )


def test_round_trip(tmp_path):
    parts = plan_shards(range(1, 10), per_shard=4)
    _, manifest = write_all(tmp_path, parts)
    shards = Shards(tmp_path, manifest)
    assert shards.columns == VARIANTS
    for part, plain, step1 in zip(
        parts, shards.read("plain"), shards.read("step1", masks=True), strict=True
    ):
        truth = columns(part)
        assert (
            plain.images == part and plain.rle is None
        )  # the image without detections is still covered
        assert (plain.image_id == truth["image_id"][::2]).all()
        np.testing.assert_array_equal(plain.score, truth["score:plain"][::2].astype(np.float32))
        assert step1.rle.to_pylist() == truth["rle"] and len(step1) == len(truth["rle"])
        np.testing.assert_array_equal(
            step1.box, np.stack([truth[k] for k in "xywh"], 1).astype(np.float32)
        )
        assert (step1.size == [60, 80]).all()
    assert sum(entry["rows"] for entry in manifest) == sum(2 * (len(p) - 1) for p in parts)


def test_an_interrupted_pass_continues_with_the_missing_shards(tmp_path):
    parts = plan_shards(range(1, 10), per_shard=4)
    _, manifest = write_all(tmp_path, parts)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    files = [tmp_path / entry["file"] for entry in manifest]
    files[0].write_bytes(files[0].read_bytes()[:100])  # a truncated file is not a shard
    files[1].unlink()
    written, again = write_all(tmp_path, parts)
    assert written == parts[:2] and again == manifest
    assert files[2].stat().st_mtime_ns == before[files[2]]


def test_shards_of_another_making_are_not_kept(tmp_path):
    parts = plan_shards(range(1, 10), per_shard=4)
    write_all(tmp_path, parts)
    assert write_all(tmp_path, parts, fingerprint="other")[0] == parts
    finer = plan_shards(range(1, 10), per_shard=3)
    assert write_all(tmp_path, finer, fingerprint="other")[0] == finer
    assert len(list(tmp_path.iterdir())) == len(finer)  # nothing of the older cut is left
    assert not ShardWriter(tmp_path, "other", ["plain"]).has(finer[0])


def test_a_failed_write_leaves_no_file(tmp_path):
    part = [1, 2, 3]
    broken = columns(part) | {"rle": ["not bytes", 3, None, None]}
    with pytest.raises(Exception):
        ShardWriter(tmp_path, "abc", VARIANTS).write(part, broken)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_shard_or_variant_is_named(tmp_path):
    _, manifest = write_all(tmp_path, plan_shards(range(1, 10), per_shard=4))
    with pytest.raises(UserError, match="no variant 'norcal', only plain, step1"):
        list(Shards(tmp_path, manifest).read("norcal"))
    (tmp_path / manifest[1]["file"]).unlink()
    with pytest.raises(UserError, match=manifest[1]["file"]):
        list(Shards(tmp_path, manifest).read("plain"))
