drawCharts();
drawMetricList();
drawFocusCurves();
drawHeldOut();
drawRolloutBrowser();
stackTables();
watchRun();
document.documentElement.dataset.drawn = "yes";
