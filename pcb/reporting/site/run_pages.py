"""A page for each run, `site/runs/RUN.html`: what was trained, what came out, and how it went.

    numbers    every metric of every variant, seeds side by side, and the difference from the base
    cost       time and memory beside the base's
    training   curves of losses, PwB of the moving matrix and learning rate; a table of epochs
    classes    AP and precision-recall curve of each class
    identity   resolved configuration, and where each seed comes from

A run that was not run has a page too, so that no link to it breaks. The base of a run is that of
the first row that declares one (`base:` in configs/paper.yaml).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev

import yaml

from pcb import formatting
from pcb.files import write_text
from pcb.formatting import signed
from pcb.frequency import GROUP_NAMES
from pcb.reporting import captions, style
from pcb.reporting.claims import difference
from pcb.reporting.curves import Curves
from pcb.reporting.gather import scale_about
from pcb.reporting.results import Results
from pcb.reporting.site import chart, data
from pcb.reporting.tables import LESS_IS_BETTER
from pcb.study import METRICS, Row
from pcb.study.study import CURVE_IOU, CURVE_RECALLS

SAMPLERS = {"random": "random sampling", "rfs": "repeat factor sampling"}


def write(results: Results, entries: Sequence[dict]) -> None:
    """Write the pages of all runs, from what `data.runs` returned; remove those of other runs."""
    study = results.study
    of_run: dict[str, list[dict]] = {run: [] for run in study.runs()}
    for entry in entries:
        of_run[entry["run"]].append(entry)
    order = list(of_run)
    template = style.templates().get_template("run.html.j2")
    for i, run in enumerate(order):
        near = {"before": order[i - 1] if i else None, "after": (order[i + 1 :] or [None])[0]}
        write_text(study.paths.run_page(run), template.render(**page(results, of_run[run]), **near))
    for path in study.paths.run_page("any").parent.glob("*.html"):
        if path.stem not in of_run:
            path.unlink()


def page(results: Results, entries: Sequence[dict]) -> dict:
    """The content of a run's page.

    Args:
        results: The results.
        entries: What `data.runs` returned of this run, one for each seed.
    """
    study, run = results.study, entries[0]["run"]
    base = base_of(results, run)
    done = [e["seed"] for e in entries if e["state"] != data.NOT_RUN]
    seeds = study.seeds
    own = {seed: c for seed in seeds if (c := results.curves(run, seed))}
    theirs = {seed: c for seed in seeds if base and (c := results.curves(base, seed))}
    return {
        "run": run,
        "scale": study.scale,
        "words": words(results, run),
        "shown_in": shown_in(results, run),
        "base": base,
        "trunk": study.experiments[run].trunk,
        "seeds": seeds,
        "done": done,
        "variants": [of for v in study.variants(run) if (of := numbers(results, run, v, base))],
        "costs": costs(results, run, base),
        "charts": charts(results, run, own, theirs),
        "epochs": {seed: epochs(curves) for seed, curves in own.items()},
        "classes": classes(results, run, base),
        "curve": group_curves(results, run, base),
        "curve_iou": CURVE_IOU,
        "groups": GROUP_NAMES,
        "config": configuration(results, run),
        "provenance": [(e["seed"], e["state"], data.facts(e)) for e in entries],
    }


def base_of(results: Results, run: str) -> str | None:
    """The run with which the first table that declares a base of it compares it."""
    for table in results.study.tables.values():
        rows = {row.id: row for row in table.rows}
        for row in table.rows:
            if row.run == run and row.base and rows[row.base].run != run:
                return rows[row.base].run
    return None


def words(results: Results, run: str) -> str:
    """The factors of a run as a sentence."""
    study, experiment = results.study, results.study.experiments[run]
    registry, about = study.registry, scale_about(results, [run])
    parts = [
        f"data set {captions.dataset_name(about, study.scale['datasets'][experiment.dataset])}",
        f"backbone {experiment.backbone}",
        SAMPLERS[experiment.sampler],
        f"loss {experiment.loss}: {registry.losses[experiment.loss].title}",
        f"paradigm {experiment.paradigm}: {registry.paradigms[experiment.paradigm].title}",
    ]
    if experiment.pcb:
        scaled = study.scaled_gamma(experiment.pcb.gamma)
        at_scale = f" ({scaled:g} at this scale)" if scaled != experiment.pcb.gamma else ""
        parts.append(
            f"PCB with α = {experiment.pcb.alpha:g}, γ = {experiment.pcb.gamma:g}{at_scale}"
        )
    parts += [f"{key}: {value}" for key, value in experiment.options.items()]
    return "; ".join(parts)


def shown_in(results: Results, run: str) -> list[dict]:
    """The rows of tables and the pages that show a run."""
    study = results.study
    return [
        {
            "href": f"../{study.paths.index.name}#{table.id}",
            "name": formatting.number(table.id),
            "row": " · ".join(row.labels.values()),
        }
        for table in study.tables.values()
        for row in table.rows
        if row.run == run
    ]


# Numbers


def numbers(results: Results, run: str, variant: str, base: str | None) -> dict | None:
    """The metrics of a variant; None where no seed has them.

    A calibrated variant is compared with `plain` of the same run, `plain` with the base's.
    """
    found = [results.values(run, seed, variant) or {} for seed in results.study.seeds]
    reference = (run, "plain") if variant != "plain" else (base, "plain") if base else None
    lines = []
    for metric in METRICS:
        values = [of_seed.get(metric) for of_seed in found]
        known = [value for value in values if value is not None]
        if not known:
            continue
        digits = 3 if metric == "Mcor" else 2
        lines.append(
            {
                "metric": style.name(metric, "html"),
                "seeds": ["–" if v is None else f"{v:.{digits}f}" for v in values],
                "mean": f"{fmean(known):.{digits}f}",
                "std": f"{stdev(known):.{digits}f}" if len(known) > 1 else "",
                **compared(results, (run, variant), reference, metric, digits),
            }
        )
    compares = "" if reference is None else "plain" if reference[0] == run else "base"
    return {"name": variant, "lines": lines, "compares": compares} if lines else None


def compared(
    results: Results,
    of: tuple[str, str],
    reference: tuple[str, str] | None,
    metric: str,
    digits: int,
) -> dict:
    """The difference of a (run, variant) from another, as texts; empty where there is none."""
    none = {"base": "", "difference": "", "interval": "", "better": ""}
    if reference is None:
        return none
    row, base = (Row(name, {}, *pair) for name, pair in (("run", of), ("base", reference)))
    found = difference(results, row, base, metric)
    values = (results.values(*_at(reference, seed)) or {} for seed in results.study.seeds)
    theirs = [v for of_seed in values if (v := of_seed.get(metric)) is not None]
    if found.margin is None or not theirs:
        return none
    shown = {
        **none,
        "base": f"{fmean(theirs):.{digits}f}",
        "difference": signed(found.margin, digits),
    }
    low, high = found.low, found.high
    if low is None or high is None or not (found.seeds > 1 or found.images):
        return shown  # the limits would be those of rounding
    gain = found.margin * (-1 if metric in LESS_IS_BETTER else 1)
    return {
        **shown,
        "interval": f"{signed(low, digits)} to {signed(high, digits)}",
        "better": ("better" if gain > 0 else "worse") if low * high > 0 else "",
    }


def _at(of: tuple[str, str], seed: int) -> tuple[str, int, str]:
    """Arguments of `Results.values` for a (run, variant)."""
    return of[0], seed, of[1]


def costs(results: Results, run: str, base: str | None) -> list[dict]:
    """Time and memory of a run beside its base's: means over seeds, and their ratio."""
    ours, theirs = cost(results, run), cost(results, base) if base else {}
    lines = []
    for name, form in COSTS.items():
        if name in ours:
            ratio = ours[name] / theirs[name] if theirs.get(name) else None
            lines.append(
                {
                    "name": name,
                    "ours": form(ours[name]),
                    "base": form(theirs[name]) if name in theirs else "",
                    "ratio": "" if ratio is None else f"{ratio:.2f} ×",
                }
            )
    return lines


