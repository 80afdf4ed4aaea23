// A chart as a file: its values, or the chart as it is shown, with title and legend.

const PNG_SCALE = 3; // pixels in a unit of a chart
const COPIED_STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-weight"];

// Buttons of a chart: `chart` with its `series`, the `svg` that shows it, `nameOf(run)` of a line, and `legend`, false
// where the chart needs none.
function downloadTools(source) {
  const { title } = source.chart;
  return element("span", { class: "tools" },
    toolButton("CSV", "Download the values", title, () => saveCsv(source)),
    toolButton("PNG", "Download the chart", title, () => savePng(source)));
}

function toolButton(label, about, title, act) {
  const button = element("button", { type: "button", "aria-label": `${about}: ${visible(title)}`, title: about }, label);
  button.addEventListener("click", act);
  return button;
}

function save(blob, chart, ending) {
  const name = `${chart.id.replace(/[^\w.-]+/g, "_").slice(0, 80)}.${ending}`;
  const link = element("a", { download: name });
  link.href = URL.createObjectURL(blob);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function saveCsv({ chart, nameOf }) {
  save(new Blob([chartCsv(chart, nameOf)], { type: "text/csv" }), chart, "csv");
}

async function savePng(source) {
  save(await chartPng(source), source.chart, "png");
}

// A row for each step that any line has: the values as they are in the page.
function chartCsv(chart, nameOf) {
  const columns = chart.series.flatMap((line) => ["values", "low", "high"].filter((name) => line[name])
    .map((name) => ({ line, name, head: nameOf(line.run) + (name === "values" ? "" : ` (${name})`) })));
  const steps = [...new Set(chart.series.flatMap((line) => line.steps))].sort((a, b) => a - b);
  const rows = steps.map((step) => columns.map(({ line, name }) => {
    const at = line.steps.indexOf(step);
    return at < 0 ? "" : line[name][at] ?? "";
  }));
  const head = [chart.x_name ?? "step", ...columns.map((column) => csvText(column.head))].join(",");
  return [head, ...rows.map((row, i) => [steps[i], ...row].join(","))].join("\n") + "\n";
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
function standalone({ chart, svg, nameOf, legend = true }) {
  const [margin, line] = [12, 16];
  const runs = legend ? chart.series.map(({ run }) => run) : [];
  const [width, height] = [PLOT.width + 2 * margin, PLOT.height + line * (runs.length + 1) + 2 * margin];
  const copy = withStyles(svg);
  for (const [name, value] of Object.entries({ x: margin, y: margin + line, width: PLOT.width, height: PLOT.height })) {
    copy.setAttribute(name, value);
  }
  const { color, fontFamily } = getComputedStyle(document.body);
  const text = (y, x, words, weight) => shape("text",
    { x, y, fill: color, "font-size": 12, "font-weight": weight }, visible(words));
  const names = runs.flatMap((run, i) => {
    const y = margin + line + PLOT.height + line * (i + 0.75);
    const sign = withStyles(document.querySelector(`.swatch.run-${run}`));
    for (const [name, value] of Object.entries({ x: margin, y: y - 8, width: 34, height: 8 })) sign.setAttribute(name, value);
    return [sign, text(y, margin + 42, nameOf(run), 400)];
  });
  return shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "font-family": fontFamily },
    text(margin + 8, margin, chart.title, 600), copy, ...names);
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
