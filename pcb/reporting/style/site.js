/* Sort a table by a column, open the run behind a number, filter the claims. Without this script only these three are missing. */
const data = JSON.parse(document.getElementById("data").textContent);

/* Make an element: h("a", {href: "#x"}, "text", child). An attribute called `html` is trusted markup of our own. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) name === "html" ? element.innerHTML = value : element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/* Sorting: first the better end, then the other, then the paper's own order. Rows without a value stay last. */

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], original = [...body.rows];
  for (const head of table.querySelectorAll("th[data-sort]")) {
    head.querySelector("button").addEventListener("click", () => {
      const first = head.dataset.sort === "down" ? "descending" : "ascending";
      const cycle = [null, first, first === "descending" ? "ascending" : "descending"];
      const next = cycle[(cycle.indexOf(head.ariaSort) + 1) % 3];
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      if (next) head.ariaSort = next;
      table.classList.toggle("sorted", next !== null);
      body.append(...(next ? sorted(original, head, next === "ascending" ? 1 : -1) : original));
    });
  }
}

function sorted(rows, head, sign) {
  const text = head.dataset.sort === "text";
  const key = row => row.querySelector(`[data-c="${head.dataset.c}"]`)?.dataset.v ?? "";
  return rows.map(row => [key(row), row]).sort(([a], [b]) => {
    if (!a || !b) return (a ? 0 : 1) - (b ? 0 : 1);
    return sign * (text ? a.localeCompare(b, "en", {numeric: true}) : a - b);
  }).map(([, row]) => row);
}

/* One stop of the Tab key per table; arrows go from number to number. */

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

/* The run behind a number. */

const dialog = document.getElementById("provenance");

document.addEventListener("click", event => {
  const button = event.target.closest("td button");
  if (button?.closest("[data-target]")) show(ofCell(button.closest("td")));
  else if (button?.closest("[data-run]")) show(ofRun(button.closest("[data-run]").dataset.run, button.dataset.seed));
  else if (event.target === dialog || event.target.closest("dialog .close")) dialog.close();
  else if (event.target.closest("dialog a")) dialog.close();
});

function show(content) {
  dialog.querySelector(".content").replaceChildren(...content);
  dialog.showModal();
  dialog.scrollTop = 0;
}

/* A cell of a table: the three numbers, then every seed's value and where it comes from. */
function ofCell(cell) {
  const row = cell.parentElement, target = data.targets[row.closest("[data-target]").dataset.target];
  const {name, run, variant, paper, copied_from: copied} = target.rows[row.dataset.row];
  const {metric, html} = target.columns[cell.dataset.c];
  const shown = block => {
    const index = target.columns.findIndex(c => c.block === block && c.metric === metric);
    return row.querySelector(`td[data-c="${index}"]`)?.textContent.trim() ?? (block === "ours" ? "not run" : "–");
  };
  const blocks = [...new Set(target.columns.map(c => c.block))];
  const three = blocks.map(block => h("div", {class: block === "Δ" ? "delta" : block}, h("dt", {}, block), h("dd", {}, shown(block))));
  const source = paper[metric] === undefined ? "The paper prints no number here."
    : `Paper: ${target.name}, as printed: ${shown("paper").replace(/[†‡§¶]/, "")}.` + (copied ? ` It did not train this row itself but copied the numbers from ${copied}.` : "");
  return [h("p", {class: "eyebrow"}, target.name), h("h2", {id: "provenance-title", html: `${html} `}, h("span", {}, name)),
    h("dl", {class: "three"}, ...three), about(run, variant, shared(run)),
    ...data.seeds.map(seed => ofSeed(run, seed, variant, metric, shared(run))), h("p", {class: "quiet"}, source)];
}

/* A run at one seed: all its numbers. */
function ofRun(run, seed) {
  const variants = Object.entries(data.runs[run][seed].values);
  const metrics = Object.keys(data.metrics).filter(metric => variants.some(([, values]) => metric in values));
  const numbers = h("table", {class: "pcb-table"},
    h("thead", {}, h("tr", {}, h("th", {class: "label"}, "variant"), ...metrics.map(m => h("th", {html: data.metrics[m]})))),
    h("tbody", {}, ...variants.map(([variant, values]) => h("tr", {}, h("th", {class: "label", scope: "row"}, variant),
      ...metrics.map(m => h("td", {}, values[m]?.toFixed(2) ?? "–"))))));
  return [h("p", {class: "eyebrow"}, `Seed ${seed}`), h("h2", {id: "provenance-title", class: "long"}, run),
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

function about(run, variant, common) {
  const how = variant === "plain" ? "plain: as trained, last step, no calibration" : variant;
  return list([["run", h("a", {href: `#${run}`}, run)], ["variant", how], ...common]);
}

function ofSeed(run, seed, variant, metric, common = []) {
  const {state, facts, values} = data.runs[run][seed], value = values[variant]?.[metric];
  const shown = value !== undefined ? String(value) : state !== "measured" ? state : values[variant] ? "no value" : "not run";
  const own = facts.filter(([term]) => !common.some(([other]) => other === term));
  return h("section", {class: "seed"}, metric ? h("h3", {}, `Seed ${seed} `, h("output", {}, shown)) : h("h3", {}, state), list(own));
}

/* Claims by verdict. */

const filter = document.getElementById("filter");

function apply() {
  const verdict = filter.elements.verdict.value, differ = filter.elements.differ.checked;
  let shown = 0;
  for (const row of document.querySelectorAll("#claims tr[data-ours]")) {
    row.hidden = (verdict && row.dataset.ours !== verdict) || (differ && row.dataset.ours === row.dataset.paper);
    shown += !row.hidden;
  }
  for (const row of document.querySelectorAll("#claims tr.group")) row.hidden = Boolean(verdict || differ);
  filter.querySelector("output").textContent = `${shown} shown`;
}

if (filter) {
  filter.hidden = false;
  filter.addEventListener("change", apply);
  for (const link of document.querySelectorAll("a[data-verdict]")) {
    link.addEventListener("click", () => { filter.elements.verdict.value = link.dataset.verdict; filter.elements.differ.checked = false; apply(); });
  }
  apply();
}
