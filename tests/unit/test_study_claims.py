"""Claims: the forms of a check, verdicts with intervals, and the published numbers by that rule."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import stdtrit

from pcb.errors import UserError
from pcb.files import ROOT
from pcb.study import load_study
from pcb.study.checks import check_claims
from pcb.study.claims import (
    FAILS,
    GROUPS,
    HOLDS,
    NOT_COMPARABLE,
    NOT_JUDGED,
    NOT_RUN,
    PARTLY,
    WITHIN_NOISE,
    Check,
    Claim,
    evaluate,
    evaluate_published,
    judge,
    published,
    status_of,
)

A, B, C = ("t/a", "t/b", "t/c")


@pytest.fixture(scope="module")
def study():
    return load_study("mini")


def values(metric="AP", **rows):
    return {("t", row, metric): numbers for row, numbers in rows.items()}


def verdict(spec, found):
    return judge(Check.read(spec), found).status


HIGHER = {"metric": "AP", "higher": A, "lower": B}


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ([21.9], [21.8], HOLDS),
        ([21.8], [21.8], WITHIN_NOISE),
        ([21.84], [21.8], WITHIN_NOISE),
        ([21.7], [21.8], FAILS),
        # Seeds differ by far more than 1, but in each the difference is 1.
        ([22, 24, 26], [21, 23, 25], HOLDS),
        # Differences 2, -0.5, 1: mean 0.83, standard deviation 1.26.
        ([22, 22, 22], [20, 22.5, 21], WITHIN_NOISE),
        ([21, 21, 21], [23, 23.1, 22.9], FAILS),
        (None, [21.8], NOT_RUN),
        ([None], [21.8], NOT_RUN),
        ([], [], NOT_RUN),
        ([22.0, None], [21.0, 25.0], HOLDS),
    ],
)
def test_verdicts_on_a_difference(a, b, expected):
    assert verdict(HIGHER, values(a=a, b=b)) == expected


def test_an_interval_over_seeds_is_that_of_paired_differences():
    """Differences 1, 3 and 2: Student's interval 2 ± 4.303 / sqrt(3)."""
    found = judge(Check.read(HIGHER), values(a=[20.0, 30.0, 25.0], b=[19.0, 27.0, 23.0]))
    reach = 4.302653 / 3**0.5
    assert (found.margin, found.seeds, found.images) == (2.0, 3, False)
    assert (found.low, found.high) == pytest.approx((2 - reach, 2 + reach), abs=1e-5)


def test_an_interval_of_one_seed_covers_the_sampling_of_images():
    """The difference's spread counts, not that of the two numbers, which share their images."""
    rng = np.random.default_rng(0)
    shared, own = 5 * rng.normal(size=400), rng.normal(size=400)
    replicates = values(a=[22 + shared + own], b=[21 + shared])
    found = judge(Check.read(HIGHER), values(a=[24.0], b=[21.0]), replicates)
    reach = stdtrit(399, 0.975) * own.std(ddof=1)
    assert found.images and found.status == HOLDS
    assert (found.low, found.high) == pytest.approx((3 - reach, 3 + reach))
    assert judge(Check.read(HIGHER), values(a=[22.0], b=[21.0]), replicates).status == WITHIN_NOISE


def test_variances_of_images_and_of_seeds_add_up():
    rng = np.random.default_rng(0)
    replicates = values(a=list(rng.normal(size=(3, 400))), b=[np.zeros(400)] * 3)
    found = judge(Check.read(HIGHER), values(a=[1.0, 2.0, 3.0], b=[0.0, 0.0, 0.0]), replicates)
    images, seeds = replicates["t", "a", "AP"], 1 / 3  # variance 1 between seeds, of three
    images = np.mean(images, 0).var(ddof=1)
    freedom = (images + seeds) ** 2 / (images**2 / 399 + seeds**2 / 2)
    reach = stdtrit(freedom, 0.975) * (images + seeds) ** 0.5
    assert 2 < freedom < 20 and found.high - found.margin == pytest.approx(reach)


