// The report: fills its sections from the figures.

const layers = figures.layers, verdict = figures.verdict;
const advised = new Set(figures.advice.map((x) => x.layer));

byId("title").textContent = `${figures.model}: where did the accuracy go?`;
byId("about").textContent = `kerasq ${figures.kerasq}, ${whole(figures.samples)} samples, target ${verdict.target ?? "not said"}, run on ${verdict.runs_on}.`;

function showVerdict() {
  // Of several outputs a column for each.
  const several = Object.entries(verdict.accuracy_by_output).map(([name, found]) => [`accuracy of ${name}`, found]);
  const accuracies = several.length ? several : Object.keys(verdict.accuracy).length ? [["accuracy", verdict.accuracy]] : [];
  const all = ["float", "simulated", "file"];
  // A column that nothing is known of, such as classes of a regressor, is left out; so is a row.
  const columns = [
    ...accuracies.map(([head, found]) => [head, (side) => found[side], percent]),
    ["same class as float", (side) => verdict.agreement[`float ${side}`], percent],
    ["SQNR of outputs (dB)", (side) => verdict.sqnr[side], decibels],
  ].filter(([, value]) => all.map(value).some(isKnown));
  const sides = all.filter((side) => columns.some(([, value]) => isKnown(value(side))));
  const heads = ["", ...columns.map(([head]) => head)];
  const lines = sides.map((side) => [side, ...columns.map(([, value, text]) => text(value(side)))]);
  const cells = (tag, line) => element("tr", {}, line.map((x, i) => element(tag, { class: i ? null : "text" }, x)));
  if (sides.length) byId("sides").append(cells("th", heads), ...lines.map((x) => cells("td", x)));
  const facts = [
    ["Simulation and file agree", percent(verdict.agreement["simulated file"])],
    ["Size", `${whole(verdict.bytes)} bytes` + (verdict.float_bytes ? `, float ${whole(verdict.float_bytes)}` : "")],
    ["Latency here", latencies(verdict)],
    ["Activation memory", isKnown(verdict.activation_bytes) ? `${whole(verdict.activation_bytes)} bytes at the peak` : ""],
    ["Arena", isKnown(verdict.arena_bytes) ? `${whole(verdict.arena_bytes)} bytes` : ""],
    ["XNNPACK", partitions(verdict.partitions), verdict.partitions && Object.keys(verdict.partitions.outside).length > 0],
    ["Operators", Object.entries(verdict.operators).map(([name, n]) => `${n} ${name}`).join(", "), true],
    ["Stays float", Object.entries(verdict.stays_float).map(([name, why]) => `${name}: ${why}`).join("; "), true],
    ["Remarks", [...verdict.remarks, ...(verdict.troubles ?? [])].join(" "), true],
  ];
  for (const [term, text, long] of facts.filter(([, text]) => text))
    byId("facts").append(element("div", { class: long ? "long" : null }, element("dt", {}, term), element("dd", {}, text)));
}

function latencies({ latency_ms: whole, operators_ms: alone }) {
  if (!isKnown(whole)) return "";
  // Of reports of before, that is not known.
  return `${digits(whole)} ms` + (isKnown(alone) ? `; operators alone ${digits(alone)} ms` : "");
}

function partitions(found) {
  if (!found) return "";
  const outside = Object.values(found.outside);
  const parts = found.count === 1 ? "one part" : `${found.count} parts`;
  return parts + (outside.length ? `; outside of it ${[...new Set(outside)].join(", ")}` : ", all operators");
}

function showAdvice() {
  const items = figures.advice.map((x) => {
    const row = layers.find((one) => one.name === x.layer);
    const name = row
      ? element("a", { href: "#layers", onclick: (e) => { e.preventDefault(); table.open(row); } }, x.layer)
      : element("b", {}, x.layer || "The model");
    return element("li", {}, name, `: ${x.what}. `, element("span", { class: "way" }, marked(x.way_out)));
  });
  byId("advice").append(...items);
  if (!items.length) byId("advice").replaceWith(element("p", {}, figures.nothing));
}

