'use strict';
const filters = [...document.querySelectorAll('.filters [data-by]')];
const search = document.getElementById('search');
const shown = document.getElementById('shown');
const entries = [...document.querySelectorAll('article.entry')];
const words = entries.map(e => [...e.querySelectorAll('.said')].map(s => s.textContent).join(' ').toLowerCase());

function filter() {
  const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  entries.forEach((entry, i) => {
    const fits = filters.every(f => f.value === '' || entry.getAttribute('data-' + f.getAttribute('data-by')) === f.value.slice(1));
    entry.hidden = !(fits && wanted.every(w => words[i].includes(w)));
    count += !entry.hidden;
  });
  shown.textContent = count + ' of ' + entries.length + ' shown';
}

// '0-2, 64' to [0, 1, 2, 64].
function numbers(ranges) {
  return ranges.split(', ').flatMap(r => {
    const [first, last] = r.split('-').map(Number);
    return Array.from({length: (last ?? first) - first + 1}, (_, i) => first + i);
  });
}

// A row that stands for a run of patches: the rows themselves, made when they are asked for.
function unfold(button) {
  const row = button.closest('tr');
  const open = button.getAttribute('aria-expanded') !== 'true';
  button.setAttribute('aria-expanded', open);
  if (!open) {
    while (row.nextElementSibling && row.nextElementSibling.classList.contains('inside')) row.nextElementSibling.remove();
    return;
  }
  const cells = [...row.cells];
  const varying = cells.map(c => c.hasAttribute('data-each') ? numbers(c.getAttribute('data-each')) : null);
  const count = Number(row.getAttribute('data-count'));
  for (let i = count - 1; i >= 0; i--) {
    const made = document.createElement('tr');
    made.className = row.className.replace('run', 'inside');
    cells.forEach((cell, c) => {
      const td = document.createElement('td');
      td.textContent = varying[c] ? varying[c][i] : cell.getAttribute('data-one') ?? cell.textContent;
      made.append(td);
    });
    row.after(made);
  }
}

filters.forEach(f => f.addEventListener('change', filter));
search.addEventListener('input', filter);
document.addEventListener('click', e => {
  if (e.target.matches('button.unfold')) unfold(e.target);
});
filter();
