# A table's or figure's rows gathered into one CSV, and the notebook that reads nothing else.


rule gather:
    message:
        "Gather the rows of {wildcards.target}"
    input:
        lambda w: measured(w.target),
    output:
        rows=paths.gathered("{target}"),
        head=paths.gathered("{target}").with_suffix(".json"),
    params:
        job=job(lambda w: gather_job(w.target)),
    log:
        paths.log("gather/{target}"),
    threads: 1
    resources:
        mem_mb=500,
    priority: 70
    conda:
        ENVIRONMENT
    shell:
        "pcb gather {wildcards.target:q} &> {log:q}"


rule notebook:
    message:
        "Render {wildcards.target}"
    input:
        rows=paths.gathered("{target}"),
        head=paths.gathered("{target}").with_suffix(".json"),
        notebook=str(ROOT / "notebooks" / "{target}.ipynb"),
        plots=sorted(map(str, (ROOT / "pcb" / "reporting").glob("*.py"))),
    output:
        paths.notebook("{target}"),
        paths.html("{target}"),
        [paths.table("{target}", suffix) for suffix in ("csv", "md", "tex")],
    log:
        paths.log("notebook/{target}"),
    threads: 1
    resources:
        mem_mb=1000,
    priority: 70
    conda:
        ENVIRONMENT
    shell:
        "pcb render {wildcards.target:q} &> {log:q}"


# One named target for every table and figure: table01 … table11, figure1.
for target in study.tables:

    rule:
        name:
            target
        input:
            rendered(target),