def test_intervals_over_images_cover_the_truth():
    """Of 400 experiments with a true difference of 0, about 5 % find another."""
    rng = np.random.default_rng(0)
    decided = 0
    for _ in range(400):
        image = rng.normal(size=60)  # what each of 60 images contributes to the difference
        weights = rng.multinomial(60, np.full(60, 1 / 60), 200)
        replicates = values(a=[weights @ image / 60], b=[np.zeros(200)])
        found = judge(Check.read(HIGHER), values(a=[image.mean()], b=[0.0]), replicates)
        decided += found.status != WITHIN_NOISE
    assert 0.02 < decided / 400 < 0.09


def test_equal_rows_do_not_fail_as_not_increasing():
    """The smallest of noisy differences is below 0 by chance: each difference has its interval."""
    rng = np.random.default_rng(0)
    check = Check.read({"metric": "AP", "increasing": [A, B, C, "t/d", "t/e"]})
    failed = 0
    for _ in range(200):
        rows = rng.normal(size=(5, 1)) + rng.normal(size=(5, 200))
        cells = dict(zip("abcde", rows, strict=True))
        replicates = values(**{k: [v - v.mean()] for k, v in cells.items()})
        found = judge(check, values(**{k: [v.mean()] for k, v in cells.items()}), replicates)
        assert found.status != HOLDS and found.low < found.margin < found.high
        failed += found.status == FAILS
    assert failed / 200 < 0.15  # by the margin's own percentiles it would be most of them


def test_resamples_without_a_value_are_left_out():
    """A resample of few images may show no rare class, and has no AP_r."""
    noise = np.random.default_rng(0).normal(size=100)
    full = judge(Check.read(HIGHER), values(a=[3.0], b=[0.0]), values(a=[noise], b=[0 * noise]))
    holes = np.insert(noise, 50, [np.nan] * 7)
    found = judge(Check.read(HIGHER), values(a=[3.0], b=[0.0]), values(a=[holes], b=[0 * holes]))
    assert found == full and found.images
    nothing = values(a=[np.full(9, np.nan)], b=[np.zeros(9)])
    found = judge(Check.read(HIGHER), values(a=[3.0], b=[0.0]), nothing)
    assert not found.images and found.status == HOLDS and found.low is None


def test_a_seed_without_resamples_leaves_the_seeds_interval():
    replicates = values(a=[np.zeros(10), None], b=[np.zeros(10), np.zeros(10)])
    found = judge(Check.read(HIGHER), values(a=[2.0, 2.1], b=[1.0, 1.0]), replicates)
    assert not found.images and found.seeds == 2


@pytest.mark.parametrize("by, expected", [(9.4, HOLDS), (9.3, HOLDS), (9.5, FAILS), (-0.1, HOLDS)])
def test_by_counts_as_printed(by, expected):
    assert verdict({**HIGHER, "by": by}, values(a=[23.7], b=[14.3])) == expected


def test_the_other_forms():
    rising = values(a=[1.0], b=[2.0], c=[3.0])
    assert verdict({"metric": "AP", "increasing": [A, B, C]}, rising) == HOLDS
    assert verdict({"metric": "AP", "increasing": [A, C, B]}, rising) == FAILS
    assert verdict({"metric": "AP", "highest": C, "among": [A, B, C]}, rising) == HOLDS
    assert verdict({"metric": "AP", "highest": B, "among": [A, C]}, rising) == FAILS
    assert verdict({"metric": "AP", "close": [A, B, C], "within": 2.0}, rising) == HOLDS
    assert verdict({"metric": "AP", "close": [A, B, C], "within": 1.9}, rising) == FAILS
    assert verdict({"metric": "AP", "highest": B, "among": [A, C], "by": -1.0}, rising) == HOLDS
    assert verdict({"metric": "AP", "sometimes": [A, C], "over": [B, A]}, rising) == HOLDS
    assert verdict({"metric": "AP", "sometimes": [A, B], "over": [B, C]}, rising) == FAILS
    assert verdict({"metric": "AP", "near": 2.5, "within": 0.5, "row": B}, rising) == HOLDS
    assert verdict({"metric": "AP", "near": 2.5, "within": 0.4, "row": C}, rising) == FAILS
    falling = {**rising, **values("PwB", a=[9.0], b=[5.0], c=[4.0])}
    assert verdict({"opposed": ["AP", "PwB"], "among": [A, B, C]}, falling) == HOLDS
    assert verdict({"opposed": ["AP", "AP"], "among": [A, B, C]}, rising) == FAILS


