"""Verbs about data: `new-scale`, `make-data`, `download`, `check-data`, `contact-sheet`."""

from __future__ import annotations

from argparse import Namespace

from pcb.cli.arguments import Verbs, natural
from pcb.cli.selection import check, load, require_checkout
from pcb.errors import UserError, combined


def new_scale(arguments: Namespace) -> None:
    """Write the scale of a data set of your own: a commented YAML file that runs as it is.

    Reads two annotation files in COCO's or LVIS's format and the header of every image; writes
    configs/scale/NAME.yaml and, where no shipped detector fits the images, configs/mmdet/NAME.py.
    Prints how each value was chosen, and the next commands. See docs/own-data.md.
    """
    require_checkout()
    from pcb.cluster.gpus import installed
    from pcb.planning.new_scale import Own, propose, refuse_existing

    given = {key: vars(arguments)[key] for key in Own.__dataclass_fields__}
    if not given["device"]:
        given["device"] = "cuda" if installed() else "cpu"
        why = "a GPU was found" if installed() else "no GPU was found"
        print(f"device     {given['device']}: {why}; --device chooses")
    own = Own(**{key: value for key, value in given.items() if value is not None})
    if not arguments.dry_run:  # not only after minutes of reading
        refuse_existing(own, [own.scale_file], arguments.force)
    proposal = propose(own, lists=not arguments.dry_run)
    if not arguments.dry_run:
        proposal.write(arguments.force)
    print(proposal.report())
    if arguments.dry_run:
        for path, text in proposal.files.items():
            print(f"\n--- {path}, not written\n{text}", end="")
        return
    print(f"\nwritten: {', '.join(map(str, proposal.files))}\nnext:\n{proposal.next_commands()}")


def make_data(arguments: Namespace) -> None:
    """Draw an emoji-LVIS data set.

    Writes images and LVIS annotations to results/SCALE/data/, and its manifest last.
    """
    from pcb.synthetic.generate import generate

    study = load(arguments)
    check("data set", arguments.dataset, [*study.scale["datasets"], "pretrain"])
    generate(study, arguments.dataset)


def download(arguments: Namespace) -> None:
    """Download the public files that a scale needs.

    Writes annotations, images and weights to the paths in the scale's YAML file.
    """
    from pcb.data.download import download as run

    run(load(arguments), arguments.names)


def check_data(arguments: Namespace) -> None:
    """Check data sets before anything trains on them.

    Reads annotations and the header of every image, lists all faults at once, and writes a report.
    With --deep it also decodes every image and compares generated ones with their digests.
    """
    from pcb.data.lvis.check import check as run
    from pcb.data.lvis.federated import LVIS_SAMPLE

    study = load(arguments)
    faults = []
    for dataset in arguments.datasets or study.scale["datasets"]:
        check("data set", dataset, study.scale["datasets"])
        try:
            report = run(study, dataset, arguments.deep)
        except UserError as error:
            faults.append(error)
            continue
        release = report["matches_release"]
        equal = f"equal to the LVIS {release} release" if release else "not a release of LVIS"
        own = study.scale["datasets"][dataset].get("title")
        equal = f"{own}, {groups_text(report)}" if own else equal
        print(f"{dataset}: no faults, {equal}; report in {study.paths.data_check(dataset)}")
        train = report["splits"]["train"]
        if train["unusable"]:
            reasons = ", ".join(f"{reason} ({n:,})" for reason, n in train["reasons"].items())
            print(
                f"  train: {train['unusable']:,} of {train['annotations']:,} annotations are not "
                f"trained on: {reasons}"
            )
        labels = report["splits"]["val"]["federated"]
        if study.scale["datasets"][dataset].get("format") == "coco":
            print("  val: every class counts in every image, by COCO's rule")
        else:
            print(
                f"  val: {labels['negative']:.1f} of {labels['classes']:,} classes an image are "
                f"verified to be absent, {labels['not_exhaustive']:.2f} are not exhaustive "
                f"({LVIS_SAMPLE['negative']:.1f} of {LVIS_SAMPLE['classes']:,} and "
                f"{LVIS_SAMPLE['not_exhaustive']:.2f} in LVIS v0.5)"
            )
        for warning in report["warnings"]:
            print(f"  warning: {warning}")
    if faults:
        raise combined(faults)


