"""The admin API from a shell: ``realtime-router ctl …`` and ``realtime-router top``.

    commands.py    arguments; client.py the requests; tables.py documents as tables; screen.py what ``top`` shows, and its loop

``commands`` is loaded with every start of the program, so it imports nothing but click; the rest is loaded when a command runs.
"""
