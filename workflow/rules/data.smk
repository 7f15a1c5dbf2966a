# Data and pretrained weights, and the check that every training waits for.

if EMBEDDED:

    rule data:
        message:
            "Draw the data set {wildcards.dataset}"
        output:
            paths.data_manifest("{dataset}"),
        params:
            job=job(lambda w: data_job(w.dataset)),
        log:
            paths.log("data/{dataset}"),
        benchmark:
            paths.benchmark("data/{dataset}")
        threads: 1
        resources:
            mem_mb=1000,
        priority: 100
        conda:
            ENVIRONMENT
        shell:
            "pcb make-data {wildcards.dataset:q} &> {log:q}"


rule check_data:
    message:
        "Check the data set {wildcards.dataset}: versions, counts, every image file"
    input:
        lambda w: data_files(w.dataset),
    output:
        paths.data_check("{dataset}"),
    params:
        job=job(lambda w: data_job(w.dataset)),
    log:
        paths.log("check_data/{dataset}"),
    threads: 1
    resources:
        mem_mb=1000 if EMBEDDED else 8000,
    priority: 100
    conda:
        ENVIRONMENT
    shell:
        "pcb check-data {wildcards.dataset:q} &> {log:q}"


rule pretrain:
    message:
        "Provide the pretrained weights of {wildcards.backbone}"
    input:
        paths.data_manifest("pretrain") if EMBEDDED else [],
    output:
        paths.weights("{backbone}"),
    params:
        job=job(lambda w: pretrain_job(w.backbone)),
    log:
        paths.log("pretrain/{backbone}"),
    benchmark:
        paths.benchmark("pretrain/{backbone}")
    threads: HARDWARE["threads_per_job"]
    resources:
        gpu=min(1, HARDWARE["gpus_per_job"]) if EMBEDDED else 0,
        mem_mb=HARDWARE["mem_mb"],
    priority: 90
    conda:
        ENVIRONMENT
    shell:
        "pcb pretrain {wildcards.backbone:q} &> {log:q}"
