// Opens the pages of the site in headless Chromium and prints, as JSON, what happens there.
//   node site.js CHROMIUM http://127.0.0.1:PORT/ PAGES, as JSON [FOLDER for screenshots]
'use strict';
const path = require('path');
const {accessibility, overflow, report} = require('./browser');

const [executablePath, site, pages, screenshots] = process.argv.slice(2);
const SIZES = {desktop: {width: 1280, height: 900}, phone: {width: 390, height: 844}};

async function look(page, found) {
  found.pages = {};
  for (const name of JSON.parse(pages)) {
    const one = found.pages[name] = {};
    for (const theme of ['light', 'dark']) {
      await page.emulateMedia({colorScheme: theme});
      await page.setViewportSize(SIZES.desktop);
      await page.goto(site + name, {waitUntil: 'load'});
      await page.waitForTimeout(300);  // colours fade in
      one[theme] = await accessibility(page);
      one[theme].background = await page.evaluate(
        () => getComputedStyle(document.body).backgroundColor);
      for (const [size, viewport] of Object.entries(SIZES)) {
        await page.setViewportSize(viewport);
        if (screenshots) {
          const file = `${name.replace(/\W/g, '_')}_${theme}_${size}.png`;
          await page.screenshot({path: path.join(screenshots, file)});
        }
      }
      one.overflow = await overflow(page);
    }
  }
  // The search finds a word without any server but the site's. It is typed key by key: a value that
  // is set at once, while the index becomes ready, is not searched for.
  await page.setViewportSize(SIZES.desktop);
  await page.goto(`${site}index.html`);
  await page.locator('input[data-md-component="search-query"]').pressSequentially('multi_scale');
  await page.waitForSelector('.md-search-result__item', {timeout: 120000});
  found.results = await page.locator('.md-search-result__item').count();
}

report(executablePath, (url) => url.startsWith(site), look);
