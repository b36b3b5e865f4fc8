// Renders a response; the slider and the classes filter it on the client, without another request.

import { element } from "./elements.js";
import { chooseColour, draw, findAt } from "./overlay.js";
import { writeCurl, writeJson } from "./service.js";

const state = {
  model: null, // as `/models` describes it
  name: "", // the picture's file name, for the curl command
  answer: null,
  sheet: false, // the boxes are drawn on a blank background: the browser cannot show the picture
  shown: [], // the detections that pass the slider and the classes
  best: new Map(), // the highest score of each label seen: the classes on offer
  chosen: new Set(), // labels to show; empty for all
  pointed: null, // the detection under the pointer
};

/** Sets the model of the next response: a label's index in it determines the colour. Forgets labels that it lacks. */
export function setModel(model) {
  const known = new Set(model.labels.map(({ label }) => label));
  for (const labels of [state.best, state.chosen]) {
    for (const label of labels.keys()) if (!known.has(label)) labels.delete(label);
  }
  Object.assign(state, { model, answer: null });
  render();
}

/** Clears the results, for a picture called `name` that has no response yet. */
export function forget(name) {
  const best = new Map([...state.chosen].map((label) => [label, 0]));
  Object.assign(state, { name, answer: null, sheet: false, best });
  showTimings({});
  render();
}

/** Shows a response and its round-trip time; on a blank `sheet` if the picture itself cannot be shown. */
export function present(answer, milliseconds, sheet = false) {
  Object.assign(state, { answer, sheet });
  for (const { label, score } of answer.detections) state.best.set(label, Math.max(score, state.best.get(label) ?? 0));
  showTimings({ ...answer.timings_ms, round_trip: milliseconds });
  render();
}

function showTimings(times) {
  for (const cell of element.timings.querySelectorAll("dd")) {
    cell.textContent = cell.dataset.stage in times ? `${times[cell.dataset.stage].toFixed(1)} ms` : "";
  }
}

function render() {
  const { answer, chosen } = state;
  const threshold = element.threshold.valueAsNumber / 100;
  const sure = (answer?.detections ?? []).filter(({ score }) => score >= threshold);
  state.shown = sure.filter(({ label }) => !chosen.size || chosen.has(label));
  if (!state.shown.includes(state.pointed)) state.pointed = null;

  element["threshold-value"].textContent = `${element.threshold.value} %`;
  renderClasses(sure, threshold);
  renderObjects();
  renderOverlay();
  element.curl.textContent = writeCurl(state.name, threshold, [...chosen]);
  element.json.textContent = answer ? writeJson({ ...answer, detections: state.shown }) : "";
  if (answer) element.status.textContent = `${state.shown.length || "none"} of ${answer.detections.length} shown`;
}

function renderClasses(sure, threshold) {
  const offered = ([label, score]) => score >= threshold || state.chosen.has(label);
  const labels = [...state.best].filter(offered).map(([label]) => label);
  const create = () => make("button", { type: "button" }, make("span"), " ", make("small"));
  match(element.classes, labels.length ? [null, ...labels] : [], create, (button, label) => {
    const [name, count] = button.children;
    name.textContent = label ?? "all";
    count.textContent = label === null ? sure.length : sure.filter((each) => each.label === label).length;
    button.dataset.label = label ?? "";
    button.ariaPressed = label === null ? !state.chosen.size : state.chosen.has(label);
  });
}

function renderObjects() {
  const create = () => make("li", { role: "option" }, make("i"), make("span"), make("b"), make("small"));
  match(element.objects, state.shown, create, (row, detection) => {
    const [swatch, label, score, where] = row.children;
    const { x_min: left, y_min: top, x_max: right, y_max: bottom } = detection.box;
    swatch.style.background = `rgb(${colourOf(detection)})`;
    label.textContent = detection.label;
    score.textContent = `${(detection.score * 100).toFixed(1)} %`;
    const [width, height, x, y] = [right - left, bottom - top, left, top].map(Math.round);
    where.textContent = `${width} × ${height} at ${x}, ${y}`;
  });
}

function renderOverlay() {
  const focused = state.shown[rowOf(document.activeElement)];
  const lit = state.pointed ?? focused ?? null;
  const edges = state.model?.skeleton.edges ?? [];
  draw(element.overlay, state.answer?.image, state.shown, colourOf, edges, lit, state.sheet);
  element.overlay.ariaLabel = state.answer ? `${state.name} with ${state.shown.length} boxes` : "No picture yet";
  const stop = Math.max(0, state.shown.indexOf(focused)); // the one row in the tab order; arrow keys reach the others
  [...element.objects.children].forEach((row, index) => {
    row.ariaSelected = state.shown[index] === lit;
    row.tabIndex = index === stop ? 0 : -1;
  });
}

function colourOf({ label, label_id: id }) {
  const labels = state.model?.labels ?? [];
  const index = labels.findIndex((each) => each.label === label);
  return chooseColour(index < 0 ? id : index);
}

function rowOf(target) {
  return [...element.objects.children].indexOf(target.closest("li"));
}

function point(detection) {
  if (state.pointed === detection) return;
  state.pointed = detection;
  renderOverlay();
}

/** Gives `parent` one child per value, reusing its children so that they keep focus and hover. */
function match(parent, values, create, update) {
  while (parent.children.length > values.length) parent.lastElementChild.remove();
  while (parent.children.length < values.length) parent.append(create());
  values.forEach((value, index) => update(parent.children[index], value));
}

function make(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

new ResizeObserver(renderOverlay).observe(element.stage);
element.threshold.addEventListener("input", render);

element.classes.addEventListener("click", ({ target }) => {
  const label = target.closest("button")?.dataset.label;
  if (label === undefined) return;
  if (label === "") state.chosen.clear();
  else if (!state.chosen.delete(label)) state.chosen.add(label);
  render();
});

element.objects.addEventListener("pointerover", ({ target }) => point(state.shown[rowOf(target)] ?? null));
element.objects.addEventListener("pointerleave", () => point(null));
element.overlay.addEventListener("pointermove", ({ offsetX, offsetY }) => {
  if (state.answer) point(findAt(element.overlay, state.answer.image, state.shown, offsetX, offsetY));
});
element.overlay.addEventListener("pointerleave", () => point(null));

element.objects.addEventListener("focusin", renderOverlay);
element.objects.addEventListener("focusout", renderOverlay);
element.objects.addEventListener("keydown", (event) => {
  const row = rowOf(event.target);
  const last = state.shown.length - 1;
  const next = { ArrowDown: row + 1, ArrowUp: row - 1, Home: 0, End: last }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  element.objects.children[Math.min(last, Math.max(0, next))].focus();
});

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () => {
    getSelection().selectAllChildren(element[button.dataset.copy]);
    document.execCommand("copy"); // navigator.clipboard exists only over HTTPS and on localhost
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}
