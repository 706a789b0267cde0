// Opens a report in headless Chromium and prints, as JSON, what happens there.
//   node check.js CHROMIUM REPORT.html [FOLDER for screenshots]
'use strict';
const fs = require('fs');
const os = require('os');
const path = require('path');
const {pathToFileURL} = require('url');
const {chromium} = require('playwright-core');
const axe = fs.readFileSync(require.resolve('axe-core'), 'utf8');

const [executablePath, report, screenshots] = process.argv.slice(2);
const QUIET = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync'];

// Where the points of the animated charts are drawn.
const points = (page) => page.$$eval(
  'figure:has(input[data-slider]) .mark-symbol.role-mark path[transform]',
  (marks) => marks.map((mark) => mark.getAttribute('transform')));

// The middle of a point that no other mark lies on.
const uncovered = () => {
  const marks = document.querySelectorAll(
    'figure:has(input[data-slider]) .mark-symbol.role-mark path[transform]');
  for (const mark of marks) {
    const box = mark.getBoundingClientRect();
    const middle = [box.x + box.width / 2, box.y + box.height / 2];
    if (document.elementFromPoint(...middle) === mark) return middle;
  }
  throw new Error('every point is covered');
};

async function ready(page, theme) {
  await page.waitForFunction((wanted) => document.documentElement.dataset.ready === wanted, theme,
    {timeout: 120000});
}

async function shoot(page, theme) {
  if (!screenshots) return;
  await page.screenshot({path: path.join(screenshots, `${theme}_top.png`)});
  const sections = await page.$$('main > section');
  for (const [i, section] of sections.entries()) {
    await section.screenshot({path: path.join(screenshots, `${theme}_${i}.png`)});
  }
}

async function accessibility(page) {
  await page.evaluate(axe);
  const result = await page.evaluate(() => window.axe.run());
  const {passes, violations} = result;
  return {
    score: 100 * passes.length / (passes.length + violations.length),
    passes: passes.length,
    violations: violations.map(({id, impact, nodes}) => (
      {id, impact, nodes: nodes.slice(0, 5).map((node) => node.html.slice(0, 200))})),
  };
}

async function main() {
  const profile = fs.mkdtempSync(path.join(os.tmpdir(), 'report-'));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath, headless: true, args: QUIET, colorScheme: 'light',
    viewport: {width: 1280, height: 900},
  });
  const found = {console: [], requests: []};
  try {
    const page = context.pages()[0];
    page.on('console', (message) => {
      if (['error', 'warning'].includes(message.type())) found.console.push(message.text());
    });
    page.on('pageerror', (error) => found.console.push(String(error)));
    page.on('request', (request) => {
      const url = request.url();
      if (url !== pathToFileURL(report).href && !/^(data|blob):/.test(url)) {
        found.requests.push(url);
      }
    });
    await page.goto(pathToFileURL(report).href);
    await ready(page, 'light');
    found.charts = await page.$$eval('.chart svg', (charts) => charts.length);

    const slider = page.locator('input[data-slider]').first();
    const settled = () => page.waitForTimeout(900);
    found.before = await points(page);
    await slider.focus();
    await page.keyboard.press('ArrowRight');
    await settled();
    found.keyboard = await slider.evaluate(
      (element) => [element.valueAsNumber, element.getAttribute('aria-valuetext')]);
    found.after = await points(page);
    await page.keyboard.press('End');
    await settled();
    found.last = await points(page);

    await slider.scrollIntoViewIfNeeded();
    const [x, y] = await page.evaluate(uncovered);
    await page.mouse.move(x, y);
    await page.waitForSelector('#vg-tooltip-element img', {timeout: 5000});
    found.tooltip = await page.$eval('#vg-tooltip-element img',
      (image) => [image.naturalWidth, image.src.slice(0, 10)]);
    await page.mouse.move(0, 0);

    await page.$$eval('details', (all) => all.forEach((element) => { element.open = true; }));
    found.light = await accessibility(page);
    await page.$$eval('details', (all) => all.forEach((element) => { element.open = false; }));
    await shoot(page, 'light');
    await page.emulateMedia({colorScheme: 'dark'});
    await ready(page, 'dark');
    found.dark = await accessibility(page);
    found.kept = await points(page);
    await shoot(page, 'dark');
    await page.locator('#theme').press('Enter');  // from 'system' to 'light'
    await ready(page, 'light');
    found.toggled = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    await page.setViewportSize({width: 390, height: 800});
    found.overflow = await page.evaluate(
      () => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    if (screenshots) await page.screenshot({path: path.join(screenshots, 'narrow.png')});
  } catch (error) {
    throw new Error(`${error}\nconsole: ${found.console.join('\n')}`);
  } finally {
    await context.close();
    fs.rmSync(profile, {recursive: true, force: true});
  }
  console.log(JSON.stringify(found));
}

main().catch((error) => { console.error(error); process.exit(1); });
