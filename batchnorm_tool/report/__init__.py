"""Pages and charts about runs and comparisons: inline SVG, one HTML document, text for terminals.

Nothing here reads a file or prints: every function takes data and returns text. `summary` and
`comparison_summary` serve the terminal; `run_page`, `comparison_page` and `diff_page` make the HTML
pages, of sections and of charts with their numbers; `svg`, `page`, `plot`, `scale`, `markup`,
`series` and `bins` lie below them and know nothing of runs.
"""
