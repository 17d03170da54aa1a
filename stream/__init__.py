"""The Faust app and its agent, the outbox relay, and producers. Read `app`, then `partition`, `claim` and `relay`."""
