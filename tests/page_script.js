// Runs the script of a page over its elements: {tree, script, settings} in, for each setting the visible rows and the status.
const camel = (name) => name.slice(5).replace(/-(\w)/g, (_, letter) => letter.toUpperCase());

class Element {
  constructor({ tag, attrs, children, text }) {
    Object.assign(this, { tag, attrs, textContent: text, name: attrs.name, hidden: "hidden" in attrs, heard: {} });
    this.children = children.map((child) => new Element(child));
    const data = Object.entries(attrs).filter(([name]) => name.startsWith("data-"));
    this.dataset = Object.fromEntries(data.map(([name, value]) => [camel(name), value]));
    const options = this.all((one) => one.tag === "option");
    const chosen = options.find((one) => "selected" in one.attrs) ?? options[0];
    this.value = tag === "select" ? chosen.attrs.value : "";
  }
  all(fits) {
    return this.children.flatMap((child) => [...(fits(child) ? [child] : []), ...child.all(fits)]);
  }
  querySelectorAll(selector) {
    const [, name, value] = /^\[([\w-]+)(?:=([\w-]+))?\]$/.exec(selector);
    return this.all((one) => name in one.attrs && (value === undefined || one.attrs[name] === value));
  }
  querySelector(selector) { return this.querySelectorAll(selector)[0] ?? null; }
  addEventListener(kind, call) { this.heard[kind] = call; }
  get tBodies() { return this.children.filter((one) => one.tag === "tbody"); }
  get rows() { return this.children.filter((one) => one.tag === "tr"); }
  get cells() { return this.children.filter((one) => one.tag === "td" || one.tag === "th"); }
}

const { tree, script, settings } = JSON.parse(require("node:fs").readFileSync(0, "utf-8"));
const document = new Element(tree);
new Function("document", script)(document);
const panel = document.querySelector("[data-filters]");
const seen = settings.map((setting) => {
  for (const [name, value] of Object.entries(setting ?? {})) {
    const field = panel.querySelector(`[name=${name}]`);
    const values = field.all((one) => one.tag === "option").map((one) => one.attrs.value);
    if (values.length && !values.includes(value)) throw new Error(`${name} has no choice ${value}`);
    field.value = value;
    field.heard.input();
  }
  const bodies = document.querySelectorAll("[data-completions]").flatMap((table) => table.tBodies);
  const rows = bodies.filter((body) => !body.hidden).flatMap((body) => body.rows.filter((row) => !row.hidden));
  const said = rows.filter((row) => row.dataset.times).map((row) => row.cells[0].textContent);
  const status = panel.querySelector("[role=status]").textContent;
  panel.querySelector("[type=button]").heard.click();
  return { said, status, prompts: rows.length - said.length, panel: !panel.hidden };
});
process.stdout.write(JSON.stringify(seen));
