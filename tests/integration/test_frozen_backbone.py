"""The feature cache of the frozen-backbone detector is exact: each cache against the stock way."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import training
from mmdet.models.task_modules import MaxIoUAssigner
from mmdet.registry import MODELS
from training import PLAIN, tiny_study

from pcb.synthetic.frozen_backbone import TRAINING
from pcb.synthetic.remembered import TENSORS
from pcb.training import build
from pcb.training.memory_format import to_channels_last
from pcb.training.runner import Runner

ITERATIVE = "v05_r50_rfs_softmax_iterative_pcb-a0.4-g0.99"
LOCE = "v05_r50_random_loce_plain"


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """The mini detector's training config and its first batch, packed but not preprocessed."""
    folder = tmp_path_factory.mktemp("frozen")
    study = tiny_study(folder, training.scenes(folder / "scenes"))
    cfg = build.config(study, PLAIN, 0, folder)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    return SimpleNamespace(study=study, cfg=cfg, loader=loader, batch=first_batch(loader))


@pytest.fixture
def model(setting):
    torch.manual_seed(0)
    return build.detector(setting.study, PLAIN).train()


@pytest.fixture
def prepared(setting, model):
    return model.data_preprocessor(setting.batch, training=True)


def first_batch(loader):
    loader.sampler.set_position(0)
    return next(iter(loader))


def losses(model, prepared):
    torch.manual_seed(1)
    found = model.loss(prepared["inputs"], prepared["data_samples"])
    return {key: value.item() for key, value in found.items()}


def test_cached_features_equal_those_of_an_uncached_detector(setting, model, prepared):
    assert setting.cfg.model.feature_cache is not None
    uncached = MODELS.build({**setting.cfg.model, "feature_cache": None}).eval()
    to_channels_last(uncached)
    uncached.load_state_dict(model.state_dict())
    images, samples = prepared["inputs"], prepared["data_samples"]
    for _ in range(2):  # computed, then read from the cache
        features, proposals = model.extract_and_propose(images, samples, TRAINING)
        for i, image in enumerate(images):
            levels, (found,) = uncached.extract_and_propose(image[None], [samples[i]], TRAINING)
            assert all(torch.equal(a[i : i + 1], b) for a, b in zip(features, levels, strict=True))
            assert torch.equal(proposals[i].bboxes, found.bboxes)


def test_both_versions_of_an_image_are_cached(setting, model):
    """Flipped and not, they have the same id and shape."""
    image, sample = setting.batch["inputs"][0], setting.batch["data_samples"][0]
    samples = [copy.deepcopy(sample) for _ in range(2)]
    for flip, version in enumerate(samples):
        version.set_metainfo({"flip": bool(flip)})
    batch = {"inputs": [image, image.flip(-1)], "data_samples": samples}
    prepared = model.data_preprocessor(batch, training=True)
    images, samples = prepared["inputs"], prepared["data_samples"]
    assert torch.equal(images[1], images[0].flip(-1)) and not torch.equal(*images)
    features, _ = model.extract_and_propose(images, samples, TRAINING)
    assert len(model.cache[TRAINING]) == 2 and not torch.equal(*features[0])


def test_detection_uses_the_test_settings_of_the_rpn(model, prepared):
    model.train_cfg.rpn_proposal.max_per_img, model.test_cfg.rpn.max_per_img = 7, 5
    images, samples = prepared["inputs"][:1], prepared["data_samples"][:1]
    found = {
        split: len(model.extract_and_propose(images, samples, split)[1][0])
        for split in (TRAINING, "val")
    }
    assert found == {TRAINING: 7, "val": 5}


def test_other_settings_of_the_rpn_have_another_cache_file(model, tmp_path):
    model.cache_folder, model.images_digest = str(tmp_path), "digest of the images"
    before = {split: model.cache_file(split) for split in (TRAINING, "val")}
    model.test_cfg.rpn.nms_pre += 1
    assert model.cache_file(TRAINING) == before[TRAINING]
    assert model.cache_file("val") not in before.values()


def test_losses_are_the_same_with_a_filled_and_an_empty_cache(model, prepared):
    computed = losses(model, prepared)
    assert len(model.cache[TRAINING]) == 8
    assert losses(model, prepared) == computed
    model.cache.clear()
    assert losses(model, prepared) == computed


def losses_and_gradients(head, features, proposals, samples, seed):
    torch.manual_seed(seed)
    head.zero_grad()
    found = head.loss(features, [of_image.clone() for of_image in proposals], samples)
    sum(value for key, value in found.items() if "loss" in key).backward()
    return found | {f"gradient of {name}": p.grad for name, p in head.named_parameters()}


@pytest.mark.parametrize("run", [PLAIN, ITERATIVE, LOCE])
def test_what_roi_heads_remember_is_what_mmdetection_computes(setting, prepared, run):
    """Losses and gradients of several samples of RoIs, against MMDetection's own classes."""
    model = build.detector(setting.study, run).train()
    cfg = build.base_config(setting.study, "r50")
    build.set_model(cfg, setting.study, run, stage=-1)
    stock = MODELS.build({**cfg.model, "feature_cache": None}).train()
    stock.load_state_dict(model.state_dict())
    to_channels_last(stock)
    assert type(stock.roi_head.bbox_assigner) is MaxIoUAssigner
    assert type(model.roi_head.bbox_assigner) is not MaxIoUAssigner
    images, samples = prepared["inputs"], prepared["data_samples"]
    features, proposals = model.extract_and_propose(images, samples, TRAINING)
    for seed in (0, 1, 0):
        keys = range(len(samples))
        with model.memory.of(keys, model.roi_head, features, proposals, samples):
            ours = losses_and_gradients(model.roi_head, features, proposals, samples, seed)
        theirs = losses_and_gradients(stock.roi_head, features, proposals, samples, seed)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if "mask" in key:  # a convolution to fewer classes may add in another order
                torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-7)
            else:
                assert torch.equal(ours[key], value), key