function showDepth() {
  const finite = (key) => layers.map((x, i) => [i, number(x[key]), x.name]).filter(([, y]) => Number.isFinite(y));
  const [own, along] = [finite("own_sqnr"), finite("sqnr")];
  // Of a file alone only the input's is known.
  if (along.length < 2) return byId("depth").closest("section").remove();
  const made = counted(chart({ height: 250, x_axis_label: "layer", y_axis_label: "SQNR (dB)" }));
  const source = (points) => new Bokeh.ColumnDataSource({
    data: { x: points.map((p) => p[0]), y: points.map((p) => p[1]), name: points.map((p) => p[2]) } });
  const at = { x: { field: "x" }, y: { field: "y" } };
  const alone = made.scatter({ ...at, source: source(own), size: 6, color: FLOAT });
  made.line({ ...at, source: source(along), color: INT, line_width: 2 });
  const dots = made.scatter({ ...at, source: source(along), size: 5, color: INT });
  for (const renderer of [alone, dots]) hover(made, renderer, [["", "@name"], ["dB", "@y{0.0}"]]);
  draw(made, byId("depth"), "", [[FLOAT, "the layer by itself"], [INT, "all layers up to it"]]);
}

// Where the page is of a file alone, it has all that it is said to have.
const OF_MODEL = layers.some((x) => x.removed) ? "Of the model, with channels that are not in the file" : undefined;
const COLUMNS = [
  { title: "Layer", name: true, value: (x) => x.name, text: (x) => x.name },
  { title: "Operator", left: true, value: (x) => x.op, text: (x) => x.op },
  { title: "Scheme", left: true, value: (x) => x.scheme, text: (x) => x.scheme || x.dtype },
  { title: "Range", value: (x) => x.high, text: (x) => (isKnown(x.low) ? `${digits(x.low)} \u2026 ${digits(x.high)}` : ""), hint: "Sorts by the upper end" },
  { title: "Clipped", value: (x) => x.clipped, text: (x) => percent(x.clipped), fault: (x) => x.clipped > 0.03 },
  { title: "Codes", value: (x) => x.codes_used, text: (x) => (isKnown(x.codes_used) ? `${whole(x.codes_used)} / ${whole(x.codes)}` : ""), fault: (x) => isKnown(x.codes_used) && x.codes_used < 16 && x.codes >= 256, hint: "Codes in use" },
  { title: "Own SQNR", value: (x) => x.own_sqnr, text: (x) => rated(x.own_sqnr), hint: "dB, of this layer by itself" },
  { title: "SQNR", value: (x) => x.sqnr, text: (x) => rated(x.sqnr), hint: "dB, of all layers up to here" },
  { title: "LSB", value: (x) => x.max_lsb, text: (x) => whole(x.max_lsb), fault: (x) => x.max_lsb > 1, hint: "The largest difference between simulation and file" },
  { title: "Exact", value: (x) => x.exact, text: (x) => percent(x.exact), hint: "Values that are equal in simulation and file" },
  { title: "Outlier", value: (x) => x.weights?.outlier, text: (x) => (x.weights ? `${digits(x.weights.outlier, 2)} x` : ""), fault: (x) => isHarmful(x.weights), hint: "The largest weight of a channel over its 99th percentile" },
  { title: "MACs", value: (x) => x.macs, text: (x) => whole(x.macs || null), hint: OF_MODEL },
  { title: "ms", value: (x) => x.ms, text: (x) => (isKnown(x.ms) ? x.ms.toFixed(4) : ""), hint: "Its operators, each timed alone" },
  { title: "Weights (B)", value: (x) => x.weight_bytes, text: (x) => whole(x.weight_bytes || null), hint: OF_MODEL },
  { title: "Output (B)", value: (x) => x.activation_bytes, text: (x) => whole(x.activation_bytes), hint: OF_MODEL },
  { title: "Acc. bits", value: (x) => x.accumulator_bits, text: (x) => (isKnown(x.accumulator_bits) ? `${x.accumulator_bits} / ${x.accumulator_limit}` : ""), fault: (x) => x.accumulator_bits > x.accumulator_limit, hint: "What sums need, and have" },
];

