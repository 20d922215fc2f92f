// One value: its numbers, its source line, the derivation of its RMS, and its rule.

const panel = document.getElementById("details");
let opener = null;

function showDetails(value) {
  const hash = `#value=${encodeURIComponent(value.name)}`;
  if (location.hash === hash) openDetails(value);
  else location.hash = hash;
}

function followHash() {
  const found = /^#value=(.*)$/.exec(location.hash);
  if (!found) {
    if (!panel.hidden) closeDetails(false);
    return;
  }
  const value = valueByName.get(decodeURIComponent(found[1]));
  if (value) openDetails(value);
}

function closeDetails(clearsHash = true) {
  panel.hidden = true;
  document.body.classList.remove("with-details");
  if (clearsHash) history.replaceState(null, "", location.pathname + location.search);
  opener?.focus?.({ preventScroll: true });
}

function openDetails(value) {
  if (panel.hidden) opener = document.activeElement;
  panel.replaceChildren(
    element(
      "header",
      {},
      element(
        "div",
        {},
        element("p", { class: "eyebrow" }, `${value.kind} · ${value.shape.join(" × ") || "a single number"}`),
        element("h2", { id: "details-title" }, shownName(value)),
      ),
      element(
        "button",
        { type: "button", class: "close", "aria-label": "Close", onclick: () => closeDetails() },
        "✕",
      ),
    ),
    element(
      "p",
      { class: "place" },
      element("code", {}, value.kind === "result" ? value.operation : value.kind),
      value.module ? [" in ", element("code", {}, value.module), value.class ? ` (${value.class})` : ""] : "",
    ),
    element("p", {}, ...badges(value)),
    ...numbersOf(value),
    ...sourceOf(value),
    ...derivationOf(value),
    ...ruleOf(value),
    ...choiceOf(value),
  );
  panel.hidden = false;
  document.body.classList.add("with-details");
  panel.scrollTop = 0;
  panel.focus({ preventScroll: true });
}

function numbersOf(value) {
  const row = (name, show) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, name),
      ...DIRECTIONS.map((direction) =>
        element("td", { class: "number" }, ...[show(value[direction], direction)].flat()),
      ),
    );
  const scaled = (side) => (rms(side) === null ? "–" : digits(rms(side) / 2 ** side.exponent));
  const formats = Object.keys(report.formats);
  const lossRow = (format) =>
    row(`lost in ${format.toUpperCase()}`, (side) => {
      const [before, after] = GRAPHS.map((graph) => side.losses[graph]?.[format] ?? null);
      if (before === null) return "–";
      return [
        element("span", { class: "original" }, percent(lostOutright(before))),
        " → ",
        element("span", { class: "transformed" }, percent(lostOutright(after))),
      ];
    });
  return [
    element(
      "table",
      { class: "numbers" },
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          element("th"),
          element("th", { scope: "col", class: "number" }, "forward"),
          element("th", { scope: "col", class: "number" }, "backward"),
        ),
      ),
      element(
        "tbody",
        {},
        row("RMS, predicted", (side) => digits(side.predicted)),
        report.batches ? row("RMS, measured", (side) => digits(side.measured)) : null,
        row("scale", (side) => powerOfTwo(side.exponent)),
        row(`RMS, ${scaledWord()}`, scaled),
        row("cast to", (side) => side.cast?.toUpperCase() ?? "–"),
        ...formats.map(lossRow),
      ),
    ),
    value.sqnr
      ? element(
          "p",
          { class: "note" },
          `Signal to noise: ${GRAPHS.map((graph) => `${graph} ${decibels(value.sqnr[graph])}`).join("; ")}.`,
        )
      : null,
  ].filter(Boolean);
}

