'use strict';
(() => {
const data = JSON.parse(document.getElementById('data').textContent);
const $ = (id) => document.getElementById(id);
const SVG = $('seed').namespaceURI;
const classes = data.classes;
const side = data.side; // cells of the attention's grid
const MARGIN = 46; // left of all that runs along the time of a clip
const percent = (v, digits = 1) =>
  v === null ? '–' : (100 * v).toFixed(digits) + '\u00a0%';

// Elements are made of text nodes only: no name is ever read as HTML.
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((c) => c !== null));
  return node;
}
const el = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);
const colour = (n) => `var(--line-${n % 6})`;

function swatch(background) {
  const box = el('span', {class: 'swatch', 'aria-hidden': 'true'});
  box.style.background = background;
  return box;
}

function short(value) {
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1);
  return String(Number(value.toPrecision(size >= 1000 ? 4 : 3)));
}

// --- theme ----------------------------------------------------------------

const THEMES = ['automatic', 'light', 'dark'];

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $('theme').textContent = `Theme: ${theme}`;
  try {
    localStorage.setItem('hman-report-theme', theme);
  } catch {
    // A browser may keep nothing for a page on disk: then it is not kept.
  }
}

function firstTheme() {
  try {
    const kept = localStorage.getItem('hman-report-theme');
    return THEMES.includes(kept) ? kept : 'automatic';
  } catch {
    return 'automatic';
  }
}

$('theme').addEventListener('click', () => {
  const at = THEMES.indexOf(document.documentElement.dataset.theme);
  setTheme(THEMES[(at + 1) % THEMES.length]);
});

// --- summary --------------------------------------------------------------

function drawSummary() {
  $('subtitle').textContent =
    `${data.num_clips} test clips, ${classes.length} classes; the model of ` +
    `step ${data.step}, the best on validation`;
  for (const [name, value, guesses] of data.scores) {
    const chance =
      guesses === null
        ? null
        : `chance ${percent(Math.min(guesses / classes.length, 1))}`;
    $('tiles').append(
      el(
        'div', {},
        el('dt', {}, name),
        el('dd', {}, percent(value), chance && el('small', {}, chance)),
      ),
    );
  }
  $('config').tBodies[0].append(
    ...data.config.map(([name, value]) =>
      el('tr', {}, el('th', {scope: 'row'}, name), el('td', {}, value)),
    ),
  );
}

// --- training curves ------------------------------------------------------

function ticks(low, high, count) {
  const raw = (high - low) / count;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * [1, 2, 5, 10].find((m) => m * unit >= 0.75 * raw);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k <= high / step + 1e-9; k++)
    found.push(k * step);
  return found;
}

// Positions of round numbers on a logarithmic axis: 3 or more if there are any.
function logTicks(low, high) {
  let found = [];
  for (const digits of [[1], [1, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]]) {
    found = [];
    for (let k = Math.floor(low); k <= Math.ceil(high); k++)
      found.push(...digits.map((m) => k + Math.log10(m)));
    found = found.filter((v) => v >= low - 1e-9 && v <= high + 1e-9);
    if (found.length >= 3) break;
  }
  return found.length >= 2 ? found : [low, high];
}

class Chart {
  constructor(chart) {
    this.chart = chart;
    this.scale = chart.unit === '%' ? 100 : 1;
    this.values = chart.series.map((s) => el('b'));
    this.plot = el('div');
    const legend = chart.series.map((s, i) => {
      const line = svg('line', {
        x1: 0, x2: 20, y1: 5, y2: 5, stroke: colour(s.colour),
        class: s.dashed ? 'line dashed' : 'line',
      });
      const mark = svg(
        'svg', {width: 20, height: 10, 'aria-hidden': 'true'}, line,
      );
      return el('span', {}, mark, `${s.name} `, this.values[i]);
    });
    const unit = chart.unit ? ` (${chart.unit})` : '';
    this.node = el(
      'figure', {},
      el('figcaption', {}, chart.title + unit),
      this.plot,
      el('div', {class: 'legend'}, ...legend),
    );
    this.plot.addEventListener('pointermove', (e) => this.point(e));
    this.plot.addEventListener('pointerleave', () => this.show(null));
  }

