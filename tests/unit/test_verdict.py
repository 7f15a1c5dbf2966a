"""The verdict follows from the results by a rule: what each of its lines says, and when."""

import pytest
from fabricate import fabricate, study_in
from own_data import own_dataset, own_scale

from pcb.errors import UserError
from pcb.reporting import verdict
from pcb.reporting.claims import verdicts
from pcb.reporting.results import Results
from pcb.study import load_study
from pcb.study.claims import FAILS, HOLDS, WITHIN_NOISE

BASE = "v05_r50_rfs_softmax_plain"
PARADIGM = "v05_r50_rfs_softmax_iterative"
FULL = "v05_r50_rfs_softmax_iterative_pcb-a0.4-g0.99"


def verdict_on(study):
    results = Results(study)
    return verdict.of_results(results, verdicts(results))


def pairs(study):
    """Every base method of Table 2 with the run that adds PCB to it."""
    runs = {row.id: row.run for row in study.tables["table02"].rows}
    return [(runs[r.base], r.run) for r in study.tables["table02"].rows if r.base]


@pytest.mark.parametrize(
    ("checks", "answer"),
    [
        ([HOLDS, HOLDS], "Yes."),
        ([HOLDS, WITHIN_NOISE], "Yes in direction"),
        ([HOLDS, WITHIN_NOISE, WITHIN_NOISE], "Weakly"),
        ([WITHIN_NOISE], "Not decided"),
        ([HOLDS, FAILS], "In part."),
        ([WITHIN_NOISE, FAILS], "No."),
    ],
)
def test_the_answer_follows_from_the_checks_of_the_main_claims(checks, answer):
    assert verdict.answer_of(checks).startswith(answer)


def test_a_number_on_the_other_side_is_no_yes_though_within_the_noise():
    assert verdict.answer_of([HOLDS, WITHIN_NOISE], towards=False).startswith("Mostly")


def test_own_data_are_answered_from_rows_and_their_base_rows(tmp_path):
    study = load_study(own_scale(tmp_path / "own.yaml", own_dataset(tmp_path)))
    assert verdict_on(study)["lines"][0] == {
        "question": "Does PCB help here?",
        "target": "tables",
        "answer": "Not measured yet.",
        "text": "",
    }
    for k, (base, full) in enumerate(pairs(study)):
        fabricate(study, base, AP=20.0, APr=10.0, PwB=3.0)
        fabricate(study, full, AP=22.0 if k else 18.0, APr=12.0, PwB=2.0)
    line = verdict_on(study)["lines"][0]
    assert line["answer"] == "Provisional, one seed: in part."
    assert "AP is better beyond the noise in 3 of 4 pairs, worse in 1;" in line["text"]
    assert line["text"].endswith("PwB is better beyond the noise in 4 of 4 pairs.")


def test_without_results_nothing_is_answered(tmp_path):
    lines = verdict_on(study_in(tmp_path))["lines"]
    assert [entry["answer"] for entry in lines[:2]] == ["Not measured yet."] * 2
    assert "0 of 43 trainings" in lines[2]["text"]


def test_one_seed_is_provisional_and_several_are_not(tmp_path):
    for seeds in ((0,), (0, 1, 2)):
        study = study_in(tmp_path / str(len(seeds)), seeds=seeds)
        for seed in seeds:
            for base, full in pairs(study):
                fabricate(study, base, seed, AP=20.0, APr=10.0, PwB=3.0)
                fabricate(study, full, seed, AP=22.0 + seed / 10, APr=12.0 + seed / 10, PwB=2.0)
        found = verdict_on(study)
        answer = found["lines"][0]["answer"]
        assert found["provisional"] == (len(seeds) == 1)
        assert answer == ("Provisional, one seed: yes." if len(seeds) == 1 else "Yes.")
        assert "8 of 8 checks point that way, all hold" in found["lines"][0]["text"]


def test_an_answer_before_all_is_run_says_how_much_it_rests_on(tmp_path):
    study = study_in(tmp_path)
    base, full = pairs(study)[0]
    fabricate(study, base, AP=20.0, APr=10.0, PwB=3.0)
    fabricate(study, full, AP=22.0, APr=12.0, PwB=2.0)
    line = verdict_on(study)["lines"][0]
    assert line["answer"] == "Provisional, one seed, 3 of 24 main checks run so far: yes."


def test_a_main_claim_that_fails_is_named(tmp_path):
    study = study_in(tmp_path)
    for k, (base, full) in enumerate(pairs(study)):
        fabricate(study, base, AP=20.0, APr=10.0, PwB=3.0)
        fabricate(study, full, AP=22.0 if k else 18.0, APr=12.0, PwB=2.0)
    line = verdict_on(study)["lines"][0]
    assert line["answer"].endswith("in part.")
    assert "7 of 8 checks point that way, 7 hold, 1 fails" in line["text"]


def test_the_gain_is_split_into_paradigm_and_soft_targets(tmp_path):
    study = study_in(tmp_path)
    for run, value in ((BASE, 20.0), (PARADIGM, 21.5), (FULL, 22.0)):
        fabricate(study, run, AP=value)
    line = verdict_on(study)["lines"][1]
    assert "+1.5 of +2.0 AP from the iterative paradigm alone, +0.5 from" in line["answer"]
    assert line["text"] == "In the paper: +0.9 of +2.1, and +1.2."


def test_parts_of_the_gain_have_intervals_from_two_seeds_on(tmp_path):
    study = study_in(tmp_path, seeds=(0, 1, 2))
    for seed in study.seeds:
        for run, value in ((BASE, 20.0), (PARADIGM, 21.0 + seed % 2), (FULL, 22.0 + seed / 10)):
            fabricate(study, run, seed, AP=value)
    line = verdict_on(study)["lines"][1]
    assert (
        "+1.3 of +2.1 AP from the iterative paradigm alone (within the noise), " in line["answer"]
    )
    assert line["text"].startswith("95 % intervals over seeds alone: paradigm [−0.1, +2.8], soft")


def test_what_a_check_is_and_what_became_of_the_papers_numbers_is_said_once(tmp_path):
    text = verdict.markdown(verdict_on(study_in(tmp_path)))
    assert text.count("A check is") == text.count("less is") == 1
    assert " ".join(text.split()).count("on the paper's own numbers") == 3


def test_a_copy_without_a_verdict_is_judged_by_its_numbers(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.csv does not exist"):
        verdict.of_published(study_in(tmp_path), tmp_path)


def test_the_verdict_is_written_between_its_marks(tmp_path):
    page, found = tmp_path / "README.md", verdict_on(study_in(tmp_path))
    page.write_text(f"before\n{verdict.BEGIN}\nlast year\n{verdict.END}\nafter\n")
    for _ in range(2):
        verdict.write_into(page, found)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "last year" not in text
    assert text.count("Not measured yet.") == 2
    page.write_text("no marks")
    with pytest.raises(UserError, match="does not have the marks"):
        verdict.write_into(page, found)
