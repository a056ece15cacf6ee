"""Pages and charts about runs and comparisons: inline SVG, one HTML document, text for terminals.

Nothing here reads a file or prints: every function takes data and returns text. The files
`text_*` serve the terminal; `run_page`, `compare_page`, `diff_page` and `history_page` make the
HTML pages, of sections and of charts with their numbers; `svg`, `page`, `axes`, `markup` and `bins`
lie below them and know nothing of runs.
"""
