# The paper from data to rendered tables: every table and figure of configs/paper.yaml is a target.
#
#   snakemake --cores all                                      everything, at the mini scale (two CPU cores, no data needed)
#   snakemake --cores all table05                              one table: trains only what is missing for it
#   snakemake --cores all figure1
#   snakemake --cores all train_all                            every training, nothing else
#   snakemake --cores all --config scale=smoke                 the same steps in minutes; the numbers mean nothing
#   snakemake --cores all --resources gpu=8 --config scale=lvis
#   snakemake -n                                               what would run; `pcb plan` says it in a person's words
#
# --config takes `scale` (a name under configs/scale/ or a YAML file), `seeds` (`seeds=0,1,2`) and `results` (a folder).
# profiles/default/ loads by itself; `--profile profiles/slurm` adds a cluster. Results lie in results/<scale>/.
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
