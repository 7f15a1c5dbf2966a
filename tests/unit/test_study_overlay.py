"""An overlay adds to the paper's study and leaves the paper unchanged."""

from __future__ import annotations

import pytest

from pcb.errors import UserError
from pcb.study import load_study

LOSS = """
from pcb.losses.softmax import SoftTargetCrossEntropy
class MyLoss(SoftTargetCrossEntropy):
    pass
class MyOtherLoss(SoftTargetCrossEntropy):
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


@pytest.mark.parametrize(
    "old, new, same",
    [
        ("{class:", "{title: A loss of my own, class:", True),
        ("[1.0, 0.5]", "[1.0, 0.5, 0.25]", True),
        (":MyLoss", ":MyOtherLoss", False),
        ("takes: [instance_counts]", "takes: [start_epoch]", False),
    ],
)
def test_of_a_loss_only_class_code_and_arguments_train_again(overlay, old, new, same):
    run = "v05_r50_random_mine_plain_tau-0.5"
    before = load_study("smoke", overlay=overlay()).fingerprint(run, 0)
    assert (load_study("smoke", overlay=overlay(old, new)).fingerprint(run, 0) == before) == same


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
        ("  table06:\n", "  table06:\n    title: Mine\n", "can only add `rows` to a shipped table"),
        ("[mine], run", "[mine, too], run", "row 'mine' has 2 labels"),
        ("{id: a0.3,", "{", "tables.table06.rows.0: 'id' is a required property"),
        ("id: mine-holds, ", "", "claims.0: 'id' is a required property"),
        ("table12:", "mytable:", "tables.mytable: unknown key; keys have the form"),
        (":MyLoss", ":YourLoss", "my_loss.py has no class 'YourLoss'"),
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
    assert str(path) in error.value.what


@pytest.mark.parametrize(
    "text, message",
    [
        ("losses: [mine]", "losses: ['mine'] is not of type 'object'"),
        ("losses: {mine: my_loss.py}", "losses.mine: 'my_loss.py' is not of type 'object'"),
        ("experiments: [1]", "experiments: [1] is not of type 'object'"),
        ("tables: [1]", "tables: [1] is not of type 'object'"),
        ("tables: {table06: 1}", "tables.table06: 1 is not of type 'object'"),
        ("tables: {table06: {rows: 1}}", "tables.table06.rows: 1 is not of type 'array'"),
        ("tables: {table06: {rows: [1]}}", "tables.table06.rows.0: 1 is not of type 'object'"),
        ("claims: {a: b}", "claims: {'a': 'b'} is not of type 'array'"),
    ],
)
def test_a_value_of_another_form_is_named_by_its_key(tmp_path, text, message):
    path = tmp_path / "my_study.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_study("smoke", overlay=path)
    assert str(path) in error.value.what and message in error.value.what


def test_an_empty_key_adds_nothing(tmp_path):
    path = tmp_path / "my_study.yaml"
    path.write_text("losses:\nexperiments:\ntables:\nclaims:\n")
    assert load_study("smoke", overlay=path).tables == load_study("smoke").tables


@pytest.mark.parametrize(
    "code, message",
    [("class MyLoss(:\n", "is not valid Python"), ("x = 1\n", "has no class 'MyLoss'")],
)
def test_a_file_that_cannot_hold_the_class_is_refused_before_anything_runs(
    overlay, tmp_path, code, message
):
    path = overlay()
    (tmp_path / "my_loss.py").write_text(code)
    with pytest.raises(UserError, match=message):
        load_study("smoke", overlay=path)


def test_a_file_that_cannot_be_imported_is_a_user_error(overlay, tmp_path):
    path = overlay()
    (tmp_path / "my_loss.py").write_text("import no_such_module\n" + LOSS)
    study = load_study("smoke", overlay=path)
    with pytest.raises(UserError, match=r"cannot be imported: No module named 'no_such_module'"):
        study.registry.losses["mine"].load()