  draw() {
    const {series, log} = this.chart;
    const width = Math.max(this.plot.clientWidth, 200);
    const height = 190;
    const of = (y) => (log ? Math.log10(y) : y * this.scale);
    const ys = series.flatMap((s) => s.y.map(of));
    const xs = series.flatMap((s) => s.x);
    let low = Math.min(...ys);
    let high = Math.max(...ys);
    if (!log && low >= 0 && low < 0.5 * high) low = 0;
    if (this.scale === 100 && high > 90) high = 100;
    if (high - low < 1e-9) [low, high] = [low - 0.5, high + 0.5];
    const first = Math.min(...xs);
    const last = Math.max(Math.max(...xs), first + 1);
    const [left, right, top, bottom] = [MARGIN, width - 10, 8, height - 34];
    this.x = (v) => left + ((v - first) / (last - first)) * (right - left);
    const y = (v) => bottom - ((v - low) / (high - low)) * (bottom - top);
    const grid = (log ? logTicks(low, high) : ticks(low, high, 4)).flatMap(
      (v) => [
        svg('line', {x1: left, x2: right, y1: y(v), y2: y(v), class: 'axis'}),
        svg(
          'text', {x: left - 6, y: y(v) + 4, 'text-anchor': 'end'},
          short(log ? 10 ** v : v),
        ),
      ],
    );
    const below = ticks(first, last, width < 330 ? 3 : 5).map((v) =>
      svg(
        'text', {x: this.x(v), y: bottom + 16, 'text-anchor': 'middle'},
        short(v),
      ),
    );
    const lines = series.map((s) => {
      const points = s.x.map(
        (v, i) => `${this.x(v).toFixed(1)},${y(of(s.y[i])).toFixed(1)}`,
      );
      if (points.length === 1) {
        const [cx, cy] = points[0].split(',');
        const style = {fill: colour(s.colour), class: 'dot'};
        return svg('circle', {cx, cy, r: 3, ...style});
      }
      return svg('polyline', {
        points: points.join(' '), stroke: colour(s.colour),
        class: s.dashed ? 'line dashed' : 'line',
      });
    });
    this.cursor = svg('line', {
      y1: top, y2: bottom, class: 'cursor', visibility: 'hidden',
    });
    this.plot.replaceChildren(
      svg(
        'svg',
        {width, height, role: 'img', 'aria-label': this.describe()},
        ...grid,
        ...below,
        svg(
          'text',
          {x: (left + right) / 2, y: height - 3, 'text-anchor': 'middle'},
          'step',
        ),
        ...lines,
        this.cursor,
      ),
    );
    this.show(null);
  }

  describe() {
    const said = this.chart.series.map((s) => {
      const [a, b] = [s.y[0], s.y.at(-1)].map((v) => this.say(v));
      const until = `${b} at step ${s.x.at(-1)}`;
      return `${s.name}: from ${a} at step ${s.x[0]} to ${until}`;
    });
    return `${this.chart.title} against the step. ${said.join('; ')}.`;
  }

  say(value) {
    return short(value * this.scale) + (this.scale === 100 ? '\u00a0%' : '');
  }

  point(event) {
    const box = this.plot.getBoundingClientRect();
    this.show(event.clientX - box.left);
  }

  // The values beside the pointer; those at the end without one.
  show(at) {
    this.chart.series.forEach((s, i) => {
      let k = s.x.length - 1;
      if (at !== null) {
        const far = s.x.map((v) => Math.abs(this.x(v) - at));
        k = far.indexOf(Math.min(...far));
      }
      this.values[i].textContent = this.say(s.y[k]);
    });
    if (!this.cursor) return;
    this.cursor.setAttribute('visibility', at === null ? 'hidden' : 'visible');
    this.cursor.setAttribute('x1', at ?? 0);
    this.cursor.setAttribute('x2', at ?? 0);
  }
}

const charts = data.charts.map((chart) => new Chart(chart));

// --- confusion matrix and classes -----------------------------------------

