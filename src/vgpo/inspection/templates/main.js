drawFocusByPosition();
drawRatios();
drawAttention();
stackTables();
listenToAnswers();
drawQuestions().then(() => { document.documentElement.dataset.drawn = "yes"; });
