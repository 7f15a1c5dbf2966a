"""Starting weights from a file: digests are checked, and nothing starts at random silently."""

import pytest
import torch

from pcb.errors import UserError
from pcb.study import load_study
from pcb.training.checkpoint import save, sha256
from pcb.training.pretrain import pretrain
from pcb.training.weights import from_file, initialise


@pytest.fixture
def resnet(tmp_path):
    """A file as torchvision publishes it, named by its digest."""
    path = tmp_path / "resnet.pth"
    torch.save(
        {"conv1.weight": torch.ones(2, 3), "fc.weight": torch.ones(5), "fc.bias": torch.ones(5)},
        path,
    )
    return path.rename(tmp_path / f"resnet50-{sha256(path)[:8]}.pth")


def test_the_backbone_is_read_without_its_classifier_and_its_source_recorded(resnet):
    content = from_file(resnet, "r50", sha256(resnet))
    assert set(content["state_dict"]) == {"conv1.weight"}
    assert content["meta"] == {"kind": "backbone", "source": resnet.name, "sha256": sha256(resnet)}


def test_a_file_with_another_digest_is_refused(resnet):
    with pytest.raises(UserError, match=r"not the file of backbones\.r50\.sha256"):
        from_file(resnet, "r50", "0" * 64)
    other = resnet.rename(resnet.with_name("resnet50-0676ba61.pth"))
    with pytest.raises(UserError, match=r"is damaged: .*, not 0676ba61 as in its name"):
        from_file(other, "r50")


def test_a_missing_file_is_never_replaced_by_random_weights(tmp_path):
    with pytest.raises(UserError, match="no pretrained weights for") as error:
        from_file(tmp_path / "resnet50-0676ba61.pth", "r50")
    assert "pcb download resnet50-0676ba61.pth" in error.value.fix


def starting_weights(folder):
    """A study whose file of starting weights is written, and that file."""
    study = load_study("smoke", overrides={"results": str(folder)})
    study.scale["backbones"]["r50"]["weights"] = "random"
    return study, pretrain(study, "r50")


def test_damaged_starting_weights_are_refused_and_the_fix_works(tmp_path):
    study, path = starting_weights(tmp_path)
    save(path, {"meta": {"kind": "detector"}, "state_dict": {"w": torch.ones(100_000)}})
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (
        whole[:middle] + bytes(4096) + whole[middle + 4096 :],
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        whole[:middle],
        b"",
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged") as error:
            initialise(None, study, "r50")
        assert "delete it and run `pcb pretrain r50`" in error.value.fix
    path.unlink()
    pretrain(study, "r50")
    initialise(None, study, "r50")


def test_starting_weights_of_another_configuration_are_refused(tmp_path):
    study, _ = starting_weights(tmp_path)
    initialise(None, study, "r50")
    study.scale["backbones"]["r50"]["weights"] = "another.pth"
    with pytest.raises(UserError, match="of another configuration") as error:
        initialise(None, study, "r50")
    assert error.value.fix == "run `pcb pretrain r50` again"
