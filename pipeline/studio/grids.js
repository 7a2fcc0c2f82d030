// The codes of a value, flat as they come, as grids to lie over what they stand for.

/** @typedef {import("./api.js").Tokenizer} Tokenizer */
/** @typedef {{codes: number[], rows: number, columns: number}} Grid */

/**
 * Frames and levels of a value's codes, and the grid of each. Of a sound, time goes to the right: a codec's levels lie below each other,
 * other codes by their pitch, the lowest at the bottom.
 * @param {Tokenizer} info @param {number[]} codes
 * @returns {{frames: number, levels: number, levelled: boolean, grid: (frame: number, level: number) => Grid}}
 */
export function grids(info, codes) {
  const { levels } = info;
  const shape = [...(info.shape ?? [codes.length])];
  if (levels > 1) shape.pop();
  if (info.kind === "audio" && shape.length === 1) {
    const [steps] = shape;
    const grid = () => turned(codes.map((code, at) => code + (at % levels) * info.codebook_size), steps, levels, false);
    return { frames: 1, levels: 1, levelled: levels > 1, grid };
  }
  const [rows, columns] = shape.slice(-2);
  const frames = shape.length > 2 ? shape[0] : 1;
  const one = (/** @type {number} */ frame, /** @type {number} */ level) =>
    Array.from({ length: rows * columns }, (_, at) => codes[(frame * rows * columns + at) * levels + level] + level * info.codebook_size);
  const grid = (/** @type {number} */ frame, /** @type {number} */ level) =>
    info.kind === "audio" ? turned(one(0, level), rows, columns, true) : { codes: one(frame, level), rows, columns };
  return { frames, levels, levelled: levels > 1, grid };
}

/** [time][height] with time to the right. @param {number[]} codes @param {number} steps @param {number} high @param {boolean} upwards @returns {Grid} */
function turned(codes, steps, high, upwards) {
  const at = (/** @type {number} */ row, /** @type {number} */ column) => codes[column * high + (upwards ? high - 1 - row : row)];
  return { codes: Array.from({ length: steps * high }, (_, cell) => at(Math.floor(cell / steps), cell % steps)), rows: high, columns: steps };
}
