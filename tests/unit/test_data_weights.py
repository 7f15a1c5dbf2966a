"""Starting weights from a file: digests are checked, and nothing starts at random silently."""

import pytest
import torch

from pcb.errors import UserError
from pcb.training.checkpoint import sha256
from pcb.training.weights import from_file


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