def milliseconds(seconds: float) -> str:
    """Less than some seconds: `38 ms`, `1.25 s`."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.3g} s"


COSTS = {
    "training, shared epochs included": formatting.duration,
    "an iteration, in the epochs of its own": milliseconds,
    "peak memory of the process": lambda mib: formatting.size(mib * 2**20),
    "peak memory of a GPU": lambda mib: formatting.size(mib * 2**20),
    "detecting on an image": milliseconds,
}


def cost(results: Results, run: str) -> dict[str, float]:
    """Seconds and MiB of a run by the names of `COSTS`, means over seeds; only what is known."""
    found: dict[str, list[float]] = {name: [] for name in COSTS}
    training, iteration, process, gpu, image = found.values()
    trunk = results.study.experiments[run].trunk
    for seed in results.study.seeds:
        record = results.record(run, seed)
        if record is None:
            continue
        shared = results.trunk(trunk, seed) if trunk else None
        if record.get("seconds") is not None and bool(shared) == bool(trunk):
            training.append(record["seconds"] + (shared["seconds"] if shared else 0))
        memory = record.get("peak_memory_mib", {})
        process += [memory["process"]] if "process" in memory else []
        gpu += [memory["gpu"]] if "gpu" in memory else []
        if curves := results.curves(run, seed):
            start = results.study.trunk_epochs if trunk else 0
            pairs = zip(curves.epochs, curves["seconds_per_iteration"], strict=True)
            iteration += [fmean(own)] if (own := [s for at, s in pairs if s and at > start]) else []
        if detected := results.manifest(run, seed):
            seconds = detected["seconds"] * detected.get("processes", 1)
            image.append(seconds / detected["images"])
    return {name: fmean(values) for name, values in found.items() if values}


# Training


def charts(
    results: Results, run: str, own: dict[int, Curves], theirs: dict[int, Curves]
) -> list[dict]:
    """The charts of a training: seeds as lines, the mean of the base's seeds as a dashed line."""
    if not own:
        return []
    experiment = results.study.experiments[run]
    first = next(iter(own.values()))
    marks = []
    if experiment.pcb or experiment.trunk:
        marks.append((float(results.study.trunk_epochs), "PCB may start"))
    if first.second_stage:
        marks.append((first.second_stage, "second stage"))
    out = []
    for key, title in {
        "loss": "Loss",
        "pwb": f"PwB of the moving matrix (γ = {first.momentum})",
        "lr": "Learning rate",
    }.items():
        several = len(own) > 1
        lines = [
            chart.Line(f"seed {seed}" if several else "this run", c.points(key), f"s{k % 6}")
            for k, (seed, c) in enumerate(own.items())
        ]
        if key == "lr":  # the same at every seed
            lines = [chart.Line("learning rate", first.points("lr"), "s0")]
        elif theirs:
            lines.append(chart.Line("base", mean_line(theirs.values(), key), "base"))
        lines = [line for line in lines if line.points]
        if lines:
            out.append(drawn(title, lines, marks if key != "lr" else ()))
        if key == "loss" and len(first.parts) > 1:
            parts = [
                chart.Line(name.removeprefix("loss_"), mean_line(own.values(), name), f"s{k % 6}")
                for k, name in enumerate(first.parts)
            ]
            mean = ", mean over seeds" if several else ""
            out.append(drawn(f"Parts of the loss{mean}", parts, marks))
    return out


