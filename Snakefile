# The paper from data to rendered tables: every table and figure of configs/paper.yaml is a target.
#
#   snakemake --cores all                       everything at the mini scale: two CPU cores, no data
#   snakemake --cores all table05               one table: trains only what is missing for it
#   snakemake --cores all figure1
#   snakemake --cores all train_all             every training, nothing else
#   snakemake --cores all --config scale=smoke  the same jobs in minutes; the numbers mean nothing
#   snakemake --cores all --resources gpu=8 --config scale=lvis
#   snakemake -n                                what would run; `pcb plan` adds times and sizes
#
# --config takes
#   scale     a name under configs/scale/ or a YAML file
#   paper     a YAML file with your own study, laid over configs/paper.yaml: docs/adding-a-row.md
#   seeds     seeds=0,1,2
#   results   a folder; results are in its subfolder named like the scale
#
# profiles/default/ is loaded without being named; `--profile profiles/slurm` adds a cluster.
from snakemake.utils import min_version

min_version("9.19")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


onstart:
    begin()


onsuccess:
    finish()


onerror:
    finish()


rule all:
    default_target: True
    input:
        rendered(*study.targets),
        paths.index,
