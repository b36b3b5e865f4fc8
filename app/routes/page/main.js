// The page: a picture is chosen, dropped, pasted or taken, and sent once.

import { closeCamera, openCamera, takePicture } from "./camera.js";
import { element } from "./elements.js";
import { forget, present, setModel } from "./results.js";
import { Refusal, detect, fetchModels } from "./service.js";

let asking = new AbortController();
let described = null; // the model that the page describes, as in `/models`

/** Aborts the current request and resets the page for a picture called `name`; returns the new abort signal. */
function begin(name) {
  asking.abort();
  asking = new AbortController();
  forget(name);
  element.message.hidden = element.welcome.hidden = true;
  element.progress.hidden = false;
  element.status.textContent = "Detecting …";
  return asking.signal;
}

function finish(signal) {
  if (!signal.aborted) element.progress.hidden = true;
}

/** Shows a picture and its detections, with an optional note [title, detail]. */
async function show(file, note) {
  leaveCamera();
  const signal = begin(file.name || "photo.jpg");
  try {
    const [{ answer, milliseconds }] = await Promise.all([detect(file, signal), load(file)]);
    await describeModelOf(answer);
    if (signal.aborted) return;
    const seen = isSeen(answer.image);
    element.photo.hidden = !seen;
    present(answer, milliseconds, !seen);
    if (!seen) note = ["This browser cannot show the picture", "The boxes are drawn on a blank background of its size."];
    if (note) say(...note, true);
  } catch (error) {
    if (!signal.aborted) report(error);
  } finally {
    finish(signal);
  }
}

/** Describes the model that has answered, if it is another one than before, also under the same name. */
async function describeModelOf({ model: name, detections }) {
  const fits = ({ label, label_id: id, keypoints = [] }) =>
    keypoints.length === described.skeleton.joints.length &&
    described.labels.some((each) => each.label === label && each.label_id === id);
  if (described?.name === name && detections.every(fits)) return;
  try {
    const model = (await fetchModels()).get(name);
    if (model) describe(model);
  } catch {
    // the response is shown all the same, and the next one tries again
  }
}

/** Describes a model in the header, the slider's default and the results. */
function describe(model) {
  const { labels, skeleton, input } = model;
  element.threshold.defaultValue = Math.round(100 * model.threshold); // keeps a value that the user has already set
  setModel(model);
  const knows = [labels.length === 1 ? labels[0].label : `${labels.length} classes`];
  if (skeleton.joints.length) knows.push(`${skeleton.joints.length} keypoints`);
  const facts = [model.name, ...knows, `${input.width} × ${input.height}`, model.provider, model.precision];
  element.model.textContent = facts.join(" · ");
  described = model;
}

/** Loads a file into the page's <img> and waits until the browser has decoded it or failed to. */
async function load(file) {
  URL.revokeObjectURL(element.photo.src);
  const read = new Promise((done) => {
    element.photo.onload = element.photo.onerror = done;
  });
  element.photo.src = URL.createObjectURL(file);
  element.photo.hidden = false;
  await read;
  element.photo.hidden = element.photo.naturalHeight === 0;
}

/** Whether the browser shows the picture with the server's orientation; EXIF's density may change its size only. */
function isSeen({ width, height }) {
  const { naturalWidth, naturalHeight } = element.photo;
  return naturalHeight > 0 && Math.abs((naturalWidth * height) / (naturalHeight * width) - 1) < 0.02;
}

function say(title, detail, note = false) {
  element["message-title"].textContent = title;
  element["message-detail"].textContent = detail;
  element.message.classList.toggle("note", note);
  element.message.hidden = false;
}

function report(error) {
  if (error instanceof Refusal) say(error.title, error.detail);
  else say("The page failed", String(error));
  element.status.textContent = "No response";
}

function choose(files) {
  if (files.length > 1) show(files[0], ["One picture at a time", `This is the first of ${files.length}.`]);
  else if (files.length) show(files[0]);
  else say("There is no picture in this", "Drop or paste an image file.", true);
}

element.file.addEventListener("change", () => {
  if (element.file.files.length) choose([...element.file.files]);
  element.file.value = ""; // the same file may be chosen again
});
document.addEventListener("paste", (event) => choose(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  element.stage.classList.add("target");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) element.stage.classList.remove("target");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  element.stage.classList.remove("target");
  choose(event.dataTransfer.files);
});

// ---- the camera

function showCamera(open) {
  element.choose.hidden = element.file.hidden = element.camera.hidden = open;
  element.take.hidden = element.live.hidden = element.close.hidden = !open;
  element.video.hidden = !open;
}

function leaveCamera() {
  closeCamera(element.video);
  setLive(false);
  showCamera(false);
}

function setLive(on) {
  element.live.ariaPressed = on;
  element.status.ariaLive = on ? "off" : "polite"; // screen readers would announce every frame
}

element.camera.addEventListener("click", async () => {
  const signal = begin("camera.jpg");
  element.photo.hidden = element.camera.disabled = true;
  try {
    await openCamera(element.video);
    if (signal.aborted) return closeCamera(element.video);
    showCamera(true);
    element.take.focus();
    element.status.textContent = "The camera is on";
  } catch (error) {
    if (signal.aborted) return;
    report(error);
    element.welcome.hidden = false;
  } finally {
    element.camera.disabled = false;
    finish(signal);
  }
});

element.take.addEventListener("click", async () => show(await takePicture(element.video)));

element.live.addEventListener("click", async () => {
  const signal = begin("camera.jpg");
  finish(signal);
  setLive(element.live.ariaPressed === "false");
  element.status.textContent = "The camera is on";
  try {
    while (!signal.aborted && element.live.ariaPressed === "true") {
      const { answer, milliseconds } = await detect(await takePicture(element.video), signal);
      await describeModelOf(answer);
      if (signal.aborted) return;
      present(answer, milliseconds);
      await new Promise(requestAnimationFrame); // pauses while the page is hidden
    }
  } catch (error) {
    if (signal.aborted) return;
    setLive(false);
    report(error);
  }
});

element.close.addEventListener("click", () => {
  finish(begin("photo.jpg"));
  leaveCamera();
  element.status.textContent = "No picture yet";
  element.welcome.hidden = false;
  element.camera.focus();
});

// ---- at the start

element["message-close"].addEventListener("click", () => {
  element.message.hidden = true;
});
forget("photo.jpg");
try {
  const [first] = (await fetchModels()).values();
  describe(first);
} catch (error) {
  report(error);
}
