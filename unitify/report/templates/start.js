// Unpack the numbers, then draw every section. Figures wait until they are seen.

async function start() {
  startTheme();
  take(JSON.parse(await unpacked("packed-report")));
  shownFormat.forward = report.recipe.forward;
  shownFormat.backward = report.recipe.backward;
  startPrint();
  buildTree();
  verdictView();
  scalesView();
  exponentsView();
  lossesView();
  agreementView();
  noiseView();
  valuesView();
  classesView();
  castsView();
  driftView();
  findingsView();
  startDetails();
  document.documentElement.dataset.ready = "yes";
  drawTheRest();
}

start().catch((error) => {
  document.documentElement.dataset.ready = "failed";
  document
    .querySelector("main")
    .prepend(
      element(
        "p",
        { class: "empty", role: "alert" },
        `This report could not be drawn (${error.message}). It needs a browser of 2024 or later; the JSON file beside it has the same numbers.`,
      ),
    );
  throw error;
});
