// Opens a report in headless Chromium and prints, as JSON, what happens there.
//   node check.js CHROMIUM REPORT.html [FOLDER for screenshots]
'use strict';
const path = require('path');
const {pathToFileURL} = require('url');
const {accessibility, overflow, report} = require('./browser');

const [executablePath, file, screenshots] = process.argv.slice(2);
const own = pathToFileURL(file).href;

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

async function look(page, found) {
  await page.goto(own);
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
  await page.waitForSelector('#vg-tooltip-element img', {timeout: 60000});
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
  found.overflow = await overflow(page);
  if (screenshots) await page.screenshot({path: path.join(screenshots, 'narrow.png')});
}

report(executablePath, (url) => url === own, look);