// As kerasq.reporting.advice has it.
const isHarmful = (w) => w && w.outlier >= 5 && w.outlier_sqnr <= 37 - 6.02 * (8 - w.bits);

function rated(db) {
  if (!isKnown(db)) return "";
  return element("span", {}, element("span", { class: "dot", style: `background:${colour(db)}` }), decibels(db));
}

/** The histograms and boxes of a layer. */
function detail(x, place) {
  const facts = [x.tensor && `Tensor ${x.tensor}`, `${x.kind || x.op}, ${x.dtype}, output ${x.shape.join(" x ") || "a number"}`];
  if (x.removed) facts.push(`${x.removed} of its ${x.shape.at(-1)} channels change nothing and are not in the file`);
  if (x.inputs.length) facts.push(`reads ${x.inputs.join(", ")}`);
  if (isKnown(x.value_low)) facts.push(`values from ${digits(x.value_low)} to ${digits(x.value_high)}`);
  if (isKnown(x.low)) facts.push(`range ${digits(x.low)} to ${digits(x.high)}`);
  if (x.weights && isKnown(x.weights.sqnr)) facts.push(`weights of ${x.weights.bits} bits, ${decibels(x.weights.sqnr)} dB, channel ${x.weights.outlier_channel} with the largest outlier`);
  if (isKnown(x.weights?.bias_bits)) facts.push(biasFacts(x.weights));
  const charts = element("div", { class: "charts" });
  place.append(element("p", {}, `${facts.filter(Boolean).join("; ")}.`), charts);
  const panel = (kind = "chart") => charts.appendChild(element("div", { class: kind }));
  const drawn = [];
  if (x.code_values || x.float_values) drawn.push(valuesChart(x, panel()));
  if (x.code_values) drawn.push(codesChart(x.code_values, panel(), "Codes of the output in use", true));
  const w = x.weights?.drawn;
  if (w) {
    drawn.push(weightsChart(w, panel()));
    drawn.push(codesChart(w.codes, panel(), "Codes of the weights in use", false));
    drawn.push(boxChart(w.channels, panel("chart whole")));
    if (w.biases) drawn.push(biasChart(w.biases, panel()));
    if (w.biases?.error) drawn.push(biasErrorChart(w.biases, panel()));
  }
  const curves = figures.logs?.[x.name];
  if (curves) drawn.push(...trainingCharts(curves, panel));
  return Promise.all(drawn);
}

/** Whether the biases are the fault: how many bits, how far off, and whether they have room. */
function biasFacts(w) {
  const facts = [`biases of ${w.bias_bits} bits`];
  if (isKnown(w.bias_sqnr)) facts.push(`${decibels(w.bias_sqnr)} dB`);
  if (isKnown(w.bias_error)) facts.push(`off by at most ${digits(w.bias_error, 2)} steps of the output`);
  if (w.bias_full) facts.push(`${whole(w.bias_full)} at the largest code`);
  return facts.join(", ");
}

/** Densities of bins: {left, right, y}, without empty ones. */
function densities(left, width, counts) {
  const total = counts.reduce((a, b) => a + b, 0) || 1;
  const found = { left: [], right: [], y: [] };
  counts.forEach((n, i) => {
    if (!n) return;
    found.left.push(left + i * width);
    found.right.push(left + (i + 1) * width);
    found.y.push(n / total / width);
  });
  return found;
}

