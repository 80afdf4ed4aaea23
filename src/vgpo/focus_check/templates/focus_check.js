addDownloads();
stackTables();
document.documentElement.dataset.drawn = "yes";