function drawMatrix() {
  const shown = new Set(data.clips.map((c) => `${c.label},${c.predicted}`));
  const head = el(
    'tr', {},
    el('td', {'aria-hidden': 'true'}),
    ...classes.map((c) => el('th', {scope: 'col'}, el('span', {}, c))),
  );
  const rows = data.confusion.map((row, i) => {
    const total = Math.max(row.reduce((a, b) => a + b, 0), 1);
    const cells = row.map((count, j) => {
      const cell = el('td');
      cell.style.setProperty('--share', (count / total).toFixed(3));
      if (!count) return cell;
      const label = `${count} of ${total} clips of ${classes[i]} recognised ` +
        `as ${classes[j]}`;
      cell.title = label;
      const seen = shown.has(`${i},${j}`);
      cell.append(
        seen
          ? el(
            'button',
            {
              type: 'button', 'aria-label': `${label}: show clips`,
              onclick: () => showPair(i, j),
            },
            String(count),
          )
          : String(count),
      );
      return cell;
    });
    return el('tr', {}, el('th', {scope: 'row'}, classes[i]), ...cells);
  });
  $('matrix').append(el('thead', {}, head), el('tbody', {}, ...rows));
}

function showPair(label, predicted) {
  $('by-result').value = 'all';
  $('by-true').value = String(label);
  $('by-predicted').value = String(predicted);
  filter();
  $('clips').scrollIntoView();
}

const perClass = classes.map((name, i) => {
  const p = data.per_class[i];
  const others = data.confusion[i].map((n, j) => (j === i ? 0 : n));
  const most = Math.max(...others);
  return [
    name, p.clips, p.right, p.accuracy, p.precision, p.average_precision,
    most ? `${classes[others.indexOf(most)]} (${most})` : '',
  ];
});
const COLUMNS = [
  ['Class', String], ['Clips', String], ['Right', String],
  ['Accuracy', percent], ['Precision', percent], ['Average precision', percent],
  ['Most often taken for', String],
];
const isNumber = (column) => column > 0 && column < 6;
let sorted = [0, 0]; // column, direction: 0 is the order of the classes

function drawClasses() {
  const [column, direction] = sorted;
  const rows = [...perClass];
  if (direction)
    rows.sort((a, b) => {
      const [u, v] = [a[column], b[column]];
      if (u === null || v === null) return (u === null) - (v === null);
      const order = isNumber(column) ? u - v : u.localeCompare(v);
      return direction * order;
    });
  const line = (row) =>
    row.map((v, c) =>
      el(
        c ? 'td' : 'th',
        c ? {class: isNumber(c) ? 'number' : null} : {scope: 'row'},
        COLUMNS[c][1](v),
      ),
    );
  const table = $('per-class');
  table.tBodies[0].replaceChildren(
    ...rows.map((row) => el('tr', {}, ...line(row))),
  );
  for (const [c, th] of [...table.tHead.rows[0].cells].entries())
    th.setAttribute(
      'aria-sort',
      c !== column || !direction
        ? 'none'
        : direction > 0 ? 'ascending' : 'descending',
    );
}

function drawClassHead() {
  const heads = COLUMNS.map(([name], c) => {
    const press = () => {
      // Numbers are first shown from the largest, names from the first.
      const start = isNumber(c) ? -1 : 1;
      sorted = [c, sorted[0] === c && sorted[1] ? -sorted[1] : start];
      drawClasses();
    };
    const button = el('button', {type: 'button', onclick: press}, name);
    const number = isNumber(c) ? 'number' : null;
    return el('th', {scope: 'col', class: number}, button);
  });
  $('per-class').tHead.append(el('tr', {}, ...heads));
}

// --- clips: which ---------------------------------------------------------

const state = {clip: null, t: 0, image: null, heat: null, timer: null};
let visible = [];

function fillFilters() {
  const fields = {'by-true': 'label', 'by-predicted': 'predicted'};
  for (const [id, field] of Object.entries(fields)) {
    const there = new Set(data.clips.map((c) => c[field]));
    $(id).append(
      el('option', {value: ''}, 'any'),
      ...classes.flatMap((name, i) =>
        there.has(i) ? [el('option', {value: i}, name)] : [],
      ),
    );
  }
  for (const id of ['by-result', 'by-true', 'by-predicted'])
    $(id).addEventListener('change', filter);
}

