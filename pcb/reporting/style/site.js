/* Sort tables, open the run behind a number, filter the claims, copy tables, explain terms. All state is in the address:
   #table02/v05-rfs-pcb/AP opens a number, #table02?sort=AP/gain&end=last sorts, #claims?verdict=fails filters.
   Without this script the page shows all numbers and claims in the paper's order. */
const data = JSON.parse(document.getElementById("data").textContent);

/* Make an element: h("a", {href: "#x"}, "text", child). An attribute called `html` is trusted markup of our own. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) name === "html" ? element.innerHTML = value : element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/* The address: a path and parameters after the #, so that it works from disk and does not load the page again. */

function address() {
  let hash = location.hash.slice(1);
  try { hash = decodeURIComponent(hash); } catch { /* a stray %: taken as it is */ }
  const [path, query = ""] = hash.split("?");
  return {path, query: new URLSearchParams(query)};
}

function setAddress(path, query = new URLSearchParams(), push = false) {
  const text = query.toString();
  history[push ? "pushState" : "replaceState"](null, "", `#${path}${text ? `?${text}` : ""}`);
}

/* Sorting: first the better end, then the other, then the paper's own order. Rows without a value stay last. */

const orders = new Map();

for (const table of document.querySelectorAll("table.sortable")) {
  orders.set(table, [...table.tBodies[0].rows]);
  for (const head of table.querySelectorAll("th[data-sort]")) {
    head.querySelector("button").addEventListener("click", () => {
      const end = {undefined: "first", first: "last", last: undefined}[head.dataset.end];
      sort(head, end);
      const query = new URLSearchParams(end ? {sort: nameOf(head), ...(end === "last" ? {end} : {})} : {});
      setAddress(table.closest("section").id, query);
    });
  }
}

/* A column by name: `AP/gain`, or its own key where it holds no numbers of a block. */
function nameOf(head) {
  const column = data.targets[head.closest("table").dataset.target]?.columns[head.dataset.c];
  return column ? `${column.metric}/${column.kind}` : head.dataset.c;
}

function sort(head, end) {
  const table = head.closest("table"), original = orders.get(table);
  for (const other of table.querySelectorAll("th[aria-sort]")) { other.removeAttribute("aria-sort"); delete other.dataset.end; }
  const down = (head.dataset.sort === "down") === (end === "first");
  if (end) { head.dataset.end = end; head.ariaSort = down ? "descending" : "ascending"; }
  table.classList.toggle("sorted", Boolean(end));
  table.tBodies[0].append(...(end ? sorted(original, head, down ? -1 : 1) : original));
}

function sorted(rows, head, sign) {
  const text = head.dataset.sort === "text";
  const key = row => row.querySelector(`[data-c="${head.dataset.c}"]`)?.dataset.v ?? "";
  return rows.map(row => [key(row), row]).sort(([a], [b]) => {
    if (!a || !b) return (a ? 0 : 1) - (b ? 0 : 1);
    return sign * (text ? a.localeCompare(b, "en", {numeric: true}) : a - b);
  }).map(([, row]) => row);
}

for (const button of document.querySelectorAll("td > button")) button.setAttribute("aria-haspopup", "dialog");

/* One stop of the Tab key per table; arrows go from number to number, also while one is open. */

for (const table of document.querySelectorAll("table.sortable")) {
  const numbers = [...table.querySelectorAll("tbody button")];
  for (const button of numbers.slice(1)) button.tabIndex = -1;
  table.tBodies[0].addEventListener("keydown", event => {
    const here = event.target.closest("tbody button");
    const there = here && neighbour(here, event.key);
    if (!there) return;
    event.preventDefault();
    for (const button of numbers) button.tabIndex = button === there ? 0 : -1;
    there.focus();
  });
}

function neighbour(button, key) {
  const cell = button.closest("td"), row = cell.parentElement, along = [...row.querySelectorAll("td button")];
  const at = along.indexOf(button), next = {ArrowUp: row.previousElementSibling, ArrowDown: row.nextElementSibling}[key];
  if (next) return next.querySelector(`td[data-c="${cell.dataset.c}"] button`) ?? next.querySelector("td button");
  return {ArrowLeft: along[at - 1], ArrowRight: along[at + 1], Home: along[0], End: along.at(-1)}[key];
}

/* The run behind a number. Its address is that of the cell, or of the run and seed. Back closes it. */

const dialog = document.getElementById("provenance");
let cameFromHere = false, opened = null;

document.addEventListener("click", event => {
  const button = event.target.closest("td button"), cell = button?.closest("td");
  if (button && cell.closest("[data-target], [data-run]")) {
    cameFromHere = true;
    setAddress(cell.closest("[data-run]") ? `${cell.closest("[data-run]").dataset.run}/${button.dataset.seed}` : cell.id, undefined, true);
    route();
  }
  else if (event.target === dialog || event.target.closest("dialog .close")) dialog.close();
  else if (event.target.closest("dialog a")) { opened = null; dialog.close(); }
  else if (event.target.closest('a[href^="#"]')) cameFromHere = true;
});

