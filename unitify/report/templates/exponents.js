// The exponents of the elements of every value: a column of a heat map for each slot.

// The octaves that are shown below the smallest number of the format.
const FAR = 20;

function exponentsView() {
  const host = element("div", {
    class: "figure",
    id: "exponents-figure",
    role: "group",
    "aria-label": "Shares of elements by exponent, for every value and gradient",
  });
  let drawn = [];
  const redraw = figure(host, (library) => {
    const slots = slotsOf(root);
    drawn = columnsOf(slots, 0, slots.length);
    const spans = {};
    const maps = PANELS.map((panel) => heat(panel, drawn));
    for (const direction of DIRECTIONS) {
      const own = maps.filter((_, index) => PANELS[index].direction === direction);
      const deepest = bounds(shownFormat[direction]).subnormal - FAR;
      const low = Math.max(Math.min(...own.map((map) => map.low)), deepest);
      const high = Math.max(...own.map((map) => map.high));
      spans[direction] = [
        Math.min(low, bounds(shownFormat[direction]).subnormal) - 1,
        spanOf([low, high], direction)[1],
      ];
    }
    const layout = panelLayout(slots, spans, [-0.5, slots.length - 0.5], "magnitude");
    layout.shapes = PANELS.flatMap(({ direction, axis: name }) => boundLines(direction, name));
    const traces = maps.map(({ x, y, z }, index) => ({
      type: "heatmap",
      x,
      y,
      z,
      xaxis: `x${PANELS[index].axis}`,
      yaxis: `y${PANELS[index].axis}`,
      coloraxis: `coloraxis${GRAPHS.indexOf(PANELS[index].graph) + 1}`.replace(/1$/, ""),
      hoverinfo: "none",
      meta: index,
      hoverongaps: false,
    }));
    GRAPHS.forEach((graph, index) => {
      layout[index ? "coloraxis2" : "coloraxis"] = heatAxis(graph, COLUMNS[index][1]);
    });
    layout.margin.t = 52;
    library.react(host, traces, layout, CONFIG);
    if (host.dataset.listens) return;
    host.dataset.listens = "yes";
    host.on("plotly_hover", ({ event, points: [point] }) => {
      const { direction, graph } = PANELS[point.data.meta];
      const column = drawn[point.pointIndex[1]];
      showTooltip(event, columnTitle(column), [
        ["magnitude", `2^${point.y - 0.5} … 2^${point.y + 0.5}`],
        ["share", percent(point.z)],
        ["values", column.values.length > 1 ? count(column.values.length) : ""],
        ["", column.values[0][direction].octaves ? "measured" : "a normal distribution is assumed"],
        ["graph", graph],
      ]);
    });
    host.on("plotly_unhover", hideTooltip);
    host.on("plotly_click", ({ points: [point] }) => {
      const column = drawn[point.pointIndex[1]];
      hideTooltip();
      if (column.values.length === 1) showDetails(column.values[0]);
      else if (column.node) {
        open.add(column.node.path);
        refold();
      }
    });
  });
  onFold(redraw);
  section("exponents").replaceChildren(host);
}

// The mean histogram of the values of each column. Rows are exponents.
function heat({ direction, graph }, columns) {
  let [low, high] = [Infinity, -Infinity];
  const held = columns.map((column) => {
    const sums = new Map();
    let total = 0;
    for (const value of column.values) {
      const found = isMask(value) ? null : octaves(value[direction]);
      if (!found) continue;
      total += 1;
      const moved = found.first - (graph === "transformed" ? value[direction].exponent : 0);
      found.shares.forEach((share, index) => {
        if (share) sums.set(moved + index, (sums.get(moved + index) ?? 0) + share);
      });
    }
    for (const [exponent, sum] of sums) {
      if (sum / total < 0.002) continue;
      low = Math.min(low, exponent);
      high = Math.max(high, exponent);
    }
    return { sums, total };
  });
  if (low > high) [low, high] = [-1, 1];
  const y = Array.from({ length: high - low + 1 }, (_, index) => low + index);
  const z = y.map((exponent) =>
    held.map(({ sums, total }) => (total && sums.has(exponent) ? sums.get(exponent) / total : null)),
  );
  // A row is the octave from 2^e to 2^(e+1), drawn around its middle.
  return {
    x: columns.map((column) => column.x),
    y: y.map((exponent) => exponent + 0.5),
    z,
    low,
    high: high + 1,
  };
}

function boundLines(direction, name) {
  const { largest, normal, subnormal } = bounds(shownFormat[direction]);
  return [
    [largest, "solid"],
    [normal, "solid"],
    [subnormal, "dot"],
  ].map(([y, dash]) => ({
    type: "line",
    xref: `x${name} domain`,
    yref: `y${name}`,
    x0: 0,
    x1: 1,
    y0: y,
    y1: y,
    line: { color: color("bound"), width: 1, dash },
  }));
}

// Shares of the elements in the color of a graph: from the surface to its full ink.
function heatAxis(graph, x) {
  return {
    cmin: 0,
    cmax: 0.4,
    colorscale: [
      [0, color(`${graph}-wash`)],
      [0.5, color(graph)],
      [1, color(`${graph}-deep`)],
    ],
    showscale: !isNarrow(),
    colorbar: {
      orientation: "h",
      thickness: 9,
      len: 0.3,
      x,
      xanchor: "right",
      y: 1.03,
      yanchor: "bottom",
      outlinewidth: 0,
      tickformat: ".0%",
      tickfont: { size: 10 },
      dtick: 0.2,
      title: { text: "share of elements", side: "left", font: { size: 11 } },
    },
  };
}
