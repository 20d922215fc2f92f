// Casts of the recipe, and the reasons for all other values: values by reason.

const LISTED = 120;

function castsText() {
  const { name, values } = report.recipe;
  const [forward, backward] = DIRECTIONS.map((direction) => report.recipe[direction].toUpperCase());
  return values === "all"
    ? `Recipe ${name}: every value to ${forward}, every gradient to ${backward}.`
    : `Recipe ${name}: operands of contractions to ${forward}, gradients of their results to ${backward}.`;
}

function castsView() {
  const groups = new Map();
  for (const choice of report.choices) {
    const isCast = Boolean(choice.forward || choice.backward);
    const what = isCast
      ? [choice.forward, choice.backward].map((format) => (format ?? "–").toUpperCase()).join(" / ")
      : choice.is_operand ? "operand" : "kept";
    const reason = [choice.reason, choice.runs_because && `${choice.runs}: ${choice.runs_because}`]
      .filter(Boolean)
      .join("; ");
    const key = `${what}\n${reason}`;
    if (!groups.has(key))
      groups.set(key, { what, reason, isCast, isProduct: choice.is_contraction, names: [], flops: 0 });
    const group = groups.get(key);
    group.names.push(choice.value);
    group.flops += choice.flops;
  }
  const all = [...groups.values()].sort(
    (a, b) =>
      b.isCast - a.isCast ||
      b.isProduct - a.isProduct ||
      b.flops - a.flops ||
      b.names.length - a.names.length,
  );
  const flops = all.reduce((sum, group) => sum + group.flops, 0);
  section("casts").replaceChildren(
    element(
      "p",
      { class: "note" },
      castsText() +
        (report.recipe_is_applied ? "" : " It is not applied to this model: this is what it would do."),
    ),
    ...all.map((group) =>
      element(
        "details",
        { class: `reason ${group.isCast ? "cast" : ""}` },
        element(
          "summary",
          {},
          element("span", { class: `badge ${group.isCast ? "cast" : ""}` }, group.what),
          element("span", { class: "why" }, group.reason),
          element(
            "span",
            { class: "count" },
            plural(group.names.length, group.isProduct ? "contraction" : "value") +
              (flops && group.flops ? `, ${((100 * group.flops) / flops).toFixed(1)} % of FLOPs` : ""),
          ),
        ),
        element(
          "p",
          { class: "names" },
          ...group.names.slice(0, LISTED).flatMap((name) => [nameLink(name), " "]),
          group.names.length > LISTED ? `and ${count(group.names.length - LISTED)} more` : "",
        ),
      ),
    ),
  );
}
