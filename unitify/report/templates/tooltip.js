// One tooltip for all figures and tables, made of text nodes.

const tooltip = document.getElementById("tooltip");

function showTooltip(event, title, rows) {
  tooltip.replaceChildren(
    element("strong", {}, title),
    element(
      "dl",
      {},
      ...rows
        .filter(([, text]) => text !== null && text !== "")
        .flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, ...withPowers(text))]),
    ),
  );
  tooltip.hidden = false;
  const { clientX: x, clientY: y } = event;
  const { offsetWidth: width, offsetHeight: height } = tooltip;
  const left = x + 16 + width > innerWidth ? x - width - 16 : x + 16;
  const top = y + 12 + height > innerHeight ? y - height - 12 : y + 12;
  tooltip.style.left = `${Math.max(left, 8)}px`;
  tooltip.style.top = `${Math.max(top, 8)}px`;
}

function hideTooltip() {
  tooltip.hidden = true;
}

// The tooltip of one value in one direction and graph.
function valueRows(value, direction, graph) {
  const side = value[direction];
  const isScaled = graph === "transformed";
  return [
    ["operation", value.operation],
    ["module", value.module],
    ["RMS", rmsText(side, isScaled)],
    ["", isRounding(value, direction) ? "zero but for rounding" : ""],
    ["scale", isScaled ? `2^${side.exponent}` : ""],
    ["cast to", side.cast ?? ""],
    ["source", sourceText(value)],
    ["", sourceLine(value)],
  ];
}

function rmsText(side, isScaled) {
  const found = rms(side);
  if (found === null) return "none";
  const how = side.measured === null ? "predicted" : "measured";
  if (!isScaled) return `${digits(found)} (${how})`;
  return `${digits(found / 2 ** side.exponent)} ${scaledWord()}, ${digits(found)} true (${how})`;
}
