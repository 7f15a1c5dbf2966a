"""From a checkpoint to metrics on generated scenes: shards, resuming, missing and foreign files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch

from pcb.errors import UserError
from pcb.evaluation import ahead
from pcb.evaluation.bootstrap import read_bootstrap
from pcb.evaluation.score import SplitDetections, score
from pcb.evaluation.shards import Shards
from pcb.files import ROOT, write_json
from pcb.inference import forward, infer
from pcb.planning.jobs import discard
from pcb.study import load_study
from pcb.study.current import lacking
from pcb.study.records import read_record, write_record
from pcb.study.study import BIAS_METRICS
from pcb.study.variants import gamma_of, score_columns
from pcb.synthetic.frozen_backbone import FrozenBackboneMaskRCNN
from pcb.synthetic.generate import Recipe, write_dataset
from pcb.training import build
from pcb.training.checkpoint import save_hashed

RUN = "v05_r50_rfs_softmax_iterative_pcb-a0.4-g0.99"
VARIANTS = ["plain", "step1", "step2"]


def study_in(results, data=None):
    data = data or results / "data"
    files = {
        "version": "v0.5",
        "images": str(data / "images"),
        **{s: str(data / f"{s}.json") for s in ("train", "val", "dev")},
    }
    study = load_study(
        "smoke", overrides={"results": str(results), "datasets": {"v05": files, "v1": files}}
    )
    study.scale["test"]["max_per_image"] = 12
    return study


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study with one run of random weights that detects much, inferred in shards of 4 images."""
    root = tmp_path_factory.mktemp("study")
    write_dataset(
        Recipe(train_images=24, val_images=10, dev_images=6, head=10), "v05", root / "data"
    )
    study = study_in(root)
    torch.manual_seed(0)
    model = build.detector(study, RUN)
    torch.nn.init.normal_(model.roi_head.bbox_head.fc_cls.weight, std=0.3)
    path = save_hashed(
        study.paths.work(study.fingerprint(RUN, 0)),
        "final",
        {"state_dict": model.state_dict(), "meta": {"classes": 60}},
    )
    digest = infer.checkpoint.sha256(path)
    write_record(
        study.paths.train(RUN, 0),
        {"fingerprint": study.fingerprint(RUN, 0), "checkpoint": str(path), "sha256": digest},
    )
    infer.infer(study, RUN, 0, images_per_shard=4)
    return root


@pytest.fixture
def copied(finished, tmp_path):
    """A copy that a test may change: the study and the folder of the run."""
    shutil.copytree(finished / "smoke/runs", tmp_path / "smoke/runs")
    study = study_in(tmp_path, finished / "data")
    return study, study.paths.run(RUN, 0)


