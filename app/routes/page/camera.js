// The camera as a source of pictures.

import { Refusal } from "./service.js";

const REASONS = {
  NotAllowedError: "The browser may not use it. Allow it in the browser's settings of this site, then try again.",
  NotFoundError: "None is connected.",
  NotReadableError: "Another program uses it. Close that one, then try again.",
};

/** Shows what the camera sees in `video`, until `closeCamera`; throws `Refusal`. */
export async function openCamera(video) {
  if (!navigator.mediaDevices) {
    throw new Refusal(
      "No camera here",
      "Browsers give it to pages over HTTPS or on localhost alone. A phone offers its own where you choose a picture.",
    );
  }
  try {
    const wish = { facingMode: "environment", width: { ideal: 1280 }, height: { ideal: 720 } };
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: wish });
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

/** Returns what the camera sees now, as a JPEG file. */
export async function takePicture(video) {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
  return new File([blob], "camera.jpg", { type: blob.type });
}
