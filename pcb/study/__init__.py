"""The paper as data: experiments, tables, claims, scale, and the paths of results. No torch."""

from pcb.study.experiment import PCB, Experiment
from pcb.study.load import load_study
from pcb.study.paths import Paths
from pcb.study.study import METRICS, Page, Row, Study, Summary, Table, canonical, fingerprint

__all__ = [
    "METRICS",
    "PCB",
    "Experiment",
    "Page",
    "Paths",
    "Row",
    "Study",
    "Summary",
    "Table",
    "canonical",
    "fingerprint",
    "load_study",
]
