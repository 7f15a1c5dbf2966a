# A table's or figure's rows, or a page's pictures, gathered into one file, and the notebook that reads nothing else.


rule gather:
    input:
        lambda w: measured(w.target),
    output:
        rows=paths.gathered("{target}"),
        head=paths.gathered("{target}").with_suffix(".json"),
    log:
        paths.log("gather/{target}"),
    priority: 70
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=500,
    params:
        job=job(lambda w: gather_job(w.target)),
    message:
        "Gather the rows of {wildcards.target}"
    shell:
        "pcb gather {wildcards.target:q} &> {log:q}"


rule gather_page:
    input:
        lambda w: looked_at(w.page),
    output:
        paths.gathered("{page}", "json"),
    log:
        paths.log("gather/{page}"),
    priority: 70
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000 if SYNTHETIC else 16000,
    params:
        job=job(lambda w: gather_page_job(w.page)),
    message:
        "Gather the pictures of {wildcards.page}"
    shell:
        "pcb gather {wildcards.page:q} &> {log:q}"


# What draws a notebook's page: code, style sheets, templates; not those of the site, which is made anew after every run.
REPORTING = sorted(
    str(path)
    for path in (ROOT / "pcb" / "reporting").rglob("*")
    if path.suffix in {".py", ".css", ".j2"}
    and not path.name.startswith(("site", "publish"))
)
CAPTIONS = "../report"


rule notebook:
    input:
        rows=paths.gathered("{target}"),
        head=paths.gathered("{target}").with_suffix(".json"),
        notebook=str(ROOT / "notebooks" / "{target}.ipynb"),
        plots=REPORTING,
    output:
        paths.notebook("{target}"),
        [paths.table("{target}", suffix) for suffix in ("md", "tex")],
        html=report(
            paths.html("{target}"),
            caption=f"{CAPTIONS}/page.rst",
            category="Pages",
            labels=labels("HTML"),
        ),
        csv=report(
            paths.table("{target}", "csv"),
            caption=f"{CAPTIONS}/table.rst",
            category="Tables",
            labels=labels("CSV"),
        ),
        picture=report(
            paths.figure("{target}"),
            caption=f"{CAPTIONS}/figure.rst",
            category="Figures",
            labels=labels("PNG"),
        ),
    log:
        paths.log("notebook/{target}"),
    priority: 70
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
    message:
        "Render {wildcards.target}"
    shell:
        "pcb render {wildcards.target:q} &> {log:q}"


rule page:
    input:
        gathered=paths.gathered("{page}", "json"),
        notebook=str(ROOT / "notebooks" / "{page}.ipynb"),
        plots=REPORTING,
    output:
        paths.notebook("{page}"),
        html=report(
            paths.html("{page}"),
            caption=f"{CAPTIONS}/pictures.rst",
            category="Pages",
            labels=labels("HTML"),
        ),
    log:
        paths.log("notebook/{page}"),
    priority: 70
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
    message:
        "Render {wildcards.page}"
    shell:
        "pcb render {wildcards.page:q} &> {log:q}"


# One named target for every table, figure and page: table01 … table11, figure1, gallery, pairs.
for target in study.targets:

    rule:
        name:
            target
        input:
            rendered(target),
