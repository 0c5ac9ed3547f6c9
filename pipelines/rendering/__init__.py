"""A list of jobs becomes a folder of pictures: each made once, whatever happens meanwhile.

Its rooms' concepts, one per file: a job (``job``), the file that lists jobs (``listing``), grids (``axes``), names of
pictures (``names``), what decides a picture (``identity``), which are done (``finished``), who draws which
(``claims``), what happened (``manifest``), the drawing itself (``bench``), and the engines (``local``, ``ray_engine``).
"""

from __future__ import annotations
