"""Show that the tool keeps its promises of speed and memory, against what people use instead.

``python -m benchmarks`` makes data, runs the tool and the others in turn in one sitting, checks
that their outputs agree, and prints and saves a table. Every measured thing is a process of its
own: see `benchmarks.contenders`.
"""
