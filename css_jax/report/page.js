'use strict';
// Sorts a table by the column whose heading is pressed; again, the other way round.
for (const table of document.querySelectorAll('table.sortable')) {
  const headings = [...table.querySelectorAll('thead th')];
  headings.forEach((heading, column) => {
    heading.querySelector('button').addEventListener('click', () => {
      const ascending = heading.getAttribute('aria-sort') !== 'ascending';
      const value = (row) => row.cells[column].dataset.value;
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
        const numbers = !Number.isNaN(Number(x)) && !Number.isNaN(Number(y));
        const order = numbers ? Number(x) - Number(y) : x.localeCompare(y);
        return ascending ? order : -order;
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(compare));
      headings.forEach((other) => other.removeAttribute('aria-sort'));
      heading.setAttribute('aria-sort', ascending ? 'ascending' : 'descending');
    });
  });
}
