"""Serving: follow the weights topic, keep newest histories, answer over HTTP from one whole version at a time.

    versions ─▶ model, search ─▶ answering ─▶ http
    users ──────────────────────────┘

Read first: ``versions/subscriber.py`` (how a version arrives), ``versions/manager.py`` (how it is swapped in),
``answering/engine.py`` (what is computed for a request), ``service.py`` and ``http/app.py`` (how it is asked).
"""