function sourceOf(value) {
  if (value.source === null) return [];
  const source = report.sources[value.source];
  const lines = source.excerpt.map((text, index) => {
    const number = source.first + index;
    return element(
      "span",
      { class: number === source.line ? "line here" : "line" },
      element("span", { class: "at", "aria-hidden": "true" }, String(number)),
      `${text}\n`,
    );
  });
  return [
    element("h3", {}, "Source"),
    element(
      "p",
      { class: "place" },
      element(
        "a",
        { href: `file://${encodeURI(source.file).replace(/[?#]/g, encodeURIComponent)}`, class: "source" },
        `${source.shown}:${source.line}`,
      ),
    ),
    lines.length ? element("pre", {}, ...lines) : null,
  ].filter(Boolean);
}

// The analysis read backwards: one step, with a link to each of its operands.
function derivationOf(value) {
  const step = ([way, result, sources], what) => {
    const from = Object.entries(sources);
    return element(
      "li",
      {},
      `${what} ${digits(result, 4)}, ${way}`,
      from.length ? " from " : "",
      ...from.flatMap(([name, number], index) => [
        index ? ", " : "",
        nameLink(name),
        ` (${digits(number, 4)})`,
      ]),
    );
  };
  const { forward, backward } = value;
  if (!forward.steps.length && !backward.steps.length) return [];
  const more = ancestors(value);
  return [
    element("h3", {}, "Derivation"),
    element(
      "ul",
      { class: "steps" },
      ...forward.steps.map((held) => step(held, "RMS")),
      ...(backward.steps.length > 1
        ? [element("li", {}, `gradient: the sum of ${backward.steps.length} terms`)]
        : []),
      ...backward.steps.map((held) => step(held, "gradient")),
    ),
    more.length
      ? element(
          "details",
          {},
          element("summary", {}, "back to inputs and parameters"),
          element(
            "ol",
            { class: "steps" },
            ...more.map((each) =>
              element(
                "li",
                {},
                valueLink(each),
                ": ",
                ...each.forward.steps.map((held) => step(held, "RMS")),
              ),
            ),
          ),
        )
      : null,
  ].filter(Boolean);
}

function ancestors(value) {
  const found = [value];
  for (let at = 0; at < found.length && found.length < 14; at++) {
    for (const held of found[at].forward.steps) {
      for (const name of Object.keys(held[2])) {
        const source = valueByName.get(name);
        if (source && !found.includes(source)) found.push(source);
      }
    }
  }
  return found.slice(1, 13);
}

function ruleOf(value) {
  const rule = report.rules[value.operation];
  if (rule) {
    return [
      element("h3", {}, "Rule"),
      element(
        "p",
        { class: "place" },
        element("code", {}, value.operation),
        `, ${rule.kind}${rule.file ? `; ${rule.file}` : ""}`,
      ),
      element(
        "ul",
        { class: "formulas" },
        rule.law ? element("li", {}, `law: ${rule.law}`) : null,
        ...DIRECTIONS.flatMap((direction) =>
          rule[direction].map((text) => element("li", {}, `${direction}: ${text}`)),
        ),
      ),
      rule.source ? element("p", { class: "note" }, rule.source) : null,
    ].filter(Boolean);
  }
  if (value.restored !== "no rule") return [];
  return [
    element("h3", {}, "Rule"),
    element(
      "p",
      {},
      "It has none: its operands return to true scale, and its moments are those of samples.",
    ),
  ];
}

function choiceOf(value) {
  const choice = choiceByName.get(value.contraction ?? value.name);
  if (!choice) return [];
  const isCast = choice.forward || choice.backward;
  const formats = [choice.forward, choice.backward].map((format) => format?.toUpperCase() ?? "–").join(" / ");
  const what = isCast ? `${formats}: ` : choice.is_operand ? "" : "kept: ";
  const runs = choice.runs ? `; ${choice.runs}${choice.runs_because ? ` (${choice.runs_because})` : ""}` : "";
  return [
    element("h3", {}, "Recipe"),
    element(
      "p",
      {},
      `${what}${choice.reason}${runs}.`,
    ),
  ];
}

function startDetails() {
  addEventListener("hashchange", followHash);
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    hideTooltip();
    if (!panel.hidden) closeDetails();
  });
  followHash();
}
