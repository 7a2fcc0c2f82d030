// Values as pixels: PNG files and .npy arrays read, drawn and compared.

import { bytesOf, urlOf } from "./api.js";
import { h } from "./dom.js";

/** @typedef {import("./api.js").Shown} Shown */
/** @typedef {{frames: ImageData[], width: number, height: number}} Clip a picture is a clip of one frame */

/** uint8 [T, H, W, 3] or [H, W, 3], as NumPy writes it. @param {Uint8Array} bytes @returns {Clip} */
export function readNpy(bytes) {
  const long = bytes[6] > 1;
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const length = long ? view.getUint32(8, true) : view.getUint16(8, true);
  const start = (long ? 12 : 10) + length;
  const header = new TextDecoder("latin1").decode(bytes.subarray(long ? 12 : 10, start));
  const shape = (/'shape': \(([^)]*)\)/.exec(header)?.[1] ?? "").split(",").filter(part => part.trim()).map(Number);
  if (!/'\|u1'/.test(header) || shape.length < 3 || shape.at(-1) !== 3) throw new Error(`an array of ${header.trim()}, and no pixels`);
  const [height, width] = shape.slice(-3);
  const frames = [];
  for (let at = start; at + height * width * 3 <= bytes.length; at += height * width * 3) {
    const image = new ImageData(width, height);
    for (let pixel = 0; pixel < height * width; pixel++) {
      image.data.set(bytes.subarray(at + 3 * pixel, at + 3 * pixel + 3), 4 * pixel);
      image.data[4 * pixel + 3] = 255;
    }
    frames.push(image);
  }
  return { frames, width, height };
}

/** A picture, or a clip, of the service. @param {Shown} shown @returns {Promise<Clip>} */
export async function readPixels(shown) {
  if (shown.media_type !== "image/png") return readNpy(bytesOf(shown.content ?? ""));
  const image = new Image();
  image.src = urlOf(shown);
  await image.decode();
  const canvas = h("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  pen.drawImage(image, 0, 0);
  return { frames: [pen.getImageData(0, 0, canvas.width, canvas.height)], width: canvas.width, height: canvas.height };
}

/** @param {Clip} clip @param {string} label */
export function canvasOf(clip, label) {
  const canvas = h("canvas", { class: "pixels", width: clip.width, height: clip.height, role: "img", "aria-label": label });
  paint(canvas, clip, 0);
  return canvas;
}

/** @param {HTMLCanvasElement} canvas @param {Clip} clip @param {number} frame */
export function paint(canvas, clip, frame) {
  /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d")).putImageData(clip.frames[Math.min(frame, clip.frames.length - 1)], 0, 0);
}

/** Peak signal to noise in dB, over all frames; infinite where nothing differs. @param {Clip} one @param {Clip} other */
export function psnr(one, other) {
  let [sum, many] = [0, 0];
  one.frames.forEach((frame, at) => {
    const beside = other.frames[at];
    if (!beside) return;
    for (let pixel = 0; pixel < frame.data.length; pixel += 4)
      for (let part = 0; part < 3; part++) sum += (frame.data[pixel + part] - beside.data[pixel + part]) ** 2;
    many += (frame.data.length / 4) * 3;
  });
  return 10 * Math.log10(255 ** 2 / (sum / many));
}
