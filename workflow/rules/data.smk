# Data, pretrained weights, and the data check that every training waits for.

if SYNTHETIC:

    rule data:
        input:
            current=unless_current("data"),
        output:
            paths.data_manifest("{dataset}"),
        log:
            paths.log("data/{dataset}"),
        benchmark:
            paths.benchmark("data/{dataset}")
        priority: AT_ONCE + 1
        conda:
            ENVIRONMENT
        threads: 1
        resources:
            mem_mb=1000,
        message:
            "Draw the data set {wildcards.dataset}"
        shell:
            "pcb make-data {wildcards.dataset:q} &> {log:q}"


rule download:  # on demand only: `snakemake --cores 1 --config scale=lvis -- download`
    log:
        paths.log("download"),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=500,
    message:
        "Download the public files that the scale needs; progress is in {log}"
    shell:
        "pcb download &> {log:q}"


rule check_data:
    input:
        lambda w: data_files(w.dataset),
        current=unless_current("check_data"),
    output:
        paths.data_check("{dataset}"),
    log:
        paths.log("check_data/{dataset}"),
    priority: AT_ONCE + 1
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000 if SYNTHETIC else 4000,
    message:
        "Check the data set {wildcards.dataset}: version, counts, every image file"
    shell:
        "pcb check-data {wildcards.dataset:q} &> {log:q}"


rule pretrain:
    input:
        lambda w: paths.data_manifest("pretrain") if pretrains(w.backbone) else [],
        current=unless_current("pretrain"),
    output:
        paths.weights("{backbone}"),
        paths.weights_record("{backbone}"),
    log:
        paths.log("pretrain/{backbone}"),
    benchmark:
        paths.benchmark("pretrain/{backbone}")
    priority: AT_ONCE
    conda:
        ENVIRONMENT
    threads: HARDWARE["threads_per_job"]
    resources:
        gpu=lambda w: pretrain_gpus(w.backbone),
        mem_mb=HARDWARE["mem_mb"],
    message:
        "Provide the pretrained weights of {wildcards.backbone}"
    shell:
        "pcb pretrain {wildcards.backbone:q} &> {log:q}"
