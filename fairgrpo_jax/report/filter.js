"use strict";
// Hides the completions that do not fit the choices made above them. Without it the page shows all of them.
(() => {
  const panel = document.querySelector("[data-filters]");
  if (!panel) return;
  const field = (name) => panel.querySelector(`[name=${name}]`);
  const choices = ["step", "dataset", "group", "outcome", "number", "side", "limit"].map(field);
  const tables = [...document.querySelectorAll("[data-completions]")];

  const beyond = (row, name, side, limit) => {
    const cell = [...row.cells].find((one) => one.dataset.number === name);
    if (!cell || cell.dataset.value === "") return false; // not scored, or does not apply
    const value = Number(cell.dataset.value);
    return side === "below" ? value < limit : value >= limit;
  };

  const apply = () => {
    const [step, dataset, group, outcome, number, side, limit] = choices.map((choice) => choice.value);
    let shown = 0;
    let all = 0;
    for (const body of tables.flatMap((table) => [...table.tBodies])) {
      const known = body.dataset;
      const fits =
        (!step || known.step === step) &&
        (!dataset || known.dataset === dataset) &&
        (!group || JSON.parse(known.groups).includes(group));
      let some = false;
      for (const row of body.rows) {
        if (!row.dataset.times) continue; // the prompt
        row.hidden = !(
          fits &&
          (!outcome || JSON.parse(row.dataset.outcomes).includes(outcome)) &&
          (!number || limit.trim() === "" || beyond(row, number, side, Number(limit)))
        );
        all += Number(row.dataset.times);
        if (row.hidden) continue;
        some = true;
        shown += Number(row.dataset.times);
      }
      body.hidden = !some;
    }
    panel.querySelector("[role=status]").textContent = `${shown} of ${all} completions`;
  };

  for (const choice of choices) choice.addEventListener("input", apply);
  panel.querySelector("[type=button]").addEventListener("click", () => {
    for (const choice of choices) choice.value = choice.name === "side" ? "least" : "";
    apply();
  });
  panel.hidden = false;
  apply();
})();