def contents(folder):
    """The bytes of all shards and matrices."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".parquet", ".npz")
    }


def test_one_pass_writes_shards_for_every_variant_and_the_matrix(finished):
    study = study_in(finished)
    manifest = json.loads(study.paths.detections(RUN, 0).read_text())
    assert manifest["variants"] == VARIANTS and manifest["images"] == 10
    assert [s["images"] for s in manifest["shards"]] == [4, 4, 2]
    images = json.loads((finished / "data/val.json").read_text())["images"]
    shards = Shards(
        study.paths.run(RUN, 0) / manifest["folder"], manifest["shards"], limits=manifest["limits"]
    )
    for variant in VARIANTS:
        all_rows = list(shards.read(variant, masks=True))
        assert [i for rows in all_rows for i in rows.images] == [image["id"] for image in images]
        for rows in all_rows:
            per_image = np.unique(rows.image_id, return_counts=True)[1]
            assert 0 < per_image.max() <= 12 and rows.score.min() > 1e-3
            assert (rows.box[:, 2:] >= 0).all()
            far_corner = rows.box[:, :2] + rows.box[:, 2:]
            assert (far_corner <= rows.size[:, ::-1] + 1e-3).all()
    with np.load(study.paths.confusion(RUN, 0)) as found:
        rows = found["matrix"].sum(axis=1)
        np.testing.assert_allclose(rows, found["seen"] > 0, atol=1e-5)
        assert found["matrix"].shape == (60, 60) and found["seen"].sum() > 0


def test_shards_hold_what_mmdet_predicts(finished):
    study = study_in(finished)
    manifest = json.loads(study.paths.detections(RUN, 0).read_text())
    dataset = infer.test_set(study, RUN, "val")
    model = build.detector(study, RUN, infer.trained(study, RUN, 0)["checkpoint"])
    shards = Shards(
        study.paths.run(RUN, 0) / manifest["folder"], manifest["shards"], limits=manifest["limits"]
    )
    all_rows = list(shards.read("plain"))
    for index, rows in ((0, all_rows[0]), (9, all_rows[-1])):
        sample = model.test_step(forward.pseudo_collate([dataset[index]]))[0]
        expected = sample.pred_instances
        mine = np.flatnonzero(rows.image_id == sample.img_id)
        mine = mine[np.argsort(-rows.score[mine], kind="stable")]
        np.testing.assert_allclose(rows.score[mine], expected.scores.detach(), atol=1e-6)
        np.testing.assert_array_equal(rows.category_id[mine], expected.labels + 1)
        corners = np.concatenate([rows.box[mine, :2], rows.box[mine, :2] + rows.box[mine, 2:]], 1)
        np.testing.assert_allclose(corners, expected.bboxes.detach(), atol=1e-3)


def test_the_job_of_a_detection_takes_what_the_training_left(copied):
    study, folder = copied
    shutil.rmtree(folder / "detections")
    shutil.rmtree(folder / "confusion")
    of = study, RUN, 0
    detected = dict.fromkeys(ahead.files_of(*of, "val"))
    for path in detected:
        path.unlink()
    infer.infer_ahead(*of)
    assert not any(path.exists() for path in detected) and not take_elsewhere(*of)
    assert ahead.take(*of, "val") and not ahead.take(*of, "val")
    assert ahead.splits_ahead(*of) == [] and not (folder / "ahead").exists()
    taken = contents(folder)
    shutil.rmtree(folder / "detections")
    shutil.rmtree(folder / "confusion")
    infer.infer(*of)
    assert contents(folder) == taken


def take_elsewhere(study, run, seed):
    """Whether a study with other test settings would take a detection."""
    study.scale["test"]["max_per_image"] -= 1
    taken = ahead.take(study, run, seed, "val")
    study.scale["test"]["max_per_image"] += 1
    return taken


@pytest.mark.parametrize(
    "damaged", ["detections/*.parquet", "ahead/confusion.npz", "ahead/detections.json"]
)
@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(b"damaged")])
def test_what_a_training_left_is_taken_whole_or_not_at_all(copied, damaged, change):
    study, folder = copied
    of = study, RUN, 0
    study.paths.detections(*of[1:]).unlink()
    infer.infer_ahead(*of)
    for path in folder.glob(damaged):
        change(path)
    study.paths.confusion(*of[1:]).unlink()
    assert not ahead.take(*of, "val") and not study.paths.confusion(*of[1:]).exists()
    infer.infer(*of)
    assert ahead.splits_ahead(*of) == []


def test_what_a_training_left_of_other_weights_is_not_taken(copied):
    study, _ = copied
    study.paths.detections(RUN, 0).unlink()
    infer.infer_ahead(study, RUN, 0)
    record = read_record(study.paths.train(RUN, 0))
    write_record(study.paths.train(RUN, 0), record | {"weights": "others"})
    assert not ahead.take(study, RUN, 0, "val")


def test_what_a_training_left_with_other_columns_is_not_taken(copied, monkeypatch):
    study, _ = copied
    study.paths.detections(RUN, 0).unlink()
    infer.infer_ahead(study, RUN, 0)
    grid = ahead.score_columns
    monkeypatch.setattr(ahead, "score_columns", lambda names: [*grid(names), "norcal-1.1"])
    assert not ahead.take(study, RUN, 0, "val")
    monkeypatch.setattr(ahead, "score_columns", grid)
    assert ahead.take(study, RUN, 0, "val")


def test_detections_without_a_column_lack_its_variant(finished):
    study = study_in(finished)
    manifest = read_record(study.paths.detections(RUN, 0))
    assert lacking(study, manifest, RUN) == []
    absent = next(column for column in manifest["columns"] if column != "plain")
    fewer = [column for column in manifest["columns"] if column != absent]
    assert lacking(study, manifest | {"columns": fewer}, RUN)


def test_a_damaged_record_of_detections_is_made_again_ahead(copied):
    study, _ = copied
    study.paths.detections(RUN, 0).write_text("damaged")
    assert ahead.splits_ahead(study, RUN, 0) == ["val"]


def test_a_forced_detection_is_made_anew_ahead(copied):
    study, folder = copied
    study.paths.detections(RUN, 0).unlink()
    infer.infer_ahead(study, RUN, 0)
    discard(study, "infer", RUN, "0")
    assert not list(folder.rglob("*.parquet")) and not (folder / "ahead").exists()
    assert ahead.splits_ahead(study, RUN, 0) == ["val"]


def test_an_error_in_the_detection_leaves_the_training_done(copied, monkeypatch, capsys):
    study, _ = copied
    study.paths.detections(RUN, 0).unlink()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(infer, "infer", full)
    infer.infer_ahead(study, RUN, 0)
    assert f"left to `pcb infer {RUN} --seed 0`: OSError(28, " in capsys.readouterr().out


@pytest.mark.parametrize("replaced", [0, 1, 2])
def test_a_take_that_was_stopped_ends_with_the_same_bytes(copied, monkeypatch, replaced):
    study, folder = copied
    infer.infer(study, RUN, 0)
    complete = contents(folder)
    for path in ahead.files_of(study, RUN, 0, "val"):
        path.unlink()
    infer.infer_ahead(study, RUN, 0)
    replace, calls = os.replace, []

    def stopped(*paths):
        if len(calls) == replaced:
            raise KeyboardInterrupt
        calls.append(paths)
        replace(*paths)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stopped)
        ahead.take(study, RUN, 0, "val")
    if not ahead.take(study, RUN, 0, "val"):
        infer.infer(study, RUN, 0)
    assert contents(folder) == complete and not (folder / "ahead").exists()


def test_an_interrupted_pass_ends_with_the_same_bytes(copied, finished, monkeypatch):
    study, folder = copied
    complete = contents(folder)
    assert complete == contents(study_in(finished).paths.run(RUN, 0))
    for path in sorted((folder / "detections").glob("*.parquet"))[1:]:
        path.unlink()
    study.paths.detections(RUN, 0).unlink()
    study.paths.confusion(RUN, 0).unlink()
    seen = []
    forward = infer.forward

    def watched(model, items, split):
        seen.extend(item["data_samples"].img_id for item in items)
        return forward(model, items, split)

    monkeypatch.setattr(infer, "forward", watched)
    infer.infer(study, RUN, 0, images_per_shard=4)
    assert len(seen) == 6  # the first shard was kept
    assert contents(folder) == complete


def test_a_second_detection_reads_the_feature_cache(copied, monkeypatch):
    study, folder = copied
    complete = contents(folder)
    study.paths.data_manifest("v05").parent.mkdir(parents=True)
    # The manifest's digest is part of the cache file's name.
    study.paths.data_manifest("v05").write_text("the images")

    def again():
        shutil.rmtree(folder / "detections")
        infer.infer(study, RUN, 0, images_per_shard=4)

    again()
    monkeypatch.setattr(FrozenBackboneMaskRCNN, "_run_frozen_modules", None)
    again()
    assert contents(folder) == complete


def test_shards_of_other_test_settings_are_not_kept(copied):
    study, folder = copied
    before = contents(folder)
    study.scale["test"]["score_thr"] = 0.02
    infer.infer(study, RUN, 0, images_per_shard=4)
    after = contents(folder)
    shards = [name for name in before if name.suffix == ".parquet"]
    assert shards and not after.keys() & set(shards)  # a name is a digest of the content


def infer_as_rank(rank, world, results, data):
    """Both jobs of an evaluation, in shards of 4 images."""
    study = study_in(results, data)
    infer.train_confusion(study, RUN, 0, images_per_shard=4)
    return infer.infer(study, RUN, 0, images_per_shard=4, variants=["plain", "cm-val", "cm-train"])


def test_two_ranks_write_the_files_of_one(finished, tmp_path):
    """The shards are shared out; a calibration needs the counts of both before it scores."""
    found = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        record = study_in(finished).paths.train(RUN, 0).relative_to(finished)
        (folder / record).parent.mkdir(parents=True)
        shutil.copy(finished / record, folder / record)
        (folder / "ranks").mkdir()
        arguments = (folder / "ranks", folder, finished / "data")
        manifests = ranks.run(infer_as_rank, world, *arguments)
        assert manifests[0]["processes"] == world and manifests[1:] == [{}] * (world - 1)
        found.append(contents(study_in(folder).paths.run(RUN, 0)))
    one, two = found
    assert one == two and len([name for name in one if name.suffix == ".parquet"]) == 3


def test_inference_uses_all_gpus_of_a_job(copied):
    """Two ranks on the CPU, started by the command."""
    study, folder = copied
    study.scale["hardware"]["gpus_per_job"] = 2
    write_json(study.paths.study, study.resolved)
    complete = contents(folder)
    for name in ("detections", "confusion"):
        shutil.rmtree(folder / name)
    study.paths.detections(RUN, 0).unlink()
    done = subprocess.run(
        [sys.executable, "-m", "pcb", "infer", RUN, "--study", str(study.paths.study)],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "7,8", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert read_record(study.paths.detections(RUN, 0))["processes"] == 2
    matrix = study.paths.confusion(RUN, 0).relative_to(folder)
    assert contents(folder)[matrix] == complete[matrix]


def test_score_resamples_every_variant(copied):
    study, _ = copied
    metrics = score(study, RUN, 0)
    found = read_bootstrap(study.paths.bootstrap(RUN, 0), metrics["bootstrap"]["sha256"])
    assert {variant for _, variant in found} == set(metrics["variants"])
    plain = found["lvis", "plain"]
    assert {"AP", "APr", "APc", "APf", "APb", *BIAS_METRICS} <= set(plain)
    count = metrics["bootstrap"]["resamples"]
    assert all(values.shape == (count,) for values in plain.values())
    # Sums of single images add up to the matrix: PwB over resamples lies around the measured one.
    assert abs(plain["PwB"].mean() - metrics["variants"]["plain"]["PwB"]) < 3 * plain["PwB"].std()
    study.paths.confusion_images(RUN, 0).unlink()
    with pytest.raises(UserError, match=r"confusion-images\.npz does not exist"):
        score(study, RUN, 0)


def test_what_is_scored_does_not_depend_on_what_is_kept_besides(copied):
    study, folder = copied

    def detected():
        manifest = infer.infer(study, RUN, 0, images_per_shard=4)
        shards = Shards(folder / manifest["folder"], manifest["shards"], limits=manifest["limits"])
        return {variant: list(shards.read(variant, masks=True)) for variant in VARIANTS}, shards

    more, shards = detected()
    for rows in shards.read_columns(VARIANTS, masks=True):
        assert np.unique(rows.image_id, return_counts=True)[1].max() > 100
        assert 0 < rows.rle.null_count < len(rows)
    study.scale["test"] |= {"keep_score_thr": 1e-3, "keep_per_image": 12}
    scored, _ = detected()
    for variant in VARIANTS:
        for one, other in zip(more[variant], scored[variant], strict=True):
            assert len(one) and one.rle.equals(other.rle) and not one.rle.null_count
            np.testing.assert_array_equal(one.score, other.score)
            np.testing.assert_array_equal(one.box, other.box)
            np.testing.assert_array_equal(one.category_id, other.category_id)


def test_score_writes_every_variant(copied):
    study, _ = copied
    metrics = score(study, RUN, 0)
    assert read_record(study.paths.metrics(RUN, 0)) == metrics
    assert metrics["fingerprint"] == study.fingerprint(RUN, 0) and metrics["images"] == 10
    assert list(metrics["variants"]) == VARIANTS
    for variant, values in metrics["variants"].items():
        assert {"AP", "AP50", "AP75", "APr", "APc", "APf", "APb"} <= set(values)
        per_class = metrics["classes"][variant]
        assert [c["id"] for c in per_class] == list(range(1, 61))
        for key in ("AP", "APb"):
            of_classes = [c[key] for c in per_class if c[key] is not None]
            assert values[key] == pytest.approx(np.mean(of_classes))
        rare = [c["AP"] for c in per_class if c["frequency"] == "r" and c["AP"] is not None]
        assert values["APr"] == (pytest.approx(np.mean(rare)) if rare else None)
        assert values["APb"] >= 0
    with np.load(study.paths.confusion(RUN, 0)) as found:
        matrix = found["matrix"].astype(np.float64)
    assert metrics["variants"]["plain"]["PwB"] == pytest.approx(
        ((matrix - matrix.T) ** 2).sum() ** 0.5, abs=1e-5
    )


def test_calibrations_use_the_matrices_of_the_same_training(copied, monkeypatch):
    study, folder = copied
    names = ["plain", "cm-val", "ms-val", "cm-train", "norcal"]
    infer.train_confusion(study, RUN, 0, images_per_shard=4)
    manifest = infer.infer(study, RUN, 0, images_per_shard=4, variants=names)
    norcal = [f"norcal-{g / 10:g}" for g in range(1, 11)]
    assert manifest["variants"] == names and manifest["columns"] == [*names[:4], *norcal]
    shards = Shards(folder / manifest["folder"], manifest["shards"], limits=manifest["limits"])
    detector = infer.SplitDetector(study, RUN, "val", infer.trained(study, RUN, 0))
    ids = next(shards.read("plain")).images
    with (
        np.load(study.paths.confusion(RUN, 0)) as val,
        np.load(folder / "confusion-train.npz") as train,
    ):
        matrices = {
            "val": torch.from_numpy(val["matrix"]),
            "train": torch.from_numpy(train["matrix"]),
        }
        assert (train["seen"] != val["seen"]).any()
    by_column = infer.score_functions(detector.model, names[:4], matrices)
    for (image,) in detector.batches(ids[:1]):
        selection = forward.detect(detector.model, image, by_column)
        for column in names[:4]:
            rows = next(shards.read(column))
            scores = selection.scores[column]
            expected = scores[~scores.isnan()]
            np.testing.assert_allclose(rows.score[rows.image_id == ids[0]], expected, atol=1e-5)
    complete = contents(folder)
    shutil.rmtree(folder / "detections")
    shutil.rmtree(folder / "confusion")
    monkeypatch.setattr(infer, "CACHE_BYTES", 0)  # the network runs again to score
    infer.infer(study, RUN, 0, images_per_shard=4, variants=names)
    assert contents(folder) == complete


def test_norcal_has_the_best_gamma_of_val_and_norcal_dev_that_of_dev(copied):
    study, _ = copied
    study.variants = lambda run: ["plain", "norcal"]
    for split in ("val", "dev"):
        infer.infer(study, RUN, 0, split)
    metrics = score(study, RUN, 0)
    assert list(metrics["variants"]) == ["plain", "norcal", "norcal-dev"]
    curves = metrics["norcal"]
    for split in ("val", "dev"):
        assert [gamma for gamma, _ in curves[split]["AP"]] == [g / 10 for g in range(11)]
        best = max(ap for _, ap in curves[split]["AP"])
        assert dict(curves[split]["AP"])[curves[split]["gamma"]] == best
    on_val = dict(curves["val"]["AP"])
    for variant, split in (("norcal", "val"), ("norcal-dev", "dev")):
        assert metrics["variants"][variant]["AP"] == on_val[curves[split]["gamma"]]
    assert on_val[0] == metrics["variants"]["plain"]["AP"]


def test_norcal_without_gamma_0_can_be_worse_than_its_base(copied):
    study, _ = copied
    both = ["plain", "norcal", "norcal-positive"]
    study.variants = lambda run: both
    columns = infer.infer(study, RUN, 0)["columns"]
    assert (
        columns == score_columns(both) == ["plain", *(f"norcal-{g / 10:g}" for g in range(1, 11))]
    )
    infer.infer(study, RUN, 0, "dev", variants=["plain", "norcal"])
    metrics = score(study, RUN, 0)
    assert list(metrics["variants"])[1:] == [
        *("norcal", "norcal-dev", "norcal-positive", "norcal-positive-dev")
    ]
    for split in ("val", "dev"):
        curve = metrics["norcal-positive"][split]["AP"]
        assert curve == metrics["norcal"][split]["AP"]
        positive = {gamma: ap for gamma, ap in curve if gamma}
        assert positive[metrics["norcal-positive"][split]["gamma"]] == max(positive.values())
    chosen = metrics["norcal-positive"]["val"]["gamma"]
    assert (
        metrics["variants"]["norcal-positive"]["AP"] == dict(metrics["norcal"]["val"]["AP"])[chosen]
    )


def test_norcal_needs_the_detections_on_which_gamma_is_chosen(copied):
    study, _ = copied
    study.variants = lambda run: ["plain", "norcal"]
    infer.infer(study, RUN, 0)
    with pytest.raises(UserError, match=r"detections-dev\.json does not exist") as error:
        score(study, RUN, 0)
    assert error.value.fix == f"run `pcb infer {RUN} --seed 0 --split dev` first"
    infer.infer(study, RUN, 0, "dev", variants=["plain"])
    with pytest.raises(UserError, match=r"detections-dev\.json holds no variant 'norcal'"):
        score(study, RUN, 0)


def test_cm_train_needs_the_confusion_matrix_of_the_training_images(copied):
    study, _ = copied
    with pytest.raises(UserError, match=r"confusion-train\.json does not exist") as error:
        infer.infer(study, RUN, 0, variants=["plain", "cm-train"])
    assert error.value.fix == f"run `pcb confusion {RUN} --seed 0` first"


def test_without_a_dev_split_gamma_is_chosen_on_a_sample_of_train(copied, finished, monkeypatch):
    study, _ = copied
    del study.scale["datasets"]["v05"]["dev"]
    study.variants = lambda run: ["plain", "norcal"]
    monkeypatch.setattr("pcb.study.variants.TRAIN_SUBSET_IMAGES", 7)
    for split in ("val", "train-subset"):
        infer.infer(study, RUN, 0, split, 4, ["plain", "norcal"])
    metrics = score(study, RUN, 0)
    assert list(metrics["variants"]) == ["plain", "norcal", "norcal-train"]
    assert set(metrics["norcal"]) == {"val", "train"}
    chosen = dict(metrics["norcal"]["val"]["AP"])[metrics["norcal"]["train"]["gamma"]]
    assert metrics["variants"]["norcal-train"]["AP"] == chosen
    images = [
        i
        for rows in SplitDetections(study, RUN, 0, "train-subset").shards.read("plain")
        for i in rows.images
    ]
    train = {
        image["id"] for image in json.loads((finished / "data/train.json").read_text())["images"]
    }
    assert len(set(images)) == 7 and train.issuperset(images)


# Of two equal γ the smaller is chosen.
@pytest.mark.parametrize("peak, best", [(0.34, 0.3), (0.0, 0.0), (2.0, 1.0), (0.45, 0.4)])
def test_gamma_is_chosen_by_mask_ap(monkeypatch, peak, best):
    detections = object.__new__(SplitDetections)
    variants = ["plain", "cm-val", "norcal"]
    detections.manifest = {"variants": variants, "columns": score_columns(variants)}
    monkeypatch.setattr(
        SplitDetections,
        "evaluate",
        lambda self, column, iou_type: {"AP": 30 - round(abs(gamma_of(column) - peak), 9)},
    )
    assert detections.choose_gamma()["gamma"] == best


def test_another_split_lies_beside_and_leaves_val_alone(copied):
    study, folder = copied
    before = contents(folder)
    infer.infer(study, RUN, 0, split="dev")
    assert score(study, RUN, 0, split="dev")["images"] == 6
    assert (folder / "metrics-dev.json").exists() and not (folder / "metrics.json").exists()
    after = contents(folder)
    assert {name: after[name] for name in after if "dev" not in str(name)} == before


def test_missing_and_foreign_files_are_named(copied):
    study, _ = copied
    record = study.paths.train(RUN, 0)
    written = json.loads(record.read_text())
    for change, message in (
        ({"checkpoint": "nowhere.pth"}, "nowhere.pth, the checkpoint that"),
        ({"fingerprint": "other"}, "of another configuration"),
        ({"sha256": "0"}, "is damaged"),
    ):
        write_record(record, written | change)
        with pytest.raises(UserError, match=message):
            infer.infer(study, RUN, 0)
    record.unlink()
    with pytest.raises(UserError, match=r"run\.json does not exist") as error:
        infer.infer(study, RUN, 0)
    assert f"pcb train {RUN}" in error.value.fix
    study.paths.detections(RUN, 0).unlink()
    with pytest.raises(UserError, match=r"detections.json does not exist") as error:
        score(study, RUN, 0)
    assert f"pcb infer {RUN}" in error.value.fix


def test_a_diverged_checkpoint_is_an_error(copied):
    study, _ = copied
    model = build.detector(study, RUN)
    model.roi_head.bbox_head.fc_cls.weight.data.fill_(torch.nan)
    path = save_hashed(
        study.paths.work("diverged"),
        "final",
        {"state_dict": model.state_dict(), "meta": {"classes": 60}},
    )
    record = study.paths.train(RUN, 0)
    write_record(
        record,
        json.loads(record.read_text())
        | {"checkpoint": str(path), "sha256": infer.checkpoint.sha256(path)},
    )
    with pytest.raises(UserError, match="not finite"):
        infer.infer(study, RUN, 0)
