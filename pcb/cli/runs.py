"""Verbs about one run: from the weights of its backbone to its metrics, and its export."""

from __future__ import annotations

from argparse import Namespace

from pcb.cli.arguments import Verbs
from pcb.cli.devices import on_gpus, require_gpus
from pcb.cli.selection import check, check_run, load


def pretrain(arguments: Namespace) -> None:
    """Provide the weights that a backbone's trainings start from.

    Writes results/SCALE/pretrained/BACKBONE.pth.
    """
    from pcb.cluster.gpus import lease

    study = load(arguments)
    check("backbone", arguments.backbone, study.scale["backbones"])
    trains = study.scale["backbones"][arguments.backbone]["weights"] == "pretrain"
    gpus = min(1, study.scale["hardware"]["gpus_per_job"]) if trains else 0
    require_gpus(study, gpus)
    with lease(gpus):
        from pcb.training.pretrain import pretrain as run

        run(study, arguments.backbone)


def train(arguments: Namespace) -> None:
    """Train one experiment.

    Starts from its trunk if it has one, resumes from its last checkpoint, and writes run.json last.
    With --detect it then detects for `pcb infer`, which only has to take the result.
    """
    study = load(arguments)
    check_run(study, arguments)
    is_trunk = arguments.verb == "trunk"
    with on_gpus(study, arguments):
        from pcb.training.train import train as run

        run(study, arguments.run, arguments.seed, trunk=is_trunk)
        if not is_trunk and arguments.detect:
            from pcb.inference.infer import infer_ahead

            infer_ahead(study, arguments.run, arguments.seed)


def trunk(arguments: Namespace) -> None:
    """Train the first epochs that several experiments share.

    They end before PCB starts; resumes from its last checkpoint and writes trunk.json last.
    """
    train(arguments)


def infer(arguments: Namespace) -> None:
    """Run a trained detector over the validation images.

    Reads run.json, and confusion-train.npz where a table needs it; writes detections and the
    confusion matrix. With --split, over other images, on which NorCal's hyper-parameter is chosen.
    """
    from pcb.evaluation.ahead import take

    study = load(arguments)
    check_run(study, arguments)
    if take(study, arguments.run, arguments.seed, arguments.split):
        print(f"{arguments.run} on {arguments.split}: detected after its training")
        return
    with on_gpus(study, arguments, backend="gloo"):
        from pcb.inference.infer import infer as run

        run(study, arguments.run, arguments.seed, split=arguments.split)


def confusion(arguments: Namespace) -> None:
    """Measure a trained detector's confusion matrix on the training images.

    Reads run.json, writes confusion-train.npz, for the variant cm-train.
    """
    study = load(arguments)
    check_run(study, arguments)
    with on_gpus(study, arguments, backend="gloo"):
        from pcb.inference.infer import train_confusion

        train_confusion(study, arguments.run, arguments.seed)


def oracle(arguments: Namespace) -> None:
    """Calibrate a run with statistics of the scored images, and of other images.

    Reads run.json, writes oracle.json: AP on parts of the validation set, each calibrated with its
    own statistics and with those of a part that has no image in common with it.
    """
    from pcb.cluster.gpus import lease

    study = load(arguments)
    check_run(study, arguments)
    with lease(min(1, study.scale["hardware"]["gpus_per_job"])):
        from pcb.inference.oracle import oracle as run

        run(study, arguments.run, arguments.seed)


def score(arguments: Namespace) -> None:
    """Score a run's detections by LVIS's or COCO's rules.

    Reads the detections, writes metrics.json; needs no GPU. Then the index page is written again if
    a page was made since, at most once a minute.
    """
    from pcb.evaluation.score import score as run
    from pcb.import_stubs import hide_pandas_from_pyarrow
    from pcb.study.current import site_lacks_pages

    hide_pandas_from_pyarrow()
    study = load(arguments)
    check_run(study, arguments)
    run(study, arguments.run, arguments.seed, split=arguments.split)
    if site_lacks_pages(study):
        from pcb.reporting.site.build import refresh

        if line := refresh(study):
            print(line)


def export(arguments: Namespace) -> None:
    """Write a trained detector as a plain MMDetection config and checkpoint.

    Reads run.json and its checkpoint; writes DEST/config.py, weights.pth, classes.json and a README
    that says what the detector needs and predicts.
    """
    from pcb.inference.export import export as run

    study = load(arguments)
    check_run(study, arguments)
    print(run(study, arguments.run, arguments.seed, arguments.destination, arguments.force))


VERBS = (pretrain, trunk, train, infer, confusion, score, oracle, export)


def add_to(verbs: Verbs) -> None:
    """Add the verbs and their arguments."""
    verbs.add(pretrain).add_argument("backbone", help="a backbone of the scale, such as r50")
    for do in (trunk, train, infer, confusion, score, oracle, export):
        command = verbs.add(do)
        command.add_argument("run", help="the id of an experiment, as `pcb plan` lists it")
        if do is export:
            command.add_argument("destination", metavar="DEST", help="the folder to write")
            command.add_argument(
                "--force", action="store_true", help="replace the files of an earlier export"
            )
        command.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
        if do is train:
            command.add_argument(
                "--detect",
                action="store_true",
                help="on a CPU, then detect in the same process",
            )
        if do in (infer, score):
            command.add_argument(
                "--split",
                default="val",
                choices=["val", "dev", "train-subset"],
                help="val (default), dev or train-subset, a fixed sample of the training images",
            )
