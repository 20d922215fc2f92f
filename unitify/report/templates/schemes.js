// Schemes side by side: each gives every value and gradient of the graph a scale.

function schemesView() {
  const host = section("schemes");
  host.replaceChildren();
  if (!report.schemes.length) {
    host.append(element("p", { class: "empty" }, "The model is not captured as one graph."));
    return;
  }
  const share = (direction, what, label, note) => {
    const get = (row) => (row[direction].total ? row[direction][what] / row[direction].total : null);
    return {
      label,
      group: direction === "forward" ? "values" : "gradients",
      note,
      numeric: true,
      width: "8.5%",
      get,
      show: (row) => barCell(get(row), "transformed"),
    };
  };
  const octaves = (direction) => ({
    label: "octaves",
    group: direction === "forward" ? "values" : "gradients",
    note: "root mean square of log2 RMS: how far from unit RMS all of them are",
    numeric: true,
    width: "7.5%",
    get: (row) => row[direction].octaves,
    show: (row) => (row[direction].octaves === null ? "–" : row[direction].octaves.toFixed(2)),
  });
  const holds = "share that the format holds, with at most 1 % of the elements to zero or saturated";
  const formats = { forward: "E4M3", backward: "E5M2" };
  grid(host, {
    label: "Schemes",
    rows: report.schemes,
    opened: () => {},
    search: (row) => `${row.scheme} ${row.weights}`,
    columns: [
      { label: "scheme", get: (row) => row.scheme, show: (row) => clipped(row.scheme), width: "23%" },
      { label: "weights", get: (row) => row.weights, show: (row) => row.weights, width: "9%" },
      ...DIRECTIONS.flatMap((direction) => [
        share(direction, "unit", "unit", "share with RMS in [1/2, 2]"),
        octaves(direction),
        share(direction, "fp16", "FP16", holds),
        share(direction, "fp8", formats[direction], holds),
      ]),
    ],
  });
}
