"""One pass over the stream: predict, learn, checkpoint, publish.

Read first: ``step.py`` (what happens to a batch), ``loop.py`` (where batches come from and what follows a step),
``checkpoint.py`` with ``journal.py`` (how a killed trainer resumes bit-equal), ``publisher.py`` with ``snapshot.py``
(what servers get); and ``model/hstu.py`` for the model.
"""
