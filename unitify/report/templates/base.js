// Elements, numbers and text. Text is always in text nodes, because names come from checkpoints and
// must never be read as HTML.

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    const isState = name.startsWith("aria-"); // "false" says something there
    if (value === null || value === undefined || (value === false && !isState)) continue;
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true && !isState ? "" : String(value));
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

function section(id) {
  return document.querySelector(`#${id} .body`);
}

const MINUS = "\u2212";

function signed(number) {
  return String(number).replace("-", MINUS);
}

// Three significant digits, without trailing zeros.
function digits(number, count = 3) {
  if (number === null || number === undefined) return "–";
  if (number === 0) return "0";
  const size = Math.abs(number);
  const text = size < 1e-3 || size >= 1e5 ? number.toExponential(count - 1) : number.toPrecision(count);
  return signed(text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text);
}

function log2Text(number) {
  if (number === null || number === undefined) return "–";
  return signed((Math.round(10 * number) / 10 || 0).toFixed(1));
}

function decibels(number) {
  return number === null || number === undefined ? "–" : `${signed(number.toFixed(1))} dB`;
}

function percent(share) {
  if (share === null || share === undefined) return "–";
  if (share === 0) return "0";
  const value = 100 * share;
  if (value < 0.01) return "< 0.01 %";
  return `${value < 10 ? value.toFixed(2) : value.toFixed(1)} %`;
}

function powerOfTwo(exponent) {
  return ["2", element("sup", {}, signed(exponent))];
}

// A text in which 2^-13 is written as a power.
function withPowers(text) {
  return text.split(/2\^(-?\d+)/).flatMap((part, index) => (index % 2 ? powerOfTwo(part) : [part]));
}

function count(number) {
  return number.toLocaleString("en-US");
}

function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

function median(sorted) {
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

function last(path) {
  return path.slice(path.lastIndexOf(".") + 1);
}
