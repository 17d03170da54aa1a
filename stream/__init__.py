"""The Faust app and its agent, restore, relay, and producers. Read `app`, then `partition`, `restore` and `relay`."""