def drawn(title: str, lines: Sequence[chart.Line], marks: Sequence[tuple[float, str]]) -> dict:
    """A chart over epochs with its title and legend."""
    return {
        "title": title,
        "svg": chart.chart(lines, finding(title, lines), "epoch", digits=3, marks=marks),
        "legend": [(line.look, line.name) for line in lines],
    }


def finding(title: str, lines: Sequence[chart.Line]) -> str:
    """What a chart shows: where each line begins and ends."""
    parts = [
        f"{line.name} goes from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}"
        for line in lines
        if line.points
    ]
    epochs = max(x for line in lines for x, _ in line.points)
    return f"{title} over {epochs:g} epochs: {'; '.join(parts)}"


def mean_line(curves: Iterable[Curves], key: str) -> list[chart.Point]:
    """The mean of several curves, where at least one has a value."""
    values: dict[float, list[float]] = {}
    for curve in curves:
        for x, y in curve.points(key):
            values.setdefault(round(x, 3), []).append(y)
    return [(x, fmean(ys)) for x, ys in sorted(values.items())]


def epochs(curves: Curves) -> dict:
    """The last record of each epoch, as the texts of a table."""
    parts = curves.parts
    lines = []
    for record in curves.by_epoch():
        losses, gpu = record.get("losses", {}), record.get("memory_mib", {})
        lines.append(
            [
                f"{record['at']:g}",
                f"{record['lr']:.3g}",
                _short(record["loss"]),
                *(_short(losses.get(name)) for name in parts),
                _short(record.get("pwb", {}).get(curves.momentum)),
                milliseconds(record["seconds_per_iteration"]),
                f"{gpu.get('gpu', gpu.get('process', 0)):,}",
            ]
        )
    names = [name.removeprefix("loss_") for name in parts]
    return {"head": ["epoch", "lr", "loss", *names, "PwB", "s / it", "MiB"], "lines": lines}


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


