// Charts of metrics against steps. All charts of a page have the same smoothing, axis, zoom and cursor: `chartView`.

// `smoothing`: percent of a run in a running mean; `range`: steps that are zoomed to; `step`: the one at the cursor.
const chartView = { smoothing: 10, log: false, range: null, step: null };
const drawnCharts = new Set();
const MIN_DRAG = 6; // in units of a chart; less is a click
const MIN_POINTS = 20; // of a line that is smoothed

// A chart as in `vgpo.report.report_data`.
class MetricChart {
  // `nameOf(run)`: name of a line; `remove`: what its button does, if it has one.
  constructor(chart, nameOf, remove = null) {
    this.chart = chart;
    this.nameOf = nameOf;
    this.steps = [...new Set(chart.series.flatMap((line) => line.steps))].sort((a, b) => a - b);
    this.svg = shape("svg", { class: "chart", viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, role: "img", tabindex: "0" });
    this.svg.setAttribute("aria-label",
      `${visible(chart.title)} against steps. Arrow keys read values, + and − zoom, 0 resets.`);
    this.readout = element("p", { class: "readout" });
    this.figure = element("figure", {}, chartHead(this, remove), element("p", {}, chart.caption + meanNote(chart)),
      this.svg, this.readout);
    drawnCharts.add(this);
    listenToPointer(this);
    listenToKeys(this);
    this.draw();
  }

  // Steps at the two ends of the x axis.
  get xRange() {
    if (chartView.range !== null) return chartView.range;
    const [low, high] = [Math.min(0, this.steps[0]), this.steps.at(-1)];
    return [low, high > low ? high : low + 1];
  }

  draw() {
    const shown = this.chart.series.flatMap((line) => valuesWithin(line, this.xRange));
    const values = shown.length > 0 ? shown : [0, 1];
    this.log = chartView.log && Math.min(...values) > 0;
    const yRange = this.log ? logRange(values) : valueRange(values, this.chart.from_zero);
    this.scale = scales(this.xRange, yRange, this.log);
    const xTicks = niceTicks(...this.xRange, 3).ticks.filter(Number.isInteger).map((tick) => [tick, String(tick)]);
    const kept = chartView.log && !this.log ? " (linear: not all values are above 0)" : this.log ? " (log)" : "";
    const yTitle = visible(this.chart.unit || this.chart.title) + kept;
    const lines = this.chart.series.map((line) => drawLine(this.scale, line));
    this.svg.replaceChildren(axes(this.scale, xTicks, yTicks(yRange, this.log), "step", yTitle), clipped(...lines));
    this.showStep();
  }

  // The values as logged at the step nearest to the cursor, or at the end of the run.
  showStep() {
    this.svg.querySelector(".marks")?.remove();
    if (chartView.step === null) {
      this.readout.replaceChildren(...atTheEnd(this.chart));
      return;
    }
    const step = this.steps[nearest(this.steps, chartView.step)];
    const { marks, parts } = valuesAt(this.chart, this.scale, step);
    if (step >= this.xRange[0] && step <= this.xRange[1]) this.svg.append(marks);
    this.readout.replaceChildren(`step ${step}`, ...parts);
  }

  remove() {
    drawnCharts.delete(this);
    this.figure.remove();
  }
}

function chartHead(chart, remove) {
  const tools = lineTools(chart);
  if (remove !== null) tools.append(toolButton("✕", "Remove the chart", chart.chart.title, remove));
  return element("figcaption", {}, element("span", {}, visible(chart.chart.title)), tools);
}

// How many logged steps a point stands for, where a long run was averaged.
function meanNote(chart) {
  const averaged = chart.series.map((line) => line.averaged);
  const [least, most] = [Math.min(...averaged), Math.max(...averaged)];
  const stretch = least < most ? `${least} to ${most} logged steps, by the length of its run` : `${most} logged steps`;
  return most > 1 ? ` Each point is the mean of ${stretch}.` : "";
}

function valuesWithin(line, [low, high]) {
  const kept = line.steps.map((step) => step >= low && step <= high);
  return [line.values, line.low ?? [], line.high ?? []]
    .flatMap((values) => values.filter((value, i) => kept[i] && value !== null));
}

// Shapes cut off at the edges of the plot.
function clipped(...shapes) {
  const [width, height] = [PLOT.width - PLOT.left - PLOT.right, PLOT.height - PLOT.top - PLOT.bottom];
  const room = 4; // dots at an edge are seen in full
  const [x, y, w, h] = [PLOT.left - room, PLOT.top - room, width + 2 * room, height + 2 * room];
  return shape("svg", { class: "plot", x, y, width: w, height: h, viewBox: `${x} ${y} ${w} ${h}` }, ...shapes);
}

function drawLine(scale, line) {
  const group = shape("g", { class: `run-${line.run}` });
  if (line.low) group.append(shape("path", { class: "band", d: band(scale, line) }));
  const smoothed = isSmoothed(line);
  if (smoothed) group.append(shape("path", { class: "run-line raw", d: path(scale, line.steps, line.values) }));
  const values = smoothed ? runningMean(line.values, chartView.smoothing) : line.values;
  group.append(shape("path", { class: "run-line", d: path(scale, line.steps, values) }));
  values.forEach((value, i) => {
    const alone = value !== null && (values[i - 1] ?? null) === null && (values[i + 1] ?? null) === null;
    if (alone) group.append(dot(scale, line, i, value));
  });
  return group;
}

function isSmoothed(line) {
  return !line.low && line.values.length >= MIN_POINTS && reachOf(line.values, chartView.smoothing) > 0;
}

function dot(scale, line, i, value) {
  return shape("circle", { class: `dot run-${line.run}`, r: 3.5, cx: scale.x(line.steps[i]), cy: scale.y(value) });
}

function valuesAt(chart, scale, step) {
  const marks = shape("g", { class: "marks" });
  const x = scale.x(step);
  marks.append(shape("line", { class: "cursor", x1: x, x2: x, y1: PLOT.top, y2: PLOT.height - PLOT.bottom }));
  const parts = [];
  for (const line of chart.series) {
    const at = nearest(line.steps, step);
    const value = line.values[at];
    if (value !== null) marks.append(dot(scale, line, at, value));
    parts.push(element("span", { class: "mark" }, swatch(line.run), scaled(value, chart.digits)));
  }
  return { marks, parts };
}

// The mean of the last tenth of each line; curves that are running means already end in it.
function atTheEnd(chart) {
  const points = Math.max(...chart.series.map((line) => line.values.length));
  const several = chart.is_mean || Math.max(...chart.series.map((line) => lastTenth(line.values).length)) > 1;
  const label = points === 1 ? `one point, step ${chart.series[0].steps[0]}`
    : several ? "mean of the last tenth" : "last";
  return [label, ...chart.series.map((line) => {
    const value = chart.is_mean ? line.values.at(-1) : meanOf(lastTenth(line.values));
    return element("span", { class: "mark" }, swatch(line.run), scaled(value, chart.digits));
  })];
}
