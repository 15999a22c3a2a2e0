(() => {
  "use strict";
  const form = document.getElementById("controls");
  if (!form) return;
  const list = document.getElementById("cards");
  const cards = [...list.children].map((element, index) => ({
    element, index,
    decision: element.dataset.decision,
    group: element.dataset.group,
    score: parseFloat(element.dataset.score),
    p: element.dataset.p === "" ? NaN : parseFloat(element.dataset.p),
  }));
  const alpha = parseFloat(list.dataset.alpha);
  const value = (name) => (form.elements[name] ? form.elements[name].value : "");
  const ofP = { "": () => true, small: (p) => p <= alpha, large: (p) => p > alpha, none: (p) => Number.isNaN(p) };

  let order = "index";
  const sort = (key) => {
    if (key === order) return;
    order = key;
    const sign = key.startsWith("-") ? -1 : 1;
    const name = key.replace("-", "");
    // What has no value comes last in either direction; equal values keep the order of the report.
    const rank = (a, b) => Number.isNaN(a[name]) - Number.isNaN(b[name]) || sign * (a[name] - b[name]) || a.index - b.index;
    list.append(...[...cards].sort(rank).map((card) => card.element));
  };
  const update = () => {
    let shown = 0;
    for (const card of cards) {
      const show = (!value("decision") || card.decision === value("decision")) &&
        (!value("group") || card.group === value("group")) && ofP[value("p")](card.p);
      card.element.hidden = !show;
      shown += show;
    }
    sort(value("sort"));
    for (const name of ["roi", "target"]) {
      list.classList.toggle(`without-${name}`, Boolean(form.elements[name] && !form.elements[name].checked));
    }
    document.getElementById("shown").textContent = `${shown} of ${cards.length} shown`;
  };
  form.addEventListener("change", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(update));
  form.hidden = false;
  update();

  const dialog = document.getElementById("opened");
  list.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const card = button.parentElement;
    const facts = document.createElement("dl");
    for (const part of card.querySelectorAll("dl")) facts.append(...[...part.children].map((node) => node.cloneNode(true)));
    document.getElementById("opened-title").textContent = `${card.querySelector(".title").textContent}: ${card.dataset.decision}`;
    document.getElementById("opened-body").replaceChildren(button.querySelector(".picture").cloneNode(true), facts);
    dialog.showModal();
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
})();
