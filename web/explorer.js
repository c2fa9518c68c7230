"use strict";
// Explorers without Python. <figure class="explorer" data-pack="…"> holds a form, a still picture and a caption. Its pack,
// made by the code that a notebook runs, has every state of the controls: what to draw (record.py says how) and to say.
{
const QUARTERS = 4, FINE = 16, TILE = 100; // steps a pixel, of places and of markers; a hatch's tile, pixels

function path([closed, d], unit) {
  const made = new Path2D(), n = d.length / 2;
  for (let i = 0, x = 0, y = 0; i < n; i++) {
    made[i ? "lineTo" : "moveTo"]((x += d[i]) / unit, (y += d[n + i]) / unit);
  }
  if (closed) made.closePath();
  return made;
}

function hatched(c, shape, hatch) { // with tiles as matplotlib's, drawn once for each size of the picture
  const [colour, width, lines] = hatch, size = Math.ceil(TILE * c.getTransform().a);
  if (hatch.size !== size) {
    const tile = Object.assign(document.createElement("canvas"), {width: size, height: size}), t = tile.getContext("2d");
    t.scale(size / TILE, size / TILE);
    Object.assign(t, {strokeStyle: colour, fillStyle: colour, lineWidth: width});
    for (const part of lines.map(line => path(line, QUARTERS))) { t.fill(part); t.stroke(part); }
    Object.assign(hatch, {size, pattern: c.createPattern(tile, "repeat")});
    hatch.pattern.setTransform(new DOMMatrix().scale(TILE / size));
  }
  Object.assign(c, {fillStyle: hatch.pattern}).fill(shape);
}

const draw = {
  t(c, pack, [, font, colour, align, angle, x, y, words]) {
    Object.assign(c, {font: pack.fonts[font], fillStyle: colour, textAlign: align});
    c.translate(x / QUARTERS, y / QUARTERS);
    c.rotate(-angle * Math.PI / 180);
    c.fillText(words, 0, 0);
  },
  c(c, pack, [, xs, ys, colours]) {
    for (let j = 0, n = 0; j < ys.length - 1; j++) for (let i = 0; i < xs.length - 1; i++) {
      c.fillStyle = colours[n++];
      c.fillRect(xs[i] / QUARTERS, ys[j] / QUARTERS, (xs[i + 1] - xs[i]) / QUARTERS, (ys[j + 1] - ys[j]) / QUARTERS);
    }
  },
  p(c, pack, op) {
    const ink = style(c, pack, op[1]);
    op.paths ??= op[2].map(part => path(part, QUARTERS));
    op.paths.forEach(ink);
  },
  m(c, pack, [, number, marker, d]) {
    const ink = style(c, pack, number), n = d.length / 2;
    for (let i = 0; i < n; i++) {
      c.translate(d[i] / QUARTERS, d[n + i] / QUARTERS); // each from the one before
      pack.shapes[marker].forEach(ink);
    }
  },
};

function style(c, pack, number) { // returns how a shape is inked
  const [stroke, width, fill, dashes, cap, join, clip, hatch] = pack.styles[number];
  if (clip) { c.beginPath(); c.rect(...clip); c.clip(); }
  Object.assign(c, {strokeStyle: stroke, lineWidth: width, lineCap: cap, lineJoin: join});
  c.setLineDash(dashes);
  return shape => {
    if (fill) { c.fillStyle = fill; c.fill(shape); }
    if (hatch) hatched(c, shape, hatch);
    if (stroke) c.stroke(shape);
  };
}

function bring(figure, pack) {
  const form = figure.querySelector("form"), caption = figure.querySelector("figcaption");
  const canvas = document.createElement("canvas"), c = canvas.getContext("2d");
  const inputs = pack.controls.map(({name}) => form.elements.namedItem(name)); // [name] fails for one called length
  const sizes = pack.controls.map(({words}) => words.length), states = sizes.reduce((a, b) => a * b);
  pack.shapes = pack.markers.map(parts => parts.map(part => path(part, FINE)));
  for (const sentence of pack.sentences) sentence.numbers = sentence.numbers.map(column => column.split(" "));
  const seen = pack.sentences.map(() => 0), nth = pack.sentence.map(sentence => seen[sentence]++);
  let again = 0, frame = 0, clock = 0;

  const state = () => inputs.reduce((flat, input, i) => flat * sizes[i] + Number(input.value), 0);
  const paint = () => {
    const scale = canvas.clientWidth * devicePixelRatio / pack.size[0];
    if (!scale) return;
    [canvas.width, canvas.height] = pack.size.map(side => Math.round(side * scale));
    const lists = [pack.still[pack.on[frame]], ...pack.slots.map(({of, lists}) => lists[of[frame]])];
    for (const op of lists.flat()) {
      c.setTransform(scale, 0, 0, scale, 0, 0);
      c.save();
      draw[op[0]](c, pack, op);
      c.restore();
    }
  };
  const show = (number, readouts) => {
    frame = number;
    const {text, numbers} = pack.sentences[pack.sentence[frame]];
    const words = text.reduce((said, part, i) => said + numbers[i - 1][nth[frame]] + part);
    if (caption.textContent !== words) caption.textContent = words; // else it would be announced again
    inputs.forEach((input, i) => {
      if (input.type !== "range") return;
      const said = readouts ? readouts[i] : pack.controls[i].words[input.value];
      input.nextElementSibling.textContent = said;
      input.setAttribute("aria-valuetext", said);
    });
    paint();
  };
  const update = () => {
    const place = again * states + state(), [disabled, ends] = pack.metas[pack.meta[place]];
    inputs.forEach((input, i) => {
      for (const one of input.type ? [input] : input) one.disabled = disabled[i]; // a slider, or radio buttons
      if (input.type === "range") input.max = ends[i]; // a value above falls, as in the notebook
    });
    show(pack.index[place]);
  };
  const put = flat => {
    for (let i = inputs.length - 1; i >= 0; flat = Math.floor(flat / sizes[i--])) {
      if (inputs[i].type === "range") inputs[i].max = sizes[i] - 1;
      inputs[i].value = flat % sizes[i];
    }
  };
  const play = on => {
    const button = form.querySelector("[data-play]"), [slider] = inputs;
    clock = clearInterval(clock);
    if (button) button.textContent = on ? "Pause" : "Play";
    if (!on) return;
    if (slider.value === slider.max) slider.value = 0;
    const speed = form.elements.namedItem("speed");
    clock = setInterval(() => {
      update(slider.stepUp());
      if (slider.value === slider.max) play(false);
    }, speed ? 1000 / speed.value : pack.interval);
  };

  form.addEventListener("input", ({target}) => target.name === "speed" ? clock && play(true) : update());
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { // after the form's own
    again = 0;
    play(false);
    put(pack.start); // limits may have moved since
    update();
  }));
  form.addEventListener("click", ({target: {dataset}}) => {
    if ("again" in dataset) { again = (again + 1) % pack.draws; update(); }
    if ("play" in dataset) play(!clock);
    if (!dataset.to) return;
    const to = pack.buttons[dataset.to][state()], [beside, near = to, readouts] = pack.beside[-1 - to] ?? [];
    put(near);
    update();
    if (to < 0) show(beside, readouts);
  });
  Object.assign(canvas, {role: "img", ariaLabel: figure.querySelector("img").alt}).style.aspectRatio = pack.size.join(" / ");
  figure.querySelector("img").replaceWith(canvas);
  Object.assign(caption, {role: "status", ariaLive: "polite"});
  new ResizeObserver(paint).observe(canvas);
  form.firstElementChild.disabled = false;
  Promise.allSettled(pack.fonts.map(font => document.fonts.load(font))).then(update).then(() => figure.dataset.live = "");
}

function excuse(figure, why) {
  figure.querySelector("form").hidden = true;
  const words = {className: "fewer", textContent: `The picture stands still: ${why}`};
  figure.append(Object.assign(document.createElement("p"), words));
}

window.explorerPack = async text => { // JSON, compressed, in base64
  const {figure} = document.currentScript, bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  bring(figure, await new Response(stream).json());
};
const near = new IntersectionObserver(entries => {
  for (const {target} of entries.filter(entry => entry.isIntersecting)) {
    near.unobserve(target);
    const onerror = () => excuse(target, `${target.dataset.pack} could not be loaded.`);
    const script = document.createElement("script"); // not fetch, which refuses a page opened from a folder
    document.head.append(Object.assign(script, {figure: target, src: target.dataset.pack, onerror}));
  }
}, {rootMargin: "800px"});
for (const figure of document.querySelectorAll("figure.explorer")) {
  figure.querySelector("form").hidden = false;
  if (window.DecompressionStream) near.observe(figure);
  else excuse(figure, "this browser is older than what its sliders need, DecompressionStream (2023).");
}
}