/** The outline of a histogram, which goes down to `floor` where it is empty. */
function outline(made, h, floor) {
  const width = (h.high - h.low) / h.counts.length, total = h.counts.reduce((a, b) => a + b, 0) || 1;
  const y = [floor, ...h.counts.map((n) => (n ? n / total / width : floor)), floor];
  made.step({ x: y.map((_, i) => h.low + (i - 1) * width), y, mode: "after", line_color: FLOAT, line_width: 1.2 });
}

const binned = (h) => densities(h.low, (h.high - h.low) / h.counts.length, h.counts);

function bars(made, h, floor) {
  made.quad({ left: h.left, right: h.right, top: h.y, bottom: h.y.map(() => floor), fill_color: INT, fill_alpha: 0.45, line_color: null });
}

function valuesChart(x, place) {
  const made = chart({ y_axis_type: "log", x_axis_label: "value", y_axis_label: "density" });
  const coded = x.code_values;
  const ints = coded && densities((coded.first - 0.5 - coded.zero_point) * coded.scale, coded.step * coded.scale, coded.counts);
  const floats = x.float_values && binned(x.float_values);
  const all = [...(ints ? ints.y : []), ...(floats ? floats.y : [])];
  const floor = Math.min(...all) / 3, top = Math.max(...all) * 2;
  if (ints) bars(made, ints, floor);
  if (floats) outline(made, x.float_values, floor);
  const ends = isKnown(x.low) ? [x.low, x.high] : [];
  for (const end of ends) made.line({ x: [end, end], y: [floor, top], color: "#1c2733", line_dash: [4, 4] });
  const keys = [floats && [FLOAT, "float"], ints && [INT, "quantized"], ends.length && ["#1c2733", "range"]].filter(Boolean);
  return draw(made, place, "Values of the output", keys);
}

function codesChart(coded, place, title, isLog) {
  // Behind a ReLU the code of 0 would leave nothing to be seen of others.
  const made = chart({ y_axis_type: isLog ? "log" : "linear", x_axis_label: "code", y_axis_label: "count" });
  const found = coded.counts.map((n, i) => [coded.first + coded.step * i - 0.5, n]).filter(([, n]) => n);
  const left = found.map(([x]) => x);
  made.quad({ left, right: left.map((x) => x + coded.step), top: found.map(([, n]) => n), bottom: left.map(() => (isLog ? 0.5 : 0)), fill_color: INT, line_color: null });
  return draw(made, place, `${title}: ${whole(coded.used)} of ${whole(coded.legal)}`);
}

function weightsChart(w, place) {
  const made = chart({ y_axis_type: "log", x_axis_label: "weight", y_axis_label: "density" });
  const ints = binned(w.quantized);
  const floor = Math.min(...ints.y, ...(w.float ? binned(w.float).y : [])) / 3;
  bars(made, ints, floor);
  if (w.float) outline(made, w.float, floor);
  return draw(made, place, "Weights", [w.float && [FLOAT, "float"], [INT, "quantized"]].filter(Boolean));
}

function boxChart(channels, place) {
  const made = chart({ x_axis_label: "channel", y_axis_label: "weight" });
  const sides = channels.before ? [[channels.before, "#ee9944", -0.4], [channels.after, INT, 0.05]] : [[channels.after, INT, -0.2]];
  const width = channels.before ? 0.35 : 0.4;
  // Channels that are not drawn leave no gaps.
  const place_of = channels.channel.map((_, i) => i);
  for (const [boxes, c, shift] of sides) {
    const middle = place_of.map((i) => i + shift + width / 2);
    made.segment({ x0: middle, x1: middle, y0: boxes.map((b) => b[0]), y1: boxes.map((b) => b[4]), line_color: c });
    made.quad({ left: place_of.map((i) => i + shift), right: place_of.map((i) => i + shift + width), bottom: boxes.map((b) => b[1]), top: boxes.map((b) => b[3]), fill_color: c, line_color: c });
    made.segment({ x0: place_of.map((i) => i + shift), x1: place_of.map((i) => i + shift + width), y0: boxes.map((b) => b[2]), y1: boxes.map((b) => b[2]), line_color: "#fff" });
  }
  for (const sign of [1, -1])
    made.segment({ x0: place_of.map((i) => i - 0.45), x1: place_of.map((i) => i + 0.45), y0: channels.reach.map((r) => sign * r), y1: channels.reach.map((r) => sign * r), line_color: "#1c2733" });
  byChannel(made, channels.channel);
  const keys = channels.before ? [["#ee9944", "before folding"], [INT, "as it is quantized"]] : [[INT, "as it is quantized"]];
  return draw(made, place, "Weights by channel: least, quartiles, greatest", [...keys, ["#1c2733", "ends of the grid"]]);
}

