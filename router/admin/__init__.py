"""What operators see and do over HTTP: groups and deployments, sessions, decisions, the configuration, the fleet.

    routes.py      requests under ``/admin/``: key, body, query; answers and errors
    bodies.py      what a request may say; documents.py what an answer says; openapi.py both as an OpenAPI document
    desk.py        a question or an act by name, in one process: views.py what it knows, acts.py what it does
    merge.py       the answers of several workers as one; overrides.py what a worker that begins must be told
    contract.py    the seams between these and the rest

A question is a name and plain JSON, so that it can be put to this process or, through the parent, to every worker. Nothing here
is on a session's path.
"""
