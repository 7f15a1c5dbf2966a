"""Shards: round trips, and which shards an interrupted pass keeps."""

import numpy as np
import pyarrow as pa
import pytest

from pcb.errors import UserError
from pcb.evaluation.shards import Shards, ShardWriter, plan_shards

VARIANTS = ["plain", "step1"]


def columns(image_ids, seed=0):
    """Two rows an image, but none of the last; only `step1` keeps the second row."""
    rng = np.random.default_rng(seed)
    images = np.repeat(image_ids[:-1], 2)
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


def write_all(folder, planned, fingerprint="abc"):
    """Write the shards that are missing. Returns their image ids, and the manifest of all."""
    writer = ShardWriter(folder, fingerprint, VARIANTS)
    written = [ids for ids in planned if not writer.has(ids)]
    for ids in written:
        writer.write(ids, columns(ids))
    return written, writer.finish(planned)


def test_the_plan_covers_every_image_once_in_order():
    planned = plan_shards(range(10, 21), per_shard=4)
    assert [len(ids) for ids in planned] == [4, 4, 3]
    assert [i for ids in planned for i in ids] == list(range(10, 21))


def test_round_trip(tmp_path):
    planned = plan_shards(range(1, 10), per_shard=4)
    _, manifest = write_all(tmp_path, planned)
    shards = Shards(tmp_path, manifest)
    assert shards.columns == VARIANTS
    read = zip(planned, shards.read("plain"), shards.read("step1", masks=True), strict=True)
    for ids, plain, step1 in read:
        truth = columns(ids)
        assert plain.images == ids  # the image without detections is covered too
        assert plain.rle is None
        assert (plain.image_id == truth["image_id"][::2]).all()
        np.testing.assert_array_equal(plain.score, truth["score:plain"][::2].astype(np.float32))
        assert step1.rle.to_pylist() == truth["rle"] and len(step1) == len(truth["rle"])
        boxes = np.stack([truth[k] for k in "xywh"], 1).astype(np.float32)
        np.testing.assert_array_equal(step1.box, boxes)
        assert (step1.size == [60, 80]).all()
    assert sum(entry["rows"] for entry in manifest) == sum(2 * (len(ids) - 1) for ids in planned)


def test_an_interrupted_pass_resumes_with_the_missing_shards(tmp_path):
    planned = plan_shards(range(1, 10), per_shard=4)
    _, manifest = write_all(tmp_path, planned)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    files = [tmp_path / entry["file"] for entry in manifest]
    files[0].write_bytes(files[0].read_bytes()[:100])  # a truncated file is not a shard
    files[1].unlink()
    written, again = write_all(tmp_path, planned)
    assert written == planned[:2] and again == manifest
    assert files[2].stat().st_mtime_ns == before[files[2]]


@pytest.mark.parametrize("position", [0.1, 0.5, 0.9, 0.999])
def test_a_flipped_bit_is_noticed_on_reading_and_fixed_by_another_pass(tmp_path, capsys, position):
    planned = plan_shards(range(1, 10), per_shard=4)
    _, manifest = write_all(tmp_path, planned)
    file = tmp_path / manifest[1]["file"]
    data = bytearray(file.read_bytes())
    data[int(position * len(data))] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=f"{file.name} is missing or damaged") as error:
        list(Shards(tmp_path, manifest, "run `pcb infer RUN` again").read("plain"))
    assert error.value.fix == "run `pcb infer RUN` again"
    written, again = write_all(tmp_path, planned)  # what that command does
    assert written == planned[1:2] and again == manifest
    assert f"{file} is damaged: it is made again" in capsys.readouterr().out
    assert len(list(Shards(tmp_path, again).read("plain"))) == 3


def test_a_shard_of_another_run_in_place_of_one_is_noticed(tmp_path):
    planned = plan_shards(range(1, 10), per_shard=4)
    _, ours = write_all(tmp_path / "ours", planned)
    _, other = write_all(tmp_path / "other", planned, fingerprint="other")
    (tmp_path / "other" / other[0]["file"]).replace(tmp_path / "ours" / ours[0]["file"])
    with pytest.raises(UserError, match="missing or damaged"):
        list(Shards(tmp_path / "ours", ours).read("plain"))


def test_shards_of_another_fingerprint_cut_or_variants_are_not_kept(tmp_path):
    planned = plan_shards(range(1, 10), per_shard=4)
    write_all(tmp_path, planned)
    assert write_all(tmp_path, planned, fingerprint="other")[0] == planned
    finer = plan_shards(range(1, 10), per_shard=3)
    assert write_all(tmp_path, finer, fingerprint="other")[0] == finer
    assert len(list(tmp_path.iterdir())) == len(finer)  # nothing of the older cut is left
    assert not ShardWriter(tmp_path, "other", ["plain"]).has(finer[0])


def test_a_failed_write_leaves_no_file(tmp_path):
    broken = columns([1, 2, 3]) | {"rle": ["not bytes", 3, None, None]}
    with pytest.raises(pa.ArrowTypeError):
        ShardWriter(tmp_path, "abc", VARIANTS).write([1, 2, 3], broken)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_shard_or_variant_is_named(tmp_path):
    _, manifest = write_all(tmp_path, plan_shards(range(1, 10), per_shard=4))
    with pytest.raises(UserError, match="no variant 'norcal', only plain, step1"):
        list(Shards(tmp_path, manifest).read("norcal"))
    (tmp_path / manifest[1]["file"]).unlink()
    with pytest.raises(UserError, match=manifest[1]["file"]):
        list(Shards(tmp_path, manifest).read("plain"))
