// Charts of a report: metrics against steps, and focus along the response.

function drawCharts() {
  const container = document.getElementById("charts");
  if (container === null) return;
  container.replaceChildren(...DATA.charts.map((chart) => new MetricChart(chart, runName).figure));
  listenToChartControls();
}

function runName(run) {
  return DATA.runs[run].name;
}

// Mean focus in each tenth of the response, one small chart per run on a common scale.
function drawFocusCurves() {
  const container = document.getElementById("focus-curves");
  if (container === null) return;
  const runs = DATA.runs.map((run, index) => ({ ...run, index })).filter((run) => run.focus_curve !== null);
  const outcomes = runs.flatMap((run) => [run.focus_curve.correct, run.focus_curve.wrong]);
  const yRange = valueRange(outcomes.flatMap((one) => one.values).filter((value) => value !== null), false);
  const scale = scales([0, 100], yRange);
  container.replaceChildren(...runs.map((run) => {
    const { correct, wrong, first_step: first, last_step: last } = run.focus_curve;
    const counts = `${correct.num_rollouts} correct, ${wrong.num_rollouts} wrong rollouts of steps ${first} to ${last}.`;
    return focusFigure(run, counts, scale, yRange);
  }));
}
