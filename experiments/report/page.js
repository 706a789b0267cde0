'use strict';
(() => {
  const themes = JSON.parse(document.getElementById('themes').textContent);
  const system = matchMedia('(prefers-color-scheme: dark)');
  const still = matchMedia('(prefers-reduced-motion: reduce)');
  const specs = [...document.querySelectorAll('script[data-chart]')].map(
    (element) => [element.dataset.chart, JSON.parse(element.textContent)]);
  const views = new Map();
  const position = new Map();  // of each slider, as the chart shows it
  let chosen = 'system';

  const current = () => (chosen === 'system' ? (system.matches ? 'dark' : 'light') : chosen);

  async function draw() {
    const theme = current();
    document.documentElement.dataset.theme = theme;
    for (const [name, spec] of specs) {
      const result = await vegaEmbed(`#chart-${name}`, structuredClone(spec), {
        actions: false, renderer: 'svg', config: themes[theme], tooltip: {theme},
      });
      // The figure's text speaks for the picture.
      document.querySelector(`#chart-${name} svg`).setAttribute('aria-hidden', 'true');
      views.get(name)?.finalize();
      views.set(name, result);
      if (position.has(name)) await show(name, position.get(name));
    }
    document.documentElement.dataset.ready = theme;
  }

  async function show(name, at) {
    position.set(name, at);
    await views.get(name)?.view.signal('step', at).runAsync();
  }

  // The points travel from where they are to a step, unless the reader wants no motion.
  function travel(name, to, milliseconds = 450) {
    const from = position.get(name);
    const run = (travel.run = (travel.run ?? 0) + 1);
    if (still.matches) return show(name, to);
    return new Promise((resolve) => {
      const start = performance.now();
      const frame = async (now) => {
        if (run !== travel.run) return resolve(false);
        const part = Math.min(1, Math.max(0, (now - start) / milliseconds));
        await show(name, from + (to - from) * part * part * (3 - 2 * part));
        if (part < 1) requestAnimationFrame(frame); else resolve(true);
      };
      requestAnimationFrame(frame);
    });
  }

  for (const slider of document.querySelectorAll('input[data-slider]')) {
    const name = slider.dataset.slider;
    const steps = slider.dataset.steps.split('|');
    const output = document.getElementById(`output-${name}`);
    const button = document.getElementById(`play-${name}`);
    let playing = false;
    position.set(name, 0);

    const label = () => {
      const step = steps[slider.valueAsNumber];
      const text = step.includes('.') ? `block ${step}` : step;
      output.textContent = text;
      slider.setAttribute('aria-valuetext', text);
    };
    const stop = () => { playing = false; button.textContent = 'Play'; };
    slider.addEventListener('input', () => {
      stop();
      label();
      travel(name, slider.valueAsNumber);
    });
    button.addEventListener('click', async () => {
      if (playing) return stop();
      playing = true;
      button.textContent = 'Pause';
      if (slider.valueAsNumber === steps.length - 1) {
        slider.value = 0;
        label();
        await travel(name, 0);
      }
      while (playing && slider.valueAsNumber < steps.length - 1) {
        slider.value = slider.valueAsNumber + 1;
        label();
        await travel(name, slider.valueAsNumber, 900);
        await new Promise((resolve) => setTimeout(resolve, 350));
      }
      stop();
    });
    label();
  }

  const button = document.getElementById('theme');
  button.addEventListener('click', () => {
    const order = ['system', 'light', 'dark'];
    chosen = order[(order.indexOf(chosen) + 1) % order.length];
    document.getElementById('theme-name').textContent = chosen;
    queue();
  });
  system.addEventListener('change', () => { if (chosen === 'system') queue(); });

  // One drawing at a time; the last wish counts.
  let running = Promise.resolve();
  function queue() { running = running.then(draw); }
  queue();
})();
