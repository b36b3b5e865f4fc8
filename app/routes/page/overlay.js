// Boxes and labels over a picture, with the same colours and label positions as in model/draw.py.

const LINE = 2; // CSS pixels, as all sizes here
const FONT = "600 12px system-ui, sans-serif";
const TAG_HEIGHT = 18;
const TAG_MARGIN = 5;
const MIN_JOINT_SCORE = 0.2; // as in model/draw.py

/** Returns the [red, green, blue] of class `index`, 0 to 255, as `choose_colour` of model/draw.py. */
export function chooseColour(index) {
  const hue = (0.02 + index * 0.618034) % 1; // golden-ratio steps give neighbouring indices distinct hues
  const saturation = [0.85, 0.65][Math.floor(index / 8) % 2];
  const channel = (n) => {
    const k = (n + hue * 6) % 6;
    return Math.round(255 * 0.95 * (1 - saturation * Math.max(0, Math.min(k, 4 - k, 1))));
  };
  return [channel(5), channel(3), channel(1)];
}

/** Returns near-black or white, whichever is further from a colour in luma (ITU-R BT.601). */
function contrast([red, green, blue]) {
  return 0.299 * red + 0.587 * green + 0.114 * blue > 127 ? "rgb(20 20 20)" : "white";
}

/** Returns the rectangle of a picture that is scaled to fit the canvas: {left, top, width, height}. */
function place(canvas, { width, height }) {
  const scale = Math.min(canvas.clientWidth / width, canvas.clientHeight / height);
  return {
    left: (canvas.clientWidth - width * scale) / 2,
    top: (canvas.clientHeight - height * scale) / 2,
    width: width * scale,
    height: height * scale,
  };
}

/** Returns a box in canvas coordinates, snapped to whole device pixels for sharp lines. */
function toCanvas(box, size, frame) {
  const snap = (value) => Math.round(value * window.devicePixelRatio) / window.devicePixelRatio;
  const x = frame.width / size.width;
  const y = frame.height / size.height;
  return {
    left: snap(frame.left + box.x_min * x),
    top: snap(frame.top + box.y_min * y),
    right: snap(frame.left + box.x_max * x),
    bottom: snap(frame.top + box.y_max * y),
  };
}

/**
 * Draws detections, sorted by descending score, of a picture of `size` {width, height} over the whole canvas.
 *
 * `colourOf` returns a detection's colour; `edges` are pairs of joint indices to connect by lines; `lit` is the
 * detection to highlight, or null; `sheet` fills the background where the picture cannot be shown.
 */
export function draw(canvas, size, detections, colourOf, edges, lit, sheet) {
  const ratio = window.devicePixelRatio;
  canvas.width = Math.round(canvas.clientWidth * ratio);
  canvas.height = Math.round(canvas.clientHeight * ratio);
  if (!size) return;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const frame = place(canvas, size);
  if (sheet) {
    context.fillStyle = "rgb(128 128 128 / 25%)";
    context.fillRect(frame.left, frame.top, frame.width, frame.height);
  }
  const order = [...detections].reverse().filter((each) => each !== lit); // the highest score on top, `lit` above all
  if (lit) order.push(lit);
  for (const each of order) {
    const { left, top, right, bottom } = toCanvas(each.box, size, frame);
    const colour = colourOf(each);
    context.globalAlpha = lit && each !== lit ? 0.3 : 1;
    // the contrasting outline keeps the box visible on a background of its colour
    for (const [ink, width] of [[contrast(colour), LINE + 2], [`rgb(${colour})`, LINE]]) {
      context.strokeStyle = ink;
      context.lineWidth = each === lit ? width + 2 : width;
      context.strokeRect(left, top, right - left, bottom - top);
    }
    drawJoints(context, each.keypoints ?? [], edges, colour, size, frame);
  }

  context.font = FONT;
  context.textBaseline = "middle";
  context.globalAlpha = 1;
  const tags = [];
  for (const each of lit ? [lit] : detections) {
    const text = `${each.label} ${Math.round(each.score * 100)}%`;
    const width = Math.ceil(context.measureText(text).width) + 2 * TAG_MARGIN;
    tags.push({ text, colour: colourOf(each), ...findSpot(toCanvas(each.box, size, frame), width, frame, tags) });
  }
  for (const { text, colour, left, top, right } of tags.reverse()) {
    context.fillStyle = `rgb(${colour})`;
    context.fillRect(left, top, right - left, TAG_HEIGHT);
    context.fillStyle = contrast(colour);
    context.fillText(text, left + TAG_MARGIN, top + TAG_HEIGHT / 2 + 0.5);
  }
}

/** Draws the joints with a sufficient score, and the lines between them. */
function drawJoints(context, keypoints, edges, colour, size, frame) {
  const [x, y] = [frame.width / size.width, frame.height / size.height];
  const places = keypoints.map((joint) => [frame.left + joint.x * x, frame.top + joint.y * y]);
  const isSure = (index) => keypoints[index].score >= MIN_JOINT_SCORE;
  const lines = new Path2D();
  const dots = new Path2D();
  for (const [one, other] of keypoints.length ? edges : []) {
    if (!isSure(one) || !isSure(other)) continue;
    lines.moveTo(...places[one]);
    lines.lineTo(...places[other]);
  }
  for (const [index, [left, top]] of places.entries()) {
    if (!isSure(index)) continue;
    dots.moveTo(left, top);
    dots.arc(left, top, LINE, 0, 2 * Math.PI);
  }
  for (const [ink, width] of [[contrast(colour), 2], [`rgb(${colour})`, 0]]) {
    context.strokeStyle = context.fillStyle = ink;
    context.lineWidth = LINE + width;
    context.stroke(lines);
    context.lineWidth = 2 + width;
    context.stroke(dots);
    context.fill(dots);
  }
}

/** Returns a label's rectangle: above its box, inside its top, below it or inside its bottom, the first that is free. */
function findSpot(box, width, frame, taken) {
  const left = Math.max(frame.left, Math.min(box.left - LINE / 2, frame.left + frame.width - width));
  const tops = [box.top - TAG_HEIGHT, box.top, box.bottom, box.bottom - TAG_HEIGHT];
  const spots = tops.map((top) => ({ left, top, right: left + width, bottom: top + TAG_HEIGHT }));
  const inside = spots.filter(({ top, bottom }) => top >= frame.top && bottom <= frame.top + frame.height);
  if (!inside.length) inside.push({ left, top: frame.top, right: left + width, bottom: frame.top + TAG_HEIGHT });
  const overlap = (one, other) =>
    one.left < other.right && other.left < one.right && one.top < other.bottom && other.top < one.bottom;
  return inside.find((spot) => !taken.some((other) => overlap(spot, other))) ?? inside[0];
}

/** Returns the smallest detection at a point of the canvas, in CSS pixels from its corner, or null. */
export function findAt(canvas, size, detections, x, y) {
  const frame = place(canvas, size);
  const area = ({ box }) => (box.x_max - box.x_min) * (box.y_max - box.y_min);
  const under = detections.filter((each) => {
    const { left, top, right, bottom } = toCanvas(each.box, size, frame);
    return left <= x && x <= right && top <= y && y <= bottom;
  });
  return under.sort((one, other) => area(one) - area(other))[0] ?? null;
}
