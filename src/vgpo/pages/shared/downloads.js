// A chart as a file: its values, or the chart as it is shown, with title and legend.

const PNG_SCALE = 3; // pixels in a unit of a chart
const COPIED_STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-weight"];

// Buttons of a chart: its `id` and `title`, the `svg` that shows it, `table()`, its values in rows under a head, and
// `legend()`, pairs of a sign in the page and its name.
function downloadTools(source) {
  const { title } = source;
  return element("span", { class: "tools" },
    toolButton("CSV", "Download the values", title, () => saveCsv(source)),
    toolButton("PNG", "Download the chart", title, () => savePng(source)));
}

function toolButton(label, about, title, act) {
  const button = element("button", { type: "button", "aria-label": `${about}: ${visible(title)}`, title: about }, label);
  button.addEventListener("click", act);
  return button;
}

// The buttons of charts that are in the page without its script: `DATA.plots`, values by the id of a figure.
function addDownloads() {
  for (const [id, values] of Object.entries(DATA.plots)) {
    const figure = document.getElementById(id);
    const caption = figure.querySelector("figcaption");
    const legend = () => [...figure.closest("section").querySelectorAll(".legend li")]
      .map((entry) => [entry.querySelector("svg"), entry.textContent]);
    const [svg, title] = [figure.querySelector("svg"), caption.textContent];
    caption.append(downloadTools({ id, title, svg, legend, table: () => values }));
  }
}

// The buttons of a chart of lines: `nameOf(run)` of a line.
function lineTools({ chart, svg, nameOf }, legend = () => lineLegend(chart, nameOf)) {
  return downloadTools({ id: chart.id, title: chart.title, svg, legend, table: () => lineTable(chart, nameOf) });
}

function lineLegend(chart, nameOf) {
  return chart.series.map(({ run }) => [document.querySelector(`.swatch.run-${run}`), nameOf(run)]);
}

function save(blob, id, ending) {
  const name = `${id.replace(/[^\w.-]+/g, "_").slice(0, 80)}.${ending}`;
  const link = element("a", { download: name });
  link.href = URL.createObjectURL(blob);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function saveCsv({ id, table }) {
  save(new Blob([csvOf(table())], { type: "text/csv" }), id, "csv");
}

async function savePng(source) {
  save(await chartPng(source), source.id, "png");
}

// A row for each step that any line has: the values as they are in the page.
function lineTable(chart, nameOf) {
  const columns = chart.series.flatMap((line) => ["values", "low", "high"].filter((name) => line[name])
    .map((name) => ({ line, name, head: nameOf(line.run) + (name === "values" ? "" : ` (${name})`) })));
  const steps = [...new Set(chart.series.flatMap((line) => line.steps))].sort((a, b) => a - b);
  const rows = steps.map((step) => columns.map(({ line, name }) => {
    const at = line.steps.indexOf(step);
    return at < 0 ? null : line[name][at];
  }));
  return [[chart.x_name ?? "step", ...columns.map(({ head }) => head)], ...rows.map((row, i) => [steps[i], ...row])];
}

function csvOf(rows) {
  const cell = (value) => (typeof value === "string" ? csvText(value) : value ?? "");
  return rows.map((row) => `${row.map(cell).join(",")}\n`).join("");
}

// Text in a cell that no spreadsheet takes for a formula.
function csvText(text) {
  const shown = visible(text);
  return `"${(/^[=+\-@\t\r\n]/.test(shown) ? `'${shown}` : shown).replaceAll('"', '""')}"`;
}

async function chartPng(source) {
  const drawing = standalone(source);
  const [width, height] = ["width", "height"].map((name) => PNG_SCALE * drawing.getAttribute(name));
  const image = new Image(width, height);
  image.src = `data:image/svg+xml,${encodeURIComponent(new XMLSerializer().serializeToString(drawing))}`;
  await image.decode();
  const canvas = element("canvas", { width, height });
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(document.body).backgroundColor;
  context.fillRect(0, 0, width, height);
  context.drawImage(image, 0, 0, width, height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

// The chart with title and legend, and with its colours as attributes: no style of the page reaches it.
function standalone({ title, svg, legend }) {
  const [margin, line] = [12, 16];
  const plot = svg.viewBox.baseVal;
  const entries = legend();
  const [width, height] = [plot.width + 2 * margin, plot.height + line * (entries.length + 1) + 2 * margin];
  const copy = withStyles(svg);
  for (const [name, value] of Object.entries({ x: margin, y: margin + line, width: plot.width, height: plot.height })) {
    copy.setAttribute(name, value);
  }
  const { color, fontFamily } = getComputedStyle(document.body);
  const text = (y, x, words, weight) => shape("text",
    { x, y, fill: color, "font-size": 12, "font-weight": weight }, visible(words));
  const names = entries.flatMap(([swatch, name], i) => {
    const y = margin + line + plot.height + line * (i + 0.75);
    const sign = withStyles(swatch);
    for (const [key, value] of Object.entries({ x: margin, y: y - 8, width: 34, height: 8 })) sign.setAttribute(key, value);
    return [sign, text(y, margin + 42, name, 400)];
  });
  return shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "font-family": fontFamily },
    text(margin + 8, margin, title, 600), copy, ...names);
}

function withStyles(node) {
  const copy = node.cloneNode(true);
  const originals = [node, ...node.querySelectorAll("*")];
  [copy, ...copy.querySelectorAll("*")].forEach((one, i) => {
    const style = getComputedStyle(originals[i]);
    for (const name of COPIED_STYLES) one.setAttribute(name, style.getPropertyValue(name));
  });
  return copy;
}