function filter() {
  const result = $('by-result').value;
  const wanted = [$('by-true').value, $('by-predicted').value];
  visible = data.clips.filter((clip) => {
    const right = clip.label === clip.predicted;
    return (
      (result === 'all' || (result === 'right') === right) &&
      (wanted[0] === '' || clip.label === Number(wanted[0])) &&
      (wanted[1] === '' || clip.predicted === Number(wanted[1]))
    );
  });
  const wrong = visible.filter((c) => c.label !== c.predicted).length;
  $('count').textContent = visible.length
    ? `${visible.length} clips, ${wrong} mistaken; this page has ` +
      `${data.clips.length} of the ${data.num_clips} test clips`
    : 'No clip is like that: choose otherwise.';
  $('list').replaceChildren(...visible.map(listed));
  if (!visible.includes(state.clip) && visible.length) select(visible[0]);
  markCurrent();
}

function listed(clip) {
  const right = clip.label === clip.predicted;
  const mark = el(
    'span', {class: right ? 'right' : 'wrong'},
    el('span', {'aria-hidden': 'true'}, right ? '✓' : '✗'),
    el('span', {class: 'hidden'}, right ? 'recognised: ' : 'mistaken: '),
  );
  const below = right
    ? classes[clip.label]
    : `${classes[clip.label]} → ${classes[clip.predicted]}`;
  const text = el('span', {}, clip.name, el('small', {}, below));
  const button = el(
    'button', {type: 'button', onclick: () => select(clip)}, mark, text,
  );
  return el('li', {}, button);
}

function markCurrent() {
  const at = visible.indexOf(state.clip);
  for (const [i, item] of [...$('list').children].entries()) {
    if (i !== at) {
      item.firstChild.removeAttribute('aria-current');
      continue;
    }
    item.firstChild.setAttribute('aria-current', 'true');
    // By hand: scrollIntoView would move the page as well.
    const list = $('list');
    const [low, high] = [item.offsetTop, item.offsetTop + item.offsetHeight];
    if (low < list.scrollTop) list.scrollTop = low;
    if (high > list.scrollTop + list.clientHeight)
      list.scrollTop = high - list.clientHeight;
  }
}

function step(by) {
  if (!visible.length) return;
  const at = visible.indexOf(state.clip) + by;
  select(visible[(at + visible.length) % visible.length]);
}

// --- clips: one -----------------------------------------------------------

function select(clip) {
  pause();
  Object.assign(state, {clip, t: 0, image: null, heat: null});
  const [is, was] = [classes[clip.predicted], classes[clip.label]];
  const right = clip.label === clip.predicted;
  $('clip-name').textContent = clip.name;
  const score = clip.likely.find((l) => l.class === clip.predicted).score;
  const verdict = el(
    'span', {class: right ? 'right' : 'wrong'},
    right ? '✓ recognised' : '✗ mistaken',
  );
  $('verdict').replaceChildren(
    verdict, ` as ${is} (${percent(score)})`,
    right ? '' : `; it is ${was}`,
  );
  if (clip.heat)
    state.heat = Uint8Array.from(atob(clip.heat), (c) => c.charCodeAt(0));
  if (clip.sprite) {
    const image = new Image();
    image.addEventListener('load', () => {
      if (state.clip !== clip) return; // another clip by now
      state.image = image;
      drawFrame();
    });
    image.src = clip.sprite.uri;
  }
  $('scrubber').max = clip.steps - 1;
  drawKey();
  drawTimeline();
  drawLikely();
  seek(0);
  markCurrent();
}

function seek(t) {
  state.t = Math.min(Math.max(t, 0), state.clip.steps - 1);
  $('scrubber').value = state.t;
  const said = sayFrame();
  $('scrubber').setAttribute('aria-valuetext', said.join('. '));
  $('frame').setAttribute('aria-label', said.join('. '));
  $('now').replaceChildren(
    el('b', {}, said[0]),
    ...said.slice(1).flatMap((line) => [el('br'), line]),
  );
  drawFrame();
  moveCursor();
  state.clip.likely.forEach((l, i) => {
    const cell = $('likely').tBodies[0].rows[i].cells[2];
    cell.textContent = percent(l.steps[state.t] / 1000);
  });
}

const place = (cell) =>
  `row ${Math.floor(cell / side) + 1}, column ${(cell % side) + 1}`;

