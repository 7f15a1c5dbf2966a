"""The paper as objects: experiments, tables, claims, the scale they run at, and where results lie. Never imports torch."""

from pcb.study.experiment import PCB, Experiment
from pcb.study.paths import Paths
from pcb.study.study import Row, Study, Table, load_study

__all__ = ["PCB", "Experiment", "Paths", "Row", "Study", "Table", "load_study"]
