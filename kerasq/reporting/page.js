"use strict";
// What both pages share: elements, numbers as text, tables that sort and filter, charts.

const figures = JSON.parse(document.getElementById("figures").textContent);
const INT = "#4477aa", FLOAT = "#cc3311", PALE = "#d9e0e7";

const byId = (id) => document.getElementById(id);

/** An element with attributes, listeners ("onclick") and children. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((x) => x !== null && x !== undefined));
  return made;
}

// In JSON, "inf" is infinity and null what is not known.
const number = (x) => (x === "inf" ? Infinity : x === "-inf" ? -Infinity : x);
const isKnown = (x) => x !== null && x !== undefined && x !== "";
const digits = (x, n = 3) => (isKnown(x) ? String(Number(Number(x).toPrecision(n))) : "");
const decibels = (x) => (!isKnown(x) ? "" : x === "inf" ? "exact" : Number(x).toFixed(1));
const whole = (x) => (isKnown(x) ? Number(x).toLocaleString("en") : "");
// Never rounded up to 100 %, nor down to 0.
function percent(x, places = 2) {
  if (!isKnown(x)) return "";
  const unit = 10 ** (places + 2);
  if (x > 0 && x < 1 / unit) return `< ${100 / unit} %`;
  return `${((x < 1 ? Math.floor(x * unit + 1e-9) : unit) / 10 ** places).toFixed(x === 0 || x === 1 ? 0 : places)} %`;
}

const STOPS = [[10, "#a50026"], [20, "#f46d43"], [30, "#fee090"], [40, "#74add1"], [Infinity, "#313695"]];
/** The colour of a SQNR; grey where there is none. */
const colour = (db) => (isKnown(db) ? STOPS.find(([end]) => number(db) <= end)[1] : "#b8c2cc");

/** Text with code between backticks. */
const marked = (text) => text.split("`").map((part, i) => (i % 2 ? element("code", {}, part) : part));

/**
 * Fills a table that sorts by a click on a heading.
 * Columns are {title, value(row), text(row), name: true for the column that opens a row}.
 * Returns {show(rows), open(row)}; `detail(row, place)` fills what a row opens.
 */
function sortable(table, columns, rows, detail) {
  let sorted = null, sign = 1, shown = rows;
  const body = element("tbody");
  const heads = columns.map((column) => {
    const button = element("button", { type: "button", onclick: () => sortBy(column) }, column.title);
    return element("th", { class: column.name || column.left ? "text" : null, title: column.hint }, button);
  });
  table.replaceChildren(element("thead", {}, element("tr", {}, heads)), body);
  const lines = new Map(rows.map((row) => [row, line(row)]));

  function line(row) {
    const cells = columns.map((column) => {
      const text = column.text(row);
      const inside = column.name
        ? element("button", { type: "button", title: text, "aria-expanded": "false", onclick: () => toggle(row) }, text)
        : text;
      const fault = column.fault && column.fault(row) ? "fault" : null;
      return element("td", { class: column.name || column.left ? "text" : fault }, inside);
    });
    return element("tr", { "data-name": row.name }, cells);
  }

  function toggle(row, only) {
    const tr = lines.get(row);
    const button = tr.querySelector("button");
    if (tr.nextSibling && tr.nextSibling.className === "detail") {
      if (only) return;
      tr.nextSibling.remove();
      tr.className = "";
      button.setAttribute("aria-expanded", "false");
      return;
    }
    const inside = element("div", { class: "inside" });
    tr.after(element("tr", { class: "detail" }, element("td", { colspan: columns.length }, inside)));
    tr.className = "open";
    button.setAttribute("aria-expanded", "true");
    detail(row, inside);
  }

  function sortBy(column) {
    sign = sorted === column ? -sign : 1;
    sorted = column;
    heads.forEach((head, i) => {
      if (columns[i] === column) head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    show(shown);
  }

  function compared(a, b) {
    const [x, y] = [a, b].map((row) => number(sorted.value(row)));
    if (!isKnown(x) || !isKnown(y)) return isKnown(y) - isKnown(x);  // What is not known comes last.
    return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x < y ? -1 : x > y ? 1 : 0);
  }

  function show(some) {
    shown = some;
    const order = sorted ? [...some].sort(compared) : some;
    // What is open stays open, behind its row.
    body.replaceChildren(...order.flatMap((row) => {
      const tr = lines.get(row), next = tr.nextSibling;
      return next && next.className === "detail" ? [tr, next] : [tr];
    }));
  }

  show(rows);
  return {
    show,
    open(row) {
      if (!body.contains(lines.get(row))) show(rows);
      toggle(row, true);
      lines.get(row).scrollIntoView({ block: "start" });
    },
  };
}

/** An empty chart. */
function chart(options) {
  const made = Bokeh.Plotting.figure({
    height: 230, sizing_mode: "stretch_width", toolbar_location: null, tools: [],
    output_backend: "svg", min_border_right: 12, ...options,
  });
  for (const axis of [...made.xaxes, ...made.yaxes]) {
    axis.axis_label_text_font_style = "normal";
    axis.axis_label_text_font_size = "12px";
    axis.minor_tick_line_color = null;
  }
  for (const grid of [...made.xgrids, ...made.ygrids]) grid.grid_line_color = "#eef2f5";
  made.outline_line_color = PALE;
  return made;
}

/** A chart whose x are whole numbers. */
function counted(made) {
  made.xaxes[0].ticker.min_interval = 1;
  return made;
}

/** Puts a chart with a caption into a place; `keys` are [colour, text] of its legend. */
function draw(made, place, caption = "", keys = []) {
  const legend = keys.flatMap(([c, text]) => [element("span", { style: `color:${c}` }, " \u25a0 "), text]);
  const target = element("div");
  place.append(element("p", {}, caption, ...legend), target);
  return Bokeh.Plotting.show(made, target);
}

/** What a pointer over a chart reads. */
function hover(made, renderer, tooltips) {
  made.add_tools(new Bokeh.HoverTool({ tooltips, renderers: [renderer] }));
}
