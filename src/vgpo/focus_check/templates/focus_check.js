addDownloads();
document.documentElement.dataset.drawn = "yes";
