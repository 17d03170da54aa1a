"""One pass over the stream: predict, learn, checkpoint, publish.

    sources ─▶ examples ─▶ learner (network, metrics, ranks) ─▶ copies ─▶ checkpoint
                                                                       └▶ versions

Read first: ``learner/step.py`` (what happens to a batch), ``loop.py`` (where batches come from, what follows a step),
``checkpoint/folder.py`` with ``checkpoint/journal.py`` (how a killed trainer resumes bit-equal),
``versions/publisher.py`` with ``checkpoint/snapshot.py`` (what servers get); and ``model/hstu.py`` for the model.
"""
