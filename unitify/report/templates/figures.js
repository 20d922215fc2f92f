// The common parts of the figures through the graph: four panels (forward above backward, original
// beside transformed) on one axis of slots, and the ranges of the formats behind them.

const PANELS = [
  { direction: "forward", graph: "original", axis: "" },
  { direction: "forward", graph: "transformed", axis: "2" },
  { direction: "backward", graph: "original", axis: "3" },
  { direction: "backward", graph: "transformed", axis: "4" },
];
const COLUMNS = [
  [0, 0.487],
  [0.513, 1],
];
const ROWS = [
  [0.55, 1],
  [0, 0.45],
];

// The format whose range is drawn, by direction.
const shownFormat = {};

function fontFamily() {
  return getComputedStyle(document.body).fontFamily;
}

function baseLayout(height) {
  return {
    height,
    width: isPrinting ? PAPER : undefined,
    margin: { l: 58, r: 44, t: 34, b: 58 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: fontFamily(), size: 12, color: color("muted") },
    hovermode: "closest",
    showlegend: false,
    dragmode: isTouched() ? false : "zoom",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: color("faint"), activecolor: color("text") },
    autosize: !isPrinting,
  };
}

// A finger scrolls the page: it does not zoom, and needs no toolbar on the figure.
function isTouched() {
  return matchMedia("(pointer: coarse)").matches;
}

const CONFIG = {
  displaylogo: false,
  displayModeBar: isTouched() ? false : "hover",
  responsive: true,
  modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
};

function panelTitle(name, text, hue) {
  return {
    xref: `x${name} domain`,
    yref: `y${name} domain`,
    x: 0,
    y: 1,
    xanchor: "left",
    yanchor: "bottom",
    yshift: 8,
    showarrow: false,
    text,
    font: { size: 13, color: color(hue) },
  };
}

function axis(extra = {}) {
  return {
    gridcolor: color("grid"),
    zeroline: false,
    linecolor: color("line"),
    tickcolor: color("line"),
    ticks: "outside",
    ticklen: 4,
    automargin: false,
    ...extra,
  };
}

// Layout of the four panels. ``slots``: of the x axis; ``span``: of the y axis by direction; ``what``: its
// title.
function panelLayout(slots, span, range, what) {
  const layout = baseLayout(572);
  const runs = slotRuns(slots, range);
  layout.annotations = [];
  layout.shapes = [];
  PANELS.forEach(({ direction, graph, axis: name }, index) => {
    const isBottom = direction === "backward";
    layout[`xaxis${name}`] = slotAxis(slots, range, {
      domain: COLUMNS[index % 2],
      anchor: `y${name}`,
      matches: name ? "x" : undefined,
      showticklabels: isBottom,
    });
    layout[`yaxis${name}`] = axis({
      domain: ROWS[isBottom ? 1 : 0],
      anchor: `x${name}`,
      range: span[direction],
      matches: index % 2 ? `y${PANELS[index - 1].axis}` : undefined,
      showticklabels: index % 2 === 0,
      dtick: tickStep(span[direction]),
      tick0: 0,
      title:
        index % 2 === 0
          ? { text: `${isBottom ? "gradients" : "values"}, log₂ ${what}`, standoff: 6, font: { size: 12 } }
          : undefined,
    });
    layout.shapes.push(
      ...rangeShapes(direction, name),
      ...runs.lines.map(({ x }) => ({
        type: "line",
        layer: "below",
        xref: `x${name}`,
        yref: `y${name} domain`,
        x0: x - 0.5,
        x1: x - 0.5,
        y0: 0,
        y1: 1,
        line: { color: color("grid"), width: 1 },
      })),
    );
    if (index % 2) layout.annotations.push(...rangeLabels(direction, name, span[direction]));
    if (!isBottom) {
      layout.annotations.push(panelTitle(name, graph, graph));
    }
  });
  return layout;
}

function tickStep([low, high]) {
  return [1, 2, 4, 8, 16, 32].find((step) => (high - low) / step <= 9) ?? 64;
}

