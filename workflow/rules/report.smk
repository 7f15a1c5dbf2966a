# Gather the numbers of a table or figure, or the images of a page, into one file; render the
# notebook that reads it; link everything from the index of the site.


# The code, style sheets and templates behind the site; those behind a notebook's page; and the
# code behind a gathered file, so that a newer checkout never reads one of an older structure.
REPORTING = ROOT / "pcb" / "reporting"
CODE = sorted(
    str(path)
    for path in REPORTING.rglob("*")
    if path.suffix in {".py", ".css", ".j2", ".js"} and path.name != "publish.py"
)
PAGE_CODE = [path for path in CODE if "site" not in os.path.relpath(path, REPORTING)]
GATHER_CODE = [
    str(REPORTING / f"{module}.py")
    for module in (
        "captions",
        "claims",
        "findings",
        "gather",
        "oracle",
        "results",
        "tables",
    )
]
IMAGE_CODE = [path for path in CODE if Path(path).parent == REPORTING / "images"]
CAPTIONS = "../report"


rule gather:
    input:
        lambda w: table_results(w.target),
        code=lambda _: GATHER_CODE,
    output:
        paths.gathered("{target}"),
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
        "Gather the numbers of {wildcards.target}"
    shell:
        "pcb gather {wildcards.target:q} &> {log:q}"


rule gather_page:
    input:
        lambda w: page_results(w.page),
        code=lambda _: GATHER_CODE + IMAGE_CODE,
    output:
        paths.gathered("{page}"),
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
        "Gather the images of {wildcards.page}"
    shell:
        "pcb gather {wildcards.page:q} &> {log:q}"


rule notebook:
    input:
        gathered=paths.gathered("{target}"),
        notebook=lambda w: str(ROOT / template(w.target)),
        code=lambda _: PAGE_CODE,
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
        gathered=paths.gathered("{page}"),
        notebook=lambda w: str(ROOT / template(w.page)),
        code=lambda _: PAGE_CODE,
    output:
        paths.notebook("{page}"),
        paths.figure("{page}"),
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


rule gather_summary:
    input:
        table_results(*study.tables),
        lambda w: oracle_results() if w.summary == "protocols" else [],
        code=lambda _: GATHER_CODE,
    output:
        paths.gathered("{summary}"),
    log:
        paths.log("gather/{summary}"),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
    params:
        job=job(lambda w: gather_summary_job(w.summary)),
    message:
        "Gather the {wildcards.summary}"
    shell:
        "pcb gather {wildcards.summary:q} &> {log:q}"


rule summary:
    input:
        gathered=paths.gathered("{summary}"),
        notebook=lambda w: str(ROOT / template(w.summary)),
        code=lambda _: PAGE_CODE,
    output:
        paths.notebook("{summary}"),
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
        pages=rendered(*study.targets),
        metrics=table_results(*study.tables),
        oracle=oracle_results(),
        code=lambda _: CODE,
    output:
        paths.index,
        [
            paths.download(name)
            for name in (
                *("metrics.csv", "claims.csv", "oracle.csv", "training.csv"),
                *("runs.json", "claims.json", "verdict.json"),
            )
        ],
        [paths.run_page(run) for run in study.runs()],
    log:
        paths.log("site"),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
    params:
        job=job(lambda w: site_job()),
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