def groups_text(report: dict) -> str:
    """The classes of a checked data set by group, with the counts that divide the groups."""
    train = report["splits"]["train"]
    rare, common = train["thresholds"]
    numbers = train["groups"]
    return (
        f"{numbers['r']} rare, {numbers['c']} common and {numbers['f']} frequent classes "
        f"(in at most {rare}, at most {common} and more train images)"
    )


def contact_sheet(arguments: Namespace) -> None:
    """Draw images of a data set with their masks, class names and groups.

    Reads the annotations, writes one PNG.
    """
    from pcb.synthetic.contact_sheet import contact_sheet as draw

    study = load(arguments)
    check("data set", arguments.dataset, study.scale["datasets"])
    files = study.scale["datasets"][arguments.dataset]
    check("split", arguments.split, [s for s in ("train", "val", "dev") if s in files])
    draw(files[arguments.split], files["images"], arguments.out)
    print(arguments.out)


VERBS = (new_scale, make_data, download, check_data, contact_sheet)


def add_to(verbs: Verbs) -> None:
    """Add the verbs and their arguments."""
    command = verbs.add(new_scale, scale=False, study=False)
    command.add_argument("--train", required=True, metavar="JSON", help="annotations to train on")
    command.add_argument("--val", required=True, metavar="JSON", help="annotations to score on")
    command.add_argument(
        "--images", required=True, metavar="FOLDER", help="the images of both, by `file_name`"
    )
    command.add_argument(
        "--dev",
        metavar="JSON",
        help="annotations on which NorCal's hyper-parameter is chosen (default: a part of train)",
    )
    command.add_argument(
        "--name", default="mine", help="name of the scale and of the data set (default: mine)"
    )
    command.add_argument(
        "--title", default="", metavar="TEXT", help="its name on pages (default: --name)"
    )
    command.add_argument(
        "--format",
        choices=["coco", "lvis"],
        help="coco: every class counts in every image; lvis: federated labels, a class counts "
        "only where it was verified (default: what the files show)",
    )
    command.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        help="cpu: a small detector, to compare methods in minutes; cuda: Mask R-CNN, R50-FPN "
        "(default: cuda where a GPU is found)",
    )
    command.add_argument(
        "--gpus", type=natural, default=1, metavar="N", help="GPUs of a training (default: 1)"
    )
    command.add_argument(
        "--epochs",
        type=natural,
        metavar="N",
        help="epochs, the learning rate drops in proportion (default: by the size of the data)",
    )
    command.add_argument(
        "--weights",
        metavar="FILE",
        help="ImageNet weights of ResNet-50, on cuda (default: what `pcb download` fetches)",
    )
    command.add_argument(
        "--out", metavar="YAML", help="the file to write (default: configs/scale/NAME.yaml)"
    )
    command.add_argument("--force", action="store_true", help="replace files of an earlier call")
    command.add_argument("--dry-run", action="store_true", help="print the files, write nothing")
    verbs.add(make_data).add_argument(
        "dataset", help="a data set of the scale, such as v05, or pretrain"
    )
    verbs.add(download).add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="names in configs/downloads.yaml (default: all that the scale needs)",
    )
    command = verbs.add(check_data)
    command.add_argument(
        "datasets", nargs="*", metavar="DATASET", help="data sets of the scale (default: all)"
    )
    command.add_argument(
        "--deep",
        action="store_true",
        help="read and decode every image file again, also those that look unchanged",
    )
    command = verbs.add(contact_sheet)
    command.add_argument("dataset", help="a data set of the scale, such as v05")
    command.add_argument("--split", default="train", help="train (default), val or dev")
    command.add_argument("--out", default="contact-sheet.png", metavar="PNG")
