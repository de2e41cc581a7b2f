// Two reports side by side.

const [before, after] = figures.names;
byId("about").textContent = `${figures.models.join(" and ")}: from ${before} (${whole(figures.samples[0])} samples) to ${after} (${whole(figures.samples[1])}).`;

// Of these less is better; of others more, where that means anything.
const COSTS = ["bytes", "latency ms", "activation bytes", "clipped", "max_lsb", "weight_bytes"];
const GAINS = ["accuracy", "same class", "SQNR", "own_sqnr", "sqnr"];

/** "better", "worse" or nothing. */
function judged(name, [a, b]) {
  const [x, y] = [number(a), number(b)];
  if (!isKnown(x) || !isKnown(y) || x === y) return null;
  // Times differ by themselves, and a little clipping is meant.
  if (name.startsWith("latency") && Math.abs(y - x) < 0.1 * x) return null;
  if (name === "clipped" && Math.abs(y - x) < 0.01) return null;
  if (GAINS.some((start) => name.startsWith(start))) return y > x ? "better" : "worse";
  return COSTS.includes(name) ? (y < x ? "better" : "worse") : null;
}

function shown(name, x) {
  if (!isKnown(x)) return "";
  if (typeof x === "string") return x === "inf" ? "exact" : x;
  if (Array.isArray(x)) return x.map((y) => digits(y)).join(" \u2026 ");
  if (name.includes("accuracy") || name.includes("same class") || name === "clipped") return percent(x);
  if (name.includes("SQNR") || name.includes("sqnr")) return decibels(x);
  return Number.isInteger(x) ? whole(x) : digits(x);
}

function change(name, pair) {
  const text = `${shown(name, pair[0]) || "\u2013"} \u2192 ${shown(name, pair[1]) || "\u2013"}`;
  return element("span", { class: judged(name, pair) }, text);
}

byId("sides").append(
  element("tr", {}, ["", before, after].map((x, i) => element("th", { class: i ? null : "text" }, x))),
  ...Object.entries(figures.verdict).map(([name, pair]) => element("tr", {},
    element("td", { class: "text" }, name), element("td", {}, shown(name, pair[0])),
    element("td", {}, element("span", { class: judged(name, pair) }, shown(name, pair[1]))))));

for (const [kind, title] of [["gone", "Gone"], ["new", "New"], ["left", "Left"]]) {
  const items = figures.advice[kind];
  byId("advice").append(element("p", {}, element("b", {}, `${title}: `), items.length ? "" : "none"),
    element("ul", {}, items.map((x) => element("li", {}, element("b", {}, x.layer || "The model"), `: ${x.what}. `, marked(x.way_out)))));
}

const named = Object.entries(figures.layers);
const depths = [0, 1].map((side) => named.map(([name, found], i) => [i, found ? number(found.along[side]) : NaN, name]).filter(([, y]) => Number.isFinite(y)));
const made = counted(chart({ height: 250, x_axis_label: "layer", y_axis_label: "SQNR (dB)" }));
[FLOAT, INT].forEach((c, side) => {
  const points = depths[side];
  const data = { x: points.map((p) => p[0]), y: points.map((p) => p[1]), name: points.map((p) => p[2]) };
  const at = { x: { field: "x" }, y: { field: "y" }, source: new Bokeh.ColumnDataSource({ data }), color: c };
  made.line({ ...at, line_width: 2 });
  hover(made, made.scatter({ ...at, size: 6 }), [["", "@name"], ["dB", "@y{0.0}"]]);
});
// Different networks have no layer in common, and files alone no SQNR.
if (depths.flat().length) draw(made, byId("depth"), "", [[FLOAT, before], [INT, after]]);
else byId("depth").closest("section").remove();

const rows = named.filter(([, found]) => !found || Object.keys(found).some((key) => key !== "along"))
  .map(([name, found]) => ({ name, found }));
const gained = (key) => (x) => (x.found?.[key] ? number(x.found[key][1]) - number(x.found[key][0]) : null);
const column = (title, key) => ({ title, value: gained(key), text: (x) => (x.found?.[key] ? change(key, x.found[key]) : "") });
const words = (title, key) => ({ title, left: true, value: (x) => x.found?.[key]?.[1], text: (x) => (x.found?.[key] ? change(key, x.found[key]) : "") });
const COLUMNS = [
  { title: "Layer", left: true, value: (x) => x.name, text: (x) => (x.found ? x.name : element("span", { title: x.name }, `only in one: ${x.name}`)) },
  words("Operator", "op"), words("Scheme", "scheme"), words("Range", "range"),
  column("Clipped", "clipped"), column("Codes", "codes_used"), column("Own SQNR", "own_sqnr"), column("SQNR", "sqnr"),
  column("LSB", "max_lsb"), column("Weights (B)", "weight_bytes"),
];
const columns = COLUMNS.filter((one) => one.title === "Layer" || rows.some((x) => one.text(x)));
sortable(byId("changes"), columns, rows, () => {});
