// Pointer, keys and controls of charts: cursor, zoom, smoothing and axis, for all charts of the page at once.

function redrawCharts(change) {
  Object.assign(chartView, change);
  for (const chart of drawnCharts) chart.draw();
  showChartView();
}

function moveChartCursor(step) {
  chartView.step = step;
  for (const chart of drawnCharts) chart.showStep();
}

function listenToPointer(chart) {
  const { svg } = chart;
  let from = null; // where a drag began
  const at = (event) => {
    const box = svg.getBoundingClientRect();
    return Math.min(PLOT.width - PLOT.right, Math.max(PLOT.left, (event.clientX - box.left) * PLOT.width / box.width));
  };
  svg.addEventListener("pointerdown", (event) => {
    from = at(event);
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", (event) => {
    moveChartCursor(chart.steps[nearest(chart.steps, chart.scale.step(at(event)))]);
    showBrush(svg, from, at(event));
  });
  svg.addEventListener("pointerup", (event) => {
    const range = from === null ? null : [from, at(event)].sort((a, b) => a - b);
    from = null;
    showBrush(svg, null);
    if (range !== null && range[1] - range[0] >= MIN_DRAG) zoomTo(range.map(chart.scale.step));
  });
  svg.addEventListener("pointercancel", () => {
    from = null;
    showBrush(svg, null);
  });
  svg.addEventListener("pointerleave", () => moveChartCursor(null));
  svg.addEventListener("dblclick", () => redrawCharts({ range: null }));
}

// The stretch that a drag would zoom to.
function showBrush(svg, from, to) {
  svg.querySelector(".brush")?.remove();
  if (from === null) return;
  const [x, y] = [Math.min(from, to), PLOT.top];
  const height = PLOT.height - PLOT.top - PLOT.bottom;
  svg.append(shape("rect", { class: "brush", x, y, width: Math.abs(to - from), height }));
}

// Zoom to a range of steps, at least one step wide.
function zoomTo([low, high]) {
  const room = Math.max(0, 1 - (high - low)) / 2;
  redrawCharts({ range: [low - room, high + room] });
}

function listenToKeys(chart) {
  const { svg } = chart;
  svg.addEventListener("focus", () => chart.readout.setAttribute("aria-live", "polite"));
  svg.addEventListener("blur", () => {
    chart.readout.removeAttribute("aria-live");
    moveChartCursor(null);
  });
  svg.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const last = chart.steps.length - 1;
    const at = chartView.step === null ? last : nearest(chart.steps, chartView.step);
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last };
    const zooms = { "+": 0.5, "=": 0.5, "-": 2 };
    if (event.key in moves) moveChartCursor(chart.steps[Math.max(0, Math.min(last, moves[event.key]))]);
    else if (event.key in zooms) zoomAround(chart, chart.steps[at], zooms[event.key]);
    else if (event.key === "0" || event.key === "Escape") redrawCharts({ range: null });
    else return;
    event.preventDefault();
  });
}

// Zoom so that `step` is in the middle; out of a zoom as wide as the chart.
function zoomAround(chart, step, factor) {
  const [low, high] = chart.xRange;
  const half = factor * (high - low) / 2;
  if (2 * half > chart.steps.at(-1) - Math.min(0, chart.steps[0])) redrawCharts({ range: null });
  else zoomTo([step - half, step + half]);
}

// The controls may be in several places of a page.
function listenToChartControls() {
  const on = (selector, kind, act) => document.querySelectorAll(`.chart-controls ${selector}`)
    .forEach((one) => one.addEventListener(kind, () => act(one)));
  on(".smoothing", "input", (slider) => redrawCharts({ smoothing: Number(slider.value) }));
  on(".log-axis", "change", (box) => redrawCharts({ log: box.checked }));
  on(".reset-zoom", "click", () => redrawCharts({ range: null }));
  showChartView();
}

function showChartView() {
  const set = (selector, change) => document.querySelectorAll(`.chart-controls ${selector}`).forEach(change);
  const { smoothing, log, range } = chartView;
  set(".smoothing", (slider) => { slider.value = smoothing; });
  set("output", (label) => { label.textContent = smoothing > 0 ? `${smoothing} % of a run` : "off"; });
  set(".log-axis", (box) => { box.checked = log; });
  set(".reset-zoom", (button) => { button.disabled = range === null; });
}
