// Full-size label maps from low-resolution logits, without full-size logits.
//
// A cell is the square between four neighboring logits, its corners. Bilinear interpolation is a
// convex combination of the corners. So if a class has the largest logit at all four corners, it has
// it everywhere in the cell. Elsewhere, only classes can win whose largest corner reaches the
// smallest corner of every class; only those are interpolated.

// The class of each pixel of logits that are bilinearly resized to height x width (pixel centers are
// aligned). logits: Float32Array of (classes, rows, columns). One class is a binary model: 1 where
// its logit is above 0. Returns (height, width) class ids, of 16 bits above 256 classes.
export function labelMap(logits, [classes, rows, columns], height, width) {
  const tokens = classesLast(logits, classes, rows * columns);
  const depth = Math.max(classes, 2);
  const winner = winners(tokens, depth);
  const ids = new (depth > 256 ? Uint16Array : Uint8Array)(height * width);
  const vertical = cellsAlong(rows, height);
  const horizontal = cellsAlong(columns, width);
  const cell = new MixedCell(tokens, depth, width, ids);
  for (let row = 0; row <= rows; row++) {
    const [top, bottom] = [vertical.start[row], vertical.start[row + 1]];
    if (top === bottom) continue;
    const above = Math.max(row - 1, 0) * columns;
    const below = Math.min(row, rows - 1) * columns;
    for (let column = 0; column <= columns; column++) {
      const [left, right] = [horizontal.start[column], horizontal.start[column + 1]];
      if (left === right) continue;
      const before = Math.max(column - 1, 0);
      const after = Math.min(column, columns - 1);
      const corners = [above + before, above + after, below + before, below + after];
      const id = winner[corners[0]];
      if (corners.every((corner) => winner[corner] === id)) {
        for (let y = top; y < bottom; y++) ids.fill(id, y * width + left, y * width + right);
      } else {
        cell.label(corners, vertical.weight, top, bottom, horizontal.weight, left, right);
      }
    }
  }
  return ids;
}

// Number of pixels of each class.
export function countClasses(ids, classes) {
  const counts = new Array(classes).fill(0);
  for (let i = 0; i < ids.length; i++) counts[ids[i]]++;
  return counts;
}

// (classes, n) -> (n, classes); the single logit of a binary model becomes (0, logit).
function classesLast(logits, classes, count) {
  const binary = classes === 1;
  const depth = binary ? 2 : classes;
  const tokens = new Float32Array(count * depth);
  for (let id = 0; id < classes; id++) {
    const place = binary ? 1 : id;
    for (let i = 0; i < count; i++) tokens[i * depth + place] = logits[id * count + i];
  }
  return tokens;
}

function winners(tokens, classes) {
  const winner = new Uint16Array(tokens.length / classes);
  for (let i = 0; i < winner.length; i++) {
    const start = i * classes;
    let best = 0;
    for (let id = 1; id < classes; id++) if (tokens[start + id] > tokens[start + best]) best = id;
    winner[i] = best;
  }
  return winner;
}

// The low + 1 cells along one side; both corners of an outermost cell are the border. Cell i has the
// pixels from start[i] to start[i + 1]; weight[pixel] is that of the cell's second corner.
function cellsAlong(low, high) {
  const start = new Int32Array(low + 2);
  const weight = new Float64Array(high);
  for (let pixel = 0; pixel < high; pixel++) {
    const position = (pixel + 0.5) * (low / high) + 0.5;
    const cell = Math.floor(position);
    weight[pixel] = position - cell;
    start[cell + 1]++;
  }
  for (let cell = 0; cell <= low; cell++) start[cell + 1] += start[cell];
  return { start, weight };
}

// Labels cells whose corners have different classes.
class MixedCell {
  constructor(tokens, classes, width, ids) {
    Object.assign(this, { tokens, classes, width, ids });
    this.candidates = new Int32Array(classes);
    this.values = new Float64Array(4 * classes);
    this.best = new Float64Array(width);
  }

  label(corners, down, top, bottom, across, left, right) {
    const count = this.findCandidates(corners);
    const { candidates, values, best, ids, width } = this;
    for (let y = top; y < bottom; y++) {
      const line = y * width;
      for (let i = 0; i < count; i++) {
        const from = values[4 * i] + (values[4 * i + 2] - values[4 * i]) * down[y];
        const to = values[4 * i + 1] + (values[4 * i + 3] - values[4 * i + 1]) * down[y];
        for (let x = left; x < right; x++) {
          const value = from + (to - from) * across[x];
          if (i === 0 || value > best[x]) {
            best[x] = value;
            ids[line + x] = candidates[i];
          }
        }
      }
    }
  }

  // Number of classes that can win; their ids and their logits at the corners are kept.
  findCandidates(corners) {
    const { tokens, classes, candidates, values } = this;
    const [a, b, c, d] = corners.map((corner) => corner * classes);
    let reached = -Infinity; // some class has at least this logit everywhere in the cell
    for (let id = 0; id < classes; id++) {
      const smallest = Math.min(tokens[a + id], tokens[b + id], tokens[c + id], tokens[d + id]);
      if (smallest > reached) reached = smallest;
    }
    let count = 0;
    for (let id = 0; id < classes; id++) {
      const four = [tokens[a + id], tokens[b + id], tokens[c + id], tokens[d + id]];
      if (Math.max(...four) < reached) continue;
      values.set(four, 4 * count);
      candidates[count++] = id;
    }
    return count;
  }
}
