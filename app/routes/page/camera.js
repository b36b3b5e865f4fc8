// The camera as an image source.

import { Refusal } from "./service.js";

const REASONS = {
  NotAllowedError: "Access is blocked. Allow it in the browser's settings for this site, then try again.",
  NotFoundError: "No camera is connected.",
  NotReadableError: "Another program is using it. Close that program, then try again.",
};

/** Shows the camera's stream in `video`, until `closeCamera`; throws `Refusal`. */
export async function openCamera(video) {
  if (!navigator.mediaDevices) {
    throw new Refusal(
      "No camera here",
      "Browsers allow it only over HTTPS or on localhost. A phone offers its camera when you choose a picture.",
    );
  }
  try {
    const constraints = { facingMode: "environment", width: { ideal: 1280 }, height: { ideal: 720 } };
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: constraints });
    await video.play();
  } catch (error) {
    closeCamera(video);
    throw new Refusal("No camera", REASONS[error.name] ?? error.message);
  }
}

/** Switches the camera off. */
export function closeCamera(video) {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
}

/** Returns the current frame as a JPEG file. */
export async function takePicture(video) {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
  return new File([blob], "camera.jpg", { type: blob.type });
}
