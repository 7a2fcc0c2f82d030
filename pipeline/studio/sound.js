// Sounds: WAV files read, drawn as a wave and as a spectrogram, and played.

import { colourNamed, h, icon } from "./dom.js";

/** @typedef {{samples: Float32Array, rate: number}} Sound the mean of its channels */

const WINDOW = 256;
export const FLOOR = 70; // dB below the loudest that is still drawn
const COLOURS = [[8, 10, 30], [70, 24, 110], [170, 40, 100], [240, 120, 50], [252, 246, 190]]; // from silence to the loudest

/** A WAV file of 16 bits. @param {Uint8Array} bytes @returns {Sound} */
export function readWav(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let channels = 1;
  let rate = 8000;
  for (let at = 12; at + 8 <= bytes.length; ) {
    const name = String.fromCharCode(...bytes.subarray(at, at + 4));
    const size = view.getUint32(at + 4, true);
    if (name === "fmt ") {
      channels = view.getUint16(at + 10, true);
      rate = view.getUint32(at + 12, true);
    }
    if (name === "data") {
      const many = Math.floor(Math.min(size, bytes.length - at - 8) / (2 * channels));
      const samples = new Float32Array(many);
      for (let sample = 0; sample < many; sample++)
        for (let channel = 0; channel < channels; channel++)
          samples[sample] += view.getInt16(at + 8 + 2 * (sample * channels + channel), true) / 32768 / channels;
      return { samples, rate };
    }
    at += 8 + size + (size % 2);
  }
  throw new Error("a WAV file without samples");
}

/** Power spectrum of a window of real numbers, by a transform of radix 2. @param {Float64Array} real */
function power(real) {
  const many = real.length;
  const imaginary = new Float64Array(many);
  for (let at = 1, swapped = 0; at < many; at++) {
    let bit = many >> 1;
    for (; swapped & bit; bit >>= 1) swapped ^= bit;
    swapped ^= bit;
    if (at < swapped) [real[at], real[swapped]] = [real[swapped], real[at]];
  }
  for (let length = 2; length <= many; length <<= 1) {
    const angle = (-2 * Math.PI) / length;
    for (let start = 0; start < many; start += length)
      for (let at = 0; at < length / 2; at++) {
        const [cosine, sine] = [Math.cos(angle * at), Math.sin(angle * at)];
        const [upper, lower] = [start + at, start + at + length / 2];
        const [x, y] = [real[lower] * cosine - imaginary[lower] * sine, real[lower] * sine + imaginary[lower] * cosine];
        [real[lower], imaginary[lower]] = [real[upper] - x, imaginary[upper] - y];
        [real[upper], imaginary[upper]] = [real[upper] + x, imaginary[upper] + y];
      }
  }
  return Float64Array.from({ length: many / 2 }, (_, at) => real[at] ** 2 + imaginary[at] ** 2);
}

/** Loudness in dB, [columns][WINDOW / 2]. @param {Float32Array} samples @param {number} columns */
export function spectrum(samples, columns = 160) {
  return Array.from({ length: columns }, (_, column) => {
    const middle = Math.round((column / columns) * samples.length);
    const part = Float64Array.from({ length: WINDOW }, (_, at) => {
      const heard = samples[middle + at - WINDOW / 2] ?? 0;
      return heard * (0.5 - 0.5 * Math.cos((2 * Math.PI * at) / (WINDOW - 1)));
    });
    return power(part).map(each => 10 * Math.log10(each + 1e-10));
  });
}

/** Where a height from 0 to 1 lies in a spectrum up to `rate` / 2, on the mel scale. @param {number} height @param {number} rate */
function binAt(height, rate) {
  const mel = height * 2595 * Math.log10(1 + rate / 2 / 700);
  return Math.min(WINDOW / 2 - 1, ((700 * (10 ** (mel / 2595) - 1)) / rate) * WINDOW);
}

/**
 * Time to the right, pitch upwards on the mel scale, louder is brighter.
 * @param {Float64Array[]} columns @param {number} rate @param {number} loudest dB that is drawn brightest @returns {HTMLCanvasElement}
 */
export function spectrogram(columns, rate, loudest) {
  const canvas = h("canvas", { class: "spectrogram", width: columns.length, height: WINDOW / 2 });
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = pen.createImageData(columns.length, WINDOW / 2);
  columns.forEach((column, x) => {
    for (let pitch = 0; pitch < WINDOW / 2; pitch++) {
      const bin = binAt((pitch + 0.5) / (WINDOW / 2), rate);
      const [lower, share] = [Math.floor(bin), bin % 1];
      const loud = column[lower] * (1 - share) + (column[lower + 1] ?? column[lower]) * share;
      const place = Math.min(1, Math.max(0, (loud - loudest) / FLOOR + 1)) * (COLOURS.length - 1);
      const below = Math.min(COLOURS.length - 2, Math.floor(place));
      const at = 4 * ((WINDOW / 2 - 1 - pitch) * columns.length + x);
      for (let part = 0; part < 3; part++) image.data[at + part] = COLOURS[below][part] + (place - below) * (COLOURS[below + 1][part] - COLOURS[below][part]);
      image.data[at + 3] = 255;
    }
  });
  pen.putImageData(image, 0, 0);
  return canvas;
}

/** @param {Float64Array[]} columns */
export function loudest(columns) {
  return columns.reduce((most, column) => Math.max(most, ...column), -100);
}

/** The wave, from least to greatest in every column. @param {Float32Array} samples @param {string} label */
export function wave(samples, label) {
  const [width, height] = [640, 96];
  const canvas = h("canvas", { class: "wave", width, height, role: "img", "aria-label": label });
  const draw = () => {
    const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    pen.clearRect(0, 0, width, height);
    pen.fillStyle = colourNamed("--s0");
    const peak = Math.max(0.05, samples.reduce((most, each) => Math.max(most, Math.abs(each)), 0));
    for (let x = 0; x < width; x++) {
      const part = samples.subarray(Math.floor((x / width) * samples.length), Math.max(Math.floor((x / width) * samples.length) + 1, Math.floor(((x + 1) / width) * samples.length)));
      const [low, high] = [Math.min(...part), Math.max(...part)];
      const top = height / 2 - (high / peak) * (height / 2 - 2);
      pen.fillRect(x, top, 1, Math.max(1, ((high - low) / peak) * (height / 2 - 2)));
    }
  };
  draw();
  document.addEventListener("themechange", () => canvas.isConnected && draw());
  return canvas;
}

/** A button that plays a sound, and stops it. @param {string} url @param {string} words @param {string} [label] */
export function player(url, words, label) {
  const audio = new Audio(url);
  const button = h("button", { type: "button", class: "play", "aria-label": label ?? null }, icon("play"), words);
  const draw = () => button.replaceChild(icon(audio.paused ? "play" : "stop"), /** @type {Node} */ (button.firstChild));
  button.addEventListener("click", () => {
    if (!audio.paused) return audio.pause();
    for (const other of playing) other.pause();
    audio.currentTime = 0;
    audio.play().catch(() => draw());
  });
  audio.addEventListener("play", () => (playing.add(audio), draw()));
  for (const event of ["pause", "ended"]) audio.addEventListener(event, () => (playing.delete(audio), draw()));
  return button;
}

/** @type {Set<HTMLAudioElement>} */
const playing = new Set();

/** Ends every sound: a view is left. */
export function silence() {
  for (const audio of playing) audio.pause();
}
