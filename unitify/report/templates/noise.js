// Signal to quantization noise at every contraction, in the order of the graph.

function noiseView() {
  const host = section("noise");
  const layers = report.values.filter((value) => value.sqnr && value.contraction !== null);
  if (!layers.length) {
    if (!report.notes.some((note) => note.startsWith("signal to noise")))
      report.notes.push("signal to noise is not shown: the recipe casts no contraction");
    host.closest("section").hidden = true;
    document.querySelector('nav a[href="#noise"]').hidden = true;
    return;
  }
  const plot = element("div", {
    class: "figure",
    id: "noise-figure",
    role: "group",
    "aria-label": "Signal to noise of every contraction",
  });
  host.replaceChildren(
    graphLegend(),
    plot,
    element(
      "p",
      { class: "note" },
      `${plural(layers.length, "contraction")} under ${report.recipe.name}${report.recipe_is_applied ? "" : " (not applied: what it would do)"}. ` +
        `Measured on ${report.batches ? "the first batch" : "the example inputs"}.`,
    ),
  );
  figure(plot, (library) => {
    const layout = baseLayout(320);
    layout.margin.t = 16;
    const slots = layers.map((value) => ({ node: null, within: value.module }));
    layout.xaxis = slotAxis(slots, [-0.8, layers.length - 0.2]);
    layout.yaxis = axis({
      title: { text: "signal to noise, dB", font: { size: 12 }, standoff: 6 },
      rangemode: "normal",
    });
    const traces = GRAPHS.map((graph) => ({
      type: "scatter",
      mode: layers.length > 300 ? "lines" : "lines+markers",
      x: layers.map((_, index) => index),
      y: layers.map((value) => value.sqnr[graph]),
      hoverinfo: "none",
      line: { color: color(graph), width: 2 },
      marker: { color: color(graph), size: 6 },
    }));
    library.react(plot, traces, layout, CONFIG);
    if (plot.dataset.listens) return;
    plot.dataset.listens = "yes";
    plot.on("plotly_hover", ({ event, points: [point] }) => {
      const value = layers[point.pointIndex];
      showTooltip(event, value.name, [
        ["operation", value.operation],
        ["module", value.module],
        ...GRAPHS.map((graph) => [graph, decibels(value.sqnr[graph])]),
        ["source", sourceText(value)],
      ]);
    });
    plot.on("plotly_unhover", hideTooltip);
    plot.on("plotly_click", ({ points: [point] }) => showDetails(layers[point.pointIndex]));
  });
}
