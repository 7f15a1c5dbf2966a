# Inference and scoring. One pass over val serves every variant that a table needs; scoring needs no
# GPU. Two variants need more: NorCal the detections on the split where its hyper-parameter
# is chosen, and cm-train the confusion matrix of the training images.


rule infer:
    input:
        unless_current("infer", of_detection),
    output:
        detections=paths.detections("{run}", "{seed}"),
        confusion=paths.confusion("{run}", "{seed}"),
        images=paths.confusion_images("{run}", "{seed}"),
    log:
        paths.log("infer/{run}/seed{seed}"),
    benchmark:
        paths.benchmark("infer/{run}/seed{seed}")
    priority: priority_of_evaluation
    conda:
        ENVIRONMENT
    threads: HARDWARE["threads_per_job"]
    resources:
        gpu=HARDWARE["gpus_per_job"],
        mem_mb=HARDWARE["mem_mb"],
    params:
        described=described("Detect"),
    message:
        "{params.described}"
    shell:
        "pcb infer {wildcards.run:q} --seed {wildcards.seed:q} &> {log:q}"


rule infer_split:
    input:
        unless_current("infer_split", of_training),
    output:
        detections=paths.detections("{run}", "{seed}", "{split}"),
        confusion=paths.confusion("{run}", "{seed}", "{split}"),
    log:
        paths.log("infer-{split}/{run}/seed{seed}"),
    benchmark:
        paths.benchmark("infer-{split}/{run}/seed{seed}")
    wildcard_constraints:
        split="|".join(GAMMA_SPLITS),
    priority: priority_of_evaluation
    conda:
        ENVIRONMENT
    threads: HARDWARE["threads_per_job"]
    resources:
        gpu=HARDWARE["gpus_per_job"],
        mem_mb=HARDWARE["mem_mb"],
    params:
        described=described("Detect"),
    message:
        "{params.described} on {wildcards.split}"
    shell:
        "pcb infer {wildcards.run:q} --seed {wildcards.seed:q} --split {wildcards.split:q} &> {log:q}"


rule train_confusion:
    input:
        unless_current("train_confusion", of_training),
    output:
        paths.confusion("{run}", "{seed}", "train"),
        paths.train_confusion_record("{run}", "{seed}"),
    log:
        paths.log("train_confusion/{run}/seed{seed}"),
    benchmark:
        paths.benchmark("train_confusion/{run}/seed{seed}")
    priority: priority_of_evaluation
    conda:
        ENVIRONMENT
    threads: HARDWARE["threads_per_job"]
    resources:
        gpu=HARDWARE["gpus_per_job"],
        mem_mb=HARDWARE["mem_mb"],
    params:
        described=described("Confusion on train:"),
    message:
        "{params.described}"
    shell:
        "pcb confusion {wildcards.run:q} --seed {wildcards.seed:q} &> {log:q}"


# Only for the runs that a table shows calibrated by a confusion matrix (`oracle_runs`).
rule oracle:
    input:
        unless_current("oracle", of_training),
    output:
        paths.oracle("{run}", "{seed}"),
    log:
        paths.log("oracle/{run}/seed{seed}"),
    benchmark:
        paths.benchmark("oracle/{run}/seed{seed}")
    priority: priority_of_evaluation
    conda:
        ENVIRONMENT
    threads: HARDWARE["threads_per_job"]
    resources:
        gpu=min(1, HARDWARE["gpus_per_job"]),
        mem_mb=HARDWARE["mem_mb"],
    params:
        described=described("Own and other statistics:"),
    message:
        "{params.described}"
    shell:
        "pcb oracle {wildcards.run:q} --seed {wildcards.seed:q} &> {log:q}"


rule score:
    input:
        unless_current("score", of_score),
    output:
        paths.metrics("{run}", "{seed}"),
        paths.bootstrap("{run}", "{seed}"),
    log:
        paths.log("score/{run}/seed{seed}"),
    benchmark:
        paths.benchmark("score/{run}/seed{seed}")
    priority: priority_of_evaluation
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1500 if SYNTHETIC else 16000,
    params:
        described=described("Score"),
    message:
        "{params.described}"
    shell:
        "pcb score {wildcards.run:q} --seed {wildcards.seed:q} &> {log:q}"
