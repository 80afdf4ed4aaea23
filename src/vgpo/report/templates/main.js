drawCharts();
drawFocusCurves();
drawRolloutBrowser();
document.documentElement.dataset.drawn = "yes";
