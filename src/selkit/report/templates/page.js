(() => {
  "use strict";
  const form = document.getElementById("controls");
  if (!form) return;
  const list = document.getElementById("cards");
  const rows = document.getElementById("rows");
  const heads = [...rows.querySelectorAll("th")];
  const more = document.getElementById("more");
  const dialog = document.getElementById("opened");
  const alpha = parseFloat(list.dataset.alpha);
  const STEP = 60; // samples that are drawn at a time
  const PRINTED = 300; // and at most on paper

  // Each sample waits as the text of a noscript element: readers without scripts see all of them, and with
  // scripts only those are made that are looked at.
  const samples = [...list.querySelectorAll(":scope > noscript")].map((stored, index) => {
    const data = stored.dataset;
    const sample = { index, text: stored.textContent, name: data.name, decision: data.decision, group: data.group };
    for (const key of ["score", "loss", "p", "adjusted", "without", "change"]) sample[key] = parseFloat(data[key]);
    return sample;
  });
  list.replaceChildren();
  const cardOf = (sample) => {
    if (!sample.card) {
      const template = document.createElement("template");
      template.innerHTML = sample.text;
      sample.card = template.content.firstElementChild;
      sample.card.dataset.index = sample.index;
    }
    return sample.card;
  };
  const cell = (sample, name) => cardOf(sample).querySelector(`[data-cell="${name}"]`)?.textContent ?? "–";
  const rowOf = (sample) => {
    if (sample.row) return sample.row;
    sample.row = document.createElement("tr");
    sample.row.dataset.index = sample.index;
    for (const head of heads) {
      const name = head.dataset.key || head.dataset.cell;
      const part = document.createElement(name === "name" ? "th" : "td");
      if (name === "name") {
        part.scope = "row";
        const button = document.createElement("button");
        button.className = "open";
        button.setAttribute("aria-haspopup", "dialog");
        button.dir = "auto";
        button.textContent = sample.name;
        part.append(button);
      } else if (name === "decision") {
        const badge = cardOf(sample).querySelector(".badge").cloneNode(true);
        part.className = sample.decision;
        part.append(badge);
      } else {
        part.textContent = cell(sample, name);
        if (head.classList.contains("num")) part.className = "num";
      }
      sample.row.append(part);
    }
    return sample.row;
  };

  const value = (name) => (form.elements[name] ? form.elements[name].value : "");
  const keeps = {
    "": () => true,
    small: (sample) => sample.p <= alpha,
    adjusted: (sample) => sample.adjusted <= alpha,
    large: (sample) => sample.p > alpha,
    none: (sample) => Number.isNaN(sample.p),
  };
  let shown = []; // samples that pass the filters, in order
  let drawn = 0; // how many of them are in the page
  const compare = new Intl.Collator(undefined, { numeric: true }).compare;
  const sorted = (chosen, order) => {
    const sign = order.startsWith("-") ? -1 : 1;
    const key = order.replace("-", "");
    if (key === "name") return chosen.sort((a, b) => sign * compare(a.name, b.name) || a.index - b.index);
    // What has no value comes last in either direction; equal values keep the order of the report.
    const rank = (a, b) => (a === b ? 0 : sign * (a < b ? -1 : 1));
    return chosen.sort(
      (a, b) => Number.isNaN(a[key]) - Number.isNaN(b[key]) || (Number.isNaN(a[key]) ? 0 : rank(a[key], b[key])) || a.index - b.index,
    );
  };

  const draw = (count) => {
    const table = value("view") === "table";
    const next = shown.slice(drawn, drawn + count);
    (table ? rows.querySelector("tbody") : list).append(...next.map(table ? rowOf : cardOf));
    drawn += next.length;
    more.hidden = drawn >= shown.length;
  };
  const update = () => {
    const find = value("find").trim().toLowerCase();
    shown = sorted(
      samples.filter(
        (sample) =>
          (!value("decision") || sample.decision === value("decision")) &&
          (!value("group") || sample.group === value("group")) &&
          (!find || sample.name.toLowerCase().includes(find)) &&
          keeps[value("p")](sample),
      ),
      value("sort"),
    );
    const table = value("view") === "table";
    rows.hidden = !table;
    list.hidden = table;
    for (const head of heads.filter((one) => one.dataset.key)) {
      const state = { [head.dataset.key]: "ascending", [`-${head.dataset.key}`]: "descending" }[value("sort")];
      head.setAttribute("aria-sort", state || "none");
    }
    for (const name of ["roi", "target", "attribution"]) {
      document.body.classList.toggle(`without-${name}`, Boolean(form.elements[name] && !form.elements[name].checked));
    }
    list.replaceChildren();
    rows.querySelector("tbody").replaceChildren();
    drawn = 0;
    draw(STEP);
    document.getElementById("shown").textContent = `${shown.length} of ${samples.length} shown`;
  };

  form.addEventListener("change", update);
  form.addEventListener("input", (event) => event.target.name === "find" && update());
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(update));
  rows.querySelector("thead").addEventListener("click", (event) => {
    const key = event.target.closest("th[data-key] button")?.parentElement.dataset.key;
    if (!key) return;
    form.elements.sort.value = value("sort") === key ? `-${key}` : key;
    update();
  });
  more.querySelector("button").addEventListener("click", () => draw(STEP));
  // While the end of the list is near, there is more to draw.
  new IntersectionObserver(
    (entries) => entries.some((entry) => entry.isIntersecting) && draw(STEP),
    { rootMargin: "600px" },
  ).observe(more);

  let place = 0; // of the opened sample among those that are shown
  const open = (at) => {
    place = at;
    const sample = shown[at];
    const card = cardOf(sample);
    const facts = document.createElement("dl");
    for (const part of card.querySelectorAll("dl")) facts.append(...[...part.children].map((node) => node.cloneNode(true)));
    document.getElementById("opened-title").textContent = `${sample.name}: ${sample.decision}`;
    document.getElementById("place").textContent = `${at + 1} of ${shown.length}`;
    const pictures = document.createElement("div");
    pictures.className = "pictures";
    const picture = card.querySelector(".picture");
    if (picture) {
      const plain = picture.cloneNode(true);
      plain.querySelector(".attribution")?.remove();
      pictures.append(plain);
      if (picture.querySelector(".attribution")) {
        const heat = picture.cloneNode(true);
        heat.querySelector(".image, .blank")?.remove();
        heat.classList.add("heat");
        pictures.append(heat);
      }
    }
    document.getElementById("opened-body").replaceChildren(pictures, facts);
    for (const button of dialog.querySelectorAll("[data-go]")) {
      const to = at + Number(button.dataset.go);
      if (!Number.isNaN(to)) button.disabled = to < 0 || to >= shown.length;
    }
    if (!dialog.open) dialog.showModal();
  };
  const go = (by) => shown[place + by] && open(place + by);
  document.getElementById("gallery").parentElement.addEventListener("click", (event) => {
    const button = event.target.closest("button.open");
    if (button) open(shown.indexOf(samples[button.closest("[data-index]").dataset.index]));
  });
  dialog.addEventListener("click", (event) => {
    const to = event.target.closest("[data-go]")?.dataset.go;
    if (event.target === dialog || to === "close") dialog.close();
    else if (to) go(Number(to));
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") go(-1);
    if (event.key === "ArrowRight") go(1);
  });
  dialog.addEventListener("close", () => {
    while (drawn <= place && drawn < shown.length) draw(STEP);
    const sample = shown[place];
    (value("view") === "table" ? rowOf(sample) : cardOf(sample)).querySelector("button.open").focus();
  });

  const note = document.getElementById("print-note");
  addEventListener("beforeprint", () => {
    draw(Math.max(0, PRINTED - drawn));
    note.textContent = drawn < shown.length ? `The first ${drawn} of ${shown.length}; filter to print others.` : "";
    note.hidden = !note.textContent;
  });
  addEventListener("afterprint", () => { note.hidden = true; });

  form.hidden = false;
  update();
})();
