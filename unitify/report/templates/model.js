// The report's JSON for the views. All values are true; the scaled ones are divided by 2^exponent.

const GRAPHS = ["original", "transformed"];
const DIRECTIONS = ["forward", "backward"];

let report = null;
const valueByName = new Map();
const choiceByName = new Map();

function take(parsed) {
  report = parsed;
  report.values.forEach((value, index) => {
    value.index = index;
    valueByName.set(value.name, value);
  });
  report.choices.forEach((choice) => choiceByName.set(choice.value, choice));
}

// Are values stored within a few octaves of their own scale, and multiplied as they are cast?
function inCasts() {
  return report.placement === "casts" || report.carrier === "wide";
}

function scaledWord() {
  return inCasts() ? "as cast" : "stored";
}

function rms(side) {
  return side.measured ?? side.predicted;
}

// log2 of the RMS in a graph; null for zero, and where there is none.
function logRms(value, direction, graph) {
  const side = value[direction];
  const found = rms(side);
  if (!(found > 0)) return null;
  return Math.log2(found) - (graph === "transformed" ? side.exponent : 0);
}

function isMask(value) {
  return value.kind === "mask";
}

// Zero but for rounding: a bias that moves all inputs of a softmax alike.
function isRounding(value, direction) {
  return direction === "backward" && value.backward.is_rounding;
}

// Is something lost where a format does not hold it? Nothing of a mask, of the gradient of an input
// that is not cast, or of rounding.
function counts(value, direction) {
  const isFree = direction === "backward" && value.kind === "input" && !value.backward.cast;
  return !isMask(value) && !isFree && !isRounding(value, direction);
}

function sentence(note) {
  return `${note[0].toUpperCase()}${note.slice(1)}.`;
}

function shownName(value) {
  return value.parameter ?? value.name;
}

function operationText(value) {
  return value.kind === "result" ? value.operation.replace(/^aten\.|\.default$/g, "") : value.kind;
}

function sourceText(value) {
  if (value.source === null) return "";
  const source = report.sources[value.source];
  return `${source.shown}:${source.line}`;
}

function sourceLine(value) {
  if (value.source === null) return "";
  const source = report.sources[value.source];
  return (source.excerpt[source.line - source.first] ?? "").trim();
}

// The share of the elements in each octave: measured, else that of a normal distribution.
function octaves(side) {
  if (side.octaves && side.octaves.shares.length) return side.octaves;
  const found = rms(side);
  if (!(found > 0) || side.octaves) return null;
  const top = Math.floor(Math.log2(found)) + 3;
  const shares = [];
  const first = top - 16;
  for (let octave = first; octave <= top; octave++) {
    const [low, high] = [2 ** octave, 2 ** (octave + 1)].map((x) => x / found / Math.SQRT2);
    shares.push(erf(high) - erf(low));
  }
  return { first, shares };
}

// Abramowitz and Stegun 7.1.26, with an error of 1.5e-7, which no color shows.
function erf(x) {
  const t = 1 / (1 + 0.3275911 * x);
  const sum = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  return 1 - sum * Math.exp(-x * x);
}

function loss(value, direction, graph, format) {
  return value[direction].losses[graph]?.[format] ?? null;
}

function lostOutright(held) {
  return held === null ? 0 : Math.max(held[0], held[2]);
}

function isUnit(logarithm) {
  return logarithm !== null && Math.abs(logarithm) <= 1;
}