/** Channels by the number that they have, where some are left out. */
function byChannel(made, channels) {
  made.xaxes[0].formatter = new Bokeh.CustomJSTickFormatter({ args: { names: channels }, code: "return names[tick] ?? ''" });
  return counted(made);
}

/** Sizes of biases in steps of the sums: few steps are coarse, and those at the limit have no room. */
function biasChart(biases, place) {
  const made = byChannel(chart({ y_axis_type: "log", x_axis_label: "channel", y_axis_label: "steps of the sums" }), biases.channel);
  const floor = 0.1, points = (values) => values.map((y, i) => [i, Math.abs(y)]).filter(([, y]) => y > floor);
  const codes = points(biases.codes), floats = points(biases.float ?? []), width = biases.codes.length;
  made.quad({ left: codes.map(([i]) => i - 0.35), right: codes.map(([i]) => i + 0.35), top: codes.map(([, y]) => y), bottom: codes.map(() => floor), fill_color: INT, fill_alpha: 0.6, line_color: null });
  made.scatter({ x: floats.map(([i]) => i), y: floats.map(([, y]) => y), size: 5, color: FLOAT });
  made.line({ x: [-0.5, width - 0.5], y: [biases.limit, biases.limit], color: "#1c2733", line_dash: [4, 4] });
  made.y_range = new Bokeh.Range1d({ start: floor, end: 4 * biases.limit });
  return draw(made, place, "Sizes of biases", [biases.float && [FLOAT, "float"], [INT, "quantized"], ["#1c2733", "the largest code"]].filter(Boolean));
}

/** What rounding of biases moves the output by: within half a step it is not the fault. */
function biasErrorChart(biases, place) {
  const made = byChannel(chart({ x_axis_label: "channel", y_axis_label: "steps of the output" }), biases.channel);
  const at = biases.error.map((_, i) => i), width = at.length, error = biases.error.map(number);
  made.quad({ left: at.map((i) => i - 0.35), right: at.map((i) => i + 0.35), top: error.map((y) => Math.max(y, 0)), bottom: error.map((y) => Math.min(y, 0)), fill_color: INT, line_color: INT });
  for (const end of [-0.5, 0.5]) made.line({ x: [-0.5, width - 0.5], y: [end, end], color: "#1c2733", line_dash: [4, 4] });
  return draw(made, place, "Errors of biases", [[INT, "quantized, less float"], ["#1c2733", "half a step"]]);
}

// Over training: caption, axis, what is drawn with its colour, unit, and where the axis begins.
const OVER_TRAINING = [
  ["The range over training", "value", { low: INT, high: FLOAT, weights: "#228833" }, 1],
  ["Clipped over training", "values (%)", { clipped: INT }, 100, 0],
  ["SQNR over training, of all layers up to it", "SQNR (dB)", { sqnr: INT }, 1],
];