dialog.addEventListener("close", () => {
  const section = opened?.closest("section")?.id;
  opened?.focus({preventScroll: true});
  if (!opened) return;
  opened = null;
  if (cameFromHere) history.back(); else setAddress(section);
});

dialog.addEventListener("keydown", event => {
  const there = opened && event.key.startsWith("Arrow") && neighbour(opened, event.key);
  if (!there) return;
  event.preventDefault();
  const cell = there.closest("td"), run = cell.closest("[data-run]");
  setAddress(run ? `${run.dataset.run}/${there.dataset.seed}` : cell.id);
  route();
});

function show(button, content) {
  dialog.querySelector(".content").replaceChildren(...content, tools());
  opened = button;
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

function tools() {
  const button = h("button", {type: "button"}, "copy link"), said = h("output", {"aria-live": "polite"});
  button.addEventListener("click", async () => { said.textContent = await copy(location.href) ? "copied" : "not allowed here"; });
  return h("p", {class: "tools"}, button, said, "Arrow keys go to the next number.");
}

/* A cell of a table: its row's numbers, its base row, then every seed's value and where it comes from. */
function ofCell(cell) {
  const row = cell.parentElement, target = data.targets[row.closest("[data-target]").dataset.target];
  const {name, run, variant, paper, copied_from: copied, base, gains} = target.rows[row.dataset.row];
  const {metric, html} = target.columns[cell.dataset.c];
  const shown = (kind, of = row) => {
    const index = target.columns.findIndex(c => c.kind === kind && c.metric === metric);
    return of.querySelector(`td[data-c="${index}"]`)?.textContent.trim() || (kind === "ours" ? "not run" : "–");
  };
  const blocks = [...new Map(target.columns.map(c => [c.kind, c.block]))].filter(([kind]) => base || !kind.endsWith("gain"));
  const three = blocks.map(([kind, block]) => h("div", {class: kind}, h("dt", {}, block), h("dd", {}, shown(kind))));
  const source = paper[metric] === undefined ? "The paper prints no number here."
    : `Paper: ${target.name}, as printed: ${shown("paper").replace(/[†‡§¶]/, "")}.` + (copied ? ` It did not train this row itself but copied the numbers from ${copied}.` : "");
  const baseRow = base && row.parentElement.querySelector(`[data-row="${base}"]`), gain = gains[metric];
  const address = `${row.closest("[data-target]").dataset.target}/${base}/${metric}`;
  const against = baseRow ? [h("p", {}, "Base row: ", h("a", {href: `#${address}`}, target.rows[base].name), `, ours ${shown("ours", baseRow)}, paper ${shown("paper", baseRow)}.`,
    gain && gain[1] !== null ? ` Difference of ours ${signed(gain[0])}, 95 % interval ${signed(gain[1])} to ${signed(gain[2])}.` : "")] : [];
  return [h("p", {class: "eyebrow"}, target.name), h("h2", {id: "provenance-title", html: `${html} `}, h("span", {}, name)),
    h("dl", {class: "three"}, ...three), ...against, about(run, variant, shared(run)),
    ...data.seeds.map(seed => ofSeed(run, seed, variant, metric, shared(run), base && target.rows[base])), h("p", {class: "quiet"}, source)];
}

const signed = value => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);

/* A run at one seed: all its numbers. */
function ofRun(run, seed) {
  const variants = Object.entries(data.runs[run][seed].values);
  const metrics = Object.keys(data.metrics).filter(metric => variants.some(([, values]) => metric in values));
  const numbers = h("table", {class: "pcb-table"},
    h("thead", {}, h("tr", {}, h("th", {class: "label"}, "variant"), ...metrics.map(m => h("th", {html: data.metrics[m]})))),
    h("tbody", {}, ...variants.map(([variant, values]) => h("tr", {}, h("th", {class: "label", scope: "row"}, variant),
      ...metrics.map(m => h("td", {}, values[m]?.toFixed(2) ?? "–"))))));
  return [h("p", {class: "eyebrow"}, `Seed ${seed}`), h("h2", {id: "provenance-title", class: "long"}, pageOf(run)),
    ...(variants.length ? [h("div", {class: "pcb-scroll", tabindex: 0, role: "region", "aria-label": "all numbers of this run"}, numbers)] : []),
    ofSeed(run, seed)];
}

