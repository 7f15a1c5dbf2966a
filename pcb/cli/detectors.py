"""The verb about any detector: `bias`."""

from __future__ import annotations

from argparse import Namespace

from pcb.cli.arguments import Verbs, natural
from pcb.frequency import THRESHOLDS


def bias(arguments: Namespace) -> None:
    """Measure the pairwise bias of any detector's results: PwB, M_rf, the worst pairs.

    Reads ground truth and detections in COCO or LVIS JSON; needs no checkout.
    """
    from pcb.evaluation import bias as bias_of

    measured = bias_of.measure(
        arguments.gt, arguments.dt, arguments.iou, arguments.train, arguments.thresholds
    )
    if arguments.out:
        bias_of.write(measured, arguments.out, arguments.least)
    print(bias_of.report(measured, arguments.pairs, arguments.least))


VERBS = (bias,)


def add_to(verbs: Verbs) -> None:
    """Add the verbs and their arguments."""
    command = verbs.add(bias, scale=False, study=False)
    command.add_argument("--gt", required=True, metavar="JSON", help="annotations")
    command.add_argument(
        "--dt",
        required=True,
        metavar="JSON",
        help="detections: [{image_id, category_id, bbox, score}, ...]",
    )
    command.add_argument(
        "--iou", choices=["bbox", "segm"], default="bbox", help="match boxes (default) or masks"
    )
    command.add_argument(
        "--train",
        metavar="JSON",
        help="annotations whose image counts decide r, c and f (default: the categories' own)",
    )
    command.add_argument(
        "--thresholds",
        type=natural,
        nargs=2,
        default=THRESHOLDS,
        metavar=("R", "C"),
        help="most images of a rare and of a common class (default: 10 100), as in a scale",
    )
    command.add_argument(
        "--pairs",
        type=natural,
        default=20,
        metavar="N",
        help="number of printed pairs (default: 20)",
    )
    command.add_argument(
        "--least",
        type=natural,
        default=1,
        metavar="N",
        help="pairs of classes with at least N matched objects (default: 1)",
    )
    command.add_argument("--out", metavar="FILE", help="everything as .json, or all pairs as .csv")
