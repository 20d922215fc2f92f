// Cells of several tables.

function valueLink(value, text = shownName(value)) {
  return element(
    "a",
    { href: `#value=${encodeURIComponent(value.name)}`, title: shownName(value) },
    text,
  );
}

// An operation with several results has only a name: each result is a value.
function nameLink(name) {
  return valueByName.has(name) ? valueLink(valueByName.get(name)) : element("code", {}, name);
}

function valueSearch(value) {
  return [value.name, value.parameter ?? "", value.module, value.operation, sourceText(value)].join(" ");
}

function nameColumn(of = (row) => row) {
  return {
    label: "value",
    get: (row) => shownName(of(row)),
    show: (row) => valueLink(of(row)),
    tail: true,
    width: "24%",
  };
}

function moduleColumn(of = (row) => row) {
  return {
    label: "module",
    get: (row) => of(row).module,
    show: (row) => clipped(of(row).module),
    tail: true,
    width: "14%",
    isWideOnly: true,
  };
}

function clipped(text) {
  return element("span", { title: text }, text);
}

// A number with a bar behind it, from zero to ``whole``.
function barCell(share, kind) {
  if (share === null || share === undefined) return "–";
  return [
    element("span", {
      class: `share ${kind}`,
      style: `--share: ${Math.min(share, 1)}`,
      "aria-hidden": "true",
    }),
    element("span", {}, percent(share)),
  ];
}

function badges(value) {
  const found = [];
  if (value.restored === "no rule") found.push(element("span", { class: "badge warn" }, "no rule"));
  if (value.restored === "law") found.push(element("span", { class: "badge" }, "restored"));
  for (const direction of DIRECTIONS) {
    if (value[direction].cast)
      found.push(
        element(
          "span",
          { class: "badge cast" },
          `${direction === "forward" ? "" : "∂ "}${value[direction].cast.toUpperCase()}`,
        ),
      );
  }
  if (isMask(value)) found.push(element("span", { class: "badge" }, "mask"));
  if (value.backward.is_rounding)
    found.push(element("span", { class: "badge", title: "the gradient is zero but for rounding" }, "∂ rounding"));
  return found;
}