/* Facts that are equal at every seed of a run, to be shown once: [term, text] pairs. */
function shared(run) {
  const seeds = Object.values(data.runs[run]).filter(({state}) => state !== "not run");
  return seeds.length < 2 ? [] : seeds[0].facts.filter(([term, text]) => seeds.every(({facts}) => facts.some(([t, x]) => t === term && x === text)));
}

function list(pairs) {
  return h("dl", {class: "facts"}, ...pairs.flatMap(([term, text]) => [h("dt", {}, term), h("dd", {}, text)]));
}

function pageOf(run) {
  return h("a", {href: `runs/${run}.html`, title: "its curves, classes and configuration"}, run);
}

function about(run, variant, common) {
  const how = variant === "plain" ? "plain: as trained, last step, no calibration" : variant;
  return list([["run", pageOf(run)], ["variant", how], ...common]);
}

function ofSeed(run, seed, variant, metric, common = [], base = null) {
  const {state, facts, values} = data.runs[run][seed], value = values[variant]?.[metric];
  const before = base ? data.runs[base.run][seed].values[base.variant]?.[metric] : undefined;
  const shown = value !== undefined ? value.toFixed(2) : state !== "measured" ? state : values[variant] ? "no value" : "not run";
  const gain = value !== undefined && before !== undefined ? h("small", {}, ` base ${before.toFixed(2)}, ${signed(value - before)}`) : "";
  const own = facts.filter(([term]) => !common.some(([other]) => other === term));
  return h("section", {class: "seed"}, metric ? h("h3", {}, `Seed ${seed} `, h("output", {}, shown), gain) : h("h3", {}, state), list(own));
}

/* Claims by verdict and group. */

const filter = document.getElementById("filter");

function apply() {
  const verdict = filter.elements.verdict.value, group = filter.elements.group.value, differ = filter.elements.differ.checked;
  let shown = 0;
  for (const row of document.querySelectorAll("#claims tr[data-ours]")) {
    const {ours, paper, group: its} = row.dataset;
    row.hidden = (verdict && ours !== verdict) || (group && its !== group) || (differ && ours === paper);
    shown += !row.hidden;
  }
  for (const row of document.querySelectorAll("#claims tr.group")) row.hidden = Boolean(verdict || differ || group);
  filter.querySelector("output").textContent = `${shown} shown`;
}

if (filter) filter.hidden = false;
filter?.addEventListener("change", () => {
  apply();
  const {verdict, group, differ} = filter.elements;
  setAddress("claims", new URLSearchParams(Object.entries({verdict: verdict.value, group: group.value, differ: differ.checked ? "1" : ""}).filter(([, value]) => value)));
});

/* Show what the address says: a number, an order, a filter, or a place. */
function route() {
  const {path, query} = address(), element = document.getElementById(path);
  const [run, seed] = path.split("/"), line = document.querySelector(`tr[data-run="${CSS.escape(run)}"]`);
  const button = element?.closest("td[data-c]")?.querySelector("button") ?? line?.querySelector(`button[data-seed="${CSS.escape(seed ?? "")}"]`);
  if (button) {
    if (!dialog.open && !cameFromHere) button.scrollIntoView({block: "center"});
    return show(button, line && seed ? ofRun(run, seed) : ofCell(button.closest("td")));
  }
  if (dialog.open) {
    const was = opened;
    opened = null;
    dialog.close();
    was?.focus({preventScroll: true});
  }
  const table = element?.querySelector("table.sortable");
  if (table) {
    const heads = [...table.querySelectorAll("th[data-sort]")], head = heads.find(other => nameOf(other) === query.get("sort"));
    if (head) sort(head, query.get("end") ?? "first"); else if (table.classList.contains("sorted")) sort(heads[0]);
  }
  if (filter && (path === "claims" || !path)) {
    const {verdict, group, differ} = filter.elements;
    verdict.value = query.get("verdict") ?? "";
    if (!verdict.value && verdict.length) verdict[0].checked = true;
    group.value = query.get("group") ?? "";
    differ.checked = query.has("differ");
  }
  else if (element?.closest("#claims tr[hidden]")) filter.reset();
  if (filter) apply();
  if (element && [...query].length) element.scrollIntoView({behavior: "instant"});
}

addEventListener("hashchange", route);
addEventListener("popstate", route);
route();

/* Copy a table as it is shown, in the order of its rows. */