# Classes


def classes(results: Results, run: str, base: str | None) -> list[dict]:
    """The classes of a run with AP and curve, rarest first; empty where it was not scored."""
    ours, theirs = by_class(results, run), by_class(results, base) if base else {}
    out = []
    for name, entry in ours.items():
        other = theirs.get(name, {"AP": None, "curve": []})
        ap, before = entry["AP"], other["AP"]
        gain = None if ap is None or before is None else ap - before
        out.append(
            {
                **entry,
                "name": name,
                "before": before,
                "gain": gain,
                "path": spark(entry["curve"]),
                "base_path": spark(other["curve"]),
            }
        )
    return sorted(out, key=lambda c: (c["images"], c["name"]))


def by_class(results: Results, run: str) -> dict[str, dict]:
    """Means over seeds of AP and precision (percent) of each class, by its name."""
    found: dict[str, list[dict]] = {}
    for seed in results.study.seeds:
        metrics = results.metrics(run, seed)
        for entry in metrics["classes"]["plain"] if metrics else ():
            found.setdefault(entry["name"], []).append(entry)
    out = {}
    for name, entries in found.items():
        known = [entry["AP"] for entry in entries if entry["AP"] is not None]
        curves = [entry["precision"] for entry in entries if entry.get("precision")]
        out[name] = {
            "group": entries[0]["frequency"],
            "images": entries[0]["train_images"],
            "AP": fmean(known) if known else None,
            "curve": [fmean(level) / 10 for level in zip(*curves, strict=True)],
        }
    return out


def spark(curve: Sequence[float]) -> str:
    """A precision-recall curve as the points of a polyline of 84 x 24."""
    last = max(1, len(curve) - 1)
    return " ".join(f"{84 * k / last:.0f},{24 - 0.24 * y:.0f}" for k, y in enumerate(curve))


def group_curves(results: Results, run: str, base: str | None) -> dict | None:
    """The mean precision-recall curves of rare, common and frequent classes."""
    lines = []
    for of, look in ((run, ""), (base, " base")):
        entries = by_class(results, of).values() if of else ()
        for group, name in GROUP_NAMES.items():
            members = [e["curve"] for e in entries if e["group"] == group and e["curve"]]
            means = [fmean(level) for level in zip(*members, strict=True)]
            points = list(zip(map(float, CURVE_RECALLS), means, strict=True)) if means else []
            lines.append(chart.Line(f"{name}{', base' if look else ''}", points, f"g{group}{look}"))
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    parts = [f"{line.name} {fmean(y for _, y in line.points):.0f} %" for line in lines]
    alt = f"Precision over recall at IoU {CURVE_IOU}, mean precision: {', '.join(parts)}"
    return {
        "svg": chart.chart(lines, alt, "recall, %", xlimit=100, ylimit=100),
        "legend": [(line.look, line.name) for line in lines],
    }


def configuration(results: Results, run: str) -> str:
    """Everything that determines the weights and the numbers of a run, as YAML."""
    study = results.study
    seed = study.seeds[0]
    hardware = study.scale["hardware"]
    resolved = {
        "train": study.train_job(run, seed),
        "evaluate": study.eval_job(run, seed),
        "hardware (no part of the identity)": hardware,
    }
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the first is ten times as fast
    return yaml.dump(resolved, None, dumper, sort_keys=False, allow_unicode=True, width=100)