function trainingCharts(curves, panel) {
  // A SQNR without any noise is infinite.
  const finite = (name) => (curves[name] ?? []).filter(([, y]) => Number.isFinite(y));
  return OVER_TRAINING.map(([caption, axis, colours, unit, start]) => {
    const known = Object.keys(colours).filter((name) => finite(name).length);
    if (!known.length) return null;
    const made = counted(chart({ x_axis_label: "epoch", y_axis_label: axis }));
    if (start !== undefined) made.y_range.start = start;
    for (const name of known) {
      const x = finite(name).map(([epoch]) => epoch), y = finite(name).map(([, value]) => unit * value);
      made.line({ x, y, color: colours[name], line_width: 2 });
      made.scatter({ x, y, color: colours[name], size: 5 });
    }
    return draw(made, panel(), caption, known.length > 1 ? known.map((name) => [colours[name], name]) : []);
  }).filter(Boolean);
}

function showShown() {
  if (!figures.shown.length) return byId("shown-section").remove();
  if (figures.disagreeing) byId("differ").textContent = `disagree (${whole(figures.disagreeing)} of ${whole(figures.samples)})`;
  // Of reports of before, and files without labels, the number of a class.
  const named = (i) => figures.labels?.[i] ?? i;
  byId("shown").append(...figures.shown.map((x) => {
    const head = [`Sample ${x.index}`, isKnown(x.label) ? `, label ${named(x.label)}` : ""].join("");
    const said = ([i, y]) => (x.has_classes ? `${named(i)} (${digits(y)})` : digits(y));
    const sides = Object.entries(x.outputs).map(([side, most]) =>
      element("div", {}, element("b", {}, `${side}: `), most.slice(0, 3).map(said).join(", ")));
    const kind = x.disagrees ? null : element("small", {}, `${x.has_classes ? "same class, " : ""}differs by ${digits(x.error)}`);
    const image = x.image ? element("img", { src: x.image, alt: head }) : null;
    const values = x.values ? element("small", {}, `${x.values.map((v) => digits(v)).join(", ")}, \u2026`) : null;
    return element("div", { class: "card" }, image, element("div", {}, element("b", {}, head), sides, kind, values));
  }));
}

function showSensitivity() {
  const found = figures.sensitivity;
  if (!found) return byId("sensitivity-section").remove();
  byId("metric").textContent = `${found.metric}; all layers at ${found.candidates[0]}: ${digits(number(found.base))}. Layers from the most sensitive on.`;
  const some = found.layers.slice(0, 40), rows = some.map((_, i) => -i);
  const made = chart({ height: 60 + 18 * some.length, x_axis_label: `${found.metric}, only this layer quantized` });
  const colours = [INT, FLOAT, "#228833", "#aa3377", "#ee9944"];
  const keys = [];
  found.candidates.forEach((name, j) => {
    const points = some.map((_, i) => number(found.alone[i][j])).map((y, i) => [y, rows[i]]).filter(([y]) => Number.isFinite(y));
    if (!points.length) return;
    keys.push([colours[j % 5], name]);
    made.scatter({ x: points.map((p) => p[0]), y: points.map((p) => p[1]), size: 8, color: colours[j % 5] });
  });
  made.yaxes[0].ticker = new Bokeh.FixedTicker({ ticks: rows });
  made.yaxes[0].formatter = new Bokeh.CustomJSTickFormatter({ args: { names: some }, code: "return names[-tick] ?? ''" });
  draw(made, byId("sensitivity"), "", keys);
  if (!found.front) return byId("front").remove();
  const front = chart({ x_axis_label: found.unit, y_axis_label: `${found.metric}, predicted` });
  const [x, y] = [0, 1].map((i) => found.front.map((p) => p[i]));
  front.line({ x, y, color: INT });
  front.scatter({ x, y, color: INT, size: 6 });
  front.scatter({ x: [found.chosen[0]], y: [number(found.chosen[1])], color: FLOAT, size: 12, marker: "star" });
  draw(front, byId("front"), "Allocations that no other one beats", [[FLOAT, "the chosen one"]]);
}

// The width of A4, landscape, within its margins, in pixels.
const PAPER = 1040;