def test_loading_weights_clears_the_cache(model, prepared):
    losses(model, prepared)
    assert model.cache and model.memory.known
    model.load_state_dict(model.state_dict())
    assert not model.cache and not model.memory.known


def test_a_saved_cache_is_loaded_by_the_same_frozen_modules_only(model, prepared, tmp_path):
    model.cache_folder, model.images_digest = str(tmp_path), "digest of the images"
    same, other = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        next(other.backbone.parameters()).add_(1)
    losses(model, prepared)
    model.save_cache(TRAINING)
    for each in (same, other):
        each.load_cache(TRAINING, torch.device("cpu"))
    assert not other.cache[TRAINING]
    saved, loaded = model.cache[TRAINING], same.cache[TRAINING]
    assert loaded.keys() == saved.keys() and len(loaded) == 8
    for key, (features, boxes) in saved.items():
        assert all(map(torch.equal, features, loaded[key][0]))
        assert torch.equal(boxes, loaded[key][1])
    known = same.memory.known
    assert not other.memory.known and known.keys() == model.memory.known.keys()
    for key, candidates in model.memory.known.items():
        assert all(torch.equal(getattr(candidates, n), getattr(known[key], n)) for n in TENSORS)
    assert losses(same, prepared) == losses(model, prepared)
    same.memory.settings = "another assigner"
    same.memory.clear()
    same.load_cache(TRAINING, torch.device("cpu"))
    assert same.cache[TRAINING] and not same.memory.known


def test_a_cache_is_saved_again_only_if_it_has_grown(model, prepared, tmp_path):
    model.cache_folder, model.images_digest = str(tmp_path), "digest of the images"
    losses(model, prepared)
    model.save_cache(TRAINING)
    (file,) = tmp_path.iterdir()
    written = file.read_bytes()
    model.load_cache(TRAINING, torch.device("cpu"))
    model.save_cache(TRAINING)
    assert file.read_bytes() == written
    model.cache[TRAINING][0, False, ()] = next(iter(model.cache[TRAINING].values()))
    model.save_cache(TRAINING)
    model.load_cache(TRAINING, torch.device("cpu"))
    assert len(model.cache[TRAINING]) == 9


def test_a_damaged_or_exchanged_cache_is_computed_again(model, prepared, tmp_path, capsys):
    model.cache_folder, model.images_digest = str(tmp_path), "digest of the images"
    losses(model, prepared)
    model.save_cache(TRAINING)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    model.load_cache(TRAINING, torch.device("cpu"))
    assert not model.cache[TRAINING] and "computed again" in capsys.readouterr().out
    file.write_bytes(whole)
    file.rename(file.with_stem("training-0123456789abcdef"))
    model.cache_file = lambda split: file.with_stem("training-0123456789abcdef")
    model.load_cache(TRAINING, torch.device("cpu"))
    assert not model.cache[TRAINING]


def test_the_caching_preprocessor_equals_the_stock_one(setting, model):
    ours, stock = model.data_preprocessor, MODELS.build(setting.cfg.model.data_preprocessor)
    expected = stock(setting.batch, True)
    for _ in range(2):
        found = ours(setting.batch, True)
        assert torch.equal(torch.stack(found["inputs"]), expected["inputs"])
        for a, b in zip(found["data_samples"], expected["data_samples"], strict=True):
            assert a.metainfo == b.metainfo
            assert torch.equal(a.gt_instances.bboxes, b.gt_instances.bboxes)
            assert (a.gt_instances.masks.to_ndarray() == b.gt_instances.masks.to_ndarray()).all()
    assert len(ours.cache) == 8


def test_the_flip_pipeline_equals_the_stock_one(setting, model, prepared):
    """Also after a training step: the returned samples are shared, so nothing may change them."""

    def content(batch):
        """Images, metadata, boxes, labels and masks of a batch, copied."""
        truths = [(sample.metainfo, sample.gt_instances) for sample in batch["data_samples"]]
        arrays = [(t.bboxes.tensor, t.labels, t.masks.masks) for _, t in truths]
        return copy.deepcopy((batch["inputs"], [meta for meta, _ in truths], arrays))

    before = content(setting.batch)
    assert len({sample.flip for sample in setting.batch["data_samples"]}) == 2
    losses(model, prepared)
    stock = copy.deepcopy(setting.cfg.train_dataloader)
    stock.dataset.dataset.pipeline = setting.cfg.train_pipeline
    for loader in (setting.loader, Runner.build_dataloader(stock, seed=0)):
        images, metas, arrays = content(first_batch(loader))
        assert all(map(torch.equal, images, before[0]))
        assert str(metas) == str(before[1])
        for ours, theirs in zip(arrays, before[2], strict=True):
            assert all(
                np.array_equal(np.asarray(a), np.asarray(b))
                for a, b in zip(ours, theirs, strict=True)
            )


def test_only_the_roi_heads_learn(model):
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name.split(".")[0] for name in learning} == {"roi_head"}
    assert not any(module.training for module in model.backbone.modules())
