# Gather the numbers of a table or figure, or the images of a page, into one file; render the
# notebook that reads it; link everything from the index of the site. What is made again follows
# from the content of results, settings, templates and code (pcb/reporting/current.py).


CAPTIONS = "../report"


rule gather:
    input:
        unless_current("gather", lambda w: results_of(study, w.target)),
    output:
        paths.gathered("{target}"),
    log:
        paths.log("gather/{target}"),
    priority: priority_of_page
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=500,
    message:
        "Gather the numbers of {wildcards.target}"
    shell:
        "pcb gather {wildcards.target:q} &> {log:q}"


rule gather_page:
    input:
        unless_current("gather_page", lambda w: results_of(study, w.page)),
    output:
        paths.gathered("{page}"),
    log:
        paths.log("gather/{page}"),
    priority: priority_of_page
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000 if SYNTHETIC else 16000,
    message:
        "Gather the images of {wildcards.page}"
    shell:
        "pcb gather {wildcards.page:q} &> {log:q}"


rule notebook:
    input:
        unless_current("notebook", lambda w: [paths.gathered(w.target)]),
    output:
        paths.notebook("{target}"),
        paths.page_record("{target}"),
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
    priority: priority_of_page
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
        unless_current("page", lambda w: [paths.gathered(w.page)]),
    output:
        paths.notebook("{page}"),
        paths.page_record("{page}"),
        paths.figure("{page}"),
        html=report(
            paths.html("{page}"),
            caption=f"{CAPTIONS}/pictures.rst",
            category="Pages",
            labels=labels("HTML"),
        ),
    log:
        paths.log("notebook/{page}"),
    priority: priority_of_page
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
    message:
        "Render {wildcards.page}"
    shell:
        "pcb render {wildcards.page:q} &> {log:q}"


rule gather_summary:
    input:
        unless_current("gather_summary", lambda w: results_of(study, w.summary)),
    output:
        paths.gathered("{summary}"),
    log:
        paths.log("gather/{summary}"),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
    message:
        "Gather the {wildcards.summary}"
    shell:
        "pcb gather {wildcards.summary:q} &> {log:q}"


rule summary:
    input:
        unless_current("summary", lambda w: [paths.gathered(w.summary)]),
    output:
        paths.notebook("{summary}"),
        paths.page_record("{summary}"),
        html=report(
            paths.html("{summary}"),
            caption=f"{CAPTIONS}/summary.rst",
            category="Pages",
            labels=labels("HTML"),
        ),
        csv=report(
            paths.table("{summary}", "csv"),
            caption=f"{CAPTIONS}/summary.rst",
            category="Tables",
            labels=labels("CSV"),
        ),
    log:
        paths.log("notebook/{summary}"),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
    message:
        "Render {wildcards.summary}"
    shell:
        "pcb render {wildcards.summary:q} &> {log:q}"


rule site:
    input:
        unless_current("site", lambda _: behind_site()),
    output:
        paths.index,
        paths.page_record(SITE),
        [
            paths.download(name)
            for name in (
                *("metrics.csv", "claims.csv", "oracle.csv", "training.csv"),
                *("runs.json", "claims.json", "verdict.json"),
            )
        ],
        [paths.run_page(run) for run in study.runs()],
        [paths.document(name) for name in DOCUMENTS],
    log:
        paths.log("site"),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
    message:
        "Build the index of the site"
    shell:
        "pcb site &> {log:q}"


# One named target for every table, figure and page: table01 … table11, figure1, gallery, pairs.
for target in study.targets:

    rule:
        name:
            target
        input:
            rendered(target),