// Plotly interprets some HTML in its texts.
function plain(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

// Runs of slots within one module, {x, text, length}, as deep as there is room for lines between
// them. Where one of them is most of the figure, names are those of the next level.
function slotRuns(slots, [low, high]) {
  const inSight = slots
    .map((slot, x) => ({ x, path: slot.node ? slot.node.path : slot.within }))
    .filter(({ x }) => x >= low && x <= high);
  let lines = runsOf(inSight, 1);
  let names = lines;
  for (let depth = 2; depth < 12; depth++) {
    const deeper = runsOf(inSight, depth);
    if (deeper.length > MOST_RUNS) {
      if (names.some((run) => run.length > inSight.length / 2)) names = deeper;
      break;
    }
    lines = deeper;
    names = deeper;
  }
  return { lines, names };
}

const MOST_RUNS = 24;
const TICK_DISTANCE = 0.058;

function isNarrow() {
  return innerWidth < 700;
}

// The longest are named first. None is so near to another that their names would overlap.
function slotTicks({ names }, [low, high]) {
  const apart = (high - low) * (isNarrow() ? 3 : 1) * TICK_DISTANCE;
  const named = [];
  for (const run of [...names].sort((a, b) => b.length - a.length || a.x - b.x)) {
    const isAtEnd = isNarrow() && run.x > low + 0.85 * (high - low); // where the next panel begins
    if (!isAtEnd && named.every((other) => Math.abs(other.x - run.x) >= apart)) named.push(run);
  }
  return named;
}

function runsOf(places, depth) {
  const runs = [];
  let before = null;
  for (const { x, path } of places) {
    const parts = path.split(".").slice(0, depth);
    const prefix = parts.join(".");
    if (prefix !== before && prefix) {
      runs.push({ x, text: shortPath(parts), length: 0 });
    }
    if (prefix) runs[runs.length - 1].length += 1;
    before = prefix;
  }
  return runs;
}

// The end of a path that distinguishes it from its neighbors: layer.3, or 3.attention within it.
function shortPath(parts) {
  const number = parts.findLastIndex((part) => /^\d+$/.test(part));
  const final = parts[parts.length - 1];
  const text =
    number < 0
      ? final
      : number === parts.length - 1
        ? parts.slice(-2).join(".")
        : `${parts[number]}.${final}`;
  return text.length > 15 ? `${text.slice(0, 14)}…` : text;
}

// An axis of slots, named by module.
function slotAxis(slots, range, extra = {}) {
  const ticks = slotTicks(slotRuns(slots, range), range);
  return axis({
    showgrid: false,
    range,
    tickvals: ticks.map((tick) => tick.x),
    ticktext: ticks.map((tick) => plain(tick.text)),
    tickangle: -32,
    tickfont: { size: 10.5 },
    ...extra,
  });
}

function bounds(format) {
  const held = report.formats[format];
  return {
    largest: Math.log2(held.largest),
    normal: Math.log2(held.smallest_normal),
    subnormal: Math.log2(held.smallest_subnormal),
  };
}

function largestText(format) {
  const { largest } = report.formats[format];
  return largest < 1e6 ? count(largest) : digits(largest, 2);
}

function rangeShapes(direction, name) {
  const band = (low, high, fill) => ({
    type: "rect",
    layer: "below",
    xref: `x${name} domain`,
    yref: `y${name}`,
    x0: 0,
    x1: 1,
    y0: low,
    y1: high,
    fillcolor: fill,
    line: { width: 0 },
  });
  const { largest, normal, subnormal } = bounds(shownFormat[direction]);
  return [
    band(normal, largest, color("range")),
    band(subnormal, normal, color("subnormal")),
    band(-1, 1, color("unit")),
  ];
}

function rangeLabels(direction, name, [low, high]) {
  const { largest, normal, subnormal } = bounds(shownFormat[direction]);
  const label = (y, text, yshift = 0) => ({
    xref: `x${name} domain`,
    yref: `y${name}`,
    x: 1,
    y,
    xanchor: "left",
    xshift: 4,
    yshift,
    showarrow: false,
    text,
    font: { size: 10, color: color("faint") },
  });
  const power = (exponent) => `2<sup>${signed(Math.round(exponent))}</sup>`;
  const apart = (normal - subnormal) / (high - low) < 0.07 ? 5 : 0; // so that their texts do not overlap
  return [
    label(largest, largestText(shownFormat[direction])),
    label(normal, power(normal), apart),
    label(subnormal, power(subnormal), -apart),
  ];
}

// The y range of a direction: all of both graphs, and the near part of the format's range.
function spanOf(logarithms, direction) {
  const { largest, subnormal } = bounds(shownFormat[direction]);
  const low = logarithms.reduce((a, b) => Math.min(a, b), -2);
  const high = logarithms.reduce((a, b) => Math.max(a, b), 2);
  return [Math.min(low, Math.max(subnormal, low - 12)) - 1, Math.max(high, Math.min(largest, high + 12)) + 1];
}

// Draws when it becomes visible or nothing else is to be done, and again at each change of theme or
// folding, and for paper.
const undrawn = [];

function figure(host, draw) {
  let isSeen = false;
  const redraw = () => {
    if (isSeen) withPlotly().then((library) => draw(library));
  };
  const first = () => {
    if (isSeen) return;
    isSeen = true;
    redraw();
  };
  new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && first(), {
    rootMargin: "200px",
  }).observe(host);
  undrawn.push(first);
  onTheme(redraw);
  onPrint(() => loadedPlotly && draw(loadedPlotly));
  return redraw;
}

// One figure after the other, so that the page prints whole.
function drawTheRest() {
  const next = undrawn.shift();
  const idle = window.requestIdleCallback ?? ((work) => setTimeout(work, 200));
  if (next) idle(() => withPlotly().then(next).then(drawTheRest));
}

// What the colors of the graphs mean, beside a figure far from the head of the page.
function graphLegend() {
  return element(
    "p",
    { class: "legend", "aria-hidden": "true" },
    ...GRAPHS.map((graph) =>
      element("span", { class: graph }, element("i", { class: `key ${graph}` }), element("b", {}, graph)),
    ),
  );
}

// A switch between values and gradients. ``picked`` gets the choice.
function directionPicker(picked) {
  return element(
    "select",
    { "aria-label": "Direction", onchange: (event) => picked(event.target.value) },
    element("option", { value: "forward" }, "values"),
    element("option", { value: "backward" }, "gradients"),
  );
}

function formatChoice(direction, changed) {
  const label = direction === "forward" ? "values" : "gradients";
  const select = element(
    "select",
    {
      "aria-label": `Format of ${label}`,
      onchange: (event) => {
        shownFormat[direction] = event.target.value;
        changed();
      },
    },
    ...Object.keys(report.formats).map((name) =>
      element("option", { value: name, selected: name === shownFormat[direction] }, name.toUpperCase()),
    ),
  );
  return element("label", {}, `${label} in `, select);
}
