// What wide tables and code hide can be reached and scrolled to with the keyboard, too.
document$.subscribe(() => {
  document.querySelector('.md-search')?.setAttribute('aria-label', 'Search');
  for (const box of document.querySelectorAll('.md-typeset__scrollwrap, .highlight code')) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
});
