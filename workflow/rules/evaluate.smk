# One inference pass per checkpoint serves every variant that some table asks for; scoring it needs no GPU.


rule infer:
    message:
        "{params.words}"
    input:
        paths.train("{run}", "{seed}"),
    output:
        detections=paths.detections("{run}", "{seed}"),
        confusion=paths.confusion("{run}", "{seed}"),
    params:
        job=job(lambda w: eval_job(w.run, w.seed)),
        words=words("Run the detector of"),
    log:
        paths.log("infer/{run}/seed{seed}"),
    benchmark:
        paths.benchmark("infer/{run}/seed{seed}")
    threads: HARDWARE["threads_per_job"]
    resources:
        gpu=min(1, HARDWARE["gpus_per_job"]),
        mem_mb=HARDWARE["mem_mb"],
    priority: 60  # what has been trained goes on to its table before another training starts
    conda:
        ENVIRONMENT
    shell:
        "pcb infer {wildcards.run:q} --seed {wildcards.seed:q} &> {log:q}"


rule score:
    message:
        "{params.words}"
    input:
        detections=paths.detections("{run}", "{seed}"),
        confusion=paths.confusion("{run}", "{seed}"),
    output:
        paths.metrics("{run}", "{seed}"),
    params:
        job=job(lambda w: eval_job(w.run, w.seed)),
        words=words("Score"),
    log:
        paths.log("score/{run}/seed{seed}"),
    benchmark:
        paths.benchmark("score/{run}/seed{seed}")
    threads: 1
    resources:
        mem_mb=1500 if EMBEDDED else 16000,
    priority: 60
    conda:
        ENVIRONMENT
    shell:
        "pcb score {wildcards.run:q} --seed {wildcards.seed:q} &> {log:q}"
