"""The paths under results/<scale>/: the only module that spells them."""

from __future__ import annotations

from pathlib import Path


class Paths:
    """Paths of one study's results, by the names of runs, seeds and tables; no file is touched."""

    def __init__(self, root: str | Path):
        self.root = Path(root)

    @property
    def study(self) -> Path:
        """The resolved study (paper, scale and overrides) that every job of this folder reads."""
        return self.root / "study.json"

    @property
    def timings(self) -> Path:
        """Seconds and bytes that `pcb measure` found; `pcb.planning.timings` reads them."""
        return self.root / "timings.json"

    def document(self, name: str) -> Path:
        """A document of the site, rendered from docs/: `methods`, `glossary`, `experiments`."""
        return self.site / "docs" / f"{name}.html"

    def data(self, dataset: str) -> Path:
        """Folder of a generated data set (`v05`, `v1`, `pretrain`)."""
        return self.root / "data" / dataset

    def data_manifest(self, dataset: str) -> Path:
        """File names and their SHA-256, which the generator writes last."""
        return self.data(dataset) / "manifest.json"

    def data_check(self, dataset: str) -> Path:
        """Report of `pcb check-data`; every training waits for it."""
        return self.root / "data" / f"{dataset}.check.json"

    def image_list(self, dataset: str) -> Path:
        """Digest and times of each image at the last check, so that none is read twice."""
        return self.root / "data" / f"{dataset}.images.json"

    @property
    def digests(self) -> Path:
        """Folder of digests of files with their times; may be deleted at any time."""
        return self.root / "data" / "digests"

    @property
    def indices(self) -> Path:
        """Folder of memory-mapped indices of annotation files; may be deleted at any time."""
        return self.root / "data" / "index"

    def weights(self, backbone: str) -> Path:
        """Pretrained weights from which every run with this backbone starts."""
        return self.root / "pretrained" / f"{backbone}.pth"

    def weights_record(self, backbone: str) -> Path:
        """Record of the starting weights: their fingerprint and the digest of the file."""
        return self.root / "pretrained" / f"{backbone}.json"

    def run(self, run: str, seed: int) -> Path:
        """Folder of a run's records, detections and metrics."""
        return self.root / "runs" / run / f"seed{seed}"

    def trunk(self, run: str, seed: int) -> Path:
        """Record of a shared trunk, with its checkpoint after the last epoch before PCB starts."""
        return self.run(run, seed) / "trunk.json"

    def train(self, run: str, seed: int) -> Path:
        """Record of a finished training: provenance and the final checkpoint's path."""
        return self.run(run, seed) / "run.json"

    def training_log(self, run: str, seed: int, trunk: bool = False) -> Path:
        """Losses of a finished training, or trunk, over its iterations; keys: docs/scaling.md."""
        return self.run(run, seed) / ("trunk-log.jsonl" if trunk else "log.jsonl")

    @property
    def lock(self) -> Path:
        """Lock that a run of the workflow holds while it fills this folder."""
        return self.root / ".lock"

    @property
    def jobs(self) -> Path:
        """Folder in which every living job of this folder is registered."""
        return self.root / ".jobs"

    def work(self, fingerprint: str) -> Path:
        """Folder of a training's checkpoints and logs.

        It is not declared to Snakemake, so a failed job never deletes it.
        """
        return self.root / "work" / fingerprint

    @property
    def features(self) -> Path:
        """Feature caches of frozen backbones, shared by all runs; may be deleted at any time."""
        return self.root / "work" / "features"

    def detections(self, run: str, seed: int, split: str = "val") -> Path:
        """Manifest of the detection shards of a split; the shards are in the folder of its stem."""
        return self.run(run, seed) / f"detections{_of(split)}.json"

    def confusion(self, run: str, seed: int, split: str = "val") -> Path:
        """Confusion matrix over a split's proposals (Eq. 3): `matrix` (C, C) and `seen` (C,)."""
        return self.run(run, seed) / f"confusion{_of(split)}.npz"

    def confusion_images(self, run: str, seed: int) -> Path:
        """The sums behind the confusion matrix of val, image by image."""
        return self.run(run, seed) / "confusion-images.npz"

    def ahead(self, path: Path) -> Path:
        """Where a training leaves a result of its own detection, until the detection's job."""
        return path.parent / "ahead" / path.name

    def train_confusion_record(self, run: str, seed: int) -> Path:
        """Record of the confusion matrix of the training images: of which evaluation it is."""
        return self.run(run, seed) / "confusion-train.json"

    def metrics(self, run: str, seed: int, split: str = "val") -> Path:
        """All metrics of a run on a split, of every evaluation variant."""
        return self.run(run, seed) / f"metrics{_of(split)}.json"

    def oracle(self, run: str, seed: int) -> Path:
        """AP of a run calibrated with its own and with other images of val (`pcb oracle`)."""
        return self.run(run, seed) / "oracle.json"

    def bootstrap(self, run: str, seed: int) -> Path:
        """The metrics of a run on resamples of the validation images."""
        return self.run(run, seed) / "bootstrap.npz"

    def gathered(self, target: str) -> Path:
        """A notebook's only input: a table or figure with our numbers, or what a page shows."""
        return self.root / "gathered" / f"{target}.json"

    def page_record(self, target: str) -> Path:
        """Record of a page, or of `site`: digests of what it was made from and of its files."""
        return self.root / "gathered" / "pages" / f"{target}.json"

    @property
    def site(self) -> Path:
        """Folder of the rendered pages; it may be copied anywhere."""
        return self.root / "site"

    @property
    def index(self) -> Path:
        """The page that links all others."""
        return self.site / "index.html"

    def run_page(self, run: str) -> Path:
        """The page of a run: all its seeds, curves and classes."""
        return self.site / "runs" / f"{run}.html"

    def notebook(self, target: str) -> Path:
        """Executed notebook of a table, figure or page."""
        return self.site / "notebooks" / f"{target}.ipynb"

    def html(self, target: str) -> Path:
        """The notebook as a page."""
        return self.site / "notebooks" / f"{target}.html"

    def table(self, target: str, suffix: str) -> Path:
        """Rendered table: suffix `csv`, `md` or `tex`."""
        return self.site / "tables" / f"{target}.{suffix}"

    def figure(self, target: str) -> Path:
        """Plot of a table or figure."""
        return self.site / "figures" / f"{target}.png"

    def download(self, name: str) -> Path:
        """A data file of the site, such as `metrics.csv` or `claims.json`."""
        return self.site / "data" / name

    def log(self, job: str) -> Path:
        """Output of a job."""
        return self.root / "logs" / f"{job}.log"

    def benchmark(self, job: str) -> Path:
        """Snakemake's record of a job's time and memory."""
        return self.root / "benchmarks" / f"{job}.tsv"


def _of(split: str) -> str:
    """Suffix of the files of a split other than val."""
    return "" if split == "val" else f"-{split}"