function sayFrame() {
  const {clip, t} = state;
  const last = (clip.steps - 1) * clip.stride;
  const said = [`Frame ${t * clip.stride} of ${last}`];
  if (clip.operation)
    said.push(
      clip.operation
        .map((row, l) => `layer ${l + 1} ${data.operations[row[t]]}`)
        .join(', '),
    );
  if (clip.pick) {
    const share = clip.heaviest && percent(clip.heaviest[t], 0);
    const spread = share ? ` most (${share})` : '';
    let looks = `Looks${spread} at ${place(clip.pick[t])}`;
    if (clip.target && clip.target[t] >= 0)
      looks += clip.target[t] === clip.pick[t]
        ? ', on the actor'
        : `; the actor is at ${place(clip.target[t])}`;
    said.push(looks);
  }
  return said;
}

function drawFrame() {
  const {clip, t, image, heat} = state;
  const canvas = $('frame');
  const sprite = clip.sprite ?? {width: 56, height: 56, columns: 1, every: 1};
  const scale = Math.max(Math.round(480 / sprite.width), 1);
  const [width, height] = [sprite.width * scale, sprite.height * scale];
  if (canvas.width !== width || canvas.height !== height)
    [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext('2d');
  canvas.classList.toggle('crisp', sprite.width < 100);
  context.imageSmoothingEnabled = sprite.width >= 100;
  context.fillStyle = '#555';
  context.fillRect(0, 0, width, height);
  if (image) {
    const n = Math.floor(t / sprite.every);
    const x = (n % sprite.columns) * sprite.width;
    const y = Math.floor(n / sprite.columns) * sprite.height;
    const {width: w, height: h} = sprite;
    context.drawImage(image, x, y, w, h, 0, 0, width, height);
  }
  const [w, h] = [width / side, height / side];
  if (!clip.sprite) {
    context.strokeStyle = '#888';
    context.lineWidth = 1;
    for (let k = 0; k < side * side; k++)
      context.strokeRect((k % side) * w, Math.floor(k / side) * h, w, h);
  }
  const look = getComputedStyle(document.documentElement);
  const box = (cell, name, inset, thick) => {
    const [x, y] = [(cell % side) * w, Math.floor(cell / side) * h];
    const colours = ['#000', look.getPropertyValue(name)];
    colours.forEach((line, i) => {
      context.strokeStyle = line;
      context.lineWidth = i ? thick : thick + 3; // seen on any picture
      context.strokeRect(x + inset, y + inset, w - 2 * inset, h - 2 * inset);
    });
  };
  if (clip.target && clip.target[t] >= 0) box(clip.target[t], '--actor', 0, 5);
  if (!clip.pick || !$('overlay').checked) return;
  if (heat) {
    context.fillStyle = look.getPropertyValue('--attended');
    for (let k = 0; k < side * side; k++) {
      context.globalAlpha = (0.7 * heat[t * side * side + k]) / 255;
      context.fillRect((k % side) * w, Math.floor(k / side) * h, w, h);
    }
    context.globalAlpha = 1;
  }
  box(clip.pick[t], '--attended', 7, 3);
}

function drawKey() {
  const {clip} = state;
  const key = [];
  const add = (name, text) =>
    key.push(el('li', {}, swatch(`var(--${name})`), text));
  if (clip.pick)
    add('attended', clip.heat ? 'attention, the most in the box' : 'attention');
  if (clip.target) add('actor', 'the actor; true boundaries');
  if (clip.operation)
    for (const name of data.operations) add(name.toLowerCase(), name);
  if (clip.z) add('ink', 'tick: a boundary found');
  $('key').replaceChildren(...key);
  $('overlay-label').hidden = !clip.pick;
}

function drawLikely() {
  const rows = state.clip.likely.map((l, i) => {
    const line = swatch(colour(i));
    const isTrue = l.class === state.clip.label ? ' (true)' : '';
    return el(
      'tr', {},
      el('th', {scope: 'row'}, line, classes[l.class] + isTrue),
      el('td', {class: 'number'}, percent(l.score)),
      el('td', {class: 'number'}),
    );
  });
  $('likely').tBodies[0].replaceChildren(...rows);
}

// --- clips: time ----------------------------------------------------------

const CURVES = 110; // heights
const BAND = 22;
const GAP = 8;
const SHARE = [0.3, 0.65, 1]; // of a band: COPY, UPDATE, FLUSH

function drawTimeline() {
  const {clip} = state;
  const width = Math.max($('timeline').clientWidth, 200);
  const cell = (width - MARGIN - 2) / clip.steps;
  const x = (t) => MARGIN + t * cell;
  const parts = [];
  const label = (y, text) =>
    parts.push(svg('text', {x: MARGIN - 6, y, 'text-anchor': 'end'}, text));
  for (const v of [0, 0.5, 1]) {
    const y = 6 + (1 - v) * CURVES;
    const end = x(clip.steps);
    parts.push(svg('line', {x1: MARGIN, x2: end, y1: y, y2: y, class: 'axis'}));
    label(y + 4, `${100 * v} %`);
  }
  let y = CURVES + 6 + GAP;
  const layers = clip.operation ?? [];
  const top = y;
  // Layer 1 is the lowest, next to the truth.
  layers.forEach((row, l) => {
    y = top + (layers.length - 1 - l) * (BAND + GAP);
    label(y + 15, `z${l + 1}`);
    for (let t = 0, end; t < clip.steps; t = end) {
      for (end = t + 1; end < clip.steps && row[end] === row[t]; end++);
      const height = SHARE[row[t]] * BAND;
      parts.push(
        svg('rect', {
          x: x(t), width: Math.max((end - t) * cell - 0.5, 0.5),
          y: y + BAND - height, height, class: data.operations[row[t]],
        }),
      );
    }
    for (let t = 0; t < clip.steps; t++)
      if (clip.z[l][t] === '1') {
        const at = x(t + 1); // z closes a segment: its end
        parts.push(
          svg('line', {x1: at, x2: at, y1: y - 3, y2: y + 5, class: 'found'}),
        );
      }
  });
  y = top + layers.length * (BAND + GAP);
  if (clip.boundaries) {
    label(y + 15, 'truth');
    const edges = [0, ...clip.boundaries, clip.steps];
    for (let k = 0; k + 1 < edges.length; k++) {
      const [a, b] = [x(edges[k]), x(edges[k + 1])];
      const odd = k % 2 ? 'part odd' : 'part';
      const box = {x: a, width: b - a, y, height: BAND};
      parts.push(svg('rect', {...box, class: odd}));
      if (clip.parts?.length === edges.length - 1)
        parts.push(
          svg(
            'text',
            {
              x: (a + b) / 2, y: y + 15, 'text-anchor': 'middle',
              class: 'part-name',
            },
            clip.parts[k],
          ),
        );
    }
    for (const t of clip.boundaries)
      parts.push(
        svg('line', {
          x1: x(t), x2: x(t), y1: top - 3, y2: y + BAND, class: 'boundary',
        }),
      );
    y += BAND + GAP;
  }
  for (const t of clip.starts.slice(1))
    parts.push(
      svg('line', {x1: x(t), x2: x(t), y1: 6, y2: y - GAP, class: 'restart'},
        svg('title', {}, 'the network starts again')),
    );
  clip.likely.forEach((l, i) => {
    const isTrue = l.class === clip.label;
    const points = l.steps.map((p, t) => {
      const height = 6 + CURVES * (1 - p / 1000);
      return `${x(t + 0.5).toFixed(1)},${height.toFixed(1)}`;
    });
    if (points.length === 1) {
      const [cx, cy] = points[0].split(',');
      parts.push(svg('circle', {cx, cy, r: isTrue ? 5 : 3, fill: colour(i)}));
      return;
    }
    const line = {stroke: colour(i), class: isTrue ? 'line true' : 'line'};
    parts.push(svg('polyline', {points: points.join(' '), ...line}));
  });
  const every = Math.max(Math.ceil(60 / cell / 5) * 5, 1);
  for (let v = 0; v < clip.steps; v += every)
    parts.push(
      svg('text', {x: x(v + 0.5), y: y + 6, 'text-anchor': 'middle'},
        String(v * clip.stride)),
    );
  const ends = {y1: 2, y2: y - GAP + 2};
  const cursor = svg('line', {...ends, class: 'cursor', id: 'cursor'});
  const node = svg(
    'svg',
    {width, height: y + 12, role: 'img', 'aria-label': sayTimeline()},
    ...parts, cursor,
  );
  const go = (event) => {
    const at = event.clientX - node.getBoundingClientRect().left;
    seek(Math.floor((at - MARGIN) / cell));
  };
  node.addEventListener('pointerdown', (event) => {
    pause();
    go(event);
    node.setPointerCapture(event.pointerId);
  });
  node.addEventListener('pointermove', (event) => {
    if (event.buttons) go(event);
  });
  $('timeline').replaceChildren(node);
  // The thumb of the scrubber stands over the cursor.
  const thumb = 16;
  $('scrubber').style.marginLeft = `${x(0.5) - thumb / 2}px`;
  $('scrubber').style.width = `${(clip.steps - 1) * cell + thumb}px`;
  state.x = x;
}

function moveCursor() {
  for (const end of ['x1', 'x2'])
    $('cursor').setAttribute(end, state.x(state.t + 0.5));
}

function sayTimeline() {
  const {clip} = state;
  const said = [`Class probabilities over ${clip.steps} frames`];
  (clip.operation ?? []).forEach((row, l) => {
    const counts = data.operations.map(
      (name, k) => `${[...row].filter((c) => Number(c) === k).length} ${name}`,
    );
    const found = [...clip.z[l]].flatMap((c, t) =>
      c === '1' ? [t * clip.stride] : [],
    );
    const where = found.length ? `at frames ${found.join(', ')}` : 'nowhere';
    said.push(`layer ${l + 1}: ${counts.join(', ')}; boundaries ${where}`);
  });
  if (clip.boundaries) {
    const at = clip.boundaries.map((t) => t * clip.stride);
    said.push(`true boundaries at frames ${at.join(', ')}`);
  }
  return `${said.join('. ')}.`;
}

// --- playing and keys -----------------------------------------------------

function pause() {
  clearInterval(state.timer);
  state.timer = null;
  $('play').textContent = 'Play';
}

function play() {
  if (state.timer) return pause();
  if (state.t === state.clip.steps - 1) seek(0);
  $('play').textContent = 'Pause';
  state.timer = setInterval(() => {
    seek(state.t + 1);
    if (state.t === state.clip.steps - 1) pause();
  }, 125);
}

function jump(t) {
  pause();
  seek(t);
}

const KEYS = {
  ArrowLeft: () => jump(state.t - 1),
  ArrowRight: () => jump(state.t + 1),
  Home: () => jump(0),
  End: () => jump(state.clip.steps - 1),
  j: () => step(1),
  k: () => step(-1),
  ' ': play,
};

document.addEventListener('keydown', (event) => {
  const {key, target} = event;
  if (event.ctrlKey || event.metaKey || event.altKey || !(key in KEYS)) return;
  if (target.closest('select')) return;
  const own = target.closest('button, summary, a, input[type=checkbox]');
  if (key === ' ' && own) return;
  // Outside the viewer these scroll.
  const outside = target !== document.body && !target.closest('#clips');
  if (outside && !['j', 'k', ' '].includes(key)) return;
  event.preventDefault();
  KEYS[key]();
});
$('scrubber').addEventListener('input', (event) =>
  jump(Number(event.target.value)),
);
$('overlay').addEventListener('change', drawFrame);
$('play').addEventListener('click', play);
$('back').addEventListener('click', KEYS.ArrowLeft);
$('forward').addEventListener('click', KEYS.ArrowRight);
$('previous').addEventListener('click', KEYS.k);
$('next').addEventListener('click', KEYS.j);

// --- start ----------------------------------------------------------------

setTheme(firstTheme());
drawSummary();
fillFilters();
drawMatrix();
drawClassHead();
drawClasses();
$('charts').append(...charts.map((chart) => chart.node));
charts.forEach((chart) => chart.draw());
if (!charts.length) $('charts').append('The run has recorded nothing yet.');
filter();
let drawnAt = window.innerWidth;
window.addEventListener('resize', () => {
  if (window.innerWidth === drawnAt) return; // a phone's address bar
  drawnAt = window.innerWidth;
  charts.forEach((chart) => chart.draw());
  drawTimeline();
  moveCursor();
});
})();
