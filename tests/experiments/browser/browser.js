// A page in headless Chromium: what it complains of, what it asks for, and its accessibility.
'use strict';
const fs = require('fs');
const os = require('os');
const path = require('path');
const {chromium} = require('playwright-core');
const axe = fs.readFileSync(require.resolve('axe-core'), 'utf8');

const QUIET = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync'];

async function accessibility(page) {
  await page.evaluate(axe);
  const {passes, violations} = await page.evaluate(() => window.axe.run());
  return {
    score: 100 * passes.length / (passes.length + violations.length),
    passes: passes.length,
    violations: violations.map(({id, impact, nodes}) => (
      {id, impact, nodes: nodes.slice(0, 5).map((node) => node.html.slice(0, 200))})),
  };
}

// By how many pixels the page is wider than the window.
const overflow = (page) => page.evaluate(
  () => document.documentElement.scrollWidth - document.documentElement.clientWidth);

async function visit(executablePath, isOwn, look) {
  const profile = fs.mkdtempSync(path.join(os.tmpdir(), 'browser-'));
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
      if (!isOwn(url) && !/^(data|blob):/.test(url)) found.requests.push(url);
    });
    await look(page, found);
  } catch (error) {
    throw new Error(`${error}\nconsole: ${found.console.join('\n')}`);
  } finally {
    await context.close();
    fs.rmSync(profile, {recursive: true, force: true});
  }
  return found;
}

// Prints, as JSON, what a function `look` of the page finds, and what the browser does.
function report(executablePath, isOwn, look) {
  visit(executablePath, isOwn, look).then(
    (found) => console.log(JSON.stringify(found)),
    (error) => { console.error(error); process.exit(1); });
}

module.exports = {accessibility, overflow, report};