function showGraph() {
  byId("scale").append(...STOPS.map(([end, c], i) => element("span", { style: `background:${c};color:${i === 2 ? "#000" : "#fff"}` }, end === Infinity ? `over ${STOPS[i - 1][0]} dB` : `to ${end}`)));
  const index = new Map(layers.map((x, i) => [x.name, i]));
  const rows = 1 + Math.max(...layers.map((x) => x.row)), columns = 1 + Math.max(...layers.map((x) => x.column));
  const made = chart({
    sizing_mode: "fixed", width: 60 + 210 * columns, height: 30 + 24 * rows,
    x_range: new Bokeh.Range1d({ start: -0.2, end: columns }), y_range: new Bokeh.Range1d({ start: -rows + 0.3, end: 0.7 }),
  });
  for (const axis of [...made.xaxes, ...made.yaxes]) axis.visible = false;
  for (const grid of [...made.xgrids, ...made.ygrids]) grid.visible = false;
  const edges = layers.flatMap((x) => x.inputs.map((name) => [layers[index.get(name)], x]));
  const line = (some) => ({ x0: some.map(([a]) => a.column), y0: some.map(([a]) => -a.row), x1: some.map(([, b]) => b.column), y1: some.map(([, b]) => -b.row), line_color: "#9aa7b4" });
  // What skips rows of its own column goes round them.
  const skips = ([a, b]) => a.column === b.column && b.row > a.row + 1;
  const round = edges.filter(skips);
  made.segment(line(edges.filter((edge) => !skips(edge))));
  made.quadratic({ ...line(round), cx: round.map(([a]) => a.column - 0.2), cy: round.map(([a, b]) => -(a.row + b.row) / 2) });
  const source = new Bokeh.ColumnDataSource({ data: {
    x: layers.map((x) => x.column), y: layers.map((x) => -x.row), colour: layers.map((x) => colour(x.sqnr)),
    name: layers.map((x) => x.name), label: layers.map((x) => (x.name.length > 24 ? `\u2026${x.name.slice(-23)}` : x.name)),
    op: layers.map((x) => x.op), own: layers.map((x) => decibels(x.own_sqnr)), along: layers.map((x) => decibels(x.sqnr)) } });
  const at = { x: { field: "x" }, y: { field: "y" }, source };
  const nodes = made.scatter({ ...at, marker: "square", size: 14, fill_color: { field: "colour" }, line_color: "#1c2733" });
  made.text({ ...at, text: { field: "label" }, x_offset: 12, text_baseline: "middle", text_font_size: "12px", text_color: "#1c2733" });
  hover(made, nodes, [["", "@name"], ["operator", "@op"], ["own dB", "@own"], ["dB", "@along"]]);
  made.add_tools(new Bokeh.TapTool({ renderers: [nodes] }));
  source.selected.change.connect(() => {
    const [i] = source.selected.indices;
    if (i !== undefined) table.open(layers[i]);
  });
  draw(made, byId("graph"));
  // Paper does not scroll: what is wider is shrunk.
  addEventListener("beforeprint", () => {
    byId("graph").style.zoom = Math.min(1, PAPER / byId("graph").scrollWidth);
  });
  addEventListener("afterprint", () => (byId("graph").style.zoom = ""));
}

function filter() {
  const words = byId("filter").value.toLowerCase().split(/\s+/);
  const only = byId("advised").checked;
  const found = layers.filter((x) => {
    const text = `${x.name} ${x.op} ${x.kind} ${x.scheme} ${x.dtype}`.toLowerCase();
    return words.every((word) => text.includes(word)) && (!only || advised.has(x.name));
  });
  byId("count").textContent = `${found.length} of ${layers.length}`;
  table.show(found);
}

// What no layer has, such as a SQNR where only the file is known, needs no column.
const columns = COLUMNS.filter((column) => column.name || layers.some((x) => isKnown(column.value(x))));
const table = sortable(byId("layers"), columns, layers, detail);
byId("filter").addEventListener("input", filter);
byId("advised").addEventListener("change", filter);
filter();
showVerdict();
showAdvice();
showDepth();
showShown();
showSensitivity();
showGraph();
