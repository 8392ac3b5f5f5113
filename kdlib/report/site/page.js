// Sorting, search and filters; without this script the tables are whole and in their first order.
"use strict";
const cells = (row) => [...row.children];
const unknown = (text) => text === "" || text === "—";
const value = (cell) => cell.dataset.value ?? cell.textContent.trim();

function compare(a, b) {
  if (unknown(a) || unknown(b)) return unknown(a) - unknown(b); // what is not known comes last, in either direction
  const [x, y] = [a, b].map((text) => Number(text.replace(/(?<=\d),(?=\d{3})/g, ""))); // 1,005.0 is a number
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
}

function sortable(table) {
  const heads = cells(table.tHead.rows[0]);
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].sort((first, second) => {
        const [a, b] = [value(first.children[column]), value(second.children[column])];
        return unknown(a) || unknown(b) || !down ? compare(a, b) : compare(b, a);
      });
      table.tBodies[0].append(...rows);
    });
  });
}

function labelled(text, control) {
  const label = document.createElement("label");
  label.append(text, control);
  return label;
}

function searched(table) {
  const tools = document.createElement("div"), search = document.createElement("input"), count = document.createElement("output");
  tools.className = "tools";
  search.type = "search";
  count.setAttribute("aria-live", "polite");
  const rows = [...table.tBodies[0].rows], picks = [];
  tools.append(labelled("Search", search));
  cells(table.tHead.rows[0]).forEach((head, column) => {
    if (!("pick" in head.dataset)) return;
    const found = [...new Set(rows.map((row) => word(row.children[column])))].sort();
    if (found.length < 2) return;
    const select = document.createElement("select");
    select.append(new Option("all", ""), ...found.map((text) => new Option(text, text)));
    picks.push([column, select]);
    tools.append(labelled(head.textContent.trim(), select));
  });
  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const kept = words.every((each) => text.includes(each)) && picks.every(([column, select]) => !select.value || word(row.children[column]) === select.value);
      row.hidden = !kept;
      shown += kept;
    }
    count.textContent = shown === rows.length ? "" : `${shown} of ${rows.length} rows`;
  };
  tools.addEventListener("input", show);
  tools.append(count);
  (table.closest(".scroll") ?? table).before(tools);
}

// The word of a cell that a filter offers: its badge, or its text without what stands below it.
function word(cell) {
  const badge = cell.querySelector(".badge");
  if (badge) return badge.lastChild.textContent.trim();
  const copy = cell.cloneNode(true);
  copy.querySelectorAll(".about").forEach((below) => below.remove());
  return copy.textContent.trim();
}

// A link to what is folded unfolds it.
function unfold() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let fold = target?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  target?.scrollIntoView();
}

document.querySelectorAll("table.searched, table.cards.sortable").forEach((table) => table.tBodies[0].rows.length > 5 && searched(table));
document.querySelectorAll("table.sortable").forEach(sortable);
addEventListener("hashchange", unfold);
if (location.hash) unfold();
