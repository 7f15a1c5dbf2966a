"""The paper's study laid out for data sets of one's own.

    datasets:
      mine: {title: My photographs, format: coco, in_place_of: v05, train: ..., val: ..., images: …}

Every experiment of the paper on `v05` is then one on `mine`, and so are the rows and pages that
show it: `mine_r50_rfs_softmax_plain` in the row `mine-rfs`. Published numbers and claims are about
LVIS, so such a study has none of them.
"""

from __future__ import annotations

from pcb.study.detector_config import detector_title

PAPER_DATASETS = ("v05", "v1")
ABOUT_CLAIMS = ("findings", "protocols")  # summaries that judge the paper's claims


def replaced(scale: dict) -> dict[str, str]:
    """Data set of the paper -> the own data set that takes its place."""
    return {
        entry["in_place_of"]: name
        for name, entry in scale["datasets"].items()
        if "in_place_of" in entry
    }


def lay_out(paper: dict, scale: dict) -> dict:
    """Lay the paper's study out for the own data sets of a scale.

    Args:
        paper: The content of configs/paper.yaml.
        scale: A valid scale.

    Returns:
        The paper itself where the scale replaces none of its data sets.
    """
    names = replaced(scale)
    if not names:
        return paper
    run_of = {
        run: f"{names[spec['dataset']]}{run.removeprefix(spec['dataset'])}"
        for run, spec in paper["experiments"].items()
        if spec["dataset"] in names
    }

    def experiment(spec: dict) -> dict:
        out = {**spec, "dataset": names.get(spec["dataset"], spec["dataset"])}
        if "trunk" in spec:
            out["trunk"] = run_of.get(spec["trunk"], spec["trunk"])
        return out

    def row(spec: dict, labels: list[str]) -> dict:
        if spec["run"] not in run_of:
            return spec
        old = paper["experiments"][spec["run"]]
        own = names[old["dataset"]]
        out = {k: v for k, v in spec.items() if k not in ("paper", "copied_from")}
        out["run"] = run_of[spec["run"]]
        for key in ("id", "base"):
            if spec.get(key, "").startswith(f"{old['dataset']}-"):
                out[key] = own + spec[key].removeprefix(old["dataset"])
        ours = labels_of(scale, own, old["backbone"])
        texts = zip(labels, spec["labels"], strict=True)
        out["labels"] = [ours.get(label, text) for label, text in texts]
        return out

    def page(spec: dict) -> dict:
        compare = [
            {key: run_of.get(value, value) for key, value in entry.items()}
            for entry in spec["compare"]
        ]
        return {**spec, "compare": compare}

    verdict = {"verdict": {**paper["verdict"], "main": []}} if "verdict" in paper else {}
    return {
        **paper,
        **verdict,
        "experiments": {
            run_of.get(run, run): experiment(spec) for run, spec in paper["experiments"].items()
        },
        "tables": {
            key: {
                **spec,
                "claim": f"On LVIS: {spec['claim']}",
                "rows": [row(entry, spec["labels"]) for entry in spec["rows"]],
            }
            for key, spec in paper["tables"].items()
        },
        "pages": {key: page(spec) for key, spec in paper.get("pages", {}).items()},
        "summaries": {
            key: spec for key, spec in paper.get("summaries", {}).items() if key not in ABOUT_CLAIMS
        },
        "claims": [],
    }


def labels_of(scale: dict, dataset: str, backbone: str) -> dict[str, str]:
    """Label column -> text of a row on own data, where the paper names its data or detector."""
    labels = {"Dataset": scale["datasets"][dataset]["title"]}
    if backbone in scale["backbones"]:
        detector = detector_title(scale["backbones"][backbone]["config"], frozen=False)
        labels |= {"Backbone": detector, "Model": detector}
    return labels
