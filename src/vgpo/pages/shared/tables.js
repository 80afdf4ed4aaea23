// Tables on a phone: each row is a block, each cell beside the head of its column.

function stackTables() {
  for (const table of document.querySelectorAll(".scroll > table")) {
    if (table.querySelectorAll("thead").length !== 1) continue; // a table in sections has a layout of its own
    const heads = [...table.tHead.rows[0].cells].map(labelOf);
    table.classList.add("stacked");
    for (const row of [...table.tBodies].flatMap((body) => [...body.rows])) labelCells(row, heads);
  }
}

// The scale above a column of plots labels nothing.
function labelOf(head) {
  return head.querySelector("div") === null ? head.textContent.trim() : "";
}

// Cells are counted from the right: a head that spans rows is in the first of them only.
function labelCells(row, heads) {
  let at = heads.length;
  for (const cell of [...row.cells].reverse()) {
    at -= cell.colSpan;
    if (cell.tagName === "TD" && cell.colSpan === 1) cell.dataset.label = heads[at] ?? "";
  }
}
