drawCharts();
drawFocusCurves();
drawRolloutBrowser();
watchRun();
document.documentElement.dataset.drawn = "yes";
