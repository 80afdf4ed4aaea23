// The page of a run that goes on: it can reload itself while nobody reads, and what the reader chose outlives that.
const QUIET_SECONDS = 15;

function watchRun() {
  const bar = document.getElementById("live");
  if (bar === null) return;
  const follow = document.getElementById("follow");
  restoreView(history.state ?? {}, follow);
  const keep = () => history.replaceState(currentView(follow), "");
  for (const kind of ["click", "change"]) document.addEventListener(kind, keep);
  document.getElementById("reload").addEventListener("click", () => location.reload());
  let touched = performance.now();
  for (const kind of ["pointermove", "pointerdown", "keydown", "wheel", "touchmove"]) {
    document.addEventListener(kind, () => (touched = performance.now()), { passive: true });
  }
  const drawn = Date.parse(DATA.live.drawn);
  const due = performance.now() + 1000 * DATA.live.every;
  const tick = () => {
    document.getElementById("age").textContent = age((Date.now() - drawn) / 1000);
    const now = performance.now();
    const read = now - touched < 1000 * QUIET_SECONDS || !getSelection().isCollapsed;
    if (follow.checked && now > due && !read) location.reload();
  };
  tick();
  setInterval(tick, 1000);
}

function age(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

// What the reader chose; the browser keeps the place on the page itself. The group is known by its step: there may be
// new ones.
function currentView(follow) {
  const rows = [...document.querySelectorAll(".choices")];
  return {
    follow: follow.checked,
    charts: { ...chartView, step: null },
    metrics: DATA.metrics.charts.filter((chart) => chart.drawn).map((chart) => chart.id),
    pressed: rows.map((row) => [...row.children].findIndex((button) => button.getAttribute("aria-pressed") === "true")),
    group: rolloutView.place === null ? null : document.getElementById("step-label")?.textContent ?? null,
  };
}

function restoreView({ follow = false, charts = chartView, metrics = [], pressed = [], group = null }, box) {
  box.checked = follow;
  redrawCharts(charts);
  DATA.metrics.charts.filter((chart) => metrics.includes(chart.id)).forEach(drawMetric);
  document.querySelectorAll(".choices").forEach((row, i) => row.children[pressed[i]]?.click());
  if (group === null || document.getElementById("group") === null) return;
  const place = groupsOf(DATA.runs[rolloutView.run]).findIndex((one) => stepLabel(one) === group);
  if (place >= 0) showRollouts({ place });
}
