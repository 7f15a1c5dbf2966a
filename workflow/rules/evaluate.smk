# One inference pass per checkpoint serves every variant that some table asks for; scoring it needs no GPU.


rule infer:
    input:
        paths.train("{run}", "{seed}"),
    output:
        detections=paths.detections("{run}", "{seed}"),
        confusion=paths.confusion("{run}", "{seed}"),
    log:
        paths.log("infer/{run}/seed{seed}"),
    benchmark:
        paths.benchmark("infer/{run}/seed{seed}")
    priority: 60  # what has been trained goes on to its table before another training starts
    conda:
        ENVIRONMENT
    threads: HARDWARE["threads_per_job"]
    resources:
        gpu=min(1, HARDWARE["gpus_per_job"]),
        mem_mb=HARDWARE["mem_mb"],
    params:
        job=job(lambda w: study.eval_job(w.run, int(w.seed))),
        words=words("Detect"),
    message:
        "{params.words}"
    shell:
        "pcb infer {wildcards.run:q} --seed {wildcards.seed:q} &> {log:q}"


rule score:
    input:
        detections=paths.detections("{run}", "{seed}"),
        confusion=paths.confusion("{run}", "{seed}"),
    output:
        paths.metrics("{run}", "{seed}"),
    log:
        paths.log("score/{run}/seed{seed}"),
    benchmark:
        paths.benchmark("score/{run}/seed{seed}")
    priority: 60
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1500 if SYNTHETIC else 16000,
    params:
        job=job(lambda w: study.eval_job(w.run, int(w.seed))),
        words=words("Score"),
    message:
        "{params.words}"
    shell:
        "pcb score {wildcards.run:q} --seed {wildcards.seed:q} &> {log:q}"
