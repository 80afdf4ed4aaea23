drawFocusByPosition();
drawRatios();
drawAttention();
listenToAnswers();
drawQuestions().then(() => { document.documentElement.dataset.drawn = "yes"; });