def test_an_interval_that_touches_zero_contains_it():
    """To the rounding of a double: 28.6 - 20.6 is not 8.0."""
    tiny = 1e-9
    assert status_of(tiny, 1) == status_of(-1, -tiny) == status_of(-1, 1) == WITHIN_NOISE
    assert (status_of(2 * tiny, 1), status_of(-1, -2 * tiny)) == (HOLDS, FAILS)


def test_a_metric_may_be_a_difference():
    found = {**values("APf", a=[29.0], b=[29.0]), **values("APr", a=[10.0], b=[20.0])}
    assert verdict({"metric": "APf-APr", "higher": A, "lower": B}, found) == HOLDS


def test_unpaired_seeds_are_refused():
    with pytest.raises(ValueError, match="different numbers of seeds"):
        judge(Check.read(HIGHER), values(a=[1.0, 2.0], b=[1.0]))


def test_a_model_s_confusion_is_judged_by_itself_and_by_class_names():
    bias = {**values("Mrf", a=[65.8, 60.0]), **values("Mfr", a=[2.5, 3.5])}
    assert verdict({"metric": "Mrf-Mfr", "above": 0, "row": A}, bias) == HOLDS
    assert verdict({"metric": "Mrf-Mfr", "above": 60, "row": A}, bias) == WITHIN_NOISE
    pair = {"taken": "T-shirt", "for": "polo_shirt", "row": A}
    entries = {
        **values("M[T-shirt>polo_shirt]", a=[12.0]),
        **values("M[polo_shirt>T-shirt]", a=[0.5]),
    }
    assert verdict(pair, entries) == HOLDS
    assert verdict(pair, bias) == NOT_RUN  # a data set without these classes


def test_a_correlation_over_resamples_is_that_of_each():
    rng = np.random.default_rng(0)
    check = Check.read({"opposed": ["AP", "PwB"], "among": [A, B, C]})
    cells = {(*row, m): rng.normal(size=5) for row in check.rows for m in ("AP", "PwB")}
    (margins,) = check.differences(cells)
    each = [check.margin({cell: v[k] for cell, v in cells.items()}) for k in range(5)]
    assert margins == pytest.approx(each)
    ap, pwb = ([cells[(*row, m)][0] for row in check.rows] for m in ("AP", "PwB"))
    assert each[0] == pytest.approx(-np.corrcoef(ap, pwb)[0, 1])


SIZED = {"id": "c", "where": "§1", "statement": "s", "checks": [{**HIGHER, "by": 3.0}]}


def test_sizes_are_judged_only_where_comparable():
    claim, numbers = Claim.read(SIZED), values(a=[25.0], b=[21.0])
    assert claim.kind == "size" and evaluate(claim, numbers)[0] == HOLDS
    status, (found,) = evaluate(claim, numbers, comparable=False)
    assert status == found.status == NOT_COMPARABLE and found.margin == pytest.approx(1.05)
    direction = Claim.read({**SIZED, "checks": [{**HIGHER, "by": -0.1}]})
    assert direction.kind == "direction"
    assert evaluate(direction, numbers, comparable=False)[0] == HOLDS


def test_one_failing_check_fails_a_claim_whatever_the_others_are():
    checks = [HIGHER, {"metric": "AP", "higher": A, "lower": C}, {**HIGHER, "higher": C}]
    claim = Claim.read({**SIZED, "checks": checks})
    status, found = evaluate(claim, values(a=[21.0], b=[21.0], c=[22.0]))
    assert [v.status for v in found] == [WITHIN_NOISE, FAILS, HOLDS] and status == FAILS


def test_a_claim_partly_holds_where_some_checks_hold_and_others_are_within_noise():
    claim = Claim.read({**SIZED, "checks": [HIGHER, {**HIGHER, "higher": C}]})
    assert evaluate(claim, values(a=[21.0], b=[21.0], c=[22.0]))[0] == PARTLY
    assert evaluate(claim, values(a=[21.0], b=[21.0], c=[21.0]))[0] == WITHIN_NOISE
    assert evaluate(claim, values(a=[22.0], b=[21.0], c=[22.0]))[0] == HOLDS


