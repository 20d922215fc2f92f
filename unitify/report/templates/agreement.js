// Predicted against measured RMS: a wrong rule shows as a cloud off the diagonal.

const MANY_POINTS = 3000;

function agreementView() {
  const host = section("agreement");
  const pairs = Object.fromEntries(
    DIRECTIONS.map((direction) => [
      direction,
      report.values
        .filter((value) => {
          const side = value[direction];
          return !isMask(value) && side.predicted > 0 && side.measured > 0;
        })
        .map((value) => ({
          value,
          x: Math.log2(value[direction].predicted),
          y: Math.log2(value[direction].measured),
        })),
    ]),
  );
  const total = pairs.forward.length + pairs.backward.length;
  if (!total) {
    host.replaceChildren(
      element(
        "p",
        { class: "empty" },
        "Nothing was measured. Pass inputs (--inputs package.module:function, or module.report(batches)) to compare.",
      ),
    );
    return;
  }
  const within = (factor) =>
    DIRECTIONS.map((direction) => {
      const held = pairs[direction];
      const near = held.filter(({ x, y }) => Math.abs(x - y) <= Math.log2(factor)).length;
      return held.length
        ? `${((100 * near) / held.length).toFixed(1)} % of the ${direction === "forward" ? "values" : "gradients"}`
        : null;
    })
      .filter(Boolean)
      .join(", ");
  const plot = element("div", {
    class: "figure pair",
    id: "agreement-figure",
    role: "group",
    "aria-label": "Predicted against measured RMS",
  });
  host.replaceChildren(
    plot,
    element("p", { class: "note" }, `Within a factor of 2: ${within(2)}. Within 4: ${within(4)}.`),
  );
  figure(plot, (library) => {
    const isStacked = isNarrow() && !isPrinting;
    const layout = baseLayout(isStacked ? 760 : 420);
    layout.shapes = [];
    layout.annotations = [];
    const traces = DIRECTIONS.flatMap((direction, index) => {
      const held = pairs[direction];
      const name = index ? "2" : "";
      const all = held.flatMap(({ x, y }) => [x, y]).concat([-1, 1]);
      const span = [all.reduce((a, b) => Math.min(a, b)) - 1, all.reduce((a, b) => Math.max(a, b)) + 1];
      layout[`xaxis${name}`] = axis({
        domain: isStacked
          ? [0, 1]
          : [
              [0, 0.46],
              [0.54, 1],
            ][index],
        anchor: `y${name}`,
        range: span,
        title: { text: "predicted, log₂ RMS", font: { size: 12 } },
      });
      layout[`yaxis${name}`] = axis({
        anchor: `x${name}`,
        domain: isStacked ? [[0.58, 1], [0, 0.42]][index] : [0, 1],
        range: span,
        title: { text: "measured, log₂ RMS", font: { size: 12 }, standoff: 4 },
      });
      layout.shapes.push(
        ...[
          [0, "solid"],
          [1, "dot"],
          [-1, "dot"],
        ].map(([offset, dash]) => ({
          type: "line",
          xref: `x${name}`,
          yref: `y${name}`,
          layer: "below",
          x0: span[0],
          x1: span[1],
          y0: span[0] + offset,
          y1: span[1] + offset,
          line: { color: color("bound"), width: 1, dash },
        })),
      );
      layout.annotations.push(panelTitle(name, index ? "gradients" : "values", "text"));
      return pointsAndDensity(held, name, index);
    });
    library.react(plot, traces, layout, CONFIG);
    if (plot.dataset.listens) return;
    plot.dataset.listens = "yes";
    plot.on("plotly_hover", ({ event, points: [point] }) => {
      if (point.customdata === undefined) return;
      const value = report.values[point.customdata];
      const side = value[DIRECTIONS[point.data.meta]];
      showTooltip(event, shownName(value), [
        ["operation", value.operation],
        ["module", value.module],
        ["predicted", digits(side.predicted)],
        ["measured", digits(side.measured)],
        ["by", side.steps[0]?.[0] ?? ""],
        ["source", sourceText(value)],
      ]);
    });
    plot.on("plotly_unhover", hideTooltip);
    plot.on(
      "plotly_click",
      ({ points: [point] }) => point.customdata !== undefined && showDetails(report.values[point.customdata]),
    );
  });
}

// With very many pairs, only those off the diagonal are points. The others are a density.
function pointsAndDensity(held, name, index) {
  const common = { xaxis: `x${name}`, yaxis: `y${name}`, meta: index };
  const isMany = held.length > MANY_POINTS;
  const single = isMany ? held.filter(({ x, y }) => Math.abs(x - y) > 1) : held;
  const points = {
    ...common,
    type: "scatter",
    mode: "markers",
    hoverinfo: "none",
    x: single.map(({ x }) => x),
    y: single.map(({ y }) => y),
    customdata: single.map(({ value }) => value.index),
    marker: { size: 5.5, color: color("original"), opacity: 0.55 },
  };
  if (!isMany) return [points];
  return [
    {
      ...common,
      type: "histogram2d",
      x: held.map(({ x }) => x),
      y: held.map(({ y }) => y),
      nbinsx: 60,
      nbinsy: 60,
      colorscale: [
        [0, "rgba(0,0,0,0)"],
        [0.01, color("original-wash")],
        [1, color("original-deep")],
      ],
      showscale: false,
      hoverinfo: "skip",
    },
    points,
  ];
}
