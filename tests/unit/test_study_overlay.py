"""A study of one's own is a file laid over the paper; the paper stays as it is."""

from __future__ import annotations

import pytest

from pcb.errors import UserError
from pcb.study import load_study

LOSS = """
from pcb.losses.softmax import SoftTargetCrossEntropy
class MyLoss(SoftTargetCrossEntropy):
    pass
"""
OVERLAY = """
losses:
  mine: {class: my_loss.py:MyLoss, takes: [instance_counts], options: {tau: [1.0, 0.5]}}
experiments:
  v05_r50_rfs_softmax_iterative_pcb-a0.3-g0.99:
    {dataset: v05, backbone: r50, sampler: rfs, loss: softmax, paradigm: iterative,
     pcb: {alpha: 0.3}, trunk: v05_r50_rfs_softmax_iterative}
  v05_r50_random_mine_plain: {dataset: v05, backbone: r50, sampler: random, loss: mine}
  v05_r50_random_mine_plain_tau-0.5:
    {dataset: v05, backbone: r50, sampler: random, loss: mine, options: {tau: 0.5}}
tables:
  table06:
    rows:
      - {id: a0.3, labels: ["0.3"], after: a0.2, run: v05_r50_rfs_softmax_iterative_pcb-a0.3-g0.99}
  table12:
    title: Losses of my own
    claim: None.
    labels: [Loss]
    columns: [AP, APr]
    rows:
      - {id: mine, labels: [mine], run: v05_r50_random_mine_plain}
      - {id: half, labels: [mine at half], run: v05_r50_random_mine_plain_tau-0.5}
claims:
  - {id: mine-holds, where: "§1", statement: Mine is better.,
     checks: [{metric: AP, higher: table12/mine, lower: table12/half}]}
"""


@pytest.fixture
def overlay(tmp_path):
    """Write an overlay, with a part of its text replaced."""

    def write(old="", new=""):
        assert old in OVERLAY
        (tmp_path / "my_loss.py").write_text(LOSS)
        path = tmp_path / "my_study.yaml"
        path.write_text(OVERLAY.replace(old, new, 1) if old else OVERLAY)
        return path

    return write


def test_it_adds_and_changes_nothing_else(overlay):
    shipped, study = load_study("smoke"), load_study("smoke", overlay=overlay())
    added = set(study.experiments) - set(shipped.experiments)
    assert len(added) == 3 and set(study.tables) - set(shipped.tables) == {"table12"}
    assert len(study.claims) == len(shipped.claims) + 1
    before = [row.id for row in shipped.tables["table06"].rows]
    after = [row.id for row in study.tables["table06"].rows]
    assert after.index("a0.3") == after.index("a0.2") + 1
    assert [i for i in after if i != "a0.3"] == before
    for run in shipped.experiments:
        assert study.fingerprint(run, 0) == shipped.fingerprint(run, 0)


def test_its_losses_are_in_the_registry_and_their_code_in_the_fingerprint(overlay, tmp_path):
    path = overlay()
    study = load_study("smoke", overlay=path)
    loss = study.registry.losses["mine"]
    assert loss.takes == ("instance_counts",) and loss.load().__name__ == "MyLoss"
    run = "v05_r50_random_mine_plain"
    before = study.fingerprint(run, 0)
    (tmp_path / "my_loss.py").write_text(LOSS + "# edited\n")
    assert load_study("smoke", overlay=path).fingerprint(run, 0) != before


def test_a_moved_overlay_has_the_same_fingerprints(overlay, tmp_path):
    before = load_study("smoke", overlay=overlay())
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("my_study.yaml", "my_loss.py"):
        (tmp_path / name).rename(moved / name)
    after = load_study("smoke", overlay=moved / "my_study.yaml")
    assert all(before.fingerprint(r, 0) == after.fingerprint(r, 0) for r in before.experiments)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("losses:", "schedule: {epochs: 2}\nlosses:", "schedule: an overlay cannot change this"),
        ("my_loss.py", "no_loss.py", "no_loss.py does not exist"),
        ("mine: {class", "softmax: {class", "'softmax' is one of the shipped losses"),
        ("takes: [instance_counts]", "takes: [counts]", "'counts' is not one of"),
        ("class: my_loss.py:MyLoss, ", "", "'class' is a required property"),
        ("loss: mine}", "loss: mien}", "'mien' is not one of"),
        ("tau: 0.5}", "tau: 0.7}", "option tau: 0.7 is not allowed"),
        ("after: a0.2", "after: a0.25", "no row 'a0.25'"),
        ("  table06:\n", "  table06:\n    title: Mine\n", "of a shipped table only `rows`"),
        ("[mine], run", "[mine, too], run", "row 'mine' has 2 labels"),
        (
            "  v05_r50_random_mine_plain:",
            "  v05_r50_rfs_softmax_plain:",
            "this experiment is shipped",
        ),
    ],
)
def test_mistakes_name_file_key_and_fix(overlay, old, new, message):
    path = overlay(old, new)
    with pytest.raises(UserError) as error:
        load_study("smoke", overlay=path)
    assert message in error.value.what and error.value.fix
    assert "shipped losses" in message or str(path) in error.value.what


def test_a_class_that_cannot_be_loaded_is_a_user_error(overlay):
    study = load_study("smoke", overlay=overlay("MyLoss", "YourLoss"))
    with pytest.raises(UserError, match="YourLoss"):
        study.registry.losses["mine"].load()
