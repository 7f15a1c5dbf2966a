/* The table of classes: search by name, filter by group, sort by column. State is in the address. */
const form = document.getElementById("search"), table = document.getElementById("class-table");

if (form) {
  const rows = [...table.tBodies[0].rows];
  const boxes = [...form.querySelectorAll("[name=group]")];
  const state = new URLSearchParams(location.search);

  const filter = () => {
    const text = form.elements.text.value.trim().toLowerCase().replaceAll(" ", "_");
    const groups = boxes.filter(box => box.checked).map(box => box.value);
    let shown = 0;
    for (const row of rows) {
      row.hidden = !groups.includes(row.dataset.group) || !row.dataset.name.replaceAll(" ", "_").includes(text);
      shown += !row.hidden;
    }
    form.querySelector("output").textContent = `${shown} of ${rows.length}`;
    remember("class", form.elements.text.value.trim());
    remember("groups", groups.length === boxes.length ? "" : groups.join(""));
  };

  const sort = (key, sign) => {
    const text = key === "name" || key === "group";
    const order = (a, b) => {
      const [x, y] = [a.dataset[key], b.dataset[key]];
      if (x === "" || y === "") return (x === "") - (y === "");
      return sign * (text ? x.localeCompare(y, "en") : x - y);
    };
    table.tBodies[0].append(...rows.toSorted(order));
    for (const head of table.querySelectorAll("th[data-key]")) {
      if (head.dataset.key === key) head.ariaSort = sign > 0 ? "ascending" : "descending";
      else head.removeAttribute("aria-sort");
    }
    remember("sort", (sign > 0 ? "" : "-") + key);
  };

  const remember = (key, value) => {
    if (value) state.set(key, value); else state.delete(key);
    history.replaceState(null, "", `${location.pathname}${state.size ? "?" + state : ""}${location.hash}`);
  };

  for (const head of table.querySelectorAll("th[data-key]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(head.dataset.key, head.ariaSort === "descending" ? 1 : -1));
  }
  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", event => event.preventDefault());
  form.elements.text.value = state.get("class") ?? "";
  if (state.has("groups")) for (const box of boxes) box.checked = state.get("groups").includes(box.value);
  const sorted = state.get("sort");
  if (sorted) sort(sorted.replace("-", ""), sorted.startsWith("-") ? -1 : 1);
  filter();
}
