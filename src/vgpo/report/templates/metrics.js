// All logged metrics without a chart of their own: a list that is searched, and a chart for each one chosen.

function drawMetricList() {
  const list = document.getElementById("metric-list");
  if (list === null) return;
  const search = document.getElementById("metric-search");
  const show = () => {
    const words = search.value.trim().toLowerCase().split(/\s+/);
    const found = DATA.metrics.charts.filter(({ title, caption }) => {
      const text = `${title} ${caption}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
    list.replaceChildren(...found.map((chart) => element("li", {}, metricButton(chart))));
    document.getElementById("metric-count").textContent = `${found.length} of ${DATA.metrics.charts.length} metrics`;
  };
  search.addEventListener("input", show);
  show();
}

function metricButton(chart) {
  const button = element("button", { type: "button", "aria-pressed": String(Boolean(chart.drawn)) }, visible(chart.title));
  if (chart.caption) button.title = chart.caption;
  button.addEventListener("click", () => {
    if (chart.drawn) removeMetric(chart);
    else drawMetric(chart);
  });
  chart.button = button;
  return button;
}

function drawMetric(chart) {
  const series = chart.series.map((line) => ({ ...line, steps: DATA.metrics.steps[line.steps] }));
  chart.drawn = new MetricChart({ ...chart, series }, runName, () => removeMetric(chart));
  document.getElementById("metric-charts").append(chart.drawn.figure);
  chart.button.setAttribute("aria-pressed", "true");
}

function removeMetric(chart) {
  chart.drawn.remove();
  chart.drawn = null;
  chart.button.setAttribute("aria-pressed", "false");
}
