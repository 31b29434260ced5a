"use strict";
// Sort tables by the column whose heading is pressed; a second time in the other direction.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const original = [...body.rows];
  headings.forEach((heading, column) => {
    heading.firstElementChild.addEventListener("click", () => {
      const number = heading.classList.contains("number");
      const first = number ? "descending" : "ascending";
      const other = number ? "ascending" : "descending";
      const order = heading.getAttribute("aria-sort") === first ? other : first;
      headings.forEach((cell) => cell.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const value = (row) => {
        const cell = row.cells[column];
        return number ? (cell.dataset.value === "" ? NaN : Number(cell.dataset.value)) : cell.textContent.trim();
      };
      const compare = (a, b) => {
        const x = value(a), y = value(b);
        if (!number) return sign * x.localeCompare(y);
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return sign * (x - y);
      };
      body.append(...[...original].sort(compare));
    });
  });
}
