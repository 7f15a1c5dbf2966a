# Trainings. Runs that differ only in PCB share their first epochs: they branch from one trunk.
# Checkpoints are in an undeclared work folder, which neither a failure nor a rerun deletes, so that
# a killed training resumes. Whether data and weights changed is decided by their content, which is
# part of a training's fingerprint.


rule trunk:
    input:
        unless_current("trunk", data_and_weights),
    output:
        paths.trunk("{run}", "{seed}"),
    log:
        paths.log("trunk/{run}/seed{seed}"),
    benchmark:
        paths.benchmark("trunk/{run}/seed{seed}")
    wildcard_constraints:
        run="|".join(map(re.escape, study.trunks)) or "none",
    priority: priority_of_trunk
    conda:
        ENVIRONMENT
    threads: HARDWARE["threads_per_job"]
    resources:
        gpu=HARDWARE["gpus_per_job"],
        mem_mb=HARDWARE["mem_mb"],
    params:
        described=described("Trunk"),
    message:
        "{params.described}"
    shell:
        "pcb trunk {wildcards.run:q} --seed {wildcards.seed:q} &> {log:q}"


rule train:
    input:
        unless_current("train", start_and_trunk),
    output:
        paths.train("{run}", "{seed}"),
    log:
        paths.log("train/{run}/seed{seed}"),
    benchmark:
        paths.benchmark("train/{run}/seed{seed}")
    priority: priority_of_training
    conda:
        ENVIRONMENT
    threads: HARDWARE["threads_per_job"]
    resources:
        gpu=HARDWARE["gpus_per_job"],
        mem_mb=HARDWARE["mem_mb"],
    params:
        described=described("Train"),
        detect=detect_ahead,
    message:
        "{params.described}"
    shell:
        "pcb train {wildcards.run:q} --seed {wildcards.seed:q} {params.detect:q} &> {log:q}"


rule train_all:
    input:
        [paths.train(run, seed) for run in study.runs() for seed in study.seeds],
