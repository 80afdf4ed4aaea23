// Curves and focus of each comparison in each setting; DATA and the shapes are those of elements.js and charts.js.
DATA.parts.forEach((part, place) => {
  const curves = document.getElementById(`curves-${place}`);
  const nameOf = (number) => part.methods.find((method) => method.number === number).name;
  curves?.replaceChildren(...part.charts.map((chart) => new MetricChart({ ...chart, is_mean: true }, nameOf).figure));
  drawDeciles(document.getElementById(`deciles-${place}`), part.methods);
});

function drawDeciles(container, methods) {
  const values = methods.flatMap((method) => [...method.deciles.correct, ...method.deciles.wrong]);
  const present = values.filter((value) => value !== null);
  if (container === null || present.length === 0) return;
  const yRange = valueRange(present, false);
  const scale = scales([0, 100], yRange);
  container.replaceChildren(...methods.map((method) => {
    const curve = { correct: { values: method.deciles.correct }, wrong: { values: method.deciles.wrong } };
    return focusFigure({ name: method.name, index: method.number, focus_curve: curve }, "", scale, yRange);
  }));
}

listenToChartControls();
stackTables();
document.documentElement.dataset.drawn = "yes";