async function copy(text) {
  try { await navigator.clipboard.writeText(text); return true; } catch { /* not allowed, or no such interface */ }
  const area = h("textarea", {style: "position: fixed; opacity: 0"});
  area.value = text;
  (dialog.open ? dialog : document.body).append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

function cells(name) {
  const table = document.querySelector(`table[data-target="${name}"]`), columns = data.targets[name].columns;
  const labels = [...table.querySelectorAll("thead th.label")];
  const head = [...labels.map(th => th.querySelector("button").lastChild.textContent), ...columns.map(c => `${c.metric} (${c.block})`)];
  const rows = [...table.tBodies[0].rows].map(row => [
    ...labels.map(th => row.querySelector(`th[data-c="${th.dataset.c}"]`).dataset.v),
    ...columns.map((_, k) => row.querySelector(`td[data-c="${k}"]`)?.textContent.replace(/\s+/g, " ").trim() ?? ""),
  ]);
  return {labels: labels.length, head, rows};
}

const forms = {
  csv: ({head, rows}) => [head, ...rows].map(row => row.map(text => /[",]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text).join(",")).join("\n"),
  md: ({labels, head, rows}) => [head, head.map((_, k) => k < labels ? ":--" : "--:"), ...rows].map(row => `| ${row.map(text => text.replaceAll("|", "\\|")).join(" | ")} |`).join("\n"),
  tex: ({labels, head, rows}) => {
    const signs = {"\\": "\\textbackslash{}", "±": "$\\pm$", "−": "$-$", "–": "--", "Δ": "$\\Delta$", "α": "$\\alpha$", "γ": "$\\gamma$", "✓": "$\\checkmark$", "✗": "$\\times$", "†": "$^\\dagger$", "‡": "$^\\ddagger$", "§": "$^\\S$", "¶": "$^\\P$"};
    const line = row => `${row.map(text => text.replace(/[\\±−–Δαγ✓✗†‡§¶&%#_{}$]/g, sign => signs[sign] ?? `\\${sign}`)).join(" & ")} \\\\`;
    return ["% needs booktabs and amssymb", `\\begin{tabular}{${"l".repeat(labels)}${"r".repeat(head.length - labels)}}`, "\\toprule", line(head), "\\midrule", ...rows.map(line), "\\bottomrule", "\\end{tabular}"].join("\n");
  },
};

for (const place of document.querySelectorAll("[data-copy]")) {
  place.hidden = false;
  place.addEventListener("click", async event => {
    const form = event.target.dataset.form;
    if (form) place.querySelector("output").textContent = await copy(forms[form](cells(place.dataset.copy))) ? "copied" : "not allowed here";
  });
}

/* Definitions of terms, on hover and on focus. */

const tip = document.getElementById("tip");

let explained = null;

function explain(event) {
  explained = event.target.closest?.("[data-term]");
  const meaning = explained && data.glossary[explained.dataset.term];
  tip.hidden = !meaning;
  if (!meaning) return;
  tip.textContent = `${explained.dataset.term}: ${meaning}`;
  (explained.querySelector("button") ?? explained).setAttribute("aria-describedby", "tip");
  place();
}

function place() {
  if (tip.hidden) return;
  const box = explained.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${box.top > tip.offsetHeight + 70 ? box.top - tip.offsetHeight - 6 : box.bottom + 6}px`;
}

for (const name of ["pointerover", "focusin", "click"]) document.addEventListener(name, explain);
document.addEventListener("keydown", event => { if (event.key === "Escape") tip.hidden = true; });
addEventListener("scroll", place, {passive: true});

/* The head of a table stays in sight where the table fits; where it does not, a hint says that it scrolls. */

const scrollers = [...document.querySelectorAll("main .pcb-scroll")].filter(place => place.querySelector(":scope > .sortable"));
for (const scroller of scrollers) scroller.before(h("p", {class: "hint"}, "More columns to the right: scroll sideways →"));

function fit() { /* all reads before all writes: the page is laid out once */
  const fits = scrollers.map(({firstElementChild: table, clientWidth}) => table.offsetWidth <= clientWidth + 1);
  scrollers.forEach((scroller, k) => {
    scroller.classList.toggle("fits", fits[k]);
    scroller.previousElementSibling.classList.toggle("needed", !fits[k]);
  });
}

new ResizeObserver(fit).observe(document.querySelector("main"));

/* The section in sight is marked among the links at the top. */

const sections = [...document.querySelectorAll('header nav a[href^="#"]')].map(link => [link, document.getElementById(link.hash.slice(1))]).filter(([, place]) => place);

function mark() {
  const seen = sections.filter(([, place]) => place.getBoundingClientRect().top < innerHeight / 3).at(-1)?.[0];
  for (const [link] of sections) link === seen ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
}

addEventListener("scroll", mark, {passive: true});
mark();

/* Pictures arrive after the numbers, and before anyone prints. */

addEventListener("load", () => {
  if ([...address().query].length) route();
  mark();
  (window.requestIdleCallback ?? setTimeout)(() => { for (const picture of document.querySelectorAll('img[loading="lazy"]')) picture.loading = "eager"; });
});

/* On paper everything that unfolds is unfolded. */

const folded = new Set();
addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details:not([open])")) { folded.add(part); part.open = true; } });
addEventListener("afterprint", () => { for (const part of folded) part.open = false; folded.clear(); });
