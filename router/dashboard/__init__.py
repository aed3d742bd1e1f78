"""The dashboard: one page for operators, its login, and the playground's sessions.

    login.py    the cookie, the token against forged requests, the playground's tickets, the brake on guessing; no I/O
    files.py    what is in ``static/``, read once
    pages.py    the routes
    static/     HTML, CSS and ES modules as the browser gets them: no build step, nothing from elsewhere

Everything the page shows comes from the admin API, by the same requests that a program makes.
"""
