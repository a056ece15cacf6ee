"""What is measured, each a small script: ``python -m benchmarks.contenders.NAME JSON``.

Each does one piece of work and prints, as its last line, a JSON object with ``body_seconds`` and
``body_cpu_seconds``: what the work itself took, without imports and without loading a model. With
``peak_rss_bytes`` it tells what memory the whole process took until then, imports included.
"""