def test_a_claim_of_both_kinds_is_refused(study):
    both = [{**HIGHER, "by": 3.0}, HIGHER]
    with pytest.raises(UserError, match="of direction and of size"):
        check_claims({**study.resolved, "claims": [{**SIZED, "checks": both}]}, "paper.yaml")


def test_every_claim_has_a_quote_and_checks_that_need_numbers(study):
    assert len(study.claims) >= 55
    for claim in study.claims:
        assert claim.quote and claim.group in GROUPS and claim.group != "own"
        assert bool(claim.checks) != bool(claim.unjudged)
        assert evaluate(claim, {})[0] == (NOT_RUN if claim.checks else NOT_JUDGED)


def test_a_tolerance_of_ours_is_stated_as_such(study):
    for claim in study.claims:
        ours = [c for c in claim.checks if c.form in ("close", "near") or (c.threshold or 0) < 0]
        assert not ours or "taken as" in claim.statement, claim.id


def test_a_cause_names_an_experiment_of_this_repository(study):
    scales = {path.stem for path in (ROOT / "configs/scale").glob("*.yaml")}
    for claim in study.claims:
        if claim.cause:
            assert (ROOT / claim.cause["experiment"]).is_file(), claim.id
            assert claim.cause["scale"] in scales


def test_a_check_reads_as_an_inequality():
    assert str(Check.read(HIGHER)) == "AP: t/a > t/b"
    assert str(Check.read({**HIGHER, "by": 3.5})) == "AP: t/a ≥ t/b + 3.5"
    assert str(Check.read({**HIGHER, "by": -0.1})) == "AP: t/a ≥ t/b − 0.1"
    best = {"metric": "AP", "highest": A, "among": [B, C], "by": 0}
    assert str(Check.read(best)) == "AP: t/a ≥ t/b, t/c"
    pairs = {"metric": "APf", "sometimes": [A, B], "over": [B, C]}
    assert str(Check.read(pairs)) == "APf: t/a > t/b or t/b > t/c"


def test_where_the_published_numbers_disagree_with_the_text(study):
    """Seven claims fail on the paper's own tables; all others that can be judged hold."""
    paper = published(study.tables)
    found = {claim.id: evaluate_published(claim, paper) for claim in study.claims}
    checks = {claim.id: claim.checks for claim in study.claims}

    def disagreeing(claim, status):
        return [
            str(check)
            for check, v in zip(checks[claim], found[claim][1], strict=True)
            if v.status == status
        ]

    assert {key for key, (status, _) in found.items() if status == FAILS} == {
        "pcb-lifts-rare",
        "pcb-lifts-rare-most",
        "seesaw-rare",
        "gap-narrows",
        "steps-gap",
        "cm-groups-alike",
        "cm-unbiased",
    }
    assert not [key for key, (status, _) in found.items() if status == WITHIN_NOISE]
    not_run = {key for key, (status, _) in found.items() if status == NOT_RUN}
    assert not_run == {"figure-pair", "scores-follow-counts"}
    # Seesaw on LVIS v1.0: AP_r falls from 19.8 to 19.0, and the gap to AP_f widens.
    assert disagreeing("pcb-lifts-rare", FAILS) == [
        "APr: table02/v1-seesaw-pcb > table02/v1-seesaw"
    ]
    assert disagreeing("gap-narrows", FAILS) == [
        "APf-APr: table03/v1-r50-seesaw > table03/v1-r50-seesaw-pcb"
    ]
    # RFS: the gap is 8.3, 8.7 and 7.9 in the three steps.
    assert disagreeing("steps-gap", FAILS) == [
        "APf-APr: table07/rfs-step3 < table07/rfs-step2 < table07/rfs-step1"
    ]
    # Random sampler with the confusion matrix: AP_r 23.7, AP_f 27.9.
    for claim in ("cm-groups-alike", "cm-unbiased"):
        assert disagreeing(claim, FAILS) == ["APf-APr: table01/random-cm within 3 of 0"]
    # PwB is printed for five of the eight pairs, and for five of the eight rows of v1.0.
    assert len(disagreeing("pcb-lowers-pwb", NOT_RUN)) == 3 and found["pcb-lowers-pwb"][0] == HOLDS
    assert found["pwb-against-ap"][0] == HOLDS
