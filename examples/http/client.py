"""Ask a server for recommendations, and for the probabilities of some items, with the standard library."""

import json
import sys
import urllib.request

server = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8080"
user = sys.argv[2] if len(sys.argv) > 2 else "u17"


def ask(path: str, request: dict) -> dict:
    """POST a JSON object; the answer's. Raises `urllib.error.HTTPError`: 503 until the first version has arrived."""
    body = json.dumps(request).encode()
    posted = urllib.request.Request(server + path, body, {"content-type": "application/json"})
    with urllib.request.urlopen(posted, timeout=10) as answer:
        return json.load(answer)


recommended = ask("/recommend", {"user": user, "k": 5})
epoch, number = recommended["version"]["epoch"], recommended["version"]["number"]
print(f"weights {epoch}/{number}; the newest action that they learned is {recommended['freshness_s']} s old")
for place, each in enumerate(recommended["items"], start=1):
    print(f"{place}. {each['item']}  {each['score']:.3f}")

ranked = ask("/rank", {"user": user, "items": [each["item"] for each in recommended["items"]]})
for each in ranked["items"]:
    print(each["item"], {kind: round(probability, 3) for kind, probability in each["probabilities"].items()})
