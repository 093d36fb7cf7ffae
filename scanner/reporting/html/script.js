"use strict";
// Sorts, filters and pages the findings. Without it, the first page is there as it was written.
(() => {
  const data = JSON.parse(document.getElementById("findings-data").textContent);
  const body = document.querySelector("#findings tbody");
  if (!body || !data.rows.length) return;
  const pictures = data.pictures;
  const rows = data.rows.map((cells, number) => ({
    cells, number, text: cells.map(String).join("\n").toLowerCase(),
  }));
  const columns = data.columns;
  const filter = document.getElementById("filter");
  const shown = document.getElementById("shown");
  const [back, next] = ["back", "next"].map((name) => document.getElementById(name));
  let found = rows, page = 0, sorted = null, down = false;

  const cell = (value, column) => {
    const td = document.createElement("td");
    td.className = column.number ? "number" : "name";
    td.textContent = value === null ? "-" : column.number ? Number(value).toPrecision(4) : value;
    return td;
  };
  const gallery = (row) => {
    const td = document.createElement("td");
    td.className = "pictures";
    (pictures[row.number] || []).forEach((source, which) => {
      const img = document.createElement("img");
      img.src = source;
      img.alt = data.alternatives[which];
      td.append(img);
    });
    return td;
  };
  const draw = () => {
    const pages = Math.max(1, Math.ceil(found.length / data.page));
    page = Math.min(page, pages - 1);
    const first = page * data.page;
    const part = found.slice(first, first + data.page);
    body.replaceChildren(...part.map((row) => {
      const tr = document.createElement("tr");
      if (pictures.length) tr.append(gallery(row));
      tr.append(...row.cells.map((value, at) => cell(value, columns[at])));
      return tr;
    }));
    shown.textContent = found.length
      ? `${first + 1} to ${first + part.length} of ${found.length}` : "none";
    back.disabled = page === 0;
    next.disabled = page >= pages - 1;
  };
  const order = (at) => {
    down = sorted === at ? !down : false;
    sorted = at;
    const sign = down ? -1 : 1;
    const number = columns[at].number;
    const compare = (one, two) => {
      const [a, b] = [one.cells[at], two.cells[at]];
      if (a === null || b === null) return (a === null) - (b === null);
      const by = number ? a - b : a < b ? -1 : a > b ? 1 : 0;
      return sign * by || one.number - two.number;
    };
    rows.sort(compare);
    document.querySelectorAll("#findings th[data-at]").forEach((th) => {
      const mine = Number(th.dataset.at) === at;
      th.setAttribute("aria-sort", mine ? (down ? "descending" : "ascending") : "none");
    });
    look();
  };
  const look = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = rows.filter((row) => words.every((word) => row.text.includes(word)));
    page = 0;
    draw();
  };
  document.querySelectorAll("#findings th[data-at] button").forEach((button) => {
    button.addEventListener("click", () => order(Number(button.closest("th").dataset.at)));
  });
  filter.addEventListener("input", look);
  back.addEventListener("click", () => { page -= 1; draw(); });
  next.addEventListener("click", () => { page += 1; draw(); });
  document.querySelector("#findings-bar").hidden = false;
  document.querySelectorAll("#cut").forEach((text) => { text.hidden = true; });
  draw();
})();
