"use strict";
// Shows one finding after another, and sends what the reader decides.
(() => {
  const data = JSON.parse(document.getElementById("review-data").textContent);
  const [progress, pictures, facts, problem, bar] =
    ["progress", "pictures", "facts", "problem", "decisions"].map(
      (name) => document.getElementById(name));
  const titles = {
    synthetic: "synthetic image",
    training: "training image, aligned",
    difference: "difference",
  };
  const decided = new Map();
  let at = 0;
  let busy = false; // a decision is on its way: the page still shows what it is about

  const draw = () => {
    problem.textContent = "";
    const done = at >= data.cases.length;
    bar.querySelectorAll("[data-decision]").forEach((button) => { button.disabled = done; });
    document.getElementById("before").disabled = at === 0;
    pictures.replaceChildren();
    facts.replaceChildren();
    if (done) {
      const left = data.cases.length - decided.size;
      progress.textContent = left ? `${left} findings are not decided. Go back to them.`
        : decided.size
          ? `All ${decided.size} findings are decided. This page can be closed, and the command ended.`
          : "There is nothing to decide.";
      return;
    }
    const one = data.cases[at];
    progress.textContent = `Finding ${at + 1} of ${data.cases.length}`
      + (decided.has(one.finding) ? `, decided: ${decided.get(one.finding)}` : "");
    for (const [which, title] of Object.entries(titles)) {
      const figure = document.createElement("figure");
      const img = document.createElement("img");
      img.src = `${one.finding}/${which}.png`;
      img.alt = `the ${title}`;
      const text = document.createElement("figcaption");
      text.textContent = title;
      figure.append(img, text);
      pictures.append(figure);
    }
    for (const [name, value] of [["finding", one.finding], ...one.facts]) {
      const dt = document.createElement("dt");
      const dd = document.createElement("dd");
      dt.textContent = name;
      dd.textContent = value;
      facts.append(dt, dd);
    }
  };
  const decide = async (decision) => {
    if (busy || at >= data.cases.length) return;
    busy = true;
    const finding = data.cases[at].finding;
    let why;
    try {
      const answer = await fetch("decide", {
        method: "POST", body: JSON.stringify({ finding, decision }),
      });
      if (!answer.ok) why = await answer.text() || `the answer is ${answer.status}`;
    } catch {
      problem.textContent = "Not taken down: the command that serves this page has ended.";
      return;
    } finally {
      busy = false;
    }
    if (why) {
      problem.textContent = `Not taken down: ${why}`;
      return;
    }
    decided.set(finding, decision);
    at += 1;
    draw();
  };
  const back = () => {
    if (busy) return;
    at = Math.max(0, at - 1);
    draw();
  };
  const keys = { c: "copy", n: "no copy", u: "unsure" };
  document.addEventListener("keydown", (event) => {
    if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
    const key = event.key.toLowerCase(); // caps lock may be on
    if (Object.hasOwn(keys, key)) decide(keys[key]);
    if (event.key === "ArrowLeft") back();
  });
  bar.querySelectorAll("[data-decision]").forEach((button) => {
    button.addEventListener("click", () => decide(button.dataset.decision));
  });
  document.getElementById("before").addEventListener("click", back);
  draw();
})();
