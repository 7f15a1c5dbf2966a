# Trainings. Runs that differ only in PCB share their first epochs: they branch from one trunk.
# Checkpoints are in an undeclared work folder, which neither a failure nor a rerun deletes, so that
# a killed training resumes.


rule trunk:
    input:
        data=of_run(lambda e: paths.data_check(e.dataset)),
        weights=of_run(lambda e: paths.weights(e.backbone)),
    output:
        paths.trunk("{run}", "{seed}"),
    log:
        paths.log("trunk/{run}/seed{seed}"),
    benchmark:
        paths.benchmark("trunk/{run}/seed{seed}")
    priority: 80  # the longest chains: most of the other trainings wait for them
    conda:
        ENVIRONMENT
    threads: HARDWARE["threads_per_job"]
    resources:
        gpu=HARDWARE["gpus_per_job"],
        mem_mb=HARDWARE["mem_mb"],
    params:
        job=job(lambda w: study.train_job(w.run, int(w.seed))),
        described=described("Trunk"),
    message:
        "{params.described}"
    shell:
        "pcb trunk {wildcards.run:q} --seed {wildcards.seed:q} &> {log:q}"


rule train:
    input:
        data=of_run(lambda e: paths.data_check(e.dataset)),
        weights=of_run(lambda e: paths.weights(e.backbone)),
        trunk=lambda w: trunk_of(w.run, w.seed),
    output:
        paths.train("{run}", "{seed}"),
    log:
        paths.log("train/{run}/seed{seed}"),
    benchmark:
        paths.benchmark("train/{run}/seed{seed}")
    priority: lambda w: epochs_to_train(study, w.run)
    conda:
        ENVIRONMENT
    threads: HARDWARE["threads_per_job"]
    resources:
        gpu=HARDWARE["gpus_per_job"],
        mem_mb=HARDWARE["mem_mb"],
    params:
        job=job(lambda w: study.train_job(w.run, int(w.seed))),
        described=described("Train"),
    message:
        "{params.described}"
    shell:
        "pcb train {wildcards.run:q} --seed {wildcards.seed:q} &> {log:q}"


rule train_all:
    input:
        [paths.train(run, seed) for run in study.runs() for seed in study.seeds],
