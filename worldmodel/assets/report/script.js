"use strict";
// Sorting and filtering of tables that are already in the page; without this script they are merely long.

function keyOf(row, column) {
  const value = row.cells[column].dataset.v;
  if (value === undefined) return null;
  const number = Number(value);
  return value === "" || Number.isNaN(number) ? value : number;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), undefined, { numeric: true });
}

function sortBy(table, column) {
  const heads = table.tHead.rows[0].cells;
  const down = heads[column].getAttribute("aria-sort") === "ascending";
  for (const head of heads) head.setAttribute("aria-sort", "none");
  heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = table.tBodies[0];
  const known = [];
  const unknown = [];
  for (const row of body.rows) {
    const key = keyOf(row, column);
    (key === null ? unknown : known).push({ key, row });
  }
  known.sort((a, b) => (down ? compare(b.key, a.key) : compare(a.key, b.key)));
  body.remove(); // a body that is out of the page is put in order without laying the page out again and again
  body.append(...[...known, ...unknown].map((entry) => entry.row));
  table.append(body);
}

function filter(form) {
  const table = document.getElementById(form.dataset.table);
  const words = form.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = [...form.querySelectorAll("select")].filter((select) => select.value !== "");
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const text = words.length ? [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase() : "";
    const fits =
      wanted.every((select) => row.dataset[select.dataset.key] === select.value) &&
      words.every((word) => text.includes(word));
    row.hidden = !fits;
    shown += fits ? 1 : 0;
  }
  form.querySelector("output").textContent = `${shown} of ${table.tBodies[0].rows.length}`;
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) =>
    head.querySelector("button").addEventListener("click", () => sortBy(table, column)),
  );
}
for (const form of document.querySelectorAll("form.filters")) {
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => filter(form));
  form.addEventListener("reset", () => setTimeout(() => filter(form)));
}

// Whoever prints the page wants to read what is folded.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const part of folded) part.open = true;
});
addEventListener("afterprint", () => {
  for (const part of folded) part.open = false;
});
