// Opens the pages of the site in headless Chromium and prints, as JSON, what happens there.
//   node site.js CHROMIUM http://127.0.0.1:PORT/ PAGES, as JSON [FOLDER for screenshots]
'use strict';
const fs = require('fs');
const os = require('os');
const path = require('path');
const {chromium} = require('playwright-core');
const axe = fs.readFileSync(require.resolve('axe-core'), 'utf8');

const [executablePath, site, pages, screenshots] = process.argv.slice(2);
const QUIET = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync'];
const SIZES = {desktop: {width: 1280, height: 900}, phone: {width: 390, height: 844}};

async function accessibility(page) {
  await page.evaluate(axe);
  const {passes, violations} = await page.evaluate(() => window.axe.run());
  return {passes: passes.length, violations: violations.map(({id, impact, nodes}) => (
    {id, impact, nodes: nodes.slice(0, 5).map((node) => node.html.slice(0, 200))}))};
}

async function main() {
  const profile = fs.mkdtempSync(path.join(os.tmpdir(), 'site-'));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath, headless: true, args: QUIET, colorScheme: 'light', viewport: SIZES.desktop,
  });
  const found = {console: [], requests: [], pages: {}};
  try {
    const page = context.pages()[0];
    page.on('console', (message) => {
      if (['error', 'warning'].includes(message.type())) found.console.push(message.text());
    });
    page.on('pageerror', (error) => found.console.push(String(error)));
    page.on('request', (request) => {
      if (!request.url().startsWith(site) && !/^(data|blob):/.test(request.url())) {
        found.requests.push(request.url());
      }
    });
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
        one.overflow = await page.evaluate(
          () => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      }
    }
    // The search finds a word without any server but the site's.
    await page.setViewportSize(SIZES.desktop);
    await page.goto(`${site}index.html`);
    await page.locator('input[data-md-component="search-query"]').fill('multi_scale');
    await page.waitForSelector('.md-search-result__item', {timeout: 20000});
    found.results = await page.locator('.md-search-result__item').count();
  } catch (error) {
    throw new Error(`${error}\nconsole: ${found.console.join('\n')}`);
  } finally {
    await context.close();
    fs.rmSync(profile, {recursive: true, force: true});
  }
  console.log(JSON.stringify(found));
}

main().catch((error) => { console.error(error); process.exit(1); });
